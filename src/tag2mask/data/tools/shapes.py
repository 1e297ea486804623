"""Masks as shapes: the pixels of each class, objects that hang together, and their outlines as polygons.

Outlines run along the edges of pixels: the pixel in column x and row y is the square from (x, y) to (x + 1, y + 1).
So an outline encloses the object's pixels exactly, and :func:`fill` gives them back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from scipy import ndimage

__all__ = ["Mask", "Points", "drop_small", "fill", "fill_in", "layers", "objects", "outlines", "paint", "runs"]

Mask = NDArray[np.uint8]
"""(H, W): 0 background, 1..C, 255 ignored; of one shape: 0 and 1."""

Points = list[tuple[float, float]]
"""Corners (x, y) of a closed polygon in pixels."""


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


def outlines(layer: Mask) -> Iterator[Points]:
    """The outline of each of :func:`objects`, in their order.

    Holes are reached from outside along a cut of no width, which is gone there and back: one polygon says it all, as
    formats without holes need it. The time grows with the length of all outlines, however many holes there are.
    """
    numbers, count = ndimage.label(layer)
    if not count:
        return
    edges = _edges(layer)
    rings = _rings(edges)
    owner = numbers[edges.row, edges.column][rings.order[rings.starts[:-1]]] - 1  # of each ring
    _, outer = np.unique(owner, return_index=True)  # what is met first of an object, from the top, is its outside
    simple = np.bincount(owner, minlength=count) == 1
    ends = np.cumsum(np.concatenate([[0], edges.corner[rings.order]]))[rings.starts]
    corners = np.stack([edges.x, edges.y], 1)[rings.order[edges.corner[rings.order]]].astype(float)
    points: list[tuple[float, float]] = [(x, y) for x, y in corners.tolist()]
    cuts = None if simple.all() else _cuts(edges, rings, owner, outer)
    for number, ring in enumerate(outer.tolist()):
        if cuts is None or simple[number]:
            yield points[ends[ring] : ends[ring + 1]]
        else:
            yield _joined(edges, rings, cuts, ring)


def drop_small(mask: Mask, least: int) -> tuple[Mask, int, int]:
    """A mask without the objects of fewer than ``least`` pixels, how many these are, and their pixels."""
    if least < 2:
        return mask, 0, 0
    kept, pieces, pixels = mask.copy(), 0, 0
    for _, layer in layers(mask):
        numbers, _ = ndimage.label(layer)
        sizes = np.bincount(numbers.ravel())
        small = sizes < least
        small[0] = False  # what is of no object
        if small.any():
            pieces, pixels = pieces + int(small.sum()), pixels + int(sizes[small].sum())
            kept[small[numbers]] = 0
    return kept, pieces, pixels


def fill_in(mask: Mask, polygons: Sequence[Points], value: int) -> None:
    """Give the pixels that polygons enclose (:func:`fill`) a value; only where they lie is looked at.

    Raises:
        ValueError: as :func:`fill`.
    """
    height, width = mask.shape
    points = [point for polygon in polygons for point in polygon]
    if points and all(0 <= x <= width and 0 <= y <= height for x, y in points):
        across, down = zip(*points, strict=True)
        left, top = min(int(min(across)), width - 1), min(int(min(down)), height - 1)
        right, bottom = ceil(max(across)), ceil(max(down))
        box = slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))
        # pycocotools rounds to fifths of a pixel; done before the shift, it is the same wherever they lie
        within = [
            [((int(5 * x + 0.5) - 5 * left) / 5, (int(5 * y + 0.5) - 5 * top) / 5) for x, y in polygon]
            for polygon in polygons
        ]
    else:
        box, within = (slice(0, height), slice(0, width)), list(polygons)
    here = mask[box]
    here[fill(within, (here.shape[0], here.shape[1])) == 1] = value


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


class _Edges(NamedTuple):
    """The sides of pixels beyond which the layer ends, (E,) each, by pixel and then by way: right, down, left, up.

    An edge is gone along with its pixel on the right: the upper one to the right, the right one down. row, column: of
    the pixel. x, y: where the edge begins. after: the place of the edge that follows. corner: the outline turns at
    its beginning.
    """

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    x: NDArray[np.int64]
    y: NDArray[np.int64]
    after: NDArray[np.int64]
    corner: NDArray[np.bool_]


class _Rings(NamedTuple):
    """Closed outlines: the outer one of an object clockwise, those of its holes counter-clockwise.

    order: (E,) the edges, ring after ring. starts: (R + 1,) where each begins there, and the end.
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]


