"""How far apart the class distributions of two patches are (CD-CLIP's comparison), for all pairs of an image.

``distances(name, probs)`` turns N distributions over T texts into (N, N), float32. All sums run over terms that are
not negative, so that equal rows are exactly 0 apart and small distances keep their digits. The work goes in rows: of
(N, N, T) only a strip is ever held, 1024 patches with 92 texts need less than 500 MB.

==========  =======================================================================================
js          Jensen-Shannon divergence in nats: symmetric, in [0, ln 2]
kl          Kullback-Leibler divergence of row i against row j: not symmetric
kl_sym      J-divergence, the sum of both directions
ws_index    1-Wasserstein distance over the numbers of the texts, mean |difference of cumulated shares|:
            it changes when the classes are written in another order
ws_text     1-Wasserstein distance where moving a share from text a to b costs 1 - cos(a, b); entropic, debiased
cos, l2     controls: 1 - cosine, and the Euclidean distance, of any rows
==========  =======================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.words import named

__all__ = ["CONTROLS", "DISTANCES", "distances"]

_STRIP = 1 << 18
"""Numbers of (rows, N, T) that are held at once: a strip of 1 MB stays in a cache."""

_TINY = 1e-30
_SERIES = tuple(1 / (2 * k * (2 * k - 1)) for k in range(1, 9))
"""Of r atanh(r) + log(1 - r^2) / 2 in powers of r^2, from the first."""

_BLUR, _ROUNDS = 0.05, 100  # of ws_text: the entropy's weight as a share of the mean cost, and Sinkhorn's rounds

CONTROLS = ("cos", "l2")
"""Those that know nothing of distributions: they compare any rows."""


def distances(name: str, rows: Tensor, texts: Tensor | None = None) -> Tensor:
    """Distances of all pairs of rows.

    Args:
        name: see the module.
        rows: (N, T), or (B, N, T) of several images: distributions over T texts (of ``CONTROLS``: any numbers).
        texts: (T, E) unit rows; ``ws_text`` alone needs them.

    Returns:
        (N, N) or (B, N, N) float32, entry (i, j) of row i against row j, 0 on the diagonal.

    Raises:
        UserError: no such distance.
        ValueError: rows of another shape, or no texts where they are needed.
    """
    measure = named(DISTANCES, name, "distance")
    if rows.ndim not in (2, 3):
        raise ValueError(f"rows are {tuple(rows.shape)}, expected (N, T) or (B, N, T)")
    if name == "ws_text" and (texts is None or len(texts) != rows.shape[-1]):
        got = "none" if texts is None else f"{len(texts)}"
        raise ValueError(f"ws_text needs the texts of the {rows.shape[-1]} shares, got {got}")
    rows = rows.float()
    if rows.ndim == 3:
        return torch.stack([measure(one, texts) for one in rows])
    return measure(rows, texts)


def _in_strips(rows: Tensor, term: Callable[[Tensor, Tensor], Tensor], symmetric: bool) -> Tensor:
    """Sum ``term`` (rows i (s, 1, T), rows j (1, n, T)) -> (s, n, T) over T, strip by strip: (N, N).

    symmetric: only pairs on and above the diagonal are computed, and mirrored.
    """
    count, width = rows.shape
    out = rows.new_zeros(count, count)
    height = max(1, _STRIP // max(1, count * width))
    for start in range(0, count, height):
        stop = min(start + height, count)
        first = start if symmetric else 0
        out[start:stop, first:] = term(rows[start:stop, None], rows[None, first:]).sum(-1)  # (s, n)
    return _mirrored(out) if symmetric else out


def _mirrored(upper: Tensor) -> Tensor:
    """What lies on and above the diagonal of (N, N), below it too."""
    return upper.triu() + upper.triu(1).T


def _ratio(p: Tensor, q: Tensor) -> Tensor:
    """(p - q) / (p + q), kept inside (-1, 1), and 0 of two zeros."""
    return ((p - q) / (p + q).clamp_min(_TINY)).clamp(-1 + 1e-7, 1 - 1e-7)


def _js_term(p: Tensor, q: Tensor) -> Tensor:
    # with m = (p + q) / 2 and r = (p - q) / (p + q): p = m (1 + r), q = m (1 - r), and the two halves of
    # p log(p / m) + q log(q / m) join to m (2 r atanh(r) + log(1 - r^2)), which cancels nothing
    total = p + q
    r = _ratio(p, q)
    square = r * r
    if square.amax() > 0.25:
        return total / 2 * (r * torch.atanh(r) + torch.log1p(-square) / 2)
    out = torch.full_like(square, _SERIES[-1])  # distributions over many texts are alike: a series is quicker
    for coefficient in reversed(_SERIES[:-1]):
        out.mul_(square).add_(coefficient)
    return out.mul_(square).mul_(total).div_(2)


def _kl_term(p: Tensor, q: Tensor) -> Tensor:
    # p log(p / q) - p + q is not negative, and what is added cancels in the sum
    p, q = p.clamp_min(_TINY), q.clamp_min(_TINY)
    excess = ((q - p) / p).clamp(-0.5, 0.5)
    near = p * (excess - torch.log1p(excess))
    return torch.where((q - p).abs() < p / 2, near, p * (p / q).log() - p + q)


def _kl_sym_term(p: Tensor, q: Tensor) -> Tensor:
    p, q = p.clamp_min(_TINY), q.clamp_min(_TINY)
    ratio = _ratio(p, q)
    # log(p / q) = 2 atanh(r), which is exact for small r
    return (p - q) * torch.where(ratio.abs() < 0.5, 2 * torch.atanh(ratio), (p / q).log())


def _js(rows: Tensor, texts: Tensor | None) -> Tensor:
    return _in_strips(rows, _js_term, symmetric=True)


def _kl(rows: Tensor, texts: Tensor | None) -> Tensor:
    return _in_strips(rows, _kl_term, symmetric=False)


def _kl_sym(rows: Tensor, texts: Tensor | None) -> Tensor:
    return _in_strips(rows, _kl_sym_term, symmetric=True)


def _ws_index(rows: Tensor, texts: Tensor | None) -> Tensor:
    return _in_strips(rows.cumsum(-1) / rows.shape[-1], lambda p, q: (p - q).abs(), symmetric=True)


def _ws_text(rows: Tensor, texts: Tensor | None) -> Tensor:
    """Sinkhorn's distance without its bias: W(p, q) - (W(p, p) + W(q, q)) / 2, never negative."""
    assert texts is not None  # ``distances`` has refused it
    cost = (1 - texts.float() @ texts.float().T).clamp_min(0)  # (T, T)
    blur = _BLUR * cost.mean().clamp_min(_TINY)
    kernel = (-cost / blur).exp()
    count, width = rows.shape
    out = rows.new_zeros(count, count)
    height = max(1, _STRIP // max(1, 4 * count * width))
    rows = rows.clamp_min(1e-12)
    for start in range(0, count, height):
        stop = min(start + height, count)
        p, q = torch.broadcast_tensors(rows[start:stop, None], rows[None, start:])  # (s, n, T)
        first, second = torch.ones_like(p), torch.ones_like(q)
        for _ in range(_ROUNDS):
            first = p / (second @ kernel).clamp_min(_TINY)
            second = q / (first @ kernel).clamp_min(_TINY)
        out[start:stop, start:] = ((first @ (kernel * cost)) * second).sum(-1)  # (s, n)
    out = _mirrored(out)
    own = out.diagonal()
    return (out - (own[:, None] + own[None, :]) / 2).clamp_min(0).fill_diagonal_(0)


def _cos(rows: Tensor, texts: Tensor | None) -> Tensor:
    unit = F.normalize(rows, dim=-1)
    apart = (1 - unit @ unit.T).clamp_min(0).fill_diagonal_(0)
    return (apart + apart.T) / 2  # a product of matrices is symmetric but for its last bits


def _l2(rows: Tensor, texts: Tensor | None) -> Tensor:
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


DISTANCES: Mapping[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "js": _js,
    "kl": _kl,
    "kl_sym": _kl_sym,
    "ws_index": _ws_index,
    "ws_text": _ws_text,
    "cos": _cos,
    "l2": _l2,
}
"""Distance -> its measure; see the module."""
