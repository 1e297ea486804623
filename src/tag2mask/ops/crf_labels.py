"""The labels of a picture that the dense CRF has to filter: equal ones are one, and hopeless ones none."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Labels:
    """The labels of one picture, those that need no filtering of their own set apart.

    logits: (A, N) float32, -U of the filtered ones, shifted so that exp sums to 1 over all labels.
    mass: (A,) how many labels each row stands for.
    rest: (N,) the sum of exp over the labels without a message. pruned: (P, N) their exp, one by one.
    row: (C,) int64, where each label is among the A + P.
    """

    logits: Tensor
    mass: Tensor
    rest: Tensor
    pruned: Tensor
    row: Tensor


def select(unary: Tensor, prune: float) -> Labels:
    """Merge the labels of equal unaries (their marginals are equal too) and set aside those below ``prune``.

    unary: (C, N) float32.

    Raises:
        ValueError: an energy is not finite.
    """
    count, n = unary.shape
    device = unary.device
    # Rows that agree at a few pixels are compared in full with the first row of their kind.
    probe = unary[:, torch.linspace(0, n - 1, min(n, 64), device=device).long()].cpu().tolist()
    kinds: dict[tuple[float, ...], list[int]] = {}
    column: list[int] = []
    distinct: list[int] = []
    for label in range(count):
        alike = kinds.setdefault(tuple(probe[label]), [])
        same = next((k for k in alike if _equal(unary[distinct[k]], unary[label])), None)
        if same is None:
            same = len(distinct)
            alike.append(same)
            distinct.append(label)
        column.append(same)
    of = torch.tensor(column, device=device)  # (C,)
    mass = torch.bincount(of, minlength=len(distinct)).float()  # (G,)

    logits = unary.neg() if len(distinct) == count else unary[distinct].neg_()  # (G, N)
    if not all(torch.isfinite(extreme) for extreme in torch.aminmax(logits)):
        raise ValueError(
            "unary: got NaN, infinity or what float32 cannot hold, expected finite energies (unary_from_probs clips "
            "zero probabilities)"
        )
    logits -= logits.amax(dim=0)
    logits -= torch.log(mass @ logits.exp())
    # Never so many that what they hold together matters: with hundreds of labels all may be small everywhere.
    keep = logits.amax(dim=1) >= math.log(max(min(prune, 0.1 / count), 1e-38))
    kept, left = keep.nonzero()[:, 0], (~keep).nonzero()[:, 0]
    pruned = logits[left].exp_()  # (P, N)
    place = torch.empty_like(kept, memory_format=torch.contiguous_format).new_empty(len(distinct))
    place[torch.cat([kept, left])] = torch.arange(len(distinct), device=device)
    active = logits if len(left) == 0 else logits[kept]
    return Labels(active, mass[kept], mass[left] @ pruned, pruned, place[of])


def _equal(a: Tensor, b: Tensor) -> bool:
    """torch.equal; on the processor numpy's, which takes half the time."""
    return np.array_equal(a.numpy(), b.numpy()) if a.device.type == "cpu" else torch.equal(a, b)
