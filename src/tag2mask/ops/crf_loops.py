"""Mean field of the dense CRF as plain loops for one processor core: one pass over the pixels an iteration.

What is filtered are differences. With n labels, n unknowns are one too many: e_l = log(Q_l / Q_r) against a
reference label r is all that the softmax needs, and its message is the filtered difference Q_l - Q_r,

    e_l  =  -(U_l - U_r) + sum_m w_m K_m (Q_l - Q_r),

so two labels cost one column, and n labels n - 1. Where labels are set aside without a message
(``crf_labels``), they take the reference's place, and the columns are the Q_l themselves.

An iteration is the blur of both lattices and then, tile by tile, slice, softmax and the next splat, while the vertex
numbers and weights of the tile are still in the first-level cache. The columns of a vertex lie side by side, one, or
fours or eights that the processor works on together (``row_loops``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tag2mask.ops.compiled import compiled, first_alone
from tag2mask.ops.lattice_loops import SOON, SPATIAL, TILE, Array, Lattice, absent, blur, build
from tag2mask.ops.row_loops import fetch, less, load, nothing, plus, store, times, total, width

if TYPE_CHECKING:
    from tag2mask.ops.crf import CRF
    from tag2mask.ops.crf_labels import Labels

_ZERO, _ONE = np.float32(0), np.float32(1)
_NOWHERE = -1e4
"""Energy of a column that stands for no label."""

_LINE = 16
"""Numbers in a line of the cache."""

_LEAST, _MOST, _PER_LOG2 = np.float32(-87), np.float32(80), np.float32(1 / math.log(2))
_LOG2_HIGH, _LOG2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # log(2) in two parts
_C2, _C3, _C4, _C5, _C6, _C7 = (  # of exp(r) = 1 + r + c2 r² + c3 r³ ..., fitted for this range
    np.float32(c) for c in (0.5, 0.16666665, 0.041665796, 0.008333452, 0.0013981999, 0.00019875691)
)


def mean_field(image: Tensor, labels: Labels, crf: CRF) -> Tensor:
    """Marginals of one picture on the processor: (C, N) float32.

    Raises:
        OverflowError: the lattice does not fit its keys; the other engine may still do it.
    """
    reference = len(labels.pruned) == 0
    chosen = int(labels.mass.argmax()) if reference else len(labels.mass)
    others = [k for k in range(len(labels.mass)) if k != chosen]
    if not others:  # all labels are alike
        return torch.full((len(labels.row), len(labels.rest)), 1 / len(labels.row))
    logits, beside, still = labels.logits[others], labels.pruned, labels.rest
    if reference:
        logits -= labels.logits[chosen]
        beside, still = torch.ones(1, len(still)), labels.mass[chosen].repeat(len(still))
    columns, mass = _columns(logits, _NOWHERE), _columns(labels.mass[others, None], 0)
    source = torch.empty(len(labels.mass) + len(labels.pruned), dtype=torch.int64)
    source[others] = torch.arange(len(others))
    source[chosen:][: len(beside)] = columns[0].size + torch.arange(len(beside))
    table = Table(columns, mass, still.numpy(), beside.numpy(), source.numpy(), reference)
    pixels = image.contiguous().numpy()
    rows = torch.from_numpy(first_alone(columns.ndim, lambda: _iterate(pixels, table, crf)))
    in_order = torch.equal(labels.row, torch.arange(len(rows)))
    return rows if in_order else rows.index_select(0, labels.row)


class Table(NamedTuple):
    """The labels of a picture as the loops have them: A with a message, one of them the reference, or P without.

    columns: rows (N, ...) of -U, less the reference's, as ``_columns`` makes them.
    mass: (1, ...) how many labels each column stands for.
    still: (N,) what the labels without a column hold of the softmax's sum.
    beside: (B, N) exp of the labels without a column.
    source: (A + P,) where the Q of each is: in that column, or beside, counted on from the last column.
    reference: whether ``beside`` is one label, the reference.
    """

    columns: Array
    mass: Array
    still: Array
    beside: Array
    source: Array
    reference: bool


def _columns(table: Tensor, padding: float) -> Array:
    """(A, rows) as rows: of one number, or of eights, where they need no more room than fours."""
    count, rows = table.shape
    if count == 1:
        return table[0].numpy()
    room = -(-count // 4) * 4
    columns = torch.empty(rows, room)
    columns[:, :count], columns[:, count:] = table.T, padding
    return columns.numpy().reshape((rows, room) if room % 8 else (rows, room // 8, 8))


def _lattices(image: Array, crf: CRF) -> list[tuple[float, Lattice]]:
    """Weight and lattice of the spatial and of the bilateral kernel."""
    height, width = image.shape[1:]
    pairs = [(0.0, absent(height * width, 2)), (0.0, absent(height * width, 5))]
    if crf.spatial is not None and crf.spatial[1] > 0 and crf.iterations:
        sxy, weight = crf.spatial
        pairs[0] = (weight, SPATIAL.get(height, width, float(sxy)))
    if crf.bilateral is not None and crf.bilateral[2] > 0 and crf.iterations:
        sxy, srgb, weight = crf.bilateral
        pairs[1] = (weight, build(image, (sxy, sxy, srgb, srgb, srgb)))
    return pairs


def _iterate(image: Array, table: Table, crf: CRF) -> Array:
    """Q of the labels that differ, (A + P, N) float32."""
    out = np.empty((len(table.source), len(table.still)), np.float32)
    lattices = _lattices(image, crf)
    kernels = tuple((lattice.vertices, lattice.weights, np.float32(weight)) for weight, lattice in lattices)
    # Of each lattice the blurred values that are read, and room for the next splat and for its blur; one row more
    # than vertices is for the missing one.
    blurred, splat, free = (
        tuple(_zeros((len(lattice.order) + 1, *table.columns.shape[1:])) for _, lattice in lattices) for _ in range(3)
    )
    for i in range(crf.iterations + 1):
        _update(table, kernels, blurred, splat, (i == 0, i == crf.iterations), out)
        if i == crf.iterations:
            break
        for (_, lattice), values, there, room in zip(lattices, splat, blurred, free, strict=True):
            blur(values, there, room, lattice.order, lattice.neighbours)
            values.fill(0)
    return out


def _zeros(shape: tuple[int, ...]) -> Array:
    """Zeros that begin with a line of the cache: a row of 8 numbers then lies in one line, not across two."""
    room = np.zeros(math.prod(shape) + _LINE, np.float32)
    begin = -(room.ctypes.data // room.itemsize) % _LINE
    return room[begin : begin + math.prod(shape)].reshape(shape)


@compiled(sums=True)
def _exp(x, n):  # type: ignore[no-untyped-def]
    """exp of the first ``n`` values in place, within 3e-7 of it, 0 below exp(-87).

    The library's own is called value by value; this is arithmetic, of which the compiler makes vectors.
    """
    for i in range(n):
        v = max(x[i], _LEAST)
        power = np.rint(v * _PER_LOG2)
        r = (v - power * _LOG2_HIGH) - power * _LOG2_LOW  # within log(2) / 2 of zero
        series = ((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2
        bits = np.int32((np.int32(power) + 127) << 23)
        scale = bits.view(np.float32)  # 2 ** power
        x[i] = (series * r * r + r + _ONE) * scale if x[i] > _LEAST else _ZERO


@compiled()
def _any_above(x, n):  # type: ignore[no-untyped-def]
    """Whether one of the first ``n`` values is above _MOST: bits are gathered, for vectors know no early end."""
    above = np.int32(0)
    for i in range(n):
        above |= np.int32(x[i] > _MOST)
    return above != 0


@compiled(sums=True)
def _exponentials(e, factor):  # type: ignore[no-untyped-def]
    """exp of the energies of n pixels in place, and of zero: factor (n,); all over the same number of the pixel.

    e: (n x columns,), pixel by pixel.
    """
    for p in range(len(factor)):
        factor[p] = _ONE
    if _any_above(e, len(e)):
        # Only under weights far above those of any preset: shift first, as softmax() does.
        columns = len(e) // len(factor)
        for p in range(len(factor)):
            factor[p] = _ZERO
            for k in range(p * columns, (p + 1) * columns):
                factor[p] = min(factor[p], -e[k])
            for k in range(p * columns, (p + 1) * columns):
                e[k] += factor[p]
        _exp(factor, len(factor))
    _exp(e, len(e))


@compiled()
def _three(table, i):  # type: ignore[no-untyped-def]
    """Row i of the near lattice's vertices or weights, read once for all columns."""
    return table[i, 0], table[i, 1], table[i, 2]


