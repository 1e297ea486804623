"""Which pixels are compared with which: the pairs of PSA and the paths of IRN, in their canonical orders.

A pair is a source pixel and a destination less than ``radius`` away, below it or to its right, so that every
unordered pair occurs once. Training compares only sources whose whole half disc lies inside the map: the first
H - reach rows and the columns without ``reach`` at either side. There all pairs of one offset are a window of the
map, so pairs are read as shifted windows, never through index tables (28 million indices for a 128 x 128 map).

Shapes: P offsets (34 for radius 5, 152 for radius 10), rows (dy, dx); S = (H - reach) (W - 2 reach) sources.
"""

from __future__ import annotations

import math
from functools import lru_cache

from torch import Tensor

Offset = tuple[int, int]


def reach(radius: float) -> int:
    """The largest offset along an axis that is still less than ``radius`` away."""
    return math.ceil(radius) - 1


@lru_cache
def disc_offsets(radius: float) -> tuple[Offset, ...]:
    """The P offsets in PSA's order: to the right first, then row by row, each from left to right.

    Raises:
        ValueError: if ``radius`` leaves no neighbour.
    """
    if not 1 < radius < math.inf:
        raise ValueError(f"radius: got {radius}, expected a number above 1")
    far = reach(radius)
    below = [(y, x) for y in range(1, far + 1) for x in range(-far, far + 1) if x * x + y * y < radius * radius]
    return (*((0, x) for x in range(1, far + 1)), *below)


@lru_cache
def disc_paths(radius: float) -> tuple[tuple[Offset, ...], ...]:
    """The cells between a pixel and each of its P neighbours, in IRN's order: shortest path first.

    A path has every cell of the box between its ends that is less than 1 away from the straight line, the
    destination first and (0, 0) last. Its first cell is the offset.
    """
    paths = [_path(offset) for offset in disc_offsets(radius)]
    return tuple(sorted(paths, key=len))  # stable: equal lengths stay in PSA's order


def path_offsets(radius: float) -> tuple[Offset, ...]:
    """The P offsets in IRN's order, that of ``disc_paths``."""
    return tuple(path[0] for path in disc_paths(radius))


def _path(offset: Offset) -> tuple[Offset, ...]:
    dy, dx = offset
    cells = [
        (y, x)
        for y in range(min(dy, 0), max(dy, 0) + 1)
        for x in range(min(dx, 0), max(dx, 0) + 1)
        if (dy * x - dx * y) ** 2 < dy * dy + dx * dx
    ]
    return tuple(sorted(cells, key=lambda cell: -abs(cell[0]) - abs(cell[1])))  # stable: row-major among equals


def window(maps: Tensor, radius: float, offset: Offset = (0, 0)) -> Tensor:
    """What the sources see at ``offset``: (..., H, W) -> a view (..., H - reach, W - 2 reach).

    Raises:
        ValueError: if the map is too small to hold one source.
    """
    far = reach(radius)
    height, width = maps.shape[-2] - far, maps.shape[-1] - 2 * far
    if height < 1 or width < 1:
        raise ValueError(
            f"a map of {tuple(maps.shape[-2:])} has no pixel whose neighbours within radius {radius} all lie inside, "
            f"expected at least ({far + 1}, {2 * far + 1})"
        )
    dy, dx = offset
    return maps[..., dy : dy + height, far + dx : far + dx + width]
