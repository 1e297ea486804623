"""POT's class maps (Prototypical Optimal Transport, CVPR 2025): as the paper says, and as the released code computes.

The paper: confident features of a class are clustered; a transport shares all features out to the clusters, of which
one gets the more the more typical of its class it is; the prototypes are renewed from what they were given; what they
activate, weighted by the plan, is the map of the class. The released code takes two clusters of the pixels that a
class wins, and the mean of what the two activate; it computes a transport, too, and throws it away.

N is h w, the cells of the feature grid. Channel 0 of maps (B, C + 1, h, w) is background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.ops.prototypes import cluster_means, cosine_kmeans, cosines, draw_members
from tag2mask.ops.transport import transport_plan

__all__ = [
    "Activation",
    "Prototypes",
    "activate",
    "consistency_loss",
    "fuse",
    "fuse_in_training",
    "less_background",
    "max_scaled",
    "mean_activation",
    "with_background",
]

EPS = 1e-5


@dataclass(frozen=True)
class Prototypes:
    """How prototypes are made and what they activate. The supplement gives K and tau; what else is open is an option.

    clusters: K, of the k-means (supplement A2.1: quality rises up to 3).
    threshold: tau; pixels whose seed map is above it are confident (supplement A2.1: 0.7 is best).
    marginal: the mass of each cluster. "similarity": max(cos(cluster, class), 0), scaled to sum to 1; "softmax": of
        that cosine over ``temperature``; "uniform": the same for all. The supplement says that cosines guide the
        allocation, not how they become masses; the first is the plainest reading.
    population: pixels whose features may renew a prototype. "likely": confident ones, and those where the seed map or
        the classifier's is above half the threshold; "confident"; "all". The supplement says all features, which
        pulls background in, as every pixel is allotted to some cluster of every class.
    allocation: "hard": a pixel belongs to the cluster that the plan gives most of it to; "soft": to each by the plan,
        weighted by the seed map. The supplement says "allocated to clusters"; the first is the plainer reading.
    combine: the activations of a class's clusters at a pixel. "plan": weighted by the plan's share of the pixel (the
        supplement: "reweighted by the transport plan and combined"); "hard": that of the pixel's own cluster;
        "mean": of all.
    epsilon, rounds, tolerance: of the transport, the constants of the released code.
    """

    clusters: int = 3
    threshold: float = 0.7
    marginal: Literal["similarity", "softmax", "uniform"] = "similarity"
    temperature: float = 0.1
    population: Literal["likely", "confident", "all"] = "likely"
    allocation: Literal["hard", "soft"] = "hard"
    combine: Literal["plan", "hard", "mean"] = "plan"
    epsilon: float = 0.1
    rounds: int = 100
    tolerance: float = 1e-2


@dataclass(frozen=True)
class Activation:
    """The maps of the classes of each image, and how they came about (for pictures and tests).

    maps: (B, G, h, w) in [0, 1], zeros for a class without a confident pixel; with gradients.
    clusters: (B, G, N) int64, of the confident pixels, else -1.
    masses: (B, G, K), of the clusters in the transport, 0 for one that is not there.
    plan: (B, G, N, K), what the transport gives of each pixel to each cluster.
    prototypes: (B, G, K, D), the renewed ones.
    """

    maps: Tensor
    clusters: Tensor
    masses: Tensor
    plan: Tensor
    prototypes: Tensor


def max_scaled(maps: Tensor) -> Tensor:
    """Each map (..., h, w) of 0 or more divided by its own largest value, plus 1e-5."""
    return maps / (maps.amax((-2, -1), keepdim=True) + EPS)


def with_background(logits: Tensor) -> Tensor:
    """Maps of a classifier with a background: (B, C, h, w) logits of all classes -> (B, C + 1, h, w) in [0, 1].

    max(logit, 0) over its largest value, and 1 minus the highest class. In the released code absent classes count
    here, too, and are masked afterwards.
    """
    maps = max_scaled(F.relu(logits))
    return torch.cat([1 - maps.amax(1, keepdim=True), maps], 1)


def activate(
    features: Tensor,
    seeds: Tensor,
    classifier: Tensor,
    generators: Sequence[torch.Generator],
    settings: Prototypes,
    valid: Tensor | None = None,
) -> Activation:
    """The paper's maps (supplement A3 and Figure A2).

    Args:
        features: (B, D, h, w), with gradients.
        seeds: (B, G, h, w), the maps of G classes of each image, each with a maximum of 1; zeros where an image has
            fewer. No gradient passes to them.
        classifier: (B, G, h, w), the classifier's maps of the same classes, likewise.
        generators: one for each image, for the k-means to start from.
        valid: (B, 1, h, w) bool, False on padding, which takes no part and has maps of 0; None: no padding.

    Raises:
        ValueError: features that are not finite.
    """
    flat = features.flatten(2).transpose(1, 2)  # (B, N, D)
    seed, other = seeds.detach().flatten(2), classifier.detach().flatten(2)  # (B, G, N)
    real = torch.ones_like(seed[:, :1], dtype=torch.bool) if valid is None else valid.flatten(2)  # (B, 1, N)
    confident = (seed > settings.threshold) & real
    start = draw_members(confident, settings.clusters, generators)
    clusters = cosine_kmeans(flat.detach(), confident, start)
    with torch.no_grad():
        anchors, sizes = cluster_means(flat, clusters, settings.clusters)  # (B, G, K, D), (B, G, K)
        masses = _masses(anchors, cluster_means(flat, clusters.clamp(max=0), 1)[0], sizes, settings)
        there = sizes.sum(-1) > 0  # (B, G)
        plan = _plan(flat, anchors, masses, there, real, settings)  # (B, G, N, K)
    share = plan / plan.sum(-1, keepdim=True).clamp(min=torch.finfo(plan.dtype).tiny)  # (B, G, N, K)
    near = _population(confident, seed, other, settings) & real
    prototypes = _renewed(flat, share, seed, near, anchors, settings)
    active = F.relu(cosines(flat, prototypes)).transpose(2, 3)  # (B, G, N, K)
    maps = _combined(active, share, sizes, settings) * (there[..., None] & real)
    return Activation(
        max_scaled(maps.unflatten(2, features.shape[2:])), clusters, masses, plan * there[..., None, None], prototypes
    )


def _masses(anchors: Tensor, typical: Tensor, sizes: Tensor, settings: Prototypes) -> Tensor:
    """The mass of each cluster by how typical of its class it is: (B, G, K), sums of 1, 0 where there is none."""
    there = sizes > 0  # (B, G, K)
    likeness = F.cosine_similarity(anchors.float(), typical.float(), dim=-1)  # (B, G, K)
    if settings.marginal == "similarity":
        masses = likeness.clamp(min=0) * there
    elif settings.marginal == "softmax":
        masses = (likeness / settings.temperature).masked_fill(~there, -torch.inf).softmax(-1).nan_to_num()
    else:
        masses = there.float()
    none = masses.sum(-1, keepdim=True) <= EPS  # no cluster is like its class at all: all alike
    masses = torch.where(none, there.float(), masses)
    return masses / masses.sum(-1, keepdim=True).clamp(min=EPS)


def _plan(flat: Tensor, anchors: Tensor, masses: Tensor, there: Tensor, real: Tensor, settings: Prototypes) -> Tensor:
    clusters = anchors.shape[2]
    cost = 1 - cosines(flat.float(), anchors.float()).transpose(2, 3)  # (B, G, N, K)
    rows = real / real.sum(-1, keepdim=True).clamp(min=1)  # (B, 1, N), the same for all classes
    rows = torch.where(real.any(-1, keepdim=True), rows, 1 / real.shape[-1]).expand(-1, there.shape[1], -1)
    # A class without a confident pixel has no masses; its problem is made solvable and its result left out.
    columns = torch.where(there[..., None], masses, masses.new_full((), 1 / clusters))
    return transport_plan(
        cost, rows, columns, epsilon=settings.epsilon, rounds=settings.rounds, tolerance=settings.tolerance
    )


def _population(confident: Tensor, seed: Tensor, other: Tensor, settings: Prototypes) -> Tensor:
    """Pixels that may renew a prototype: (B, G, N) bool."""
    if settings.population == "all":
        return torch.ones_like(confident)
    if settings.population == "confident":
        return confident
    half = settings.threshold / 2
    return confident | (seed > half) | (other > half)


def _renewed(
    flat: Tensor, share: Tensor, seed: Tensor, near: Tensor, anchors: Tensor, settings: Prototypes
) -> Tensor:
    """The prototypes from what was allotted to them, (B, G, K, D); one that was given nothing stays as it was."""
    if settings.allocation == "hard":
        own = share.argmax(-1).masked_fill(~near, -1)  # (B, G, N)
        prototypes, sizes = cluster_means(flat, own, share.shape[-1])
        return torch.where(sizes[..., None] > 0, prototypes, anchors)
    weights = (share * (seed * near)[..., None]).transpose(2, 3)  # (B, G, K, N)
    total = weights.sum(-1, keepdim=True)  # (B, G, K, 1)
    prototypes = torch.einsum("bgkn,bnd->bgkd", weights, flat) / total.clamp(min=EPS)
    return torch.where(total > EPS, prototypes, anchors)


def _combined(active: Tensor, share: Tensor, sizes: Tensor, settings: Prototypes) -> Tensor:
    """One map a class of its clusters' activations: (B, G, N, K) -> (B, G, N)."""
    if settings.combine == "plan":
        return (share * active).sum(-1)
    if settings.combine == "hard":
        return active.gather(-1, share.argmax(-1, keepdim=True))[..., 0]
    there = (sizes > 0)[:, :, None]  # (B, G, 1, K)
    return (active * there).sum(-1) / there.sum(-1).clamp(min=1)


