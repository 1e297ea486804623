"""A picture's pixels as a tensor. Apart from ``data.image``, so that reading data needs no torch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tag2mask.data.image import read_image

__all__ = ["read_pixels"]


def read_pixels(path: Path | str) -> Tensor:
    """A picture as (3, H, W) uint8, RGB and upright; in memory its channels lie side by side.

    Raises:
        BadImage: as ``read_image``.
    """
    return torch.from_numpy(read_image(path)).permute(2, 0, 1)
