"""An image classifier and its class activation maps (Zhou et al. 2016), in the form of IRN and CLIMS.

A ResNet, the mean over all cells, and a 1x1 convolution without bias; its class maps are the same convolution on
every cell. Source of the numbers: IRN's ``resnet50_cam`` (Ahn et al., CVPR 2019) and CLIMS (CVPR 2022).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.backbone import IRN, Layout, ResNet
from tag2mask.models.public_resnet import OWN, outside, read_resnet
from tag2mask.models.scenes_only import warn_of_scenes
from tag2mask.models.state import fit_state, read_state
from tag2mask.ops.cam_fusion import flip_sum, max_normalise, scaled_size, strided_size, sum_at
from tag2mask.ops.image import resize_bicubic, standardise
from tag2mask.run.files import write_atomic
from tag2mask.run.warn import warn
from tag2mask.types import UserError

STORYBOOK_RESNET = "storybook-resnet"
MODEL_TYPE = "tag2mask-classifier"
MEAN = (0.485, 0.456, 0.406)  # ImageNet's, of red, green and blue in 0..1
STD = (0.229, 0.224, 0.225)
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
    """A classifier from a folder that ``save_classifier`` wrote, in evaluation mode, and its weights' sha256.

    source: the folder, or "storybook-resnet".

    Raises:
        UserError: no such folder, or what is in it does not fit together.
    """
    folder = _locate(source)
    layout, names = _read_config(folder / "config.json")
    file = folder / "model.safetensors"
    classifier = Classifier(names, layout)
    fit_state(classifier, read_state(file), file)
    return classifier.eval(), hashlib.sha256(file.read_bytes()).hexdigest()


def load_backbone(source: str | Path = STORYBOOK_RESNET, **changes: Any) -> ResNet:
    """The backbone alone, from a classifier's folder or from a public ImageNet checkpoint (.pth, .safetensors).

    What else is in a checkpoint, such as its classifier (``fc.*``), is left out, with a message. Of a single file,
    the numbers of blocks and channels are read off the weights.

    source: the folder, the file, or "storybook-resnet".
    changes: of the layout, such as ``strides=(1, 2, 1, 1), frozen_norm=True``; shapes of weights cannot change.

    Raises:
        UserError: nothing there, or it does not fit the layout.
    """
    path = Path(source)
    if path.is_file():
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
        folder = _locate(source)
        layout, _ = _read_config(folder / "config.json")
        path = folder / "model.safetensors"
        prefix = "backbone."
        whole = read_state(path)
        state = {name.removeprefix(prefix): value for name, value in whole.items() if name.startswith(prefix)}
    backbone = ResNet(dataclasses.replace(layout, **changes))
    fit_state(backbone, state, path)
    return backbone.eval()


def warn_of_weights(weights: str | Path) -> None:
    """Say of storybook-resnet that it knows no photographs; said where a user's images are about to be looked at."""
    if str(weights) == STORYBOOK_RESNET:
        warn_of_scenes(STORYBOOK_RESNET, "weights that were trained on some, such as ImageNet's ResNet-50")


def save_classifier(classifier: Classifier, folder: Path | str, card: str) -> None:
    """Write config.json, model.safetensors and MODEL_CARD.md.

    Convolutions are kept in float16. Batch norms stay float32: there are few, and a variance can leave float16's
    range. The weights come last, so that a folder with weights is whole.
    """
    import safetensors.torch

    folder = Path(folder)
    layout = dataclasses.asdict(classifier.backbone.layout)
    config = {"model_type": MODEL_TYPE, "names": list(classifier.names), "layout": layout}
    write_atomic(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    write_atomic(folder / "MODEL_CARD.md", card.encode())
    state = {
        name: value.detach().cpu().to(torch.float16 if value.ndim == 4 else torch.float32).contiguous()
        for name, value in classifier.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    about = {"model_type": MODEL_TYPE, "stride_at": classifier.backbone.layout.stride_at, "supervision": "tags"}
    told = {OWN: json.dumps(about)}  # one entry alone: the order of several changes from call to call
    # not save_file: that leaves a file which nobody but its owner may read
    write_atomic(folder / "model.safetensors", safetensors.torch.save(state, metadata=told))


def _locate(source: str | Path) -> Path:
    if str(source) == STORYBOOK_RESNET:
        folder = Path(str(importlib.resources.files("tag2mask"))) / "storybook" / "weights" / "resnet"
        what = (
            f"{STORYBOOK_RESNET} is missing from this installation; install tag2mask again, or train it by "
            "`tag2mask storybook pretrain-resnet -o DIR` and name DIR"
        )
    else:
        folder = Path(source).expanduser()
        what = f"expected a folder that `tag2mask storybook pretrain-resnet` wrote, or {STORYBOOK_RESNET}"
        if not folder.exists():
            raise UserError(f"{folder} does not exist; {what}, or a public checkpoint (.pth, .safetensors)")
    lost = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    if lost:
        raise UserError(f"{folder}: holds no {' and no '.join(lost)}; {what}")
    return folder


def _read_config(path: Path) -> tuple[Layout, tuple[str, ...]]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        names = tuple(str(name) for name in config["names"])
        stored: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in config["layout"].items()}
        layout = Layout(**stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: cannot be read as a classifier's settings ({type(error).__name__}: {error}); expected "
            '"names" and "layout"; bring the folder back from where it was made'
        ) from error
    return layout, names