def mean_activation(features: Tensor, members: Tensor, start: Tensor) -> Tensor:
    """The released code's prototype maps: the mean of what the clusters of a class activate.

    Args:
        features: (B, D, h, w), with gradients, which pass through the centres, too.
        members: (B, G, h, w) bool, the pixels that a class wins.
        start: (B, G, K) int64, where the k-means starts; see ``ops.prototypes.draw_members``.

    Returns:
        (B, G, h, w) up to 1: mean over K of the cosines, over its largest value; zeros for a class of fewer than K
        members.
    """
    flat = features.flatten(2).transpose(1, 2)  # (B, N, D)
    enough = (start >= 0).all(-1)  # (B, G)
    clusters = cosine_kmeans(flat.detach(), members.flatten(2), start)
    centres, _ = cluster_means(flat, clusters, start.shape[-1])
    maps = cosines(flat, centres).mean(2) * enough[..., None]  # (B, G, N)
    return max_scaled(maps.unflatten(2, features.shape[2:]))


def less_background(prototypes: Tensor, ground: Tensor | None) -> Tensor:
    """The released code's prototype maps less half of CLIP's background, with their own, 1 - the highest class.

    prototypes: (B, C + 1, h, w), background first. ground: (B, 1, h, w), CLIP's background; None: there is none.
    """
    return _over(prototypes[:, 1:] if ground is None else prototypes[:, 1:] - 0.5 * ground)


