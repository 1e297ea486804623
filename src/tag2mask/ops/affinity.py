"""Attention as an affinity between patches, and the spreading of maps along it (CLIP-ES, section 3.3).

Four pieces that compose: the source (``choose_layers``, or a plain mean), the rectifier (``rectify``, by the
decoder's affinity or by ``ops.class_distributions``), the normaliser (``symmetric_affinity``) and the mask
(``ops.boxes``); ``propagate`` then takes the steps. CAA, MHSA, RFM and CDA are settings (``Affinity``), not copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from tag2mask.ops.boxes import box_masks
from tag2mask.ops.class_distributions import ClassDistributions

Side = Literal["arriving", "leaving"]
Choose = Literal["all", "signed", "abs"]


@dataclass(frozen=True)
class Affinity:
    """How maps are spread over the patches of an image.

    layers: the attention of so many last layers is averaged. choose: of all of these, or of those that are near the
        decoder's affinity (``choose_layers``).
    decoder: multiply by the decoder's affinity (with ``choose``, that is RFM).
    distributions: rectify by class distributions (CDA); None: not.
    place: where that happens, "before" the normaliser or "after" it.
    rounds: of Sinkhorn.
    boxes: keep sources inside the boxes of their map, made at this share of its maximum; None: no boxes.
    keep_edges: see ``ops.boxes``.
    steps: how often maps are spread. 0: not at all.
    side: see ``propagate``.
    """

    layers: int = 8
    choose: Choose = "all"
    decoder: bool = False
    distributions: ClassDistributions | None = None
    place: Literal["before", "after"] = "before"
    rounds: int = 3
    boxes: float | None = None
    keep_edges: bool = True
    steps: int = 2
    side: Side = "arriving"


AFFINITIES: Mapping[str, Affinity] = MappingProxyType(
    {
        "none": Affinity(steps=0),
        "mhsa": Affinity(),  # plain attention
        "caa": Affinity(boxes=0.4),  # CLIP-ES, and WeCLIP before its switch
        "rfm": Affinity(layers=6, choose="signed", decoder=True, boxes=0.4),  # WeCLIP after it
        "cda": Affinity(distributions=ClassDistributions()),  # CD-CLIP
        "cda+caa": Affinity(distributions=ClassDistributions(), boxes=0.4),
        "cda+rfm": Affinity(layers=6, choose="signed", decoder=True, distributions=ClassDistributions(), boxes=0.4),
    }
)
"""The refinements of the papers' tables by name."""


def sinkhorn(attention: Tensor, rounds: int = 3) -> Tensor:
    """Bring non-negative (..., N, N) close to doubly stochastic: columns, then rows, ``rounds`` times.

    The alternation only rescales rows and columns, so it runs on the two scaling vectors: six matrix-vector
    products instead of six passes that write the matrix.

    Raises:
        ValueError: a matrix that is not square.
    """
    if attention.shape[-1] != attention.shape[-2]:
        raise ValueError(f"an attention is square, got {tuple(attention.shape)}")
    row = torch.ones_like(attention[..., 0])  # (..., N), scales rows
    column = row
    for _ in range(rounds):
        column = 1 / (row[..., None, :] @ attention)[..., 0, :]  # (..., N): every column sums to 1
        row = 1 / (attention @ column[..., None])[..., 0]  # (..., N): every row sums to 1
    return row[..., :, None] * attention * column[..., None, :]


def symmetric_affinity(attention: Tensor, rounds: int = 3) -> Tensor:
    """Eq. 6: A = (D + D^T) / 2 with D = Sinkhorn(attention); (..., N, N)."""
    d = sinkhorn(attention, rounds)
    return (d + d.transpose(-2, -1)) / 2


