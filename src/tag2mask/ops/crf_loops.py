"""Mean field of the dense CRF as plain loops for one processor core: one pass over the pixels an iteration.

What is filtered are differences. With n labels, n unknowns are one too many: e_l = log(Q_l / Q_r) against a
reference label r is all that the softmax needs, and its message is the filtered difference Q_l - Q_r,

    e_l  =  -(U_l - U_r) + sum_m w_m K_m (Q_l - Q_r),

so two labels cost one column, and n labels n - 1. Where labels are set aside without a message
(``crf_labels``), they take the reference's place, and the columns are the Q_l themselves.

An iteration is the blur of both lattices and then, tile by tile, slice, softmax and the next splat, while the vertex
numbers and weights of the tile are still in the first-level cache. The columns of a vertex lie side by side: one, or
a multiple of four, which the processor works on together. Such a vector is a tuple here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.ops.compiled import compiled
from tag2mask.ops.lattice_loops import SPATIAL, TILE, Array, Lattice, absent, build

if TYPE_CHECKING:
    from tag2mask.ops.crf import CRF
    from tag2mask.ops.crf_labels import Labels

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_NOWHERE = -1e4
"""Energy of a column that stands for no label."""

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
        return torch.full((len(labels.row), len(labels.logits)), 1 / len(labels.row))
    logits, still = labels.logits[:, others], labels.rest
    if reference:
        logits, still = logits - labels.logits[:, chosen, None], labels.mass[chosen].expand(len(logits))
    width = len(others)
    padding = (0, 0 if width == 1 else -width % 4)
    logits = F.pad(logits, padding, value=_NOWHERE).contiguous()
    mass = F.pad(labels.mass[others], padding)[None]
    q, factor = _iterate(
        image.contiguous().numpy(),
        (logits.numpy(), mass.numpy(), still.contiguous().numpy(), reference),
        crf,
    )
    rows = torch.empty(len(labels.mass) + len(labels.pruned), len(q))
    rows[others] = torch.from_numpy(q).T[:width]
    if reference:
        rows[chosen] = torch.from_numpy(factor)
    else:
        torch.mul(labels.pruned, torch.from_numpy(factor), out=rows[len(labels.mass) :])
    return rows.index_select(0, labels.row)


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


def _iterate(image: Array, labels: tuple[Array, Array, Array, bool], crf: CRF) -> tuple[Array, Array]:
    """Q (N, A) of the columns, and the factor (N,) that makes exp(logit) of a label without a column its Q.

    labels: logits (N, A), mass (1, A), what the labels without a column hold of the softmax's sum (N,), and whether
        they are one label, the reference.
    """
    pixels, columns = labels[0].shape
    update, blur = (_update_one, _blur_one) if columns == 1 else (_update, _blur)
    out = np.empty((pixels, columns), np.float32), np.empty(pixels, np.float32)
    lattices = _lattices(image, crf)
    # Of each lattice, the blurred values that are read, and room for the next splat.
    values = [[np.zeros((x.neighbours.shape[1], columns), np.float32) for _ in range(2)] for _, x in lattices]
    for i in range(crf.iterations + 1):
        for pair in values:
            pair[1].fill(0)
        near, far = (
            (lattice.vertices, lattice.weights, np.float32(weight), *pair)
            for (weight, lattice), pair in zip(lattices, values, strict=True)
        )
        update(labels, near, far, i == 0, i == crf.iterations, out)
        if i < crf.iterations:
            for (_, lattice), pair in zip(lattices, values, strict=True):
                pair[:] = blur(pair[1], pair[0], lattice.neighbours)
    return out


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


@compiled(sums=True)
def _exponentials(e, n, columns, factor):  # type: ignore[no-untyped-def]
    """exp of the energies of a tile (n, columns) in place, and of zero: factor (n,); both over the same number."""
    largest = _ZERO
    for i in range(n * columns):
        largest = max(largest, e[i])
    if largest > _MOST:  # only under weights far above those of any preset: shift first, as softmax() does
        for p in range(n):
            top = _ZERO
            for k in range(columns):
                top = max(top, e[p * columns + k])
            factor[p] = -top
            for k in range(columns):
                e[p * columns + k] -= top
        _exp(factor, n)
    else:
        factor[:] = _ONE
    _exp(e, n * columns)


@compiled(sums=True)
def _update_one(labels, near, far, first, last, out):  # type: ignore[no-untyped-def]
    """``_update`` of a single column."""
    logits, mass, still, reference = labels
    corner3, part3, weight3, x3, splat3 = near
    corner6, part6, weight6, x6, splat6 = far
    q, factor = out
    e = np.empty(TILE, np.float32)
    for begin in range(0, len(logits), TILE):
        n = min(TILE, len(logits) - begin)
        for p in range(n):
            i = begin + p
            e[p] = logits[i, 0]
            if not first:
                near_sum, far_sum = _ZERO, _ZERO
                for j in range(3):
                    near_sum += part3[i, j] * x3[corner3[i, j], 0]
                for j in range(6):
                    far_sum += part6[i, j] * x6[corner6[i, j], 0]
                e[p] += weight3 * near_sum + weight6 * far_sum
        _exponentials(e, n, 1, factor[begin : begin + n])
        for p in range(n):
            i = begin + p
            share = _ONE / (still[i] * factor[i] + mass[0, 0] * e[p])
            factor[i] *= share
            e[p] *= share
            if last:
                q[i, 0] = e[p]
            elif reference:
                e[p] -= factor[i]
        if not last:
            for p in range(n):
                i = begin + p
                for j in range(3):
                    splat3[corner3[i, j], 0] += part3[i, j] * e[p]
                for j in range(6):
                    splat6[corner6[i, j], 0] += part6[i, j] * e[p]


@compiled(sums=True)
def _blur_one(values, free, neighbours):  # type: ignore[no-untyped-def]
    """``_blur`` of a single column."""
    missing = len(values) - 1
    free[missing] = 0
    for j in range(len(neighbours)):
        near = neighbours[j]
        for v in range(missing):
            free[v, 0] = values[v, 0] + _HALF * (values[near[v, 0], 0] + values[near[v, 1], 0])
        values, free = free, values
    return values, free


@compiled(sums=True)
def _row(x, v, g):  # type: ignore[no-untyped-def]
    """Columns g .. g + 3 of row v."""
    return x[v, g], x[v, g + 1], x[v, g + 2], x[v, g + 3]


@compiled(sums=True)
def _plus(a, w, b):  # type: ignore[no-untyped-def]
    """A + w b."""
    return a[0] + w * b[0], a[1] + w * b[1], a[2] + w * b[2], a[3] + w * b[3]


@compiled(sums=True)
def _put(x, v, g, a):  # type: ignore[no-untyped-def]
    """Write columns g .. g + 3 of row v."""
    x[v, g], x[v, g + 1], x[v, g + 2], x[v, g + 3] = a


@compiled(sums=True)
def _update(labels, near, far, first, last, out):  # type: ignore[no-untyped-def]
    """Slice, softmax and splat of every pixel; the first time nothing is sliced, the last time Q is kept.

    labels: see ``_iterate``. near, far: vertices, weights, the kernel's weight, values to slice, room to splat.
    out: Q (N, A) and factor (N,).
    """
    logits, mass, still, reference = labels
    corner3, part3, weight3, x3, splat3 = near
    corner6, part6, weight6, x6, splat6 = far
    q, factor = out
    pixels, columns = logits.shape
    e = np.empty((TILE, columns), np.float32)
    nothing = (_ZERO, _ZERO, _ZERO, _ZERO)
    for begin in range(0, pixels, TILE):
        n = min(TILE, pixels - begin)
        for p in range(n):
            i = begin + p
            for g in range(0, columns, 4):
                energy = _row(logits, i, g)
                if not first:
                    near_sum, far_sum = nothing, nothing
                    for j in range(3):
                        near_sum = _plus(near_sum, part3[i, j], _row(x3, corner3[i, j], g))
                    for j in range(6):
                        far_sum = _plus(far_sum, part6[i, j], _row(x6, corner6[i, j], g))
                    energy = _plus(_plus(energy, weight3, near_sum), weight6, far_sum)
                _put(e, p, g, energy)
        _exponentials(e.reshape(-1), n, columns, factor[begin : begin + n])
        for p in range(n):
            i = begin + p
            sums = nothing
            for g in range(0, columns, 4):
                sums = _plus(sums, _ONE, _times(_row(mass, 0, g), _row(e, p, g)))
            share = _ONE / (still[i] * factor[i] + ((sums[0] + sums[1]) + (sums[2] + sums[3])))
            factor[i] *= share
            less = factor[i] if reference and not last else _ZERO
            for g in range(0, columns, 4):
                _put(e, p, g, _plus((-less, -less, -less, -less), share, _row(e, p, g)))
        if last:
            q[begin : begin + n] = e[:n]
            continue
        for p in range(n):
            i = begin + p
            for g in range(0, columns, 4):
                difference = _row(e, p, g)
                for j in range(3):
                    v = corner3[i, j]
                    _put(splat3, v, g, _plus(_row(splat3, v, g), part3[i, j], difference))
                for j in range(6):
                    v = corner6[i, j]
                    _put(splat6, v, g, _plus(_row(splat6, v, g), part6[i, j], difference))


@compiled(sums=True)
def _times(a, b):  # type: ignore[no-untyped-def]
    """A b, number by number."""
    return a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3]


@compiled(sums=True)
def _blur(values, free, neighbours):  # type: ignore[no-untyped-def]
    """Blur (V + 1, A) along each direction with [1/2, 1, 1/2]: the result, and the array that is free then."""
    missing, columns = len(values) - 1, values.shape[1]
    free[missing] = 0
    for j in range(len(neighbours)):
        near = neighbours[j]
        for v in range(missing):
            for g in range(0, columns, 4):
                both = _plus(_row(values, near[v, 0], g), _ONE, _row(values, near[v, 1], g))
                _put(free, v, g, _plus(_row(values, v, g), _HALF, both))
        values, free = free, values
    return values, free
