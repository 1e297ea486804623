"""What light, lens, sensor and compression do to a drawn picture, in arithmetic that is the same everywhere.

The compression is JPEG's, block by block, but computed here: a library's own would give other bytes after an
update. Its matrices hold whole numbers, whose products are exact in double precision in any order.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tag2mask.storybook import grain
from tag2mask.storybook.figures.colors import between, chance

_COSINES: NDArray[np.float64] = np.array(
    [
        [round(1024 * math.cos((2 * x + 1) * u * math.pi / 16) * (0.5 if u else math.sqrt(0.125))) for x in range(8)]
        for u in range(8)
    ],
    np.float64,
)
_STEPS: NDArray[np.float64] = np.array([[10 + 3 * u + 3 * v + u * v for u in range(8)] for v in range(8)], np.float64)


def develop(
    rng: np.random.Generator, image: NDArray[np.uint8], figures: NDArray[np.uint8], spots: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """The drawing as a camera saw it: (H, W, 3) uint8.

    Args:
        rng: decides on everything.
        image: (H, W, 3) uint8.
        figures: (H, W) uint8, the number of the figure at each pixel, 0 for none.
        spots: (figures + 1, 3) float32: middle x, middle y and size of each figure in pixels; row 0 unused.
    """
    height, width = image.shape[:2]
    y = np.arange(height, dtype=np.float32)[:, None]  # (H, 1)
    x = np.arange(width, dtype=np.float32)  # (W,)
    light = 1 + np.float32(0.05) * grain.smooth(rng, (height, width), height / 3)  # (H, W)
    if len(spots) > 1:  # every figure has its light and its dark side
        side = np.float32(between(rng, -0.22, 0.22))
        for number, (middle, level, reach) in enumerate(spots[1:], 1):
            own = figures == number
            rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
            if not len(rows):
                continue
            room = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            slope = (side * (x[room[1]] - middle) - np.float32(0.12) * (y[room[0]] - level)) / reach
            np.add(light[room], np.clip(slope, -0.18, 0.18), out=light[room], where=own[room])
    if chance(rng, 0.2):  # vignetting
        far = ((x / width - np.float32(0.5)) ** 2 + (y / height - np.float32(0.5)) ** 2) * 2  # (H, W)
        light *= 1 - np.float32(between(rng, 0.25, 0.7)) * far
    light *= np.float32(between(rng, 0.85, 1.12))
    shot = image.astype(np.float32) * np.repeat(light, 3).reshape(height, width, 3)
    if chance(rng, 0.25):  # colour cast
        shot *= np.array([between(rng, 0.85, 1.12) for _ in range(3)], np.float32)
    if chance(rng, 0.15):  # mist, old paper
        shot += (np.float32(between(rng, 90, 190)) - shot) * np.float32(between(rng, 0.1, 0.36))
    if chance(rng, 0.05):  # black and white
        grey = shot[..., 0] * np.float32(0.3) + shot[..., 1] * np.float32(0.6) + shot[..., 2] * np.float32(0.1)
        shot = np.repeat(grey[..., None], 3, 2)
    for _ in range(int(rng.integers(1, 3)) if chance(rng, 0.3) else 0):
        shot = grain.blur(shot)
    noise = between(rng, 0.5, 5 if chance(rng, 0.75) else 13)
    shot += grain.white(rng, shot.shape) * np.float32(noise)
    done = grain.to_bytes(shot)
    return compress(done, between(rng, 0.6, 3.5)) if chance(rng, 0.3) else done


def compress(image: NDArray[np.uint8], coarseness: float) -> NDArray[np.uint8]:
    """The picture (H, W, 3) with JPEG's blocks: cosine coefficients rounded to multiples of a step."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="edge").astype(np.int32)
    red, green, blue = padded[..., 0], padded[..., 1], padded[..., 2]
    luma = (77 * red + 150 * green + 29 * blue) >> 8
    planes = np.stack([luma - 128, blue - luma, red - luma]).astype(np.float64)  # (3, H', W')
    tall, wide = planes.shape[1] // 8, planes.shape[2] // 8
    # a block's step of each coefficient, for all blocks of a row: (3, 1, 8, W')
    steps = np.round(_STEPS * coarseness) * np.array([1.0, 2.0, 2.0])[:, None, None]  # (3, 8, 8)
    steps = np.tile(steps, wide)[:, None]
    scale = 2.0**20
    found = _transform(planes.reshape(3, tall, 8, -1), _COSINES)  # (3, H'/8, 8, W')
    found = np.floor(found / (steps * scale) + 0.5)
    back = np.floor(_transform(found * steps, _COSINES.T) / scale + 0.5)
    luma, cb, cr = back.reshape(planes.shape).astype(np.int32)[:, :height, :width]
    luma = luma + 128
    red, blue = luma + cr, luma + cb
    green = (256 * luma - 77 * red - 29 * blue) // 150
    return np.clip(np.stack([red, green, blue], 2), 0, 255).astype(np.uint8)


def _transform(blocks: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix (8, 8) applied to the columns and to the rows of 8x8 blocks, side by side: (..., 8, 8 n)."""
    # Row after row of blocks: BLAS takes threads for products much larger, which cost more than they give.
    down = matrix @ blocks
    across = down.reshape(*blocks.shape[:-2], -1, 8) @ matrix.T
    return across.reshape(blocks.shape)
