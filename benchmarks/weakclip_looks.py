"""How WeakCLIP matches words and pixels before and after it has learned, as in the paper's Figure 4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.data.image import read_image
from tag2mask.data.png import read_mask
from tag2mask.methods.weakclip import WeakCLIP
from tag2mask.run.folder import Run
from tag2mask.types import IGNORE, Sample

TITLES = ["scene", "exact mask", "seeds", "direct matching", "co-attention", "WeakCLIP"]


def matching(method: WeakCLIP, image: Tensor, tag: int) -> Tensor:
    """Cosines of a class's text and each cell of a picture (3, H, W) uint8, its least 0 and its most 1: (h, w)."""
    net: Any = method.net
    multiple = net.network.multiple
    height, width = (side // multiple * multiple for side in image.shape[1:])
    with torch.inference_mode():
        pixels = net.standardise(image[None, :, :height, :width].float())
        cosines = net.network.look(pixels).scores[0, tag]
    least, most = cosines.min(), cosines.max()
    return (cosines - least) / (most - least).clamp_min(1e-6)


def pictures(
    samples: Sequence[Sample], methods: tuple[WeakCLIP, WeakCLIP], runs: tuple[Run, Run], path: Path
) -> None:
    """A row a scene, of its largest class: scene, exact mask, seeds, matching before and after, masks.

    methods: direct matching, and fitted WeakCLIP. runs: the seeds, and WeakCLIP's masks.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(samples),
        len(TITLES),
        figsize=(1.6 * len(TITLES), 1.25 * len(samples)),
        layout="constrained",
        squeeze=False,
    )
    for line, sample in zip(axes, samples, strict=True):
        assert sample.truth is not None
        image = torch.from_numpy(read_image(sample.image)).permute(2, 0, 1).contiguous()
        truth = np.asarray(sample.truth())
        tag = max(sample.tags, key=lambda each: int((truth == each).sum()))
        seeds, masks = (_of(read_mask(run.mask_path(sample.id)), tag) for run in runs)
        grey = image.float().mean(0) / 255
        shown = [image.permute(1, 2, 0).numpy(), _of(truth, tag), seeds]
        shown += [_over(grey, matching(method, image, tag)) for method in methods]
        for axis, each in zip(line, [*shown, masks], strict=True):
            axis.imshow(each, cmap="inferno", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(methods[0].classes.names[tag], fontsize=7)
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, pil_kwargs={"quality": 85})


def _of(mask: np.ndarray, tag: int) -> np.ndarray:
    """1 where a mask has the class, a half where it is ignored, 0 elsewhere: (H, W)."""
    return np.where(mask == IGNORE, 0.5, mask == tag)


def _over(grey: Tensor, share: Tensor) -> np.ndarray:
    """A picture (H, W) as background of shares (h, w): (H, W, 3), red where they are high."""
    share = F.interpolate(share[None, None], grey.shape, mode="bilinear", align_corners=False)[0, 0]
    red = torch.tensor([1.0, 0.25, 0.0]).view(3, 1, 1)
    return (0.55 * grey + share * (red - 0.55 * grey)).permute(1, 2, 0).clamp(0, 1).numpy()
