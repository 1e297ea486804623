"""Masks as shapes: the pixels of each class, objects that hang together, and their outlines as polygons.

Outlines run along the edges of pixels: the pixel in column x and row y is the square from (x, y) to (x + 1, y + 1).
So an outline encloses the object's pixels exactly, and :func:`fill` gives them back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from scipy import ndimage

__all__ = ["Mask", "Points", "fill", "layers", "objects", "outline", "paint", "runs"]

Mask = NDArray[np.uint8]
"""(H, W): 0 background, 1..C, 255 ignored; of one shape: 0 and 1."""

Points = list[tuple[float, float]]
"""Corners (x, y) of a closed polygon in pixels."""

_TURNS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # right, down, left, up; in that order one turns right


def layers(mask: Mask) -> Iterator[tuple[int, Mask]]:
    """(mask value, its pixels) of every value but 0, ascending: classes first, ignored pixels (255) last."""
    for value in np.unique(mask):
        if value:
            yield int(value), (mask == value).astype(np.uint8)


def objects(layer: Mask) -> Iterator[tuple[Mask, tuple[int, int]]]:
    """Parts of a layer whose pixels share edges: each cut out of it, and the row and column where that lies."""
    numbers, count = ndimage.label(layer)
    for number, (rows, columns) in enumerate(ndimage.find_objects(numbers, count), start=1):
        yield (numbers[rows, columns] == number).astype(np.uint8), (rows.start, columns.start)


def outline(shape: Mask, at: tuple[int, int] = (0, 0)) -> Points:
    """The outline of one object, (H, W) of 0 and 1, whose pixels share edges.

    Holes are reached from outside along a cut of no width, which is gone there and back: one polygon says it all, as
    formats without holes need it.

    at: row and column of the shape's first pixel in the image.
    """
    outer, *holes = sorted(_rings(shape), key=_area, reverse=True)  # holes turn the other way round: below zero
    for hole in sorted(holes, key=min):
        outer = _cut(outer, hole)
    row, column = at
    return [(float(x + column), float(y + row)) for x, y in _corners(outer)]


def fill(polygons: Sequence[Points], size: tuple[int, int]) -> Mask:
    """The pixels that polygons enclose, (H, W) of 0 and 1; where one crosses itself, those enclosed once.

    Raises:
        ValueError: fewer than three corners, or one far outside of the image.
    """
    height, width = size
    for x, y in (point for points in polygons for point in points):
        if not (-width <= x <= 2 * width and -height <= y <= 2 * height):  # NaN neither; far ones take memory
            raise ValueError(f"a corner at ({x:g}, {y:g}), far outside of the image, {width} x {height}")
    if any(len(points) < 3 for points in polygons):
        raise ValueError("a polygon has fewer than three corners, which enclose nothing")
    if not polygons:
        return np.zeros(size, np.uint8)
    flat = [[number for point in points for number in point] for points in polygons]
    return np.ascontiguousarray(rle.decode(rle.merge(rle.frPyObjects(flat, height, width))))


def runs(flat: NDArray[np.uint8]) -> list[int]:
    """Run lengths of 0 and 1 in turn, (N,) of 0 and 1, beginning with 0, of which there may be none."""
    changes = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate([[0], changes, [len(flat)]])).tolist()
    return [0, *lengths] if len(flat) and flat[0] else lengths


def paint(lengths: Sequence[int], count: int) -> NDArray[np.uint8]:
    """What :func:`runs` gave: (count,) of 0 and 1.

    Raises:
        ValueError: they do not add up to ``count``, or one is below 0.
    """
    if any(length < 0 for length in lengths) or sum(lengths) != count:
        raise ValueError(f"run lengths add up to {sum(lengths)}, expected {count} pixels")
    return np.repeat(np.arange(len(lengths), dtype=np.int64) % 2, lengths).astype(np.uint8)


Ring = list[tuple[int, int]]


def _rings(shape: Mask) -> list[Ring]:
    """All closed outlines, every corner of a pixel on the way: the outer one clockwise, holes counter-clockwise."""
    inside = np.pad(shape.astype(bool), 1)
    edges: dict[tuple[int, int], list[int]] = {}  # those that begin at a corner, as numbers of _TURNS
    # The edges of a pixel are gone along with the pixel on the right: its upper one to the right, its right one down.
    sides = (((-1, 0), (0, 0)), ((0, 1), (1, 0)), ((1, 0), (1, 1)), ((0, -1), (0, 1)))
    for way, ((beyond_y, beyond_x), (x, y)) in enumerate(sides):
        for row, column in np.argwhere(inside & ~np.roll(inside, (-beyond_y, -beyond_x), (0, 1))).tolist():
            edges.setdefault((column - 1 + x, row - 1 + y), []).append(way)
    rings, gone = [], set()
    for start in [(place, way) for place, ways in edges.items() for way in ways]:
        ring, (place, way) = [], start
        while (place, way) not in gone:
            gone.add((place, way))
            ring.append(place)
            place = (place[0] + _TURNS[way][0], place[1] + _TURNS[way][1])
            # Where pixels touch at a corner alone, the right turn keeps to the same pixel.
            way = next(turn for turn in ((way + 1) % 4, way, (way + 3) % 4) if turn in edges[place])
        if ring:
            rings.append(ring)
    return rings


def _area(ring: Ring) -> float:
    """What it encloses in pixels; below zero where it turns counter-clockwise on the screen."""
    return sum(x * b - a * y for (x, y), (a, b) in zip(ring, [*ring[1:], ring[0]], strict=True)) / 2


def _cut(outer: Ring, hole: Ring) -> Ring:
    """One ring of both: from the hole's leftmost corner straight to the left, to where ``outer`` is met, and back."""
    x, y = min(hole)
    met = {place: index for index, place in enumerate(outer)}
    at = next(met[left, y] for left in range(x - 1, -1, -1) if (left, y) in met)
    first = hole.index((x, y))
    return [*outer[: at + 1], *hole[first:], *hole[: first + 1], *outer[at:]]


def _corners(ring: Ring) -> Ring:
    """The ring without the points on its straight lines."""

    def way(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        return int(np.sign(b[0] - a[0])), int(np.sign(b[1] - a[1]))

    around = zip([ring[-1], *ring[:-1]], ring, [*ring[1:], ring[0]], strict=True)
    return [here for before, here, after in around if way(before, here) != way(here, after)]
