"""Segmentation networks: built, given weights, written to a folder (``segment.saved``) and loaded again.

A ``SegmentationNet`` takes pictures as they are (RGB, 0-255) and standardises them itself, so that training, test
time and export need to know nothing of the architecture but its logits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tag2mask.models.deeplab import MultiScale
from tag2mask.models.public_resnet import OWN
from tag2mask.models.state import fit_state
from tag2mask.run.device import find_device
from tag2mask.segment.architectures import ARCHITECTURES, Architecture, find_architecture, read_options
from tag2mask.segment.options import LATER, RANDOM, Options
from tag2mask.segment.saved import (
    MODEL_TYPE,
    WEIGHTS,
    NetworkConfig,
    SavedNetwork,
    find_network,
    read_saved,
    write_saved,
)
from tag2mask.segment.schedule import conv_groups, even_groups
from tag2mask.types import MAX_CLASSES, UserError

__all__ = [
    "ARCHITECTURES",
    "SegmentationNet",
    "build_network",
    "check_network_classes",
    "fill_network",
    "load_network",
    "save_network",
]


class SegmentationNet(nn.Module):
    """A network with its pixel statistics and its classes.

    config: with all options written out. network: the bare module. align_corners: how its logits are to be enlarged.
    pretrained: it did not start from random weights, so that its head learns faster than the rest.
    """

    def __init__(
        self, config: NetworkConfig, network: nn.Module, kind: Architecture, options: Options, pretrained: bool
    ) -> None:
        super().__init__()
        self.config = config
        self.network = network
        self.align_corners: bool = getattr(network, "align_corners", False)
        self.pretrained = pretrained
        self._kind = kind
        self._options = options

    @property
    def towers(self) -> tuple[str, ...]:
        """Beginnings of the names of frozen towers' weights, which are not saved."""
        return tuple(f"network.{name}." for name in self._kind.towers_of(self._options))

    @property
    def matches(self) -> bool:
        """Whether a second output in training is matching scores."""
        return self._kind.matches

    def check_crop(self, crop: int) -> None:
        """Raises UserError where training images of that side do not fit the network."""
        self._kind.check_crop(crop, self.network)

    def forward(self, images: Tensor) -> Any:
        """Logits of pictures.

        Args:
            images: (B, 3, H, W) uint8 or float, RGB, 0-255.

        Returns:
            (B, K, h, w) float. In training it may be a list of such, of several sizes, each for a loss of its own.
        """
        return self.network(self.standardise(images))

    def standardise(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) RGB 0-255 as the bare network takes them, of the same shape."""
        return self._kind.pixels(images, self._options)

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Groups for ``torch.optim``, each with ``lr``, ``initial_lr`` and ``weight_decay``.

        DeepLabs: backbone at 1x, its biases at 2x, head at 10x, its biases at 20x (``segment.schedule.conv_groups``).
        CCT: backbone at 1x, the rest at 10x, everything decays.
        WeakCLIP: everything at 1x decays, and what is held is at 0.
        Others: norms, biases and positions do not decay; the head is at 10x where the network is pretrained.
        """
        inner: Any = self.network.network if isinstance(self.network, MultiScale) else self.network
        if self._kind.groups == "convolutions":
            return conv_groups(inner.backbone, inner.head, lr, weight_decay)
        if self._kind.groups == "even":
            held = tuple(f"{name}." for name in self._kind.held(self._options))
            return even_groups(self.network, held, lr, weight_decay)
        tenfold = self._kind.groups == "tenfold"
        backbone = {id(parameter) for parameter in inner.backbone.parameters()}
        found: dict[tuple[bool, bool], list[Tensor]] = {}
        for name, parameter in inner.named_parameters():
            if parameter.requires_grad:
                decays = tenfold or (parameter.ndim > 1 and "position" not in name)
                found.setdefault((id(parameter) not in backbone, decays), []).append(parameter)
        groups = []
        for (head, decays), parameters in found.items():
            rate = lr * (10 if head and (tenfold or self.pretrained) else 1)
            decay = weight_decay if decays else 0.0
            groups.append({"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay})
        return groups


def build_network(
    config: NetworkConfig, *, init: str | None = None, seed: int = 0, towers: Mapping[str, Any] | None = None
) -> SegmentationNet:
    """A network to be trained, on the processor, in training mode.

    Args:
        config: what it is.
        init: where its weights come from. None or "random": drawn by ``seed``. "small" and CCT's: a public ResNet
            checkpoint, "storybook-resnet", or a folder of ``storybook pretrain-resnet``. DeepLabs: a public one,
            of which the backbone is taken, or "whole:PATH" with its head too. "weakclip": a released checkpoint.
            "transformers:...": "pretrained". For all: a folder that ``save_network`` wrote, of the same architecture
            and classes. What the recipes start from by default is ``ARCHITECTURES[name].init``.
        seed: of whatever is drawn; the caller's own dice are left alone.
        towers: frozen towers at hand, {"clip": ...}, that are not loaded again.

    Raises:
        UserError: an unknown architecture or option, impossible classes, or weights that are missing or do not fit.
    """
    kind = find_architecture(config.architecture)
    options = read_options(config.architecture, config.options)
    names = config.names
    if not 2 <= len(names) <= MAX_CLASSES + 1 or names[0] != "background" or len(config.palette) != len(names):
        raise UserError(
            f"got {len(names)} classes ({', '.join(names[:4])}) and {len(config.palette)} colours; expected "
            f"background and 1 to {MAX_CLASSES} others, with a colour each"
        )
    source = RANDOM if init is None else init
    earlier = find_network(source) if source != RANDOM else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind.build(config.architecture, names, options, LATER if earlier else source, **_at_hand(towers))
    found: Mapping[str, Any] = getattr(network, "found_options", {})
    options = read_options(config.architecture, {**found, **config.options})
    config = replace(config, options=options.model_dump(mode="json"))
    net = SegmentationNet(config, network, kind, options, source != RANDOM)
    if earlier:
        fill_network(net, read_saved(earlier))
    return net.train()


def save_network(folder: Path | str, net: SegmentationNet, *, supervision: str, noted: Mapping[str, Any]) -> None:
    """Write config.json and model.safetensors; whatever moment it is killed at, the folder holds a whole network.

    Args:
        folder: made where it is missing; a network in it is replaced.
        net: its weights and buffers are kept bit by bit, counters of batch norms included; of frozen towers only
            what its options say.
        supervision: "tags", or "tags+pixels(n)".
        noted: of its making, such as the recipe and the step, and its ``SavedNetwork.test``; what ``plain`` takes.

    Raises:
        OSError: the disk is full or read-only.
    """
    import safetensors.torch

    # clones: safetensors refuses tensors that share memory
    state = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in net.state_dict().items()
        if not name.startswith(net.towers)
    }
    # the file alone tells, too: weights of either stride have the same shapes (models.public_resnet)
    inner: Any = net.network.network if isinstance(net.network, MultiScale) else net.network
    layout = getattr(getattr(inner, "backbone", None), "layout", None)
    kept = {
        "model_type": MODEL_TYPE,
        "architecture": net.config.architecture,
        "stride_at": None if layout is None else layout.stride_at,
        "supervision": supervision,
    }
    # one entry alone: safetensors writes several in an order that changes from call to call
    data = safetensors.torch.save(state, metadata={OWN: json.dumps(kept)})
    write_saved(Path(folder), net.config, data, supervision=supervision, noted=noted)


def _at_hand(towers: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"towers": towers} if towers else {}


def load_network(
    folder: Path | str | SavedNetwork, device: str = "auto", *, towers: Mapping[str, Any] | None = None
) -> SegmentationNet:
    """The network of a folder, in evaluation mode.

    Args:
        folder: that ``save_network`` wrote, or a training folder, which keeps one inside; or what ``read_saved`` said
            of it, for those very weights.
        device: as ``find_device`` takes it.
        towers: as ``build_network`` takes them.

    Raises:
        UserError: there is none, it is damaged, or its parts do not fit together; a training has meanwhile replaced
            the weights.
    """
    saved = folder if isinstance(folder, SavedNetwork) else read_saved(folder)
    options = read_options(saved.config.architecture, saved.config.options)
    kind = find_architecture(saved.config.architecture)
    with torch.random.fork_rng(devices=[]):
        network = kind.build(saved.config.architecture, saved.config.names, options, LATER, **_at_hand(towers))
    net = SegmentationNet(saved.config, network, kind, options, pretrained=True)
    fill_network(net, saved)
    return net.to(find_device(device)).eval()


def check_network_classes(config: NetworkConfig, names: tuple[str, ...], where: Path | str) -> None:
    """Logits mean nothing across class sets.

    Args:
        config: of the network.
        names: of the classes that are wanted, background first.
        where: the network's folder, for the message.

    Raises:
        UserError: the network is for other classes.
    """
    if config.names == names:
        return
    counted = len(config.names), len(names)
    pairs = enumerate(zip(config.names, names, strict=False))
    first = next((f"; class {i} is {a!r} there, {b!r} here" for i, (a, b) in pairs if a != b), "")
    raise UserError(
        f"{where}: is a network for {counted[0]} classes of {config.classes or 'its own'}, expected {counted[1]}"
        f"{first}; take a network that was trained on these classes, or the classes that it was trained on"
    )


def fill_network(net: SegmentationNet, saved: SavedNetwork) -> None:
    """Load a folder's weights, bit by bit, into a network of the same architecture and classes.

    Raises:
        UserError: another architecture or other classes; weights that do not fit, or were replaced meanwhile.
    """
    import safetensors.torch

    check_network_classes(saved.config, net.config.names, saved.path)
    if saved.config.architecture != net.config.architecture:
        raise UserError(
            f"{saved.path}: is a {saved.config.architecture}, expected a {net.config.architecture}; choose the "
            "architecture that it has"
        )
    data = (saved.path / WEIGHTS).read_bytes()
    if hashlib.sha256(data).hexdigest() != saved.sha256:  # what is noted of them would be of others
        raise UserError(f"{saved.path / WEIGHTS}: was replaced while it was read; give the same command again")
    state = safetensors.torch.load(data)
    fit_state(net, state, saved.path / WEIGHTS, net.towers)
    net.load_state_dict(state, strict=False)  # again, for the counters of batch norms, which others' files may lack
