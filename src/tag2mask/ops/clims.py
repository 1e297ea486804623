"""CLIMS: a CAM network learns from what CLIP reads in the masked picture.

J. Xie, X. Hou, K. Ye and L. Shen, "CLIMS: Cross Language Image Matching for Weakly Supervised Semantic Segmentation"
(CVPR 2022). For each class k of each image X with the network's map P_k in [0, 1], CLIP sees P_k X, which should look
like the class and not like what occurs with it, and (1 - P_k) X, which should not look like the class:

    L = alpha L_OTM + beta L_BTM + gamma L_CBS + delta L_REG.

``CAMERA_READY`` (variant "paper") and ``RELEASED`` (the current repository) differ in all four; see ``CLIMSLoss``.
Faults of the released code that are not repeated here, whatever the variant:

- a batch with one tag in all, or with none, stopped the training (a squeezed index, an empty stack): here it is a
  batch like any other, and without pairs only L_REG is left;
- CLIP, its similarities and the logarithms ran in fp16 on GPUs, where the bound 0.9999 is 1: here cosines and losses
  are float32;
- the camera-ready losses were NaN where a cosine is negative: below ``floor`` the logarithm goes on as its tangent,
  so that such a pair is finite and still pulled up;
- texts were encoded again at every step: here the caller passes features, once;
- captions of more than six classes were refused, and two equal captions in a batch pushed each other's image away,
  when CLIP was fine-tuned: see ``tag_caption`` and ``caption_loss``.

Kept in ``RELEASED`` alone, as it shapes its result: the flat clamp that stops the gradient of a hopeless pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.types import ClassSet, TextSet, UserError


@dataclass(frozen=True)
class CLIMSLoss:
    """The settings of CLIMS's loss.

    object, background, suppression, area: the weights alpha, beta, gamma and delta.
    threshold: L_CBS counts every background text whose cosine is above this, for all classes alike. None: each
        class has its own texts (``TextSet.per_class``), all of which count, with their mean.
    emphasis: by class name, how much more a pair of that class counts in L_OTM and L_BTM.
    floor: the smallest probability whose logarithm is taken in L_OTM and L_BTM.
    clamp: below ``floor`` (and above 1 - floor) the loss is flat, without gradient; else it is the tangent.
    """

    object: float
    background: float
    suppression: float
    area: float
    threshold: float | None = None
    emphasis: Mapping[str, float] = field(default_factory=dict)
    floor: float = 1e-2
    clamp: bool = False

    def __post_init__(self) -> None:
        weights = (self.object, self.background, self.suppression, self.area)
        if not all(0 <= w < float("inf") for w in weights) or not 0 < self.floor < 0.5:
            raise UserError(
                f"CLIMS: got weights {weights} and floor {self.floor}, "
                "expected weights of 0 or more and a floor between 0 and 0.5; change them"
            )


CAMERA_READY = CLIMSLoss(
    10, 25, 29.5, 1.15, emphasis=MappingProxyType({"chair": 3.0, "diningtable": 3.0, "sofa": 3.0})
)
RELEASED = CLIMSLoss(10, 24, 1, 0.2, threshold=0.26, floor=1e-4, clamp=True)
RELEASED_COCO = CLIMSLoss(2, 14, 1.25, 0.2, threshold=0.285, floor=1e-4, clamp=True)

_LEAST = 2.0**-24
"""From 1 to the largest float32 below it."""


@dataclass(frozen=True)
class CLIMSTerms:
    """The four losses of a batch, scalars, and their weighted sum."""

    object: Tensor
    background: Tensor
    suppression: Tensor
    area: Tensor
    total: Tensor


def positive_pairs(tags: Sequence[Tensor], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """The M (image, class) pairs of a batch, image by image: two (M,) int64, the classes counted from 0.

    tags: (K,) int64 of mask values 1..C for each image. An image without tags has no pair.
    """
    images = [torch.full((len(own),), i) for i, own in enumerate(tags)]
    if not images:
        return torch.zeros(0, dtype=torch.long, device=device), torch.zeros(0, dtype=torch.long, device=device)
    return torch.cat(images).to(device), torch.cat([own.long() - 1 for own in tags]).to(device)


def masked_views(
    pixels: Tensor, maps: Tensor, images: Tensor, classes: Tensor, size: tuple[int, int] = (224, 224)
) -> tuple[Tensor, Tensor]:
    """What CLIP sees of each pair: the picture inside the map and the picture outside of it, (M, 3, h, w) each.

    What is masked becomes 0, the mean colour, so ``pixels`` must be normalised, by CLIP's own mean and deviation
    (the released code fed it ImageNet's). Both are resized to ``size`` with corners aligned.

    Args:
        pixels: (N, 3, H, W), normalised.
        maps: (N, C, h, w) in [0, 1].
        images: (M,) row of ``pixels`` and ``maps`` of each pair.
        classes: (M,) channel of ``maps`` of each pair.
        size: of CLIP's input.
    """
    pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=True)  # (N, 3, h', w')
    chosen = maps[images, classes][:, None]  # (M, 1, h, w)
    if not len(images):
        return pixels[:0], pixels[:0]
    chosen = F.interpolate(chosen, size=size, mode="bilinear", align_corners=True)  # (M, 1, h', w')
    own = pixels[images]  # (M, 3, h', w')
    return chosen * own, (1 - chosen) * own


def cosines(embeddings: Tensor, texts: Tensor) -> Tensor:
    """Cosines of image embeddings (M, E) with texts (T, E), neither normalised: (M, T) float32."""
    return F.normalize(embeddings.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T


def negative_log(p: Tensor, settings: CLIMSLoss) -> Tensor:
    """-log p of probabilities of any shape, kept finite; float32 of the same shape.

    Flat outside of [floor, 1 - floor], or the tangent below floor; see ``CLIMSLoss``.
    """
    p = p.float()
    if settings.clamp:
        return -p.clamp(settings.floor, 1 - settings.floor).log()
    bounded = p.clamp_min(settings.floor)
    return -bounded.log() + (bounded - p) / settings.floor  # the second term is 0 above the floor


def suppression_weights(similarity: Tensor, classes: Tensor, relevant: Tensor, settings: CLIMSLoss) -> Tensor:
    """How much each background text counts for each pair in L_CBS, (M, L).

    Args:
        similarity: (M, L) cosines of the pairs' inside views with the L background texts.
        classes: (M,) int64, the classes of the pairs from 0.
        relevant: (C, L) bool, which texts belong to which class; of no effect where there is a threshold.
        settings: of the loss.
    """
    if settings.threshold is not None:
        return (similarity.detach() > settings.threshold).to(similarity.dtype)
    own = relevant[classes].to(similarity.dtype)  # (M, L)
    return own / own.sum(1, keepdim=True).clamp_min(1)


def clims_loss(
    inside: Tensor,
    outside: Tensor,
    inside_background: Tensor,
    weights: Tensor,
    maps: Tensor,
    settings: CLIMSLoss,
    emphasis: Tensor | None = None,
) -> CLIMSTerms:
    """The four losses of a batch.

    L_OTM and L_BTM are means over the pairs, L_CBS is a sum over them (as in both codes), L_REG the mean of all maps.

    Args:
        inside: (M,) cosine of each pair's inside view with its class.
        outside: (M,) cosine of each pair's outside view with its class.
        inside_background: (M, L) cosines of the inside views with the background texts.
        weights: (M, L), of ``suppression_weights``.
        maps: (N, C, h, w) in [0, 1], of all classes, absent ones too, without a background channel.
        settings: of the loss.
        emphasis: (M,) of ``class_emphasis`` for the pairs' classes, or None.
    """
    scale = torch.ones_like(inside) if emphasis is None else emphasis
    pairs = max(1, len(inside))
    matching = (scale * negative_log(inside, settings)).sum() / pairs
    outside_loss = (scale * negative_log(1 - outside, settings)).sum() / pairs
    # Neither code clamps here. A cosine of 1, and what rounds above it, is the only one to be guarded against; the
    # next below is _LEAST away. There the cosine itself has no slope, so that nothing is lost with the gradient.
    suppression = (weights * -(1 - inside_background.float()).clamp_min(_LEAST).log()).sum()
    area = maps.float().mean()
    total = (
        settings.object * matching
        + settings.background * outside_loss
        + settings.suppression * suppression
        + settings.area * area
    )
    return CLIMSTerms(matching, outside_loss, suppression, area, total)


def background_phrases(classes: ClassSet, texts: TextSet, settings: CLIMSLoss) -> tuple[tuple[str, ...], Tensor]:
    """The L background phrases, each once, and which of them belong to which class: (C, L) bool.

    With a threshold these are ``texts.background``, for every class; else ``texts.per_class``.
    """
    if settings.threshold is not None:
        return texts.background, torch.ones(len(classes.foreground), len(texts.background), dtype=torch.bool)
    phrases = tuple(dict.fromkeys(phrase for own in texts.per_class.values() for phrase in own))
    relevant = [[phrase in texts.per_class.get(name, ()) for phrase in phrases] for name in classes.foreground]
    return phrases, torch.tensor(relevant, dtype=torch.bool).view(len(classes.foreground), len(phrases))


def class_emphasis(classes: ClassSet, settings: CLIMSLoss) -> Tensor:
    """How much a pair of each class counts: (C,) float32."""
    return torch.tensor([float(settings.emphasis.get(name, 1)) for name in classes.foreground])


def tag_caption(names: Sequence[str]) -> str:
    """The sentence that tells CLIP the classes of an image when it is fine-tuned on tags."""
    if not names:
        return "background"
    *first, last = names
    if not first:
        return f"a photo of {last}"
    comma = "," if 3 <= len(names) <= 5 else ""  # as the released code punctuates
    return f"a photo of {', '.join(first)}{comma} and {last}"


def caption_loss(logits: Tensor, captions: Sequence[str]) -> Tensor:
    """CLIP's contrastive loss of N images with their captions: the sum of both directions; logits (N, N) -> scalar.

    logits: images in rows, captions in columns. Images of equal captions are right for each other's: the released
    code counted them as wrong, which in a batch of 16 with 20 classes is the rule, not the exception.
    """
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    group = torch.tensor([number[caption] for caption in captions], device=logits.device)
    target = (group[:, None] == group).float()  # (N, N), symmetric
    target = target / target.sum(1, keepdim=True)
    return F.cross_entropy(logits.float(), target) + F.cross_entropy(logits.float().T, target)
