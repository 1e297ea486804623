"""An image classifier and its class activation maps (Zhou et al. 2016), in the form of IRN and CLIMS.

A ResNet, the mean over all cells, and a 1x1 convolution without bias; its class maps are the same convolution on
every cell. Source of the numbers: IRN's ``resnet50_cam`` (Ahn et al., CVPR 2019) and CLIMS (CVPR 2022).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.backbone import IRN, Layout, ResNet
from tag2mask.models.embedded import STORYBOOK_RESNET
from tag2mask.models.find_classifier import MODEL_TYPE, find_classifier, is_classifier
from tag2mask.models.public_resnet import OWN, outside, read_resnet
from tag2mask.models.scenes_only import warn_of_scenes
from tag2mask.models.state import fit_state, read_state
from tag2mask.ops.cam_fusion import flip_sum, max_normalise, scaled_size, strided_size, sum_at
from tag2mask.ops.image import MEAN, STD, resize_bicubic, standardise
from tag2mask.run.files import file_sha256, write_atomic
from tag2mask.run.warn import warn
from tag2mask.types import UserError

RANDOM = "random"
"""In the place of weights: those of a ResNet-50 are drawn."""
SCALES = (1.0, 0.5, 1.5, 2.0)
"""Of IRN's and CLIMS's class maps, each with its mirror image."""


class Classifier(nn.Module):
    """A ResNet with one score a class.

    names: of the classes, in the order of the scores.
    """

    def __init__(self, names: Sequence[str], layout: Layout = IRN) -> None:
        super().__init__()
        self.names = tuple(names)
        self.backbone = ResNet(layout)
        self.head = nn.Conv2d(layout.channels[-1], len(self.names), 1, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, K) of standardised pictures (B, 3, H, W)."""
        pooled = self.backbone(pixels).mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        return self.head(pooled)[:, :, 0, 0]

    def maps(self, pixels: Tensor) -> Tensor:
        """Class maps before ReLU, whose mean over the cells is the logit: (B, 3, H, W) -> (B, K, h, w)."""
        out: Tensor = self.head(self.backbone(pixels))
        return out


class MapNetwork(Protocol):
    """A network over a ResNet with one map a class."""

    @property
    def backbone(self) -> ResNet:
        """What the maps are read from."""
        ...

    def maps(self, pixels: Tensor) -> Tensor:
        """Maps before ReLU of standardised pictures: (B, 3, H, W) -> (B, C, h, w)."""
        ...


