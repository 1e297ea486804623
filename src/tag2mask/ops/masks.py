"""From score maps to a mask: upsampling, background, refiner, argmax, confidence (CLIP-ES, section 3.4).

Where a rule lets untagged classes win (``MaskRule.others``), the best of them is one map more, the last, in all of
this: it is upsampled and normalised like the others, background is scored against it too, and the refiner has one
label for it, "some class that is not among the tags". Which class that is at a pixel is the nearest cell's. Seen from
WeakCLIP's release, whose CRF has a label for every class that wins somewhere: untagged classes are not kept apart
while the refiner works, which Eq. 14 does not ask for, since all of them become 255. A network's masks have a channel
for every class and need no such shortcut (``stages.machinery.predictor``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.ops.crf import unary_from_labels, wrap_bgr
from tag2mask.ops.image import shrink_images
from tag2mask.ops.refiners import find_refiner
from tag2mask.types import BACKGROUND, IGNORE, Background, Constant, MaskRule, Others, Own, Power, Scores, UserError


def upsample(maps: Tensor, size: tuple[int, int], frame: tuple[int, int] | None = None) -> Tensor:
    """Bring maps from their grid to the image's pixels, bilinearly with half-pixel centres.

    maps: (K, h, w) over the pixels of ``frame`` (default: ``size``). Returns (K, H, W) float32; what the
    frame has beyond ``size`` is cropped.
    """
    full = frame or size
    if not len(maps):
        return maps.new_zeros(0, *size)
    out = F.interpolate(maps[None].float(), size=full, mode="bilinear", align_corners=False)[0]  # (K, fh, fw)
    return out[:, : size[0], : size[1]]  # (K, H, W)


def normalise_maps(maps: Tensor, how: str) -> Tensor:
    """Min-max every map by itself ("class"), all together ("image"), or leave them ("none"); (K, H, W)."""
    if how == "none" or maps.numel() == 0:
        return maps
    dims = (1, 2) if how == "class" else (0, 1, 2)
    low = maps.amin(dims, keepdim=True)
    return (maps - low) / (maps.amax(dims, keepdim=True) - low + 1e-7)


def background_score(maps: Tensor, background: Background, own: Tensor | None = None) -> Tensor:
    """The score of background at each pixel, (H, W), from class maps (K, H, W).

    Power(a) is (1 - max_c maps) ** a; Constant(t) is t; Own takes ``own`` (H, W).

    Raises:
        UserError: ``Own``, and there is no ``own``.
    """
    if isinstance(background, Power):
        return (1 - maps.amax(0)).clamp_min(0) ** background.exponent
    if isinstance(background, Constant):
        return torch.full_like(maps[0], background.value)
    if own is None:
        raise UserError("the mask rule asks for the method's own background score, but these scores have none")
    return own


def full_maps(scores: Scores, rule: MaskRule) -> Tensor:
    """The maps at image size, normalised, (K, H, W) float32; with the untagged map as the last, (K + 1, H, W), where
    the rule lets untagged classes win.

    Raises:
        UserError: the rule does, and these scores have no such map.
    """
    maps = scores.maps
    if rule.others != "never" and len(scores.tags):
        maps = torch.cat([maps, _others(scores, rule).score[None].to(maps)])
    return normalise_maps(upsample(maps, scores.size, scores.frame), rule.normalise)


def class_probabilities(scores: Scores, rule: MaskRule) -> Tensor:
    """Background, class scores and, where the rule has it, the untagged score at image size; not a distribution.

    Returns (K + 1, H, W) or (K + 2, H, W) float32, background first. Raises as ``full_maps``.
    """
    maps = full_maps(scores, rule)  # (K, H, W) or (K + 1, H, W)
    own = scores.background
    if own is not None:
        own = upsample(own[None], scores.size, scores.frame)[0]
    return torch.cat([background_score(maps, rule.background, own)[None], maps])


def best_others(maps: Tensor, tags: Tensor) -> Others:
    """``Scores.others`` of a method that has a map for every class.

    maps: (C, h, w), of the classes 1 .. C. tags: (K,). Where all classes are tagged, the score is 0 and the
    value IGNORE.
    """
    tagged = torch.zeros(len(maps), dtype=torch.bool, device=maps.device)
    tagged[tags.to(maps.device) - 1] = True
    if tagged.all():
        score = maps.new_zeros(maps.shape[1:])
        return Others(score, torch.full_like(score, IGNORE, dtype=torch.uint8))
    score, best = maps[~tagged].max(0)  # (h, w) each
    values = torch.nonzero(~tagged)[:, 0] + 1  # (C - K,)
    return Others(score, values[best].to(torch.uint8))


def other_values(scores: Scores, rule: MaskRule) -> Tensor:
    """What the mask holds where the untagged map wins under ``rule.others``: (H, W) uint8."""
    if rule.others == "ignore":
        return torch.full(scores.size, IGNORE, dtype=torch.uint8)
    full = scores.frame or scores.size
    values = _others(scores, rule).values[None, None].float()  # nearest of bytes is not there on every device
    return F.interpolate(values, size=full, mode="nearest-exact")[0, 0, : scores.size[0], : scores.size[1]].byte()


def _others(scores: Scores, rule: MaskRule) -> Others:
    if scores.others is None:
        raise UserError(
            f"others={rule.others!r} asks what untagged classes score, but these scores do not say; "
            "take others='never'"
        )
    return scores.others


def to_labels(probs: Tensor, tags: Tensor) -> Tensor:
    """The winner at each pixel: probs (K + 1, H, W), tags (K,) -> (H, W) uint8.

    On a tie the first wins, so background before the classes, as in the released code. Only background and
    the tags can occur: an absent class never appears.
    """
    values = torch.cat([tags.new_zeros(1), tags]).to(torch.uint8).to(probs.device)  # (K + 1,)
    return values[winner(probs)]


def winner(probs: Tensor) -> Tensor:
    """The channel with the largest value at each pixel, on a tie the first: (C, H, W) -> (H, W) int64."""
    return probs.max(0).indices  # argmax over the first dimension takes ten times as long on a processor


def mask_of(probs: Tensor, scores: Scores, rule: MaskRule) -> Tensor:
    """The winner at each pixel, (H, W) uint8, of what ``class_probabilities`` gave, or a refiner made of it.

    On a tie the first wins: background, then the tags, then the untagged class.
    """
    if rule.others == "never":
        return to_labels(probs, scores.tags)
    labels = to_labels(probs, torch.cat([scores.tags, scores.tags.new_zeros(1)]))
    return torch.where(winner(probs) == len(probs) - 1, other_values(scores, rule).to(labels.device), labels)


def cam_confidence(maps: Tensor) -> Tensor:
    """Eq. 8 of CLIP-ES: max(1 - max_c X, max_c X); (K, H, W) -> (H, W)."""
    top = maps.amax(0)
    return torch.maximum(1 - top, top)


def map_confidence(probs: Tensor, background: Background) -> Tensor:
    """How sure maps are at each pixel: Eq. 8 of CLIP-ES; (K + 1, H, W), background first -> (H, W) in [0, 1].

    A background b that a method scores itself is a rival like the classes, so Eq. 8 is of the share that the highest
    class m has of both, m / (m + b). Where b is 1 - m, that is m; where both are 0, nothing is known: 0.5.
    """
    maps = probs[1:]
    if not isinstance(background, Own):
        return cam_confidence(maps)
    both = probs[:1] + maps.amax(0, keepdim=True)  # (1, H, W)
    share = maps.amax(0, keepdim=True) / both.clamp_min(torch.finfo(both.dtype).tiny)
    return cam_confidence(torch.where(both > 0, share, 0.5))


def keep_tagged(probs: Tensor, tags: Sequence[int]) -> Tensor:
    """Probabilities without the classes that an image cannot hold; background can always be there.

    probs: (K, H, W), sums to 1 over K. tags: the classes that may be there. Returns the same shape and sum.
    """
    allowed = probs.new_zeros(len(probs))
    allowed[[BACKGROUND, *tags]] = 1
    # the least float32 more: all that is allowed may have vanished in the softmax
    kept = (probs + 1e-37) * allowed[:, None, None]
    return kept.div_(kept.sum(0))


def ignore_untagged(labels: Tensor, tags: Sequence[int]) -> Tensor:
    """WeakCLIP's Eq. 14: labels (H, W) uint8 with IGNORE where neither background nor one of the tags has won."""
    known = torch.tensor([BACKGROUND, *tags], dtype=labels.dtype, device=labels.device)
    return torch.where(torch.isin(labels, known), labels, torch.full_like(labels, IGNORE))


