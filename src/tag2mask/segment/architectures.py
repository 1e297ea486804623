"""The segmentation networks by name: their options, how each is built, and where its weights may come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from tag2mask.config import explain
from tag2mask.models.backbone import Layout, ResNet
from tag2mask.models.classifier import load_backbone, load_classifier, warn_of_weights
from tag2mask.models.clip import VisionTransformer
from tag2mask.models.decoders import CCT_RESNET50, CCTNet
from tag2mask.models.deeplab import CAFFE_RESNET101, SCALES, DeepLabV2, MultiScale, caffe_pixels, load_deeplab
from tag2mask.models.embedded import STORYBOOK_RESNET
from tag2mask.models.find_classifier import is_classifier, weights_file
from tag2mask.models.public_resnet import pixel_labels
from tag2mask.models.small import SmallNet
from tag2mask.models.tower import Positions
from tag2mask.models.weclip import WeCLIPNet
from tag2mask.models.wideresnet import DeepLabV1, load_wideresnet
from tag2mask.ops.image import MEAN, STD, standardise
from tag2mask.run.warn import warn
from tag2mask.segment.options import LATER, RANDOM, WITH_HEAD, Names, Options
from tag2mask.segment.weakclip import (
    WeakCLIPOptions,
    build_weakclip,
    refuse_parted,
    weakclip_held,
    weakclip_pixels,
    weakclip_towers,
)
from tag2mask.types import UserError
from tag2mask.words import did_you_mean

HUB = "transformers:"
"""Before the hub id or folder of a model that transformers builds."""


class SmallOptions(Options):
    """Of "small"."""

    width: int = Field(16, ge=1, description="channels after the ResNet's stem; storybook-resnet has 16")
    blocks: tuple[int, int, int, int] = Field((3, 4, 6, 3), description="bottlenecks in each stage of the ResNet")
    channels: int = Field(48, ge=3, description="channels of the head")


class DeepLabV2Options(Options):
    """Of "deeplabv2-resnet101"; the defaults are the published network."""

    width: int = Field(64, ge=1, description="channels after the ResNet's stem")
    blocks: tuple[int, int, int, int] = Field((3, 4, 23, 3), description="bottlenecks in each stage of the ResNet")
    scales: tuple[float, ...] = Field(SCALES, description="further scales, in training and test; empty: none")
    frozen_norm: bool = Field(True, description="norms do not learn; false where training starts from random weights")


class DeepLabV1Options(Options):
    """Of "deeplabv1-resnet38"; the defaults are WeakCLIP's network."""

    head: Literal["seam", "weakclip", "mctformer"] = Field(
        "seam", description="seam and weakclip (the same head), or mctformer"
    )
    width: int = Field(64, ge=1, description="channels of the first convolution")
    frozen_norm: bool = Field(True, description="norms do not learn; false where training starts from random weights")


class CCTOptions(Options):
    """Of "cct-resnet50"; the defaults are the published network."""

    width: int = Field(64, ge=1, description="channels after the ResNet's stem")
    blocks: tuple[int, int, int, int] = Field((3, 4, 6, 3), description="bottlenecks in each stage of the ResNet")
    stem: Literal["3x3", "7x7"] = Field("3x3", description="three convolutions as published, or one as torchvision's")


class CCTSmallOptions(CCTOptions):
    """Of "cct-small": as storybook-resnet."""

    width: int = Field(16, ge=1, description="channels after the ResNet's stem; storybook-resnet has 16")
    stem: Literal["3x3", "7x7"] = Field("7x7", description="three convolutions, or one as in storybook-resnet")