def propagate(affinity: Tensor, maps: Tensor, mask: Tensor | None, steps: int, *, side: Side = "arriving") -> Tensor:
    """Eq. 7: spread maps ``steps`` times; affinity (..., N, N), maps (..., K, N), mask as maps or None -> as maps.

    The mask keeps only what lies inside it as a source; where it spreads to is not restricted. A^t is never
    formed: t products with K columns cost N^2 K each, not N^3.

    side: "arriving" takes A^t m, row i says where patch i gets its score from; "leaving" takes m A^t, row i says
        where patch i sends its score to (CD-CLIP writes it so). Of a symmetric affinity they are the same.

    Raises:
        ValueError: affinity and maps are not of the same grid.
    """
    if steps and affinity.shape[-1] != maps.shape[-1]:
        raise ValueError(
            f"the affinity is of {affinity.shape[-1]} patches, the maps of {maps.shape[-1]}; expected the same grid"
        )
    out = maps if mask is None else maps * mask  # (K, N)
    turned = affinity.transpose(-2, -1) if side == "arriving" else affinity
    for _ in range(steps):
        out = out @ turned  # (K, N)
    return out


def choose_layers(attentions: Tensor, decoder: Tensor | None, how: Choose) -> Tensor:
    """The mean attention of some layers: attentions (..., L, N, N), decoder (..., N, N) -> (..., N, N).

    "all" takes every layer. The others take those layers l whose distance d_l from the decoder's affinity is at most
    the mean of all layers': "abs" as WeCLIP's paper has it, d_l = sum |A_f - A_l|; "signed" as its code has it,
    d_l = sum (A_f - A_l). Signed, A_f counts for nothing: what is kept are the layers whose patches attend to patches
    (not to the class token) at least as much as those of the mean layer.

    Raises:
        ValueError: "abs" without the decoder's affinity.
    """
    if how == "all":
        return attentions.mean(-3)
    if how == "abs":
        if decoder is None:
            raise ValueError("layers near the decoder's affinity were asked for, without one")
        away = (decoder[..., None, :, :] - attentions).abs().sum((-2, -1))  # (..., L)
    else:
        away = -attentions.sum((-2, -1), dtype=torch.float64)
    # the least of equal distances is not above their mean but for rounding
    kept = away <= away.mean(-1, keepdim=True) * (1 + 1e-7) if how == "abs" else away <= away.mean(-1, keepdim=True)
    share = kept.to(attentions.dtype) / kept.sum(-1, keepdim=True).clamp_min(1)
    return (attentions * share[..., None, None]).sum(-3)


def rectify(affinity: Tensor, factor: Tensor, combine: Literal["mul", "mul-rows", "matmul", "replace"]) -> Tensor:
    """Join an affinity (..., N, N) with what rectifies it, of the same shape.

    "mul", "mul-rows": entry by entry. "matmul": factor @ affinity. "replace": the factor alone.
    """
    if combine == "replace":
        return factor
    return factor @ affinity if combine == "matmul" else factor * affinity


def make_affinity(
    attention: Tensor, settings: Affinity, *, decoder: Tensor | None = None, factor: Tensor | None = None
) -> Tensor:
    """Source's mean -> rectified, normalised and symmetric: (..., N, N) -> (..., N, N).

    Args:
        attention: what ``choose_layers`` gave, (..., N, N), between patches.
        settings: what is done.
        decoder: the decoder's affinity, if ``settings.decoder``.
        factor: what ``class_distributions.distribution_factor`` gave, if ``settings.distributions``.

    Raises:
        ValueError: something that the settings ask for is not given.
    """
    if (settings.decoder and decoder is None) or (settings.distributions is not None and factor is None):
        raise ValueError("the settings rectify by something that was not given")
    if settings.decoder and decoder is not None:
        attention = rectify(attention, decoder, "mul")
    how = settings.distributions
    if how is not None and factor is not None and settings.place == "before":
        attention = rectify(attention, factor, how.combine)
    affinity = symmetric_affinity(attention, settings.rounds)
    if how is not None and factor is not None and settings.place == "after":
        affinity = rectify(affinity, factor, how.combine)
    return affinity


def spread(affinity: Tensor, maps: Tensor, settings: Affinity) -> Tensor:
    """Spread the maps (K, h, w) in [0, 1] of one image along ``make_affinity``'s (N, N): (K, h, w), not rescaled."""
    mask = None
    if settings.boxes is not None and settings.steps:
        mask = box_masks(maps, settings.boxes, keep_edges=settings.keep_edges).flatten(1)  # (K, N)
    out = propagate(affinity, maps.flatten(1), mask, settings.steps, side=settings.side)  # (K, N)
    return out.view_as(maps)