def refine(image: Tensor, probs: Tensor, rule: MaskRule, refine_max_pixels: int | None = None) -> Tensor:
    """What ``rule.refiner`` makes of ``probs`` (C, H, W), or of the labels that win there: (C, H, W) posteriors.

    image: (3, H, W) uint8. An image of more than ``refine_max_pixels`` is refined at a smaller size and its
    posteriors are brought back bilinearly, so that a photograph of any size fits in memory.
    """
    refiner = find_refiner(str(rule.refiner))
    size = (image.shape[1], image.shape[2])
    pixels = size[0] * size[1]
    if refine_max_pixels is not None and pixels > refine_max_pixels:
        shrink = math.sqrt(refine_max_pixels / pixels)
        small = (max(1, int(size[0] * shrink)), max(1, int(size[1] * shrink)))
        image = shrink_images(image[None], small)[0]  # (3, h', w')
        probs = F.interpolate(probs[None], size=small, mode="bilinear", antialias=True)[0]  # (K + 1, h', w')
    if rule.refiner_image == "wrapped-bgr":
        image = wrap_bgr(image)
    if rule.refiner_on == "labels":  # right with probability 0.7 at every pixel, as IRN and POT have it
        probs = unary_from_labels(winner(probs), len(probs)).neg().exp()
    posterior = refiner(image, probs)
    return posterior if posterior.shape[1:] == size else upsample(posterior, size)