def fuse_in_training(prototypes: Tensor, clip: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The released code's two maps that its consistency loss compares, from CLIP-ES's maps.

    Args:
        prototypes: (B, C + 1, h, w), maps of the prototypes, background first.
        clip: (B, C, h, w), CLIP-ES's maps, zeros for absent classes.
        valid: (B, C + 1, h, w), 1 for the background and the classes of the image, 0 elsewhere and on padding.

    Returns:
        The prototype maps less half of CLIP's background, and CLIP's maps, joined with 0.2 of the former where both
        see the same class; (B, C + 1, h, w) each.
    """
    ground = 1 - clip.amax(1, keepdim=True)  # (B, 1, h, w)
    ours = less_background(prototypes, ground)
    theirs = _suppressed(_over(clip - 0.15 * ground) * valid)
    row_mean = theirs.mean(-1, keepdim=True)  # over a row alone, as the code has it
    theirs = theirs * (theirs >= 0.5 * row_mean)
    return ours, _join(ours, theirs, 0.2)


def fuse(prototypes: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`fuse_in_training`, while labelling: without thresholds on CLIP's maps, and with a weight of 0.3.

    prototypes: (B, C + 1, h, w). clip: (B, C + 1, h, w), CLIP-ES's maps brought to the grid, background first; the
    released code makes the background, 1 - max, at floor(H / 16), floor(W / 16) and resizes all from there.
    """
    ours = less_background(prototypes, clip[:, :1])
    return ours, _join(ours, _suppressed(clip), 0.3)


def _over(maps: Tensor) -> Tensor:
    """max(maps, 0) with their background 1 - max: (B, C, h, w) -> (B, C + 1, h, w)."""
    maps = F.relu(maps)
    return torch.cat([1 - maps.amax(1, keepdim=True), maps], 1)


def _suppressed(maps: Tensor) -> Tensor:
    """A class loses where others are: relu(1.2 q - 0.2 sum q), over its largest value."""
    return max_scaled(F.relu(1.2 * maps - 0.2 * maps.sum(1, keepdim=True)))


def _join(ours: Tensor, theirs: Tensor, weight: float) -> Tensor:
    agreed = theirs.argmax(1, keepdim=True) == ours.argmax(1, keepdim=True)  # (B, 1, h, w)
    return torch.where(agreed, (theirs + weight * ours).clamp(max=1), theirs)


def consistency_loss(first: Tensor, second: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean distance of two sets of maps (B, C + 1, h, w); weight: of each value, of a shape that fits, or 1."""
    distance = (first - second).abs()
    return (distance if weight is None else distance * weight).mean()
