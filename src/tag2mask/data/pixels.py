"""A picture's pixels as a tensor. Apart from ``data.image``, so that reading data needs no torch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tag2mask.data.image import decode_image

__all__ = ["decode_pixels", "read_pixels"]


def read_pixels(path: Path | str) -> Tensor:
    """A picture as (3, H, W) uint8, RGB and upright; in memory its channels lie side by side.

    Raises:
        BadImage: as ``read_image``.
    """
    return decode_pixels(path)[0]


def decode_pixels(path: Path | str) -> tuple[Tensor, bool]:
    """The same, and whether the file lacks its end (see ``data.image``)."""
    pixels, lacks_end = decode_image(path)
    return torch.from_numpy(pixels).permute(2, 0, 1), lacks_end
