"""Classifier CAMs at several scales, fused into one (IRN, CLIMS, PSA).

Each scale gives max(CAM, 0) of the picture plus that of its mirror image turned back. All scales are brought to one
grid and summed; then each class is divided by its own maximum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.ops.masks import upsample


def strided_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """The grid of a network of this stride over an image of ``size``: ceil(H / stride), ceil(W / stride)."""
    return (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1


def strided_frame(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """The pixels that this grid spans: ``size`` rounded up to multiples of the stride."""
    height, width = strided_size(size, stride)
    return height * stride, width * stride


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """``size`` at a scale: rounded, halves to even, and at least one pixel."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def flip_sum(pair: Tensor) -> Tensor:
    """Maps of a picture and of its mirror image, (2, K, h, w), as one: (K, h, w)."""
    return pair[0] + pair[1].flip(-1)


def sum_at(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Sum maps of several scales, (K, h_s, w_s) each, at one ``size``: (K, H, W) float32.

    ``strided_size(image, 4)`` is IRN's grid for the random walk; PSA sums at the image's own size.
    """
    return torch.stack([upsample(part, size) for part in maps]).sum(0)


def max_normalise(maps: Tensor, eps: float = 1e-5) -> Tensor:
    """Divide each map (K, H, W) by its own largest value."""
    return maps / (maps.amax((-2, -1), keepdim=True) + eps)


def cell_means(maps: Tensor, cell: int) -> Tensor:
    """Means over cells of ``cell`` pixels: (K, H, W) -> (K, ceil(H / cell), ceil(W / cell)) float32.

    Cells that reach over the lower or right side repeat the last row or column.
    """
    height, width = strided_frame((maps.shape[1], maps.shape[2]), cell)
    padding = (0, width - maps.shape[2], 0, height - maps.shape[1])
    padded = F.pad(maps[None].float(), padding, mode="replicate")  # (1, K, H', W')
    return F.avg_pool2d(padded, cell)[0]
