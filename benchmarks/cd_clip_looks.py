"""The supplement's two figures from our runs: how maps are spread, and what boundaries do where a rider sits."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cd_clip_fits import SETTINGS, taken_up
from cd_clip_scenes import items_of
from PIL import Image
from torch import Tensor

from tag2mask.methods.online.method import Online
from tag2mask.models.weights import CLIP
from tag2mask.ops.masks import upsample
from tag2mask.run.files import write_atomic
from tag2mask.segment.test_time import TestTime, predict_labels
from tag2mask.types import Dataset, Item

_PAIRS = ({"person", "horse"}, {"person", "motorbike"}, {"person", "bicycle"})


def pictures(clip: CLIP, data: Dataset, touching: Dataset, folder: Path, out: Path, **how: Any) -> None:
    """Write the picture.

    folder: of the fits. how: their steps and rate.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    methods = {row: taken_up(SETTINGS[row], clip, data, folder, **how) for row in (1, 2, 3, 6)}
    figure, axes = plt.subplots(8, 6, figsize=(8.4, 8.6), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    titles = ("picture", "exact mask", "initial map", "CAA", "RFM", "CDA")
    for line, (item, truth) in zip(axes[:4], _large(data, 4), strict=False):
        k = int(np.argmax([int((truth == tag).sum()) for tag in item.tags.tolist()]))
        scores = {row: methods[row].scores([item])[0] for row in (1, 2, 3)}
        size = scores[1].size
        shown: list[Any] = [item.image.permute(1, 2, 0).numpy(), (truth == item.tags[k]).numpy()]
        assert scores[1].initial is not None
        shown += [upsample(scores[1].initial, size)[k].numpy()]
        shown += [upsample(scores[row].maps, size)[k].numpy() for row in (1, 2, 3)]
        for axis, each in zip(line, shown, strict=True):
            axis.imshow(each, cmap="inferno", vmin=0, vmax=1, interpolation="nearest")
        line[0].set_title(f"{titles[0]}: {data.classes.names[int(item.tags[k])]}", fontsize=7)
        for axis, title in zip(line[1:], titles[1:], strict=True):
            axis.set_title(title, fontsize=7)
    titles = ("picture", "exact mask", "labels of CDA", "boundary label", "network, CDA", "network, CDA + SBE")
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(touching.classes)] = touching.classes.palette
    for line, (item, truth) in zip(axes[4:], _riders(touching, 4), strict=False):
        masks = [_labels(methods[3], item), *(_predicted(methods[row], item) for row in (3, 6))]
        edge = _edges(methods[6], item)
        shown = [item.image.permute(1, 2, 0).numpy(), *(colours[m.numpy()] for m in (truth, masks[0]))]
        shown += [plt.get_cmap("tab10")(edge.numpy())[..., :3], *(colours[m.numpy()] for m in masks[1:])]
        for axis, each, title in zip(line, shown, titles, strict=True):
            axis.imshow(each, interpolation="nearest")
            axis.set_title(title, fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80)
    plt.close(figure)
    jpeg = io.BytesIO()
    Image.open(buffer).convert("RGB").save(jpeg, "JPEG", quality=82)
    write_atomic(out, jpeg.getvalue())


def _large(data: Dataset, count: int) -> list[tuple[Item, Tensor]]:
    """Scenes of two classes and more, in their order, the largest of which covers an eighth of the picture."""
    found = []
    for item, truth in items_of(data):
        largest = max(float((truth == tag).float().mean()) for tag in item.tags.tolist())
        if len(item.tags) > 1 and largest > 1 / 8:
            found.append((item, truth))
    return found[:count]


def _riders(data: Dataset, count: int) -> list[tuple[Item, Tensor]]:
    """Scenes of somebody on a horse, a motorbike or a bicycle."""
    found = []
    for item, truth in items_of(data):
        names = {data.classes.names[tag] for tag in item.tags.tolist()}
        if any(pair <= names for pair in _PAIRS):
            found.append((item, truth))
    return found[:count]


def _predicted(method: Online, item: Item) -> Tensor:
    """The network's mask: (H, W)."""
    assert method.net is not None
    return predict_labels(method.net, item.image, TestTime())[0]


@torch.no_grad()
def _labels(method: Online, item: Item) -> Tensor:
    """What a training makes of the whole picture: (H, W)."""
    pixels = method.teacher.pixels(item.image[None])
    maps = method.teacher.maps(method.teacher.look(pixels), [item.tags], method.recipe.late)
    return method.teacher.labels(pixels, [each.refined for each in maps], [item.tags], None)[0]


@torch.no_grad()
def _edges(method: Online, item: Item) -> Tensor:
    """The boundary label of the whole picture: (H, W), 0 where there is none."""
    images = item.image[None].float()
    seen = method.teacher.look(method.teacher.pixels(images))
    maps = method.teacher.maps(seen, [item.tags], method.recipe.late)
    boundaries = method.make_boundaries()
    assert boundaries is not None
    found = boundaries.labels(images, seen, maps, [item.tags], method.recipe.late, None)
    return found[0].labels if found else torch.zeros(item.image.shape[1:], dtype=torch.int64)
