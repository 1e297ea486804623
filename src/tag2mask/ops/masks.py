"""From score maps to a mask: upsampling, background, dense CRF, argmax, confidence (CLIP-ES, section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.ops.crf import dense_crf, preset, unary_from_probs, wrap_bgr
from tag2mask.ops.image import shrink_images
from tag2mask.types import BACKGROUND, IGNORE, Background, Constant, MaskRule, Power, Scores, UserError


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
    """
    if isinstance(background, Power):
        return (1 - maps.amax(0)).clamp_min(0) ** background.exponent
    if isinstance(background, Constant):
        return torch.full_like(maps[0], background.value)
    if own is None:
        raise UserError("the mask rule asks for the method's own background score, but these scores have none")
    return own


def class_probabilities(scores: Scores, rule: MaskRule) -> Tensor:
    """Background and class scores at image size, (K + 1, H, W) float32, background first; not a distribution."""
    maps = normalise_maps(upsample(scores.maps, scores.size, scores.frame), rule.normalise)  # (K, H, W)
    own = scores.background
    if own is not None:
        own = upsample(own[None], scores.size, scores.frame)[0]
    return torch.cat([background_score(maps, rule.background, own)[None], maps])


def to_labels(probs: Tensor, tags: Tensor) -> Tensor:
    """The winner at each pixel: probs (K + 1, H, W), tags (K,) -> (H, W) uint8.

    On a tie the first wins, so background before the classes, as in the released code. Only background and
    the tags can occur: an absent class never appears.
    """
    values = torch.cat([tags.new_zeros(1), tags]).to(torch.uint8).to(probs.device)  # (K + 1,)
    return values[probs.argmax(0)]


def cam_confidence(maps: Tensor) -> Tensor:
    """Eq. 8 of CLIP-ES: max(1 - max_c X, max_c X); (K, H, W) -> (H, W)."""
    top = maps.amax(0)
    return torch.maximum(1 - top, top)


def keep_tagged(probs: Tensor, tags: Sequence[int]) -> Tensor:
    """Probabilities without the classes that an image cannot hold; background can always be there.

    probs: (K, H, W), sums to 1 over K. tags: the classes that may be there. Returns the same shape and sum.
    """
    allowed = probs.new_zeros(len(probs))
    allowed[[BACKGROUND, *tags]] = 1
    # the least float32 more: all that is allowed may have vanished in the softmax
    kept = (probs + 1e-37) * allowed[:, None, None]
    return kept.div_(kept.sum(0))


def refine(image: Tensor, probs: Tensor, rule: MaskRule, crf_max_pixels: int | None = None) -> Tensor:
    """CRF posteriors (K + 1, H, W) of ``probs`` under ``rule.crf``.

    image: (3, H, W) uint8. An image of more than ``crf_max_pixels`` is refined at a smaller size and its
    posteriors are brought back bilinearly, so that a photograph of any size fits in memory.
    """
    size = (image.shape[1], image.shape[2])
    pixels = size[0] * size[1]
    if crf_max_pixels is not None and pixels > crf_max_pixels:
        shrink = math.sqrt(crf_max_pixels / pixels)
        small = (max(1, int(size[0] * shrink)), max(1, int(size[1] * shrink)))
        image = shrink_images(image[None], small)[0]  # (3, h', w')
        probs = F.interpolate(probs[None], size=small, mode="bilinear", antialias=True)[0]  # (K + 1, h', w')
    if rule.crf_image == "wrapped-bgr":
        image = wrap_bgr(image)
    posterior = dense_crf(image, unary_from_probs(probs), preset(str(rule.crf)))
    return posterior if posterior.shape[1:] == size else upsample(posterior, size)


def pseudo_mask(
    scores: Scores, image: Tensor, rule: MaskRule, *, crf_max_pixels: int | None = None
) -> tuple[Tensor, Tensor]:
    """The pseudo mask of one image and its confidence.

    image: (3, H, W) uint8, of ``scores.size``. Returns ((H, W) uint8 of 0, the tags and, under ``rule.mu``,
    IGNORE; (H, W) float32 in [0, 1]). Without a CRF the confidence is Eq. 8's.
    """
    if tuple(image.shape[1:]) != tuple(scores.size):
        raise ValueError(f"the image is {tuple(image.shape[1:])}, but the scores are of size {scores.size}")
    if scores.tags.numel() == 0:
        return torch.zeros(scores.size, dtype=torch.uint8), torch.ones(scores.size)
    probs = class_probabilities(scores, rule)  # (K + 1, H, W)
    confidence = cam_confidence(probs[1:])
    if rule.crf is not None:
        probs = refine(image.to(probs.device), probs, rule, crf_max_pixels)
        if rule.confidence == "posterior":
            confidence = probs.amax(0)
    mask = to_labels(probs, scores.tags)
    confidence = confidence.clamp(0, 1)
    if rule.mu is not None:
        mask = torch.where(confidence < rule.mu, torch.full_like(mask, IGNORE), mask)
    return mask, confidence
