"""Noise, light and blur, in arithmetic that gives the same bytes everywhere.

Random bytes come from the generator; a table turns them into normal deviates; Pillow's 8-bit resize
works in integers; what is left are single float32 sums and products, which IEEE fixes to the last bit.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_STEP = 32
"""Steps per standard deviation in the 8-bit noise; it reaches to four of them."""

_NORMAL: NDArray[np.float32] = np.array(
    [round(NormalDist().inv_cdf((byte + 0.5) / 256) * 64) / 64 for byte in range(256)], np.float32
)
_NORMAL_BYTE: NDArray[np.uint8] = np.clip(np.round(_NORMAL * _STEP) + 128, 0, 255).astype(np.uint8)
_OF_BYTE: NDArray[np.float32] = (np.arange(256, dtype=np.float32) - 128) / np.float32(_STEP)  # what such a byte means


def white(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Independent normal deviates, float32."""
    return np.take(_NORMAL, rng.integers(0, 256, shape, np.uint8))


def smooth(rng: np.random.Generator, size: tuple[int, int], cell: float) -> NDArray[np.float32]:
    """Normal noise whose lumps are about ``cell`` pixels wide: (H, W) float32."""
    height, width = size
    grid = (max(2, int(height / cell)), max(2, int(width / cell)))
    lumps = Image.fromarray(_NORMAL_BYTE[rng.integers(0, 256, grid, np.uint8)])
    return np.take(_OF_BYTE, np.asarray(lumps.resize((width, height), Image.Resampling.BICUBIC)))


def blur(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The picture (H, W, 3) smoothed by 1-2-1 in both directions; its border is repeated."""
    padded: NDArray[np.float32] = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = _smooth_line(padded[:-2], padded[1:-1], padded[2:])  # (H, W + 2, 3)
    return _smooth_line(rows[:, :-2], rows[:, 1:-1], rows[:, 2:])  # (H, W, 3)


def _smooth_line(
    before: NDArray[np.float32], here: NDArray[np.float32], after: NDArray[np.float32]
) -> NDArray[np.float32]:
    smoothed: NDArray[np.float32] = (before + after + here * np.float32(2)) * np.float32(0.25)
    return smoothed


def to_bytes(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Cut to 0..255 and round down."""
    return np.clip(image, 0, 255).astype(np.uint8)