@compiled()
def _six(table, i):  # type: ignore[no-untyped-def]
    """Row i of the far lattice's."""
    return table[i, 0], table[i, 1], table[i, 2], table[i, 3], table[i, 4], table[i, 5]


@compiled()
def _fetch(values, corners):  # type: ignore[no-untyped-def]
    """Ask for the values of a pixel's far vertices; the near ones lie where those of the pixel before did."""
    for j in range(len(corners)):
        fetch(values, corners[j])


@compiled(sums=True)
def _slice(e, begin, logits, kernels, near, far):  # type: ignore[no-untyped-def]
    """Add to the energies e of the tile that begins there what the vertices' values near and far say."""
    (corner3, part3, weight3), (corner6, part6, weight6) = kernels
    last = len(corner6) - 1
    for p in range(len(e)):
        i = begin + p
        _fetch(far, _six(corner6, min(i + SOON, last)))
        near_corners, near_parts = _three(corner3, i), _three(part3, i)
        far_corners, far_parts = _six(corner6, i), _six(part6, i)
        for k in range(width(e)):
            near_sum = far_sum = nothing(logits)
            for j in range(len(near_corners)):
                near_sum = plus(near_sum, near_parts[j], load(near, near_corners[j], k))
            for j in range(len(far_corners)):
                far_sum = plus(far_sum, far_parts[j], load(far, far_corners[j], k))
            store(e, p, k, plus(plus(load(logits, i, k), weight3, near_sum), weight6, far_sum))