class WeCLIPOptions(Options):
    """Of "weclip", the decoder of WeCLIP and CD-CLIP; their fits write it."""

    clip: str = Field(
        description="the CLIP whose frozen image tower the decoder stands on: its name, or where it lies"
    )
    sha256: str = Field(description="sha256 of that CLIP's weights")
    dino: str | None = Field(
        None, description="the DINO whose tower the decoder stands on, too, as in WeCLIP+: its name, or where it lies"
    )
    dino_sha256: str = Field("", description="sha256 of that DINO's weights")
    activation: Literal["quick_gelu", "gelu"] = Field("quick_gelu", description="that it was trained with")
    width: int = Field(256, ge=8, multiple_of=8, description="channels of the decoder")
    blocks: int = Field(3, ge=1, description="transformer blocks of the decoder")
    heads: int = Field(8, ge=1, description="heads of each block")
    round_fp16: bool = Field(False, description="round positions to float16, as the released code does")
    mean: tuple[float, float, float] = Field(MEAN, description="means of red, green and blue in 0..1")
    std: tuple[float, float, float] = Field(STD, description="deviations of red, green and blue in 0..1")


class HubOptions(Options):
    """Of "transformers:..."."""

    model: dict[str, Any] | None = Field(None, description="the model's config.json; default: as found by its name")
    mean: tuple[float, float, float] = Field(MEAN, description="mean of red, green and blue in 0..1")
    std: tuple[float, float, float] = Field(STD, description="standard deviation of red, green and blue in 0..1")


@dataclass(frozen=True)
class Architecture:
    """One line of ``ARCHITECTURES``.

    build: (its name, class names, options, init) to the bare network, of random weights or with what ``init`` names.
    pixels: (images (B, 3, H, W) RGB 0-255, options) to what the network takes.
    groups: "convolutions": the parameter groups of DeepLab; "tenfold": CCT's, everything decays and all but the
        backbone is at 10x; "adamw": norms, biases and positions do not decay; "even": everything alike.
    init: where training starts from unless another is named.
    towers: parts of the bare network that are frozen towers. ``build`` loads them by what the options say of them
        (name and sha256), and they are not saved with the network. One that has any takes ``towers={name: tower}`` of
        those at hand, too. A function where the options decide.
    held: from the options, parts of "even" whose rate is 0, so that a floor of the schedule alone moves them.
    matches: in training a second output is matching scores, for the recipe's auxiliary loss alone.
    check_crop: (side of the training images, the bare network): raises UserError where they do not fit.
    """

    options: type[Options]
    build: Callable[..., nn.Module]
    pixels: Callable[[Tensor, Any], Tensor]
    groups: Literal["convolutions", "tenfold", "adamw", "even"]
    init: str = RANDOM
    towers: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    held: Callable[[Any], tuple[str, ...]] = lambda options: ()
    matches: bool = False
    check_crop: Callable[[int, Any], None] = lambda crop, network: None

    def towers_of(self, options: Any) -> tuple[str, ...]:
        """The frozen towers of a network with these options."""
        return self.towers(options) if callable(self.towers) else self.towers