class _Cuts(NamedTuple):
    """Where holes are joined: by an edge, the rings that are reached from its beginning; first: a ring's own."""

    at: dict[int, list[int]]
    first: NDArray[np.int64]


def _edges(layer: Mask) -> _Edges:
    inside = np.pad(layer.astype(bool), 1)
    across = inside.shape[1]
    flat = inside.ravel()
    pixels = np.flatnonzero(flat)
    beyond = np.array([-across, 1, across, -1])  # the neighbour over the side, by way
    ahead = np.array([1, across, -1, -across])
    which, way = np.nonzero(~flat[pixels[:, None] + beyond])
    pixel = pixels[which]
    # Where pixels touch at a corner alone, the outline keeps to the same pixel: it turns right.
    front = pixel + ahead[way]
    side = front + beyond[way]
    turn, straight = ~flat[front], ~flat[side]
    then = np.where(turn, pixel, np.where(straight, front, side)) * 4
    then += np.where(turn, way + 1, np.where(straight, way, way + 3)) % 4
    after = np.searchsorted(pixel * 4 + way, then)
    corner = np.empty(len(way), np.bool_)
    corner[after] = way[after] != way
    row, column = pixel // across - 1, pixel % across - 1
    return _Edges(row, column, column + np.isin(way, (1, 2)), row + (way >= 2), after, corner)


def _rings(edges: _Edges) -> _Rings:
    after, seen = edges.after.tolist(), bytearray(len(edges.after))
    order, starts = [], [0]
    for start in range(len(after)):
        edge = start
        while not seen[edge]:
            seen[edge] = 1
            order.append(edge)
            edge = after[edge]
        if len(order) > starts[-1]:
            starts.append(len(order))
    return _Rings(np.array(order), np.array(starts))


def _cuts(edges: _Edges, rings: _Rings, owner: NDArray[np.int64], outer: NDArray[np.int64]) -> _Cuts:
    """From each hole's leftmost corner straight to the left, to where another outline of its object is met.

    That one begins further left, so no hole is reached by itself, whatever the way through other holes.
    """
    x, y = edges.x[rings.order], edges.y[rings.order]
    lengths = np.diff(rings.starts)
    wide, high = int(x.max()) + 1, int(y.max()) + 1
    along = x * high + y
    leftmost = np.repeat(np.minimum.reduceat(along, rings.starts[:-1]), lengths)
    first = np.flatnonzero(along == leftmost)  # of every ring, of an outer one perhaps several
    first = first[np.searchsorted(first, rings.starts[:-1])]
    place = (np.repeat(owner, lengths) * high + y) * wide + x
    by_place = np.argsort(place, kind="stable")
    holes = np.setdiff1d(np.arange(len(owner)), outer)
    left = by_place[np.searchsorted(place[by_place], place[first[holes]]) - 1]
    at: dict[int, list[int]] = {}
    for hole, edge in zip(holes.tolist(), rings.order[left].tolist(), strict=True):
        at.setdefault(edge, []).append(hole)
    return _Cuts(at, first)


def _joined(edges: _Edges, rings: _Rings, cuts: _Cuts, outer: int) -> Points:
    """One closed polygon of an outer outline and all that is reached from it."""
    gone: list[int] = []
    todo = _nodes(edges, rings, cuts, outer)[::-1]
    while todo:
        edge = todo.pop()
        if edge < 0:  # back at a place where a cut began
            gone.append(~edge)
            continue
        gone.append(edge)
        for hole in cuts.at.get(edge, ()):
            around = _nodes(edges, rings, cuts, hole)
            todo += [~edge, ~around[0], *around[::-1]]
    points = np.stack([edges.x[gone], edges.y[gone]], 1)  # (K, 2)
    way = np.sign(np.roll(points, -1, 0) - points)
    turns = (way != np.roll(way, 1, 0)).any(1)
    return [(x, y) for x, y in points[turns].astype(float).tolist()]


def _nodes(edges: _Edges, rings: _Rings, cuts: _Cuts, ring: int) -> list[int]:
    """The edges of a ring at whose beginning it turns or a cut begins, from its first on."""
    begin, end, first = int(rings.starts[ring]), int(rings.starts[ring + 1]), int(cuts.first[ring])
    around = [*rings.order[first:end].tolist(), *rings.order[begin:first].tolist()]
    return [edge for edge in around if edges.corner[edge] or edge in cuts.at]