@compiled(sums=True)
def _sum(e, mass, sums):  # type: ignore[no-untyped-def]
    """Add the columns of a tile, each as often as its mass says."""
    for p in range(len(e)):
        parts = nothing(e)
        for k in range(width(e)):
            parts = plus(parts, _ONE, times(load(mass, 0, k), load(e, p, k)))
        sums[p] += total(parts)


@compiled(sums=True)
def _share(e, share, taken):  # type: ignore[no-untyped-def]
    """Q of the columns of a tile, less what is taken of each: both (n,)."""
    for p in range(len(e)):
        for k in range(width(e)):
            store(e, p, k, less(plus(nothing(e), share[p], load(e, p, k)), taken[p]))


@compiled(sums=True)
def _splat(e, begin, kernels, near, far):  # type: ignore[no-untyped-def]
    """Add the tile that begins there to the vertices around its pixels."""
    (corner3, part3, _), (corner6, part6, _) = kernels
    last = len(corner6) - 1
    for p in range(len(e)):
        i = begin + p
        _fetch(far, _six(corner6, min(i + SOON, last)))
        _add(e, p, _three(corner3, i), _three(part3, i), near)
        _add(e, p, _six(corner6, i), _six(part6, i), far)


@compiled(sums=True)
def _add(e, p, corners, parts, values):  # type: ignore[no-untyped-def]
    """Add row p of e to the vertices' values, to each its part."""
    for k in range(width(e)):
        difference = load(e, p, k)
        for j in range(len(corners)):
            store(values, corners[j], k, plus(load(values, corners[j], k), parts[j], difference))


@compiled()
def _write(out, begin, e, factor, source, beside):  # type: ignore[no-untyped-def]
    """Q of the tile that begins there, from its columns, pixel by pixel, and the factor of the others' exp."""
    n = len(factor)
    columns = len(e) // n
    for i in range(len(out)):
        row, column = out[i, begin : begin + n], source[i]
        if column < columns:
            for p in range(n):
                row[p] = e[p * columns + column]
        else:
            exp = beside[column - columns, begin : begin + n]
            for p in range(n):
                row[p] = exp[p] * factor[p]


@compiled(sums=True)
def _update(table, kernels, blurred, splat, turn, out):  # type: ignore[no-untyped-def]
    """Slice, softmax and splat of every pixel.

    table: a ``Table``. kernels: vertices, weights and the kernel's weight, near and far. blurred, splat: values to
    slice, room to splat, of both lattices. turn: whether it is the first one, where nothing is sliced, and the last
    one, where Q is written to ``out`` (A + P, N).
    """
    first, last = turn
    pixels, logits = len(table.still), table.columns.reshape(-1)
    columns = len(logits) // pixels
    room = np.empty_like(table.columns[:TILE])
    sums, factors, none = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.zeros(TILE, np.float32)
    for begin in range(0, pixels, TILE):
        n = min(TILE, pixels - begin)
        e, factor, still = room[:n], factors[:n], table.still[begin : begin + n]
        flat = e.reshape(-1)
        if first:
            own = logits[begin * columns : (begin + n) * columns]
            for i in range(len(flat)):
                flat[i] = own[i]
        else:
            _slice(e, begin, table.columns, kernels, blurred[0], blurred[1])
        _exponentials(flat, factor)
        for p in range(n):
            sums[p] = still[p] * factor[p]
        _sum(e, table.mass, sums)
        for p in range(n):
            sums[p] = _ONE / sums[p]
            factor[p] *= sums[p]
        if last:
            _share(e, sums, none)
            _write(out, begin, flat, factor, table.source, table.beside)
        else:
            _share(e, sums, factors if table.reference else none)
            _splat(e, begin, kernels, splat[0], splat[1])
