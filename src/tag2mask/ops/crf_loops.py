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
from tag2mask.ops.lattice_loops import SPATIAL, TILE, Array, Lattice, absent, blur, build
from tag2mask.ops.row_loops import dot, less, load, nothing, plus, store, width

if TYPE_CHECKING:
    from tag2mask.ops.crf import CRF
    from tag2mask.ops.crf_labels import Labels

_ZERO, _ONE = np.float32(0), np.float32(1)
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
    logits, mass = logits.contiguous(), labels.mass[others]
    if len(others) == 1:
        logits = logits[:, 0]
    else:
        padding = (0, -len(others) % 4)
        logits, mass = F.pad(logits, padding, value=_NOWHERE), F.pad(mass, padding)[None]
    q, factor = _iterate(
        image.contiguous().numpy(),
        (logits.numpy(), mass.numpy(), still.contiguous().numpy(), reference),
        crf,
    )
    rows = torch.empty(len(labels.mass) + len(labels.pruned), len(q))
    rows[others] = torch.from_numpy(q).view(len(q), -1).T[: len(others)]
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

    labels: logits (N, A), or (N,) for a single column; mass (1, A) or (1,); what the labels without a column hold of
        the softmax's sum (N,); and whether they are one label, the reference.
    """
    logits = labels[0]
    out = np.empty_like(logits), np.empty(len(logits), np.float32)
    lattices = _lattices(image, crf)
    # Of each lattice, the blurred values that are read, and room for the next splat and for its blur.
    rooms = [
        tuple(np.zeros((len(lattice.order) + 1, *logits.shape[1:]), np.float32) for _ in range(3))
        for _, lattice in lattices
    ]
    for i in range(crf.iterations + 1):
        near, far = (
            (lattice.vertices, lattice.weights, np.float32(weight), blurred, splat)
            for (weight, lattice), (blurred, splat, _) in zip(lattices, rooms, strict=True)
        )
        _update(labels, near, far, i == 0, i == crf.iterations, out)
        if i == crf.iterations:
            break
        for (_, lattice), (blurred, splat, free) in zip(lattices, rooms, strict=True):
            blur(splat, blurred, free, lattice.order, lattice.neighbours)
            splat.fill(0)
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
def _update(labels, near, far, first, last, out):  # type: ignore[no-untyped-def]
    """Slice, softmax and splat of every pixel; the first time nothing is sliced, the last time Q is kept.

    labels: see ``_iterate``. near, far: vertices, weights, the kernel's weight, values to slice, room to splat.
    out: Q of the columns, and the factor (N,).
    """
    logits, mass, still, reference = labels
    corner3, part3, weight3, x3, splat3 = near
    corner6, part6, weight6, x6, splat6 = far
    q, factor = out
    pixels, columns = len(logits), width(logits)
    e = np.empty_like(logits[:TILE])
    for begin in range(0, pixels, TILE):
        n = min(TILE, pixels - begin)
        for p in range(n):
            i = begin + p
            for k in range(0, columns, 4):
                energy = load(logits, i, k)
                if not first:
                    near_sum = far_sum = nothing(logits)
                    for j in range(3):
                        near_sum = plus(near_sum, part3[i, j], load(x3, corner3[i, j], k))
                    for j in range(6):
                        far_sum = plus(far_sum, part6[i, j], load(x6, corner6[i, j], k))
                    energy = plus(plus(energy, weight3, near_sum), weight6, far_sum)
                store(e, p, k, energy)
        _exponentials(e.reshape(-1), n, columns, factor[begin : begin + n])
        for p in range(n):
            i = begin + p
            total = still[i] * factor[i]
            for k in range(0, columns, 4):
                total += dot(load(mass, 0, k), load(e, p, k))
            share = _ONE / total
            factor[i] *= share
            taken = factor[i] if reference and not last else _ZERO
            for k in range(0, columns, 4):
                store(e, p, k, less(plus(nothing(e), share, load(e, p, k)), taken))
        for p in range(n):
            i = begin + p
            for k in range(0, columns, 4):
                difference = load(e, p, k)
                if last:
                    store(q, i, k, difference)
                    continue
                for j in range(3):
                    v, part = corner3[i, j], part3[i, j]
                    store(splat3, v, k, plus(load(splat3, v, k), part, difference))
                for j in range(6):
                    v, part = corner6[i, j], part6[i, j]
                    store(splat6, v, k, plus(load(splat6, v, k), part, difference))
