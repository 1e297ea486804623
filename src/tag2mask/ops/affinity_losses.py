"""The losses of IRN (affinity and displacement) and of PSA (affinity), on all pairs of a batch.

In both, the three kinds of pairs count the same however many they are: a mean over each kind, over the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tag2mask.ops.affinity_labels import PairLabels, pair_labels
from tag2mask.ops.pairs import Offset, disc_offsets, disc_paths, path_offsets, window

_EPS = 1e-5


@dataclass(frozen=True)
class AffinityLoss:
    """The mean loss of each kind of pairs, scalars."""

    background: Tensor
    foreground: Tensor
    different: Tensor

    @property
    def total(self) -> Tensor:
        """A quarter, a quarter and a half of them, a scalar."""
        return (self.background + self.foreground) / 4 + self.different / 2


@dataclass(frozen=True)
class IRNLoss:
    """The terms of IRN's loss, scalars: pair affinities, and displacements inside classes and inside background."""

    affinity: AffinityLoss
    displacement_foreground: Tensor
    displacement_background: Tensor

    @property
    def total(self) -> Tensor:
        """Affinities plus half of both displacement terms, a scalar."""
        return self.affinity.total + (self.displacement_foreground + self.displacement_background) / 2


def path_affinity(edge: Tensor, radius: float) -> Tensor:
    """IRN's affinity of all pairs, 1 - the highest boundary on their path: (B, H, W) in [0, 1] -> (B, P, S).

    Differentiable: the gradient of a pair goes to the first highest pixel of its path. Only that pixel's index is
    kept for it, not the whole path (13 pixels on average at radius 10).
    """
    with torch.no_grad():
        index = torch.arange(edge[0].numel(), device=edge.device).view(edge.shape[1:])  # (H, W)
        highest = []
        for path in disc_paths(radius):
            best = window(edge, radius, path[0]).clone()  # (B, h', w')
            where = window(index, radius, path[0]).expand_as(best).clone()
            for cell in path[1:]:
                value = window(edge, radius, cell)
                torch.where(value > best, window(index, radius, cell), where, out=where)
                torch.maximum(best, value, out=best)
            highest.append(where.flatten(1))
    indices = torch.cat(highest, 1)  # (B, P S)
    return (1 - edge.flatten(1).gather(1, indices)).unflatten(1, (len(highest), -1))


def feature_affinity(features: Tensor, radius: float) -> Tensor:
    """PSA's affinity of all pairs, exp(-mean_c |f_i - f_j|): (B, C, H, W) -> (B, P, S)."""
    source = window(features, radius)  # (B, C, h', w')
    rows = [
        (source - window(features, radius, offset)).abs().mean(1).neg().exp().flatten(1)  # (B, S)
        for offset in disc_offsets(radius)
    ]
    return torch.stack(rows, 1)


def pair_loss(affinity: Tensor, labels: PairLabels) -> AffinityLoss:
    """Cross entropy of affinities (B, P, S) in [0, 1] with the labels, a mean over each kind of pairs."""
    affinity = affinity.float()
    together, apart = -(affinity + _EPS).log(), -(1 + _EPS - affinity).log()
    return AffinityLoss(
        _mean(together, labels.background), _mean(together, labels.foreground), _mean(apart, labels.different)
    )


def displacement_losses(
    displacement: Tensor, labels: PairLabels, offsets: Sequence[Offset], radius: float
) -> tuple[Tensor, Tensor]:
    """Displacements (B, 2, H, W), channels (dy, dx), that lead all pixels of a thing to one point.

    Two pixels of one class should differ by the offset between them, two of background not at all.
    Returns the mean absolute errors inside classes and inside background.
    """
    displacement = displacement.float()
    source = window(displacement, radius)  # (B, 2, h', w')
    inside, outside = displacement.new_zeros(()), displacement.new_zeros(())
    for row, offset in enumerate(offsets):
        difference = (source - window(displacement, radius, offset)).flatten(2)  # (B, 2, S)
        target = displacement.new_tensor(offset)[:, None]  # (2, 1)
        inside = inside + ((difference - target).abs().sum(1) * labels.foreground[:, row]).sum()
        outside = outside + (difference.abs().sum(1) * labels.background[:, row]).sum()
    return inside / (2 * labels.foreground.sum() + _EPS), outside / (2 * labels.background.sum() + _EPS)


def irn_loss(edge_logits: Tensor, displacement: Tensor, labels: Tensor, *, radius: float = 10) -> IRNLoss:
    """IRN's loss: (B, 1, H, W) boundary logits, (B, 2, H, W) displacements, (B, H, W) labels on the same grid.

    A kind of pairs that does not occur adds 0, so a batch without any label has loss 0 and no gradient.

    Raises:
        ValueError: if the grids differ or are too small to hold one source.
    """
    if edge_logits.shape[-2:] != labels.shape[-2:] or displacement.shape[-2:] != labels.shape[-2:]:
        raise ValueError(
            f"got edges {tuple(edge_logits.shape)}, displacements {tuple(displacement.shape)} and labels "
            f"{tuple(labels.shape)}, expected one grid; reduce the labels to it first"
        )
    offsets = path_offsets(radius)
    pairs = pair_labels(labels, offsets, radius)
    affinity = path_affinity(edge_logits[:, 0].float().sigmoid(), radius)
    return IRNLoss(pair_loss(affinity, pairs), *displacement_losses(displacement, pairs, offsets, radius))


def psa_loss(features: Tensor, labels: Tensor, *, radius: float = 5) -> AffinityLoss:
    """PSA's loss: (B, C, H, W) AffinityNet features and (B, H, W) labels on the same grid.

    Raises:
        ValueError: if the grids differ or are too small to hold one source.
    """
    if features.shape[-2:] != labels.shape[-2:]:
        raise ValueError(
            f"got features {tuple(features.shape)} and labels {tuple(labels.shape)}, expected one grid; "
            "reduce the labels to it first"
        )
    return pair_loss(feature_affinity(features.float(), radius), pair_labels(labels, disc_offsets(radius), radius))


def _mean(loss: Tensor, where: Tensor) -> Tensor:
    """Mean over the marked pairs, 0 where there are none."""
    return (loss * where).sum() / (where.sum() + _EPS)
