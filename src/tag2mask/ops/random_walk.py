"""The random walk of IRN and PSA: class maps spread along pixel affinities that stop at boundaries.

J. Ahn, S. Cho and S. Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations" (2019);
J. Ahn and S. Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision" (2018). With the symmetric
affinity A of all pixels less than a radius apart, 1 on its diagonal, a walk of t steps is

    maps  ->  maps T^t,        T_ij = A_ij^beta / sum_k A_kj^beta        (every *column* sums to 1).

The released codes square a dense matrix of n^2 numbers, n = h w (2.6 GB at 160 x 160). Here A is kept as one map per
offset, n P numbers, and a step is 2 P shifted multiply-adds over the maps of all classes, without any index table.

T is similar to a symmetric matrix and its spectrum lies in [-1, 1], so its power is a short sum of Chebyshev
polynomials: x^t = 2^(1-t) sum_k C(t, (t-k)/2) T_k(x), k of t's parity, k = 0 counted half. The
coefficients are the law of a coin-tossing walk, hence negligible beyond 6 sqrt(t): 256 steps cost 92, the same
power to 1e-8. (S. Sachdeva and N. Vishnoi, "Faster Algorithms via Approximation Theory", 2014.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.ops.cam_fusion import strided_size
from tag2mask.ops.masks import background_score
from tag2mask.ops.pairs import Offset, disc_offsets, disc_paths, reach
from tag2mask.types import Background, Power

_NEGLIGIBLE = 1e-8
"""Weight of the polynomials that are left out, together; the result is float32, which resolves 6e-8."""

_CUT = 1e-12
"""Weaker links carry nothing in any number of steps worth taking; as denormal numbers they would be slow."""

_TOGETHER = 4
"""Maps spread at once on a processor: more leave its cache (20 maps of 256 x 256 take three times as long)."""


@dataclass(frozen=True)
class Links:
    """A symmetric sparse affinity of the pixels of one grid; every pixel's affinity with itself is 1.

    affinity: (P, h, w) float32 in [0, 1]: that of (y, x) with (y + dy, x + dx), and 0 where that is no link.
    offsets: P rows (dy, dx), below or to the right. An offset that leads out of the grid everywhere is left out.
    """

    affinity: Tensor
    offsets: tuple[Offset, ...]


@torch.no_grad()
def boundary_links(edge: Tensor, radius: float = 5) -> Links:
    """IRN's affinity: 1 - the highest boundary on the way, ends included.

    edge: (h, w), boundary probabilities in [0, 1]. Outside is boundary, so no link leaves the grid.

    Raises:
        ValueError: if ``edge`` is not (h, w).
    """
    if edge.ndim != 2:
        raise ValueError(f"edge: got {tuple(edge.shape)}, expected (h, w)")
    height, width = edge.shape
    paths = [path for path in disc_paths(radius) if path[0][0] < height and abs(path[0][1]) < width]
    affinity = edge.new_zeros(len(paths), height, width, dtype=torch.float32)
    for row, ((dy, dx), *between) in zip(affinity, paths, strict=True):
        high, left, right = height - dy, max(0, -dx), width - max(0, dx)  # the sources that have this neighbour
        highest = edge[dy:, left + dx : right + dx].float()  # (high, right - left)
        for y, x in between:
            highest = torch.maximum(highest, edge[y : y + high, left + x : right + x].float())
        row[:high, left:right] = 1 - highest
    return Links(affinity, tuple(path[0] for path in paths))


@torch.no_grad()
def feature_links(features: Tensor, radius: float = 5) -> Links:
    """PSA's affinity: exp(-mean_c |f_i - f_j|).

    features: (C, h, w). As in PSA, links start only at pixels whose whole half disc lies inside the grid, so
    pixels at the left, right and lower border have fewer; they are reached from inside.

    Raises:
        ValueError: if ``features`` is not (C, h, w).
    """
    if features.ndim != 3:
        raise ValueError(f"features: got {tuple(features.shape)}, expected (C, h, w)")
    far = reach(radius)
    height, width = features.shape[1] - far, features.shape[2] - 2 * far
    if height < 1 or width < 1:  # too small a grid has no such pixel: nothing spreads
        return Links(features.new_zeros(0, *features.shape[1:], dtype=torch.float32), ())
    offsets = disc_offsets(radius)
    features = features.float()
    source = features[:, :height, far : far + width]  # (C, h - far, w - 2 far)
    affinity = features.new_zeros(len(offsets), *features.shape[1:])
    for row, (dy, dx) in zip(affinity, offsets, strict=True):
        other = features[:, dy : dy + height, far + dx : far + dx + width]
        row[:height, far : far + width] = (source - other).abs_().mean(0).neg_().exp_()
    return Links(affinity, offsets)


@torch.no_grad()
def random_walk(links: Links, maps: Tensor, *, beta: float, steps: int = 256) -> Tensor:
    """Spread maps along the links: maps (K, h, w) -> maps T^steps, (K, h, w) float32.

    beta: exponent of the affinities; higher, and weak links break (10 in IRN, 8 in PSA). Every value of the
    result is a mean of values of its map. Memory: 8 (P + 5 K) bytes a pixel.

    Raises:
        ValueError: if ``maps`` is of another grid, ``beta`` is not above 0 or ``steps`` is negative.
    """
    if maps.ndim != 3 or maps.shape[1:] != links.affinity.shape[1:]:
        raise ValueError(
            f"maps: got {tuple(maps.shape)}, expected (K, {', '.join(map(str, links.affinity.shape[1:]))})"
        )
    if beta <= 0 or steps < 0:
        raise ValueError(f"got beta={beta}, steps={steps}; expected beta above 0 and steps of 0 or more")
    # Rounding errors of a step add up over the steps: float32 ends 4e-4 away on 256 x 256, float64 costs little more.
    where = "cpu" if maps.device.type == "mps" else maps.device  # MPS has no float64
    weights = links.affinity.flatten(1).to(where, torch.float64).pow(beta)  # (P, n)
    weights[weights < _CUT] = 0
    # Inside the grid the neighbour at (dy, dx) is dy w + dx further on; where it is not inside, the weight is 0.
    shifts = [dy * links.affinity.shape[2] + dx for dy, dx in links.offsets]
    flat = maps.flatten(1).to(where, torch.float64)  # (K, n)
    links_of = partial(_links, weights, shifts)
    ones = flat.new_ones(1, flat.shape[1])
    sums = torch.empty_like(ones)
    _step(ones, sums, links_of(ones, sums))
    scale = 1 / sums  # (1, n), of T's columns
    together = _TOGETHER if flat.device.type == "cpu" else max(1, len(flat))
    spread = torch.cat([_power(links_of, scale, part, steps) for part in flat.split(together)])  # (K, n)
    # Means of values: what rounding leaves outside of their range is brought back.
    spread = spread.clamp(flat.amin(1, keepdim=True), flat.amax(1, keepdim=True))
    return spread.view(maps.shape).to(maps.device, torch.float32)


_Link = tuple[Tensor, Tensor, Tensor]
"""Views of one offset: where to, where from, and by how much."""


def _links(weights: Tensor, shifts: list[int], x: Tensor, out: Tensor) -> list[_Link]:
    """How x (K, n) spreads into out (K, n); weights (P, n). Made once: of small maps, views cost what sums do."""
    links: list[_Link] = []
    for weight, shift in zip(weights, shifts, strict=True):
        links.append((out[:, shift:], x[:, :-shift], weight[:-shift]))  # what sources give
        links.append((out[:, :-shift], x[:, shift:], weight[:-shift]))  # what destinations give back
    return links


def _step(x: Tensor, out: Tensor, links: list[_Link]) -> None:
    """x A^beta into out."""
    out.copy_(x)  # every pixel is linked to itself
    for to, source, weight in links:
        to.addcmul_(source, weight)


def _power(links_of: Callable[[Tensor, Tensor], list[_Link]], scale: Tensor, x: Tensor, steps: int) -> Tensor:
    """x T^steps, (K, n) -> (K, n), as a sum of Chebyshev polynomials of T = A^beta scale."""
    coefficients = chebyshev_power(steps)
    total = coefficients[0] * x
    # x T_k, x T_(k + 1) and x T_(k + 2) take turns in three buffers
    buffers = [torch.zeros_like(x), x.clone(), torch.empty_like(x)]
    links = [links_of(buffers[i], buffers[(i + 1) % 3]) for i in range(3)]
    for degree, coefficient in enumerate(coefficients[1:], start=1):
        before, now, after = (buffers[(degree - 1 + i) % 3] for i in range(3))
        _step(now, after, links[degree % 3])
        after.mul_(scale)
        if degree > 1:  # T_1 = x, T_k = 2 x T_(k-1) - T_(k-2)
            after.mul_(2).sub_(before)
        if coefficient:
            total.add_(after, alpha=coefficient)
    return total


def chebyshev_power(steps: int) -> list[float]:
    """Coefficients c_k of x^steps = sum_k c_k T_k(x) on [-1, 1], as many as are not negligible; they sum to 1."""
    kept: list[float] = []
    for degree in range(steps + 1):
        if (steps - degree) % 2:
            kept.append(0.0)
            continue
        ways = math.comb(steps, (steps - degree) // 2) * (1 if degree == 0 else 2)
        kept.append(ways / 2**steps)  # exact integers until here, so any number of steps works
        if 1 - math.fsum(kept) < _NEGLIGIBLE:
            break
    return kept


def refine_with_boundary(
    maps: Tensor, edge: Tensor, *, radius: float = 5, beta: float = 10, steps: int = 256
) -> Tensor:
    """IRN's refinement: maps outside of boundaries, spread until boundaries; (K, h, w), (h, w) -> (K, h, w).

    Not normalised: divide by the largest value of *all* classes, then compare with a constant background.
    """
    return random_walk(boundary_links(edge, radius), maps * (1 - edge), beta=beta, steps=steps)


def refine_with_features(
    maps: Tensor,
    features: Tensor,
    *,
    cell: int = 8,
    background: Background = Power(16),  # noqa: B008  # frozen
    radius: float = 5,
    beta: float = 8,
    steps: int = 256,
) -> Tensor:
    """PSA's refinement: background competes as a map of its own and spreads like the classes.

    Args:
        maps: (K, H, W) in [0, 1] at the image's size.
        features: (C, h, w) of the image padded at its lower and right side to whole cells.
        cell: pixels from one feature to the next.
        background: its score, (1 - max)^16 in PSA, 0.39 in MCTformer's use of it.
        radius: of the links.
        beta: exponent of the affinities.
        steps: of the walk.

    Returns:
        (K + 1, h, w), background first, over all pixels of the cells: enlarge, then crop to the image.

    Raises:
        ValueError: if the grid does not fit the maps.
    """
    size, grid = maps.shape[-2:], features.shape[-2:]
    if tuple(grid) != (expected := strided_size((size[0], size[1]), cell)):
        raise ValueError(
            f"features: got {tuple(features.shape)} for maps {tuple(maps.shape)}, expected a grid of {expected}; "
            f"pad the image below and to the right to multiples of {cell} before the network"
        )
    own = background_score(maps, background) if len(maps) else maps.new_ones(size)
    scores = torch.cat([own[None], maps]).float()  # (K + 1, H, W)
    padding = (0, grid[1] * cell - size[1], 0, grid[0] * cell - size[0])
    pooled = F.avg_pool2d(F.pad(scores, padding)[None], cell)[0]  # (K + 1, h, w), where padding counts as 0
    return random_walk(feature_links(features, radius), pooled, beta=beta, steps=steps)
