"""Prototypes of classes within one image: k-means of features by cosine, their means, and what these activate.

An image has N features of D channels and G groups, each a set of members among the N: the confident pixels of one
class. Everything is done for all groups of all images at once. SIPE's single prototype is K = 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cluster_means", "cosine_kmeans", "cosines", "draw_members"]

NOBODY = -1
"""The cluster of a pixel that is no member, and the row of a cluster that is not there."""


def draw_members(members: Tensor, clusters: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Different members of each group at random, for k-means to start from.

    Args:
        members: (B, G, N) bool.
        clusters: K, how many of each group.
        generators: one for each image, on the processor, so that an image's draw does not depend on its neighbours.

    Returns:
        (B, G, K) int64, rows of the features; a group of fewer than K members has them all, and -1 for the rest.

    Raises:
        ValueError: not one generator for each image, or fewer than one cluster.
    """
    if len(generators) != len(members) or clusters < 1:
        raise ValueError(f"{len(generators)} generators for {len(members)} images, {clusters} clusters")
    _, groups, count = members.shape
    dice = torch.stack([torch.rand(groups, count, generator=each) for each in generators])  # (B, G, N)
    dice = dice.to(members.device).masked_fill(~members, -1.0)
    if count < clusters:
        dice = F.pad(dice, (0, clusters - count), value=-1.0)
    best, rows = dice.topk(clusters, dim=-1)  # (B, G, K)
    return rows.masked_fill(best < 0, NOBODY)


@torch.no_grad()
def cosine_kmeans(
    features: Tensor, members: Tensor, start: Tensor, *, rounds: int = 100, tolerance: float = 1e-4
) -> Tensor:
    """K-means by cosine: a member goes to the centre of the largest cosine, a centre is their plain mean.

    A group is done when the summed distances by which its centres moved, squared, are below ``tolerance``
    (``kmeans_pytorch``, which POT's released code calls), or after ``rounds``. A cluster that loses all its members
    takes over the one that is least like its own centre, so that no centre is ever a mean of nothing. Features of
    length zero are unlike everything. No gradient passes.

    Args:
        features: (B, N, D), finite.
        members: (B, G, N) bool.
        start: (B, G, K) int64, different members that are the first centres, or -1; see ``draw_members``.

    Returns:
        (B, G, N) int64, the cluster of each member, -1 elsewhere. Every cluster that has a start has members.

    Raises:
        ValueError: features that are not finite, or a start that is no member.
    """
    if not torch.isfinite(features).all():
        raise ValueError("the features to be clustered are not finite everywhere")
    there = start >= 0  # (B, G, K)
    if not (members.gather(-1, start.clamp(min=0)) | ~there).all():
        raise ValueError("k-means starts from a row that is no member of its group")
    batch, groups, clusters = start.shape
    rows = start.clamp(min=0).reshape(batch, -1, 1).expand(-1, -1, features.shape[-1])  # (B, G K, D)
    centres = features.gather(1, rows).reshape(batch, groups, clusters, -1)  # (B, G, K, D)
    centres = centres * there[..., None]
    found = torch.full_like(members, NOBODY, dtype=torch.int64)
    moving = members.any(-1)  # (B, G)
    for _ in range(rounds):
        likeness = cosines(features, centres).masked_fill(~there[..., None], -torch.inf)  # (B, G, K, N)
        best, nearest = likeness.max(2)  # (B, G, N)
        nearest = _fill_empty(nearest.masked_fill(~members, NOBODY), best, there)
        means, _ = cluster_means(features, nearest, clusters)
        moved = (means - centres).norm(dim=-1).sum(-1)  # (B, G)
        found = torch.where(moving[..., None], nearest, found)
        centres = torch.where(moving[..., None, None], means, centres)
        moving = moving & (moved.square() >= tolerance)
        if not moving.any():
            break
    return found


def _fill_empty(nearest: Tensor, best: Tensor, there: Tensor) -> Tensor:
    """Give each empty cluster the member that is least like its own centre, out of a cluster that can spare one.

    nearest: (B, G, N), clusters of members. best: (B, G, N), how like their centres they are. there: (B, G, K).
    """
    for cluster in range(there.shape[-1]):
        sizes = _one_hot(nearest, there.shape[-1]).sum(-1)  # (B, G, K)
        empty = there[..., cluster] & (sizes[..., cluster] == 0)  # (B, G)
        if not empty.any():
            continue
        spare = (nearest >= 0) & (sizes.gather(-1, nearest.clamp(min=0)) > 1)  # (B, G, N)
        worst = best.masked_fill(~spare, torch.inf).argmin(-1, keepdim=True)  # (B, G, 1)
        taken = nearest.scatter(-1, worst, cluster)
        nearest = torch.where((empty & spare.any(-1))[..., None], taken, nearest)
    return nearest


def cluster_means(features: Tensor, clusters: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The mean feature of every cluster, with gradients.

    One cluster of all confident pixels gives the class prototype; clusters of k-means give the anchors of POT.

    Args:
        features: (B, N, D).
        clusters: (B, G, N) int64 in 0..K-1, -1 for pixels of none.
        count: K.

    Returns:
        Means (B, G, K, D), zeros where a cluster has no pixel, and the numbers of pixels (B, G, K).
    """
    chosen = _one_hot(clusters, count)  # (B, G, K, N)
    sizes = chosen.sum(-1)  # (B, G, K)
    sums = torch.einsum("bgkn,bnd->bgkd", chosen.to(features.dtype), features)
    return sums / sizes.clamp(min=1)[..., None], sizes


def cosines(features: Tensor, prototypes: Tensor) -> Tensor:
    """The cosine of every feature with every prototype: (B, N, D), (B, G, K, D) -> (B, G, K, N)."""
    return torch.einsum("bgkd,bnd->bgkn", F.normalize(prototypes, dim=-1), F.normalize(features, dim=-1))


def _one_hot(clusters: Tensor, count: int) -> Tensor:
    """(B, G, N) int64 -> (B, G, K, N) bool; -1 is in none."""
    return clusters[:, :, None] == torch.arange(count, device=clusters.device)[:, None]