def pseudo_mask(
    scores: Scores, image: Tensor, rule: MaskRule, *, refine_max_pixels: int | None = None
) -> tuple[Tensor, Tensor]:
    """The pseudo mask of one image and its confidence.

    image: (3, H, W) uint8, of ``scores.size``. Returns ((H, W) uint8 of 0, the tags, under ``rule.others`` other
    classes or IGNORE and, under ``rule.mu``, IGNORE; (H, W) float32 in [0, 1], of whatever wins). Without a refiner
    the confidence is that of ``map_confidence``. Raises as ``full_maps``.
    """
    if tuple(image.shape[1:]) != tuple(scores.size):
        raise ValueError(f"the image is {tuple(image.shape[1:])}, but the scores are of size {scores.size}")
    if scores.tags.numel() == 0:
        return torch.zeros(scores.size, dtype=torch.uint8), torch.ones(scores.size)
    probs = class_probabilities(scores, rule)  # (K + 1, H, W), or with the untagged map (K + 2, H, W)
    confidence = map_confidence(probs, rule.background)
    if rule.refiner is not None:
        probs = refine(image.to(probs.device), probs, rule, refine_max_pixels)
        if rule.confidence == "posterior":
            confidence = probs.amax(0)
    mask = mask_of(probs, scores, rule)
    confidence = confidence.clamp(0, 1)
    if rule.mu is not None:
        mask = torch.where(confidence < rule.mu, torch.full_like(mask, IGNORE), mask)
    return mask, confidence