def class_maps(
    network: MapNetwork,
    image: Tensor,
    channels: Tensor,
    *,
    scales: Sequence[float] = SCALES,
    flip: bool = True,
    grid: tuple[int, int] | None = None,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Tensor:
    """Class activation maps of one image over several scales, each divided by its maximum.

    At every scale: resize (Pillow, bicubic), ReLU of the maps, plus those of the mirror image, mirrored back. The
    sums are brought to one grid and added.

    Args:
        network: a classifier or CLIMS's network, in evaluation mode, on the device to compute on.
        image: (3, H, W) uint8.
        channels: (K,) int64, which of the network's classes, from 0.
        scales: of the image; sides are rounded to whole pixels.
        flip: add the mirror image.
        grid: (h, w) to sum on. None: the network's own at the image's size, which spans ``stride`` pixels a cell.
            IRN's stored maps are on ``strided_size(size, 4)``.
        mean, std: pixel statistics that the network was trained with.

    Returns:
        (K, h, w) float32 in [0, 1].
    """
    size = (image.shape[1], image.shape[2])
    device = next(network.backbone.parameters()).device
    found = []
    for scale in scales:
        side = scaled_size(size, scale)
        pixels = standardise(resize_bicubic(image.cpu(), side)[None].to(device), mean, std)
        views = torch.cat([pixels, pixels.flip(-1)]) if flip else pixels  # (1 or 2, 3, h', w')
        maps = F.relu(network.maps(views)[:, channels.to(device)])  # (1 or 2, K, h, w)
        found.append(flip_sum(maps) if flip else maps[0])
    return max_normalise(sum_at(found, grid or strided_size(size, network.backbone.layout.stride)))


def load_classifier(source: str | Path = STORYBOOK_RESNET) -> tuple[Classifier, str]:
    """A classifier of ours, in evaluation mode, and its weights' sha256.

    source: a folder that ``save_classifier`` wrote or the weights in it, a run of classifier-cam that learned, or
    "storybook-resnet".

    Raises:
        UserError: no such classifier, or what is in its folder does not fit together.
    """
    folder = find_classifier(source)
    layout, names = _read_config(folder / "config.json")
    file = folder / "model.safetensors"
    classifier = Classifier(names, layout)
    fit_state(classifier, read_state(file), file)
    return classifier.eval(), file_sha256(file)


def load_backbone(source: str | Path = STORYBOOK_RESNET, **changes: Any) -> ResNet:
    """The backbone alone, from a classifier of ours or from a public ImageNet checkpoint (.pth, .safetensors).

    What else is in a checkpoint, such as its classifier (``fc.*``), is left out, with a message. Of a single file,
    the numbers of blocks and channels are read off the weights.

    source: the file, or as ``load_classifier``.
    changes: of the layout, such as ``strides=(1, 2, 1, 1), frozen_norm=True``; shapes of weights cannot change.

    Raises:
        UserError: nothing there, or it does not fit the layout.
    """
    path = Path(source).expanduser()
    if not is_classifier(source):
        found = read_resnet(path, changes.get("stride_at", "3x3"))
        state, layout = found.state, found.layout
        if found.rest:
            what = (
                "the checkpoint's own classifier"
                if all(".fc." in f".{n}" for n in found.rest)
                else "no part of a ResNet"
            )
            warn(f"{path}: {outside(found.rest)}, {what}, were left out")
    else:
        folder = find_classifier(source, ", or a public checkpoint (.pth, .safetensors)")
        layout, _ = _read_config(folder / "config.json")
        path = folder / "model.safetensors"
        prefix = "backbone."
        whole = read_state(path)
        state = {name.removeprefix(prefix): value for name, value in whole.items() if name.startswith(prefix)}
    backbone = ResNet(dataclasses.replace(layout, **changes))
    fit_state(backbone, state, path)
    return backbone.eval()


def start_classifier(
    weights: str | Path, names: Sequence[str], *, seed: int = 0
) -> tuple[Classifier, tuple[str, ...]]:
    """A classifier before its training, in evaluation mode, and the classes that it does not know yet.

    Args:
        weights: as ``load_backbone``, or "random".
        names: of the classes.
        seed: of what is drawn: the rows of classes that the weights do not know, or everything.

    Raises:
        UserError: nothing there, or it does not fit.
    """
    backbone = None if str(weights) == RANDOM else load_backbone(weights, strides=IRN.strides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Classifier(names, IRN if backbone is None else backbone.layout)
    if backbone is not None:
        made.backbone.load_state_dict(backbone.state_dict())
    known = take_rows(made.head.weight, weights, names)
    return made.eval(), tuple(name for name in names if name not in known)


def take_rows(weight: Tensor, source: str | Path, names: Sequence[str]) -> tuple[str, ...]:
    """Fill a head's last rows, those of ``names`` (C + ..., D, 1, 1), with a classifier's of the same names.

    Returns:
        The names that were found; none where ``source`` is no classifier of ours.
    """
    if str(source) == RANDOM or not is_classifier(source):
        return ()
    classifier, _ = load_classifier(source)
    own = weight.detach()[-len(names) :]
    known = tuple(name for name in names if name in classifier.names)
    for name in known:
        own[list(names).index(name)] = classifier.head.weight.detach()[classifier.names.index(name)]
    return known


def warn_of_weights(
    weights: str | Path, instead: str = "weights that were trained on some, such as ImageNet's ResNet-50"
) -> None:
    """Say of storybook-resnet that it knows no photographs; said where a user's images are about to be looked at."""
    if str(weights) == STORYBOOK_RESNET:
        warn_of_scenes(STORYBOOK_RESNET, instead)


def save_classifier(classifier: Classifier, folder: Path | str, card: str, supervision: str = "tags") -> None:
    """Write config.json, model.safetensors and MODEL_CARD.md.

    Convolutions are kept in float16. Batch norms stay float32: there are few, and a variance can leave float16's
    range. The weights come last, so that a folder with weights is whole.
    """
    import safetensors.torch

    folder = Path(folder)
    layout = dataclasses.asdict(classifier.backbone.layout)
    config = {"model_type": MODEL_TYPE, "names": list(classifier.names), "layout": layout}
    texts = {"config.json": json.dumps(config, indent=2) + "\n", "MODEL_CARD.md": card}
    for name, text in texts.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != text.encode():  # killed here again and again, a fit gets on
            write_atomic(path, text.encode())
    state = {
        name: value.detach().cpu().to(torch.float16 if value.ndim == 4 else torch.float32).contiguous()
        for name, value in classifier.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    about = {"model_type": MODEL_TYPE, "stride_at": classifier.backbone.layout.stride_at, "supervision": supervision}
    metadata = {OWN: json.dumps(about)}  # one entry alone: the order of several changes from call to call
    # not save_file: that leaves a file which nobody but its owner may read
    write_atomic(folder / "model.safetensors", safetensors.torch.save(state, metadata=metadata))


def _read_config(path: Path) -> tuple[Layout, tuple[str, ...]]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        names = tuple(str(name) for name in config["names"])
        stored: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in config["layout"].items()}
        layout = Layout(**stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: cannot be read as a classifier's settings ({type(error).__name__}: {error}); expected "
            '"names" and "layout"; copy the folder again from where it was made'
        ) from error
    return layout, names