def find_architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        UserError: there is none, with the nearest name.
    """
    if name.startswith(HUB) and name != HUB:
        return _HUB
    if name not in ARCHITECTURES:
        raise UserError(
            f"architecture {name!r} is not known{did_you_mean(name, ARCHITECTURES)}; known: "
            f"{', '.join(ARCHITECTURES)}, or transformers:NAME of a hub repository or folder"
        )
    return ARCHITECTURES[name]


def read_options(name: str, options: Mapping[str, Any]) -> Options:
    """The options of an architecture, checked and with its defaults filled in.

    Raises:
        UserError: an unknown option, with the nearest known one, or a value that does not fit.
    """
    kind = find_architecture(name)
    try:
        return kind.options(**options)
    except ValidationError as error:
        raise UserError(f"architecture {name}: {explain(error, kind.options)}") from None


def _standard(images: Tensor, options: Any) -> Tensor:
    return standardise(images, MEAN, STD)


def _build_small(name: str, names: Names, options: SmallOptions, init: str) -> nn.Module:
    layout = Layout(blocks=options.blocks, width=options.width, strides=(1, 2, 2, 1))
    network = SmallNet(len(names), layout, options.channels)
    _load_resnet(network.backbone, init)
    _start(network, names, init)
    # twice as quick on a processor
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _build_cct(name: str, names: Names, options: CCTOptions, init: str) -> nn.Module:
    network = CCTNet(len(names), replace(CCT_RESNET50, blocks=options.blocks, width=options.width, stem=options.stem))
    _load_resnet(network.backbone, init)
    _start(network, names, init)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _start(network: SmallNet | CCTNet, names: Names, init: str) -> None:
    """Take the class maps too where ``init`` is a classifier of ours: a public checkpoint has other classes."""
    if init not in (RANDOM, LATER) and is_classifier(init):
        network.start_from(load_classifier(init)[0], names)


def _load_resnet(backbone: ResNet, init: str) -> None:
    """Fill a ResNet with the weights of another one of the same shapes."""
    if init in (RANDOM, LATER):
        return
    warn_of_weights(init)
    own = backbone.layout
    same = {"strides": own.strides, "dilations": own.dilations, "first_dilations": own.first_dilations}
    source = load_backbone(init, **same)
    if source.layout != own:
        got, want = (f"width {x.width}, blocks {list(x.blocks)} and a {x.stem} stem" for x in (source.layout, own))
        raise UserError(f"init {init}: got a ResNet of {got}, expected {want}; set the options to those of the init")
    backbone.load_state_dict(source.state_dict())


def _build_deeplabv2(name: str, names: Names, options: DeepLabV2Options, init: str) -> nn.Module:
    layout = replace(CAFFE_RESNET101, blocks=options.blocks, width=options.width, frozen_norm=options.frozen_norm)
    network = DeepLabV2(len(names), layout)
    _load_public(network, options, init, name, len(names), load_deeplab)
    return MultiScale(network, options.scales) if options.scales else network


def _build_deeplabv1(name: str, names: Names, options: DeepLabV1Options, init: str) -> nn.Module:
    head: Literal["mctformer", "seam"] = "mctformer" if options.head == "mctformer" else "seam"
    network = DeepLabV1(len(names), head, width=options.width, frozen_norm=options.frozen_norm)
    _load_public(network, options, init, name, len(names), load_wideresnet)
    return network


def _load_public(
    network: Any, options: DeepLabV1Options | DeepLabV2Options, init: str, name: str, classes: int, load: Any
) -> None:
    """Fill a DeepLab from a public checkpoint, or warn that it will not learn from random weights."""
    if init in (RANDOM, LATER):
        if options.frozen_norm and init == RANDOM:
            warn(
                f"{name} starts from random weights with frozen norms, which hardly learns; name "
                "published weights as its init, or set frozen_norm=false"
            )
        return
    path = Path(init.removeprefix(WITH_HEAD)).expanduser()
    if not path.is_file():
        raise UserError(
            f"init {init}: there is no such file; expected a public checkpoint (.pth, .safetensors, .params), a "
            'network folder that `train` wrote, or "random"'
        )
    try:
        load(network, path, head=init.startswith(WITH_HEAD))
    except UserError as error:
        if not init.startswith(WITH_HEAD):
            raise
        raise UserError(
            f"{error} (its head must be for {classes} classes; without {WITH_HEAD!r} the head starts from random "
            "weights)"
        ) from error


def pixels_of_start(init: str, architecture: str) -> tuple[str, ...]:
    """What the supervision of first weights has beside tags, as ``public_resnet.pixel_labels`` says it, or ().

    Args:
        init: as ``build_network`` takes it, but for folders of networks, which say it themselves.
        architecture: its name.

    Raises:
        UserError: the weights cannot be read.
    """
    path = Path(init.removeprefix(WITH_HEAD)).expanduser()
    if path.is_dir():
        path = weights_file(path)
    if path.is_file() and path.suffix != ".params":  # MXNet's are ImageNet's classifier
        return pixel_labels(path)
    if architecture.startswith(HUB) and init == "pretrained":
        from tag2mask.models.hub_segmentation import learned_to_segment

        name = architecture.removeprefix(HUB)
        return (f"pixels(weights: {name.replace('+', '_')})",) if learned_to_segment(name) else ()
    return ()


def _build_hub(name: str, names: Names, options: HubOptions, init: str) -> nn.Module:
    from tag2mask.models.hub_segmentation import build_hub_network

    if init not in (RANDOM, LATER, "pretrained"):
        raise UserError(
            f'init {init}: expected "pretrained" or "random" for {name}, or a network folder that `train` wrote'
        )
    return build_hub_network(name.removeprefix(HUB), names, options.model, pretrained=init == "pretrained")


def _build_weclip(
    name: str, names: Names, options: WeCLIPOptions, init: str, *, towers: Mapping[str, Any] | None = None
) -> nn.Module:
    """WeCLIP's decoder of random weights.

    towers: loaded ones, which are taken instead of those of these names: {"clip": a CLIP, "dino": a DINO}.
    """
    from tag2mask.models.dino import load_structure
    from tag2mask.models.weights import load_vision

    if init not in (RANDOM, LATER):
        raise UserError(f'init {init}: the decoder of {name} starts from random weights; expected "random"')
    at_hand = (towers or {}).get("clip")
    tower: Any = (
        load_vision(options.clip, options.sha256, options.activation) if at_hand is None else at_hand.model.vision
    )
    if not isinstance(tower, VisionTransformer):
        raise UserError(f"{options.clip} is a ResNet, and the decoder stands on the blocks of a ViT; take a ViT")
    positions = Positions(round_fp16=options.round_fp16)
    how: Any = {"width": options.width, "blocks": options.blocks, "heads": options.heads}
    beside = (towers or {}).get("dino")
    dino = None if beside is None else beside.model
    if options.dino is not None and dino is None:
        dino = load_structure(options.dino, options.dino_sha256)
    return WeCLIPNet(tower, len(names), positions=positions, dino=dino, **how)


def _weclip_towers(options: WeCLIPOptions) -> tuple[str, ...]:
    return ("tower",) if options.dino is None else ("tower", "dino")


def _refuse_parted(crop: int, network: WeCLIPNet) -> None:
    patch = network.tower.patch
    if crop % patch:
        raise UserError(
            f"weclip: crop {crop} is no multiple of {patch}, the patch of its CLIP: what is no whole patch would be "
            f"cut off, and labels would not lie on their pixels; give --set crop={max(1, crop // patch) * patch}"
        )


def _own_pixels(images: Tensor, options: HubOptions | WeCLIPOptions) -> Tensor:
    return standardise(images, options.mean, options.std)


def _deeplab_pixels(images: Tensor, options: Any) -> Tensor:
    return caffe_pixels(images)


ARCHITECTURES: Mapping[str, Architecture] = {
    "small": Architecture(SmallOptions, _build_small, _standard, "adamw", STORYBOOK_RESNET),
    "cct-small": Architecture(CCTSmallOptions, _build_cct, _standard, "tenfold", STORYBOOK_RESNET),
    "cct-resnet50": Architecture(CCTOptions, _build_cct, _standard, "tenfold"),
    "deeplabv2-resnet101": Architecture(DeepLabV2Options, _build_deeplabv2, _deeplab_pixels, "convolutions"),
    "weclip": Architecture(
        WeCLIPOptions, _build_weclip, _own_pixels, "adamw", towers=_weclip_towers, check_crop=_refuse_parted
    ),
    "deeplabv1-resnet38": Architecture(DeepLabV1Options, _build_deeplabv1, _standard, "convolutions"),
    "weakclip": Architecture(
        WeakCLIPOptions,
        build_weakclip,
        weakclip_pixels,
        "even",
        towers=weakclip_towers,
        held=weakclip_held,
        matches=True,
        check_crop=lambda crop, network: refuse_parted(crop, network.tower.patch),
    ),
}
_HUB = Architecture(HubOptions, _build_hub, _own_pixels, "adamw", "pretrained")
