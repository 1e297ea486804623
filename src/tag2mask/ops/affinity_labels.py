"""What IRN and PSA learn from: confident labels made of score maps, and which pairs of pixels agree in them.

IRN keeps the pixels where a CRF finds the same thing under a high and a low background threshold; PSA does so with
a strong and a weak background (1 - max)^alpha. Everything else is IGNORE and takes no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.ops.crf import dense_crf, dense_crf_batch, preset, unary_from_labels, unary_from_probs
from tag2mask.ops.masks import background_score, to_labels, winner
from tag2mask.ops.pairs import Offset, window
from tag2mask.types import IGNORE, Power

_EMPTY = 1e-5
"""Scores that are all below this belong to no pixel of the image: the crop's padding."""


@dataclass(frozen=True)
class PairLabels:
    """Which pairs of pixels belong together; (..., P, S) bool each, in the order of the offsets and of the sources.

    background: both are background. foreground: both are of the same class. different: they are not of one kind.
    A pair with an IGNORE pixel is in none of them.
    """

    background: Tensor
    foreground: Tensor
    different: Tensor


def pair_labels(labels: Tensor, offsets: Sequence[Offset], radius: float) -> PairLabels:
    """Compare all pairs of label maps (..., H, W), any integer dtype, of mask values and IGNORE.

    offsets: ``pairs.path_offsets(radius)`` for IRN, ``pairs.disc_offsets(radius)`` for PSA.

    Raises:
        ValueError: if the maps are too small to hold one source.
    """
    source = window(labels, radius)  # (..., h', w')
    target = torch.stack([window(labels, radius, offset) for offset in offsets], -3)  # (..., P, h', w')
    source, target = source.flatten(-2)[..., None, :], target.flatten(-2)  # (..., 1, S), (..., P, S)
    valid = (source != IGNORE) & (target != IGNORE)
    equal = source == target
    return PairLabels(equal & (source == 0), equal & valid & (source > 0), ~equal & valid)


def shrink_labels(labels: Tensor, factor: int) -> Tensor:
    """Take every ``factor``-th label, from the middle of its cell, as Pillow's nearest filter does.

    labels: (..., H, W). Returns (..., H // factor, W // factor); of an even cell the lower right middle counts.
    """
    height, width = labels.shape[-2] // factor, labels.shape[-1] // factor
    middle = factor // 2
    return labels[..., middle::factor, middle::factor][..., :height, :width]


def irn_labels(
    image: Tensor, maps: Tensor, tags: Tensor, *, foreground: float = 0.30, background: float = 0.05
) -> Tensor:
    """IRN's confident labels of one image: (H, W) uint8 of 0, the tags and IGNORE.

    A pixel gets a class where the CRF gives it one although background scores ``foreground``; it is background where
    the CRF says so both then and when background scores only ``background``. The CRF (preset "irn") starts from
    hard labels that are right with probability 0.7.

    Args:
        image: (3, H, W) uint8.
        maps: (K, H, W) in [0, 1], at the image's size.
        tags: (K,) int64.
        foreground: IRN .30 (CLIMS on COCO .35).
        background: IRN .05, CLIMS .10. Soft maps turn from background to IGNORE in between.

    Raises:
        ValueError: if the shapes do not match.
    """
    _check(image, maps)
    if not len(maps):
        return torch.zeros(image.shape[1:], dtype=torch.uint8, device=image.device)
    unaries = []
    for threshold in (foreground, background):
        hard = winner(torch.cat([torch.full_like(maps[:1], threshold), maps]))  # (H, W), background on a tie
        unaries.append(unary_from_labels(hard, len(maps) + 1))
    sure, wide = (winner(q) for q in dense_crf_batch([image, image], unaries, preset("irn")))
    return merge_irn(sure, wide, tags)


def merge_irn(sure: Tensor, wide: Tensor, tags: Tensor) -> Tensor:
    """Join the CRF's labels 0..K at the high and at the low background threshold, (H, W) each, as mask values."""
    values = torch.cat([tags.new_zeros(1), tags]).to(sure.device, torch.uint8)  # (K + 1,)
    merged = values[sure]
    merged[sure == 0] = IGNORE
    merged[(sure == 0) & (wide == 0)] = 0
    return merged


def psa_scores(image: Tensor, maps: Tensor, alpha: float) -> Tensor:
    """CRF posteriors of ``maps`` (K, H, W) with background (1 - max)^alpha: (K + 1, H, W), background first.

    image: (3, H, W) uint8. A low alpha (4) lets background win often, a high one (32) hardly ever.

    Raises:
        ValueError: if the shapes do not match.
    """
    _check(image, maps)
    if not len(maps):
        return torch.ones(1, *image.shape[1:], device=maps.device)
    scores = torch.cat([background_score(maps, Power(alpha))[None], maps])  # (K + 1, H, W)
    return dense_crf(image, unary_from_probs(scores), preset("psa"))


def psa_labels(low: Tensor, high: Tensor, tags: Tensor, *, cell: int = 8) -> Tensor:
    """PSA's confident labels on AffinityNet's grid: (H, W) scores -> (H // cell, W // cell) uint8.

    A cell gets the class that wins against a strong background; it is background where background wins even
    when weak, and IGNORE in between and where all scores are 0, which is the padding of a crop.

    Args:
        low: (K + 1, H, W), ``psa_scores`` of the low alpha (4), background first, cropped like the image.
        high: the same of the high alpha (32).
        tags: (K,) int64.
        cell: pixels of a cell; the scores are averaged over it.
    """
    low, high = (F.avg_pool2d(scores[None], cell)[0] if cell > 1 else scores for scores in (low, high))
    labels = to_labels(low, tags)  # (h, w)
    labels[labels == 0] = IGNORE
    labels[winner(high) == 0] = 0
    labels[torch.maximum(low.amax(0), high.amax(0)) < _EMPTY] = IGNORE
    return labels


def _check(image: Tensor, maps: Tensor) -> None:
    if maps.ndim != 3 or image.shape[1:] != maps.shape[1:]:
        raise ValueError(
            f"maps: got {tuple(maps.shape)} for an image {tuple(image.shape)}, expected (K, H, W) at the image's size"
        )
