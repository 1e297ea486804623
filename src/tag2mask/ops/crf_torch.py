"""Mean field of the dense CRF in plain torch: on CUDA, where no loops are compiled, and as the oracle of those."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.ops import lattice
from tag2mask.ops.crf_labels import Labels
from tag2mask.ops.lattice import Lattice

if TYPE_CHECKING:
    from tag2mask.ops.crf import CRF

_WIDEST = 24
"""Labels filtered at once: more would leave the processor's cache."""


def mean_field(images: Sequence[Tensor], labels: Sequence[Labels], crf: CRF) -> list[Tensor]:
    """Marginals (C, N) of each picture, all filtered together: one after another, labels side by side."""
    sizes = [len(x.rest) for x in labels]
    width = max(len(x.mass) for x in labels)
    if 2 < width < 8 and not images[0].is_cuda:
        width = 8  # rows of whole vectors: quicker than 3 to 7 columns with masked loads and stores
    # A column that a picture lacks has a probability of exactly zero there.
    logits = torch.cat(
        [F.pad(x.logits.T, (0, width - len(x.mass)), value=-math.inf) for x in labels]
    ).contiguous()  # (N, A)
    mass = [F.pad(x.mass, (0, width - len(x.mass))) for x in labels]  # (A,) each
    rest = torch.cat([x.rest for x in labels])  # (N,)

    filters = _filters(images, crf) if crf.iterations else []
    if len(images) == 1 and len(labels[0].row) == len(labels[0].mass) == 2:
        return [_two(logits, filters, crf.iterations)]
    q, scale = _softmax(logits, mass, rest, sizes)
    for _ in range(crf.iterations):
        energy = logits
        for weight, kernel in filters:
            energy = torch.add(energy, _filter(kernel, q), alpha=weight)
        q, scale = _softmax(energy, mass, rest, sizes)

    marginals = []
    for x, part, factor in zip(labels, q.split(sizes), scale.split(sizes), strict=True):
        rows = torch.cat([part[:, : len(x.mass)].T, x.pruned * factor])  # (A + P, N)
        marginals.append(rows.index_select(0, x.row))  # (C, N)
    return marginals


def _two(logits: Tensor, filters: Sequence[tuple[float, Lattice]], iterations: int) -> Tensor:
    """Mean field of two labels, (N, 2) -> (2, N): the second is one minus the first, so one is filtered."""
    margin = logits[:, :1] - logits[:, 1:]  # (N, 1)
    q = margin.sigmoid()
    ones = torch.ones_like(q)
    for weight, kernel in filters if iterations else ():
        margin = torch.sub(margin, kernel(ones), alpha=weight)  # K q - K (1 - q) = 2 K q - K 1
    for _ in range(iterations):
        energy = margin
        for weight, kernel in filters:
            energy = torch.add(energy, kernel(q), alpha=2 * weight)
        q = energy.sigmoid()
    return torch.stack([q[:, 0], 1 - q[:, 0]])


def _softmax(energy: Tensor, mass: Sequence[Tensor], rest: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """exp(energy) / Z of (N, A), and the factor (N,) that makes a pruned label's exp its probability."""
    # softmax() along a dimension this short is slow; exp, a product and a division are not. A sum overflows
    # only under weights far above those of any preset: then shift first, as softmax() does.
    e = energy.exp()
    z = _total(e, mass, sizes).add_(rest)
    if torch.isfinite(z.amax()):
        return e.div_(z[:, None]), z.reciprocal_()
    top = energy.amax(dim=1).clamp_(min=0)
    e = torch.exp(energy - top[:, None])
    z = _total(e, mass, sizes).add_(rest * torch.exp(-top))
    return e.div_(z[:, None]), torch.exp(-top).div_(z)


def _total(e: Tensor, mass: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Sum of (N, A) over the labels that each column stands for: (N,)."""
    return torch.cat([torch.mv(part, m) for part, m in zip(e.split(list(sizes)), mass, strict=True)])


def _filter(kernel: Lattice, q: Tensor) -> Tensor:
    """``kernel`` on (N, A), a few columns at a time where there are many."""
    chunks = -(-q.shape[1] // _WIDEST)
    if chunks <= 1:
        return kernel(q)
    return torch.cat([kernel(part.contiguous()) for part in q.tensor_split(chunks, dim=1)], dim=1)


def _filters(images: Sequence[Tensor], crf: CRF) -> list[tuple[float, Lattice]]:
    """The kernels with their weights, over the pixels of all pictures."""
    device = images[0].device
    filters = []
    if crf.spatial is not None and crf.spatial[1] > 0:
        sxy, weight = crf.spatial
        parts = [lattice.SPATIAL.get(i.shape[1], i.shape[2], float(sxy), device) for i in images]
        filters.append((weight, lattice.stack(parts)))
    if crf.bilateral is not None and crf.bilateral[2] > 0:
        sxy, srgb, weight = crf.bilateral
        features = [
            torch.cat([lattice.positions(i.shape[1], i.shape[2], sxy, device), i.flatten(1).float().div_(srgb)])
            for i in images
        ]  # (5, N) each: x, y, r, g, b
        which = None
        if len(images) > 1:
            sizes = torch.tensor([f.shape[1] for f in features], device=device)
            which = torch.arange(len(images), device=device).repeat_interleave(sizes)  # (N,)
        filters.append((weight, lattice.build(torch.cat(features, dim=1), which)))
    return filters
