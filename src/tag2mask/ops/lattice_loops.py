"""The permutohedral lattice of ``ops.lattice`` as plain loops for one processor core.

The same lattice, vertex for vertex: the same rounding, neighbours and order of the blur. What differs is how vertices
are found, by a hash table in the order of the pixels, so that neighbours in the picture stay neighbours in memory.

Loops run over tiles of pixels, whose intermediate values stay in the first-level cache; the innermost loop runs over
the pixels of a tile and has no branches where that can be had, so that the compiler makes vector instructions of it.
Vertex numbers are unsigned: numba would ask of a signed index whether it counts from the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from tag2mask.ops.compiled import compiled
from tag2mask.ops.lattice import LatticeCache
from tag2mask.ops.row_loops import fetch, load, plus, store, width

Array = np.ndarray

TILE = 256
"""Pixels whose values are kept together in the first-level cache."""

SOON = 20
"""How many pixels or vertices before they are wanted rows of scattered places are fetched."""

_HALF, _ONE = np.float32(0.5), np.float32(1)
_GOLDEN, _HIGH, _STEP = np.uint64(0x9E3779B97F4A7C15), np.uint64(32), np.uint64(1)


@dataclass(frozen=True)
class Lattice:
    """A normalised Gaussian filter n K n over N pixels in d dimensions.

    Vertices have two numbers. Splat and slice count them as the pixels meet them, so that a pixel's vertices lie
    together; the blur in the order of their keys, so that what it reads lies in order along every direction.

    vertices, weights: (N, d + 1) uint32 and float32; the simplex around each pixel and its barycentric weights,
        times the normalisation n_i = 1 / sqrt((K 1)_i) of the pixel.
    order: (V,) uint32; the pixels' number of each vertex of the blur.
    neighbours: (d + 1, V, 2) uint32; the next and the previous vertex of the blur along each direction; along the
        first one by the pixels' number, for there the blur reads what the splat has left. Vertex V is the missing
        neighbour: no pixel has it, and its value is always zero.
    """

    vertices: Array
    weights: Array
    order: Array
    neighbours: Array

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(array.nbytes for array in vars(self).values())


def build(image: Array, sigmas: tuple[float, ...]) -> Lattice:
    """The filter over the features (x, y, channels of the picture), each divided by its standard deviation.

    Args:
        image: (c, H, W) uint8; c = 0 for position alone.
        sigmas: (sx, sy, one for each channel).

    Raises:
        OverflowError: the features span too wide a range for 62-bit keys, or there are too many pixels.
    """
    d, (height, width) = len(sigmas), image.shape[1:]
    if height * width * (d + 1) >= 2**31:
        raise OverflowError(f"lattice: {height * width} pixels are more than 32-bit vertex numbers allow")
    # The embedding's scale makes d + 1 blurs with [1/2, 1, 1/2] a Gaussian of unit variance.
    scales = [(d + 1) * math.sqrt(2 / 3) / math.sqrt(i * (i + 1)) for i in range(1, d + 1)]
    ranges = [width, height, *[256] * (d - 2)]
    tables = [  # all values that each feature can have; by torch, to round as its engine does
        torch.arange(count, dtype=torch.float32).div_(sigma).mul_(scale).numpy()
        for count, sigma, scale in zip(ranges, sigmas, scales, strict=True)
    ]
    low, strides, span = _keys([float(table[-1]) for table in tables])
    levels = np.stack(tables[2:]) if d > 2 else np.empty((0, 256), np.float32)
    bits = 2 + (height * width - 1).bit_length()  # most photographs need no larger one
    vertices, weights, keys = _embed(image, tables[0], tables[1], levels, low, strides, span, bits)
    keys, order = _sort(keys, ((d + 1) * span).bit_length())
    second, last = np.searchsorted(keys, [span, d * span])
    neighbours = _neighbours(keys, strides, span, second, last)
    number = np.append(order, np.uint32(len(order)))
    if d == 2:  # without colours neighbours in the lattice are neighbours in the picture: one order serves both
        renumbered = np.empty_like(neighbours)
        renumbered[:, order] = number[neighbours]
        order, neighbours = np.arange(len(order), dtype=np.uint32), renumbered
    else:
        neighbours[0] = number[neighbours[0]]
    _normalise(vertices, weights, order, neighbours)
    return Lattice(vertices, weights, order, neighbours)


def absent(pixels: int, d: int) -> Lattice:
    """The filter that gives zero everywhere, for a kernel that is left out."""
    corners, order = np.zeros((pixels, d + 1), np.uint32), np.zeros(0, np.uint32)
    return Lattice(corners, np.zeros(corners.shape, np.float32), order, np.zeros((d + 1, 0, 2), np.uint32))


def over_position(height: int, width: int, sxy: float) -> Lattice:
    """The filter over (x, y) / sxy on a picture of ``height`` x ``width`` pixels."""
    return build(np.empty((0, height, width), np.uint8), (sxy, sxy))


SPATIAL = LatticeCache(over_position)


def _keys(highest: list[float]) -> tuple[Array, Array, int]:
    """Lowest quotients (d,), strides (d,) and span of vertex keys, for scaled features in 0 .. ``highest`` (d,).

    A vertex of remainder k has d + 1 coordinates (d + 1) q_i + k that sum to zero; its key is
    k span + sum_i (q_i - low_i) stride_i. Every vertex has one of its own, and so have its neighbours.
    """
    d = len(highest)
    low, strides, span = [], [], 1
    for i in range(d):  # elevated coordinate i is the sum of the features from i on, less i times the one before
        least = -i * highest[i - 1] if i else 0.0
        low.append(math.floor(least / (d + 1)) - 4)
        strides.append(span)
        span *= math.ceil(sum(highest[i:]) / (d + 1)) + 4 - low[-1]
    if (d + 2) * span >= 2**62:
        raise OverflowError(f"lattice: {span:.1e} cells in {d} dimensions do not fit 62-bit keys")
    return np.array(low), np.array(strides), span


@compiled()
def _locate(features, n, elevated, quotients, ranks, weights, excess):  # type: ignore[no-untyped-def]
    """The simplex around each of the first ``n`` points of a tile; see ``lattice._simplices``.

    features: (d, TILE) scaled. Written: quotients and ranks (d + 1, TILE) int32, weights (d + 1, TILE).
    elevated (d + 1, TILE) and excess (TILE,) are scratch.
    """
    d, side = len(features), np.float32(len(features) + 1)
    total = elevated[0]
    total[:n] = 0
    excess[:n] = 0
    for i in range(d, 0, -1):
        scaled, row, times = features[i - 1], elevated[i], np.float32(i)
        for p in range(n):
            row[p] = total[p] - times * scaled[p]
            total[p] += scaled[p]
    for i in range(d + 1):
        row, quotient, rank, residual = elevated[i], quotients[i], ranks[i], weights[i]
        for p in range(n):
            nearest = np.rint(row[p] / side)  # halves go to even
            quotient[p] = np.int32(nearest)
            excess[p] += np.int32(nearest)
            residual[p] = row[p] - side * nearest
            rank[p] = i
    for i in range(d):
        for j in range(i + 1, d + 1):  # of equal residuals the first ranks first
            a, b, rank_a, rank_b = weights[i], weights[j], ranks[i], ranks[j]
            for p in range(n):
                less = np.int32(a[p] < b[p])
                rank_a[p] += less
                rank_b[p] -= less
    # Rounding may leave the plane by ``excess`` steps; the coordinates that were rounded most go back.
    for i in range(d + 1):
        row, quotient, rank, residual = elevated[i], quotients[i], ranks[i], weights[i]
        for p in range(n):
            r = rank[p] + excess[p]
            turn = np.int32(r < 0) - np.int32(r > d)
            rank[p] = r + np.int32(d + 1) * turn
            quotient[p] += turn
            residual[p] = (row[p] - side * np.float32(quotient[p])) / side
    for end in range(d, 0, -1):  # sort the residuals upwards; weights are the steps between them
        for i in range(end):
            a, b = weights[i], weights[i + 1]
            for p in range(n):
                a[p], b[p] = min(a[p], b[p]), max(a[p], b[p])
    for p in range(n):
        total[p] = _ONE + weights[0, p] - weights[d, p]
    for k in range(d, 0, -1):
        a, b = weights[k - 1], weights[k]
        for p in range(n):
            b[p] -= a[p]
    for p in range(n):
        weights[0, p] = total[p]


@compiled()
def _probe(table, keys, key):  # type: ignore[no-untyped-def]
    """The slot of ``key`` in the hash table and the vertex there, or the free slot for it and -1."""
    last = np.uint64(len(table) - 1)
    slot = (np.uint64(key) * _GOLDEN >> _HIGH) & last
    while table[slot] >= 0 and keys[table[slot]] != key:
        slot = (slot + _STEP) & last
    return slot, table[slot]


@compiled()
def _find(table, keys, wanted, n, found):  # type: ignore[no-untyped-def]
    """The vertices of the first ``n`` wanted keys, -1 where there are none.

    The first slots of all are read at once: one after another, each would wait for memory.
    """
    last = np.uint64(len(table) - 1)
    for p in range(n):
        found[p] = table[(np.uint64(wanted[p]) * _GOLDEN >> _HIGH) & last]
    for p in range(n):
        if found[p] >= 0 and keys[found[p]] != wanted[p]:
            found[p] = _probe(table, keys, wanted[p])[1]


@compiled()
def _larger(table, keys, count):  # type: ignore[no-untyped-def]
    """A hash table of four times the size with the first ``count`` keys."""
    larger = np.full(4 * len(table), -1, np.int32)
    for v in range(count):
        larger[_probe(larger, keys, keys[v])[0]] = v
    return larger


@compiled()
def _embed(image, xs, ys, levels, low, strides, span, bits):  # type: ignore[no-untyped-def]
    """Vertices and weights (N, d + 1) of all pixels, and the key of every vertex (V,).

    xs (W,), ys (H,), levels (c, 256): the scaled features. bits: of the hash table's first size.
    """
    height, width = image.shape[1:]
    d = len(strides)
    vertices = np.empty((height * width, d + 1), np.uint32)
    weights = np.empty((height * width, d + 1), np.float32)
    features = np.empty((d, TILE), np.float32)
    elevated, parts = np.empty((d + 1, TILE), np.float32), np.empty((d + 1, TILE), np.float32)
    quotients, ranks = np.empty((d + 1, TILE), np.int32), np.empty((d + 1, TILE), np.int32)
    wanted, found, excess = np.empty(TILE, np.int64), np.empty(TILE, np.int32), np.empty(TILE, np.int32)
    keys = np.empty(
        height * width * (d + 1), np.int64
    )  # as many as there could be; what is not written costs nothing
    table = np.full(1 << bits, -1, np.int32)
    count = 0
    for y in range(height):
        for first in range(0, width, TILE):
            n = min(TILE, width - first)
            pixel = y * width + first
            for p in range(n):
                features[0, p] = xs[first + p]
                features[1, p] = ys[y]
            for c in range(len(levels)):
                for p in range(n):
                    features[2 + c, p] = levels[c, image[c, y, first + p]]
            _locate(features, n, elevated, quotients, ranks, parts, excess)
            wanted[:n] = 0
            for i in range(d):
                quotient, lowest, stride = quotients[i], low[i], strides[i]
                for p in range(n):
                    wanted[p] += stride * (quotient[p] - lowest)
            for k in range(d + 1):
                if k:  # the next corner is one below this one in the coordinate of the next highest rank
                    for p in range(n):
                        wanted[p] += span
                    for i in range(d):
                        rank, stride = ranks[i], strides[i]
                        for p in range(n):
                            wanted[p] -= stride if rank[p] == d + 1 - k else 0
                _find(table, keys, wanted, n, found)
                for p in range(n):
                    v = found[p]
                    if v < 0:  # new, or made by a pixel of this tile
                        slot, v = _probe(table, keys, wanted[p])
                        if v < 0:
                            v = count
                            table[slot] = v
                            keys[v] = wanted[p]
                            count += 1
                    vertices[pixel + p, k] = v
                    weights[pixel + p, k] = parts[k, p]
                if 3 * count > len(table):
                    table = _larger(table, keys, count)
    return vertices, weights, keys[:count]


@compiled()
def _sort(keys, bits):  # type: ignore[no-untyped-def]
    """The keys (V,) ascending, and where each was: (V,) uint32. All keys are below 2**bits.

    Digit by digit from the lowest, each pass in the order that the last one left.
    """
    passes = (bits + 11) // 12  # of at most 4,096 digits
    step = (bits + passes - 1) // passes  # bits of a digit
    last = np.int64((1 << step) - 1)
    order, free_order = np.arange(len(keys)).astype(np.uint32), np.empty(len(keys), np.uint32)
    free = np.empty_like(keys)
    for i in range(passes):
        shift = np.int64(i * step)
        place = np.zeros(last + 2, np.uint32)
        for v in range(len(keys)):
            place[(keys[v] >> shift & last) + 1] += np.uint32(1)
        for digit in range(last):
            place[digit + 1] += place[digit]
        for v in range(len(keys)):
            digit = keys[v] >> shift & last
            to = place[digit]
            place[digit] = to + np.uint32(1)
            free[to], free_order[to] = keys[v], order[v]
        if i:
            keys, free = free, keys
        else:  # the caller's keys stay
            keys, free = free, np.empty_like(keys)
        order, free_order = free_order, order
    return keys, order


@compiled()
def _neighbours(keys, strides, span, second, last):  # type: ignore[no-untyped-def]
    """(d + 1, V, 2) uint32: next and previous vertex of each along each direction, V where there is none.

    keys: (V,) ascending, so that the wanted ones ascend too, and one walk finds them all.
    second, last: the first vertices of remainder 1 and of remainder d.
    """
    d, count = len(strides), len(keys)
    neighbours = np.full((d + 1, count, 2), count, np.uint32)
    # The next vertex along direction j: all coordinates + 1, coordinate j - d. Remainder d wraps to 0.
    wrap = -d * span
    for stride in strides:
        wrap += stride
    for begin, end, first, stop, step in ((0, last, second, count, span), (last, count, 0, second, wrap)):
        for j in range(d + 1):
            step_j = step - (strides[j] if j < d else 0)
            near, v, found = neighbours[j], begin, first
            while v < end and found < stop:  # without a branch: which of the two goes on cannot be foretold
                key, wanted = keys[found], keys[v] + step_j
                near[v, 0] = found if key == wanted else count
                near[found, 1] = v if key == wanted else count
                v += key >= wanted
                found += key <= wanted
    return neighbours


@compiled(sums=True)
def blur(values, out, free, order, neighbours):  # type: ignore[no-untyped-def]
    """Blur ``values`` (V + 1, ...) along each direction with [1/2, 1, 1/2] into ``out``; ``free`` is room for that.

    ``values`` is overwritten. Rows are as in ``row_loops``.
    """
    count, most = len(order), len(neighbours) - 1
    values[count] = free[count] = out[count] = 0
    near = neighbours[0]
    for v in range(count):
        soon = min(v + SOON, count - 1)
        fetch(values, near[soon, 0])
        fetch(values, near[soon, 1])
        fetch(values, order[soon])
        _mix(free, np.uint32(v), values, order[v], near[v, 0], near[v, 1])
    here, there = free, values
    for j in range(1, most):
        near = neighbours[j]
        for v in range(count):
            soon = min(v + SOON, count - 1)
            fetch(here, near[soon, 0])
            fetch(here, near[soon, 1])
            _mix(there, np.uint32(v), here, np.uint32(v), near[v, 0], near[v, 1])
        here, there = there, here
    near = neighbours[most]
    for v in range(count):
        fetch(out, order[min(v + SOON, count - 1)])
        _mix(out, order[v], here, np.uint32(v), near[v, 0], near[v, 1])


@compiled(sums=True)
def _mix(out, to, values, v, after, before):  # type: ignore[no-untyped-def]
    """A row of the blur: that of vertex ``v`` and half of each neighbour's."""
    for k in range(width(out)):
        both = plus(load(values, after, k), _ONE, load(values, before, k))
        store(out, to, k, plus(load(values, v, k), _HALF, both))


@compiled(sums=True)
def _normalise(vertices, weights, order, neighbours):  # type: ignore[no-untyped-def]
    """Multiply the weights (N, d + 1) by n_i = 1 / sqrt((K 1)_i)."""
    pixels, corners = vertices.shape
    values, free = np.zeros(len(order) + 1, np.float32), np.empty(len(order) + 1, np.float32)
    for i in range(pixels):
        for k in range(corners):
            values[vertices[i, k]] += weights[i, k]
    out = np.empty_like(values)
    blur(values, out, free, order, neighbours)
    for i in range(pixels):
        total = np.float32(1e-20)
        for k in range(corners):
            total += weights[i, k] * out[vertices[i, k]]
        norm = _ONE / np.sqrt(total)
        for k in range(corners):
            weights[i, k] *= norm
