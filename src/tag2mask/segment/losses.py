"""What a segmentation network is trained with: cross entropies, seed loss and boundary loss.

All take logits (B, K, h, w) of any floating dtype, compute in float32 and return a scalar. Labels are (B, h, w)
integers 0 .. K - 1 or IGNORE, already at the size of the logits (``resize_labels``). A term without a single pixel
is 0 and keeps its gradient graph: no loss here gives NaN on finite logits.

- **Confidence-guided loss** (CLIP-ES, section 3.4): as ignored pixels, the loss is ``cross_entropy`` on masks whose
  unsure pixels are 255 already (what the released code trains on); from a confidence map, ``confident_labels``
  makes them at any mu. Eq. 9 sets the loss of unsure pixels to 0 and does not say what it is divided by:
  ``divide="valid"`` (the released code's mean) or ``"all"``.
- **Balanced cross entropy** (AdvCAM, CLIMS): the released one is 0 / 0 where a batch has no foreground.
- **Balanced seed loss** (DSRG) and **boundary loss** (WeakCLIP, after DSRG): the paper's Eq. 12 lacks a log, which
  the released code has; its Eq. 13 lacks the clip of q / p to [0.05, 20], which the released code has.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate, repeat
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.ops.crf import CRF, dense_crf_batch, preset, unary_from_probs
from tag2mask.types import BACKGROUND, IGNORE, UserError

WEAKCLIP_FLOOR = 1e-7


def check_labels(labels: Tensor, classes: int, name: str) -> None:
    """Refuse a mask with values that the network has no output for.

    Args:
        labels: integers of any shape.
        classes: K, background included.
        name: of the mask, for the message.

    Raises:
        UserError: if a value is neither 0 .. K - 1 nor 255.
    """
    wrong = labels[(labels != IGNORE) & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        values = ", ".join(str(int(v)) for v in wrong.unique()[:5])
        raise UserError(
            f"{name}: got mask value {values}, expected 0..{classes - 1} or {IGNORE} (ignored); "
            "use masks and classes of the same set"
        )


@lru_cache(maxsize=256)
def _nearest(source: int, target: int) -> tuple[int, ...]:
    """Which source index PIL's nearest filter takes for each target index.

    The start is half a step and every further one is added to it, as PIL does: where a position falls on an
    integer, the rounding of that very sum decides.
    """
    step = source / target
    positions = accumulate(repeat(step, target - 1), initial=step * 0.5)
    return tuple(min(int(p), source - 1) for p in positions)


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Label maps at another size by PIL's nearest rule: the cell whose centre is hit.

    ``F.interpolate(mode="nearest")`` takes the corner of the cell instead, which shifts small grids.

    Args:
        labels: (..., H, W) of any dtype.
        size: (h, w).

    Returns:
        (..., h, w) of the same dtype.
    """
    if labels.shape[-2:] == size:
        return labels
    rows = torch.tensor(_nearest(labels.shape[-2], size[0]), device=labels.device)
    columns = torch.tensor(_nearest(labels.shape[-1], size[1]), device=labels.device)
    return labels.index_select(-2, rows).index_select(-1, columns)


def corner_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Label maps at another size by the pixel in the corner of each cell, as WeakCLIP's losses see the seeds.

    Args:
        labels: (..., H, W) of any dtype.
        size: (h, w).

    Returns:
        (..., h, w) of the same dtype.
    """
    rows, columns = (
        torch.arange(target, device=labels.device) * source // target
        for source, target in zip(labels.shape[-2:], size, strict=True)
    )
    return labels.index_select(-2, rows).index_select(-1, columns)


def confident_labels(labels: Tensor, confidence: Tensor, mu: float = 0.95) -> Tensor:
    """The labels with IGNORE wherever the confidence is below ``mu`` (CLIP-ES, Eq. 9).

    Confidence stored as 8-bit PNG is known to 1 / 510.

    Args:
        labels: (..., H, W) integers.
        confidence: as ``labels``, floating, in [0, 1].
        mu: the least confidence that is trained on.

    Returns:
        as ``labels``.

    Raises:
        ValueError: if the shapes differ.
    """
    if labels.shape != confidence.shape:
        raise ValueError(
            f"got labels {tuple(labels.shape)} and confidence {tuple(confidence.shape)}, expected one shape"
        )
    return labels.masked_fill(confidence < mu, IGNORE)


def _pixel_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, K, h, w), (B, h, w) -> cross entropy (B, h, w) float32, 0 where the label is IGNORE."""
    if logits.ndim != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"got logits {tuple(logits.shape)} and labels {tuple(labels.shape)}, expected (B, K, h, w) and (B, h, w)"
        )
    return F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE, reduction="none")


def cross_entropy(
    logits: Tensor, labels: Tensor, *, temperature: float = 1.0, divide: Literal["valid", "all"] = "valid"
) -> Tensor:
    """Mean cross entropy of the pixels that are not ignored.

    Args:
        logits: (B, K, h, w).
        labels: (B, h, w).
        temperature: the logits are divided by it (WeakCLIP's auxiliary loss: 0.07).
        divide: "all" counts ignored pixels too, so that a batch of mostly unsure pixels weighs little
            (mmsegmentation's reduction, in WeakCLIP's auxiliary loss).

    Returns:
        a scalar.

    Raises:
        ValueError: if the shapes do not fit.
    """
    losses = _pixel_losses(logits / temperature, labels)  # (B, h, w)
    count = labels.numel() if divide == "all" else (labels != IGNORE).sum()
    return losses.sum() / torch.as_tensor(count, device=losses.device).clamp(min=1)


def confidence_guided_loss(
    logits: Tensor,
    labels: Tensor,
    confidence: Tensor,
    *,
    mu: float = 0.95,
    divide: Literal["valid", "all"] = "valid",
) -> Tensor:
    """Cross entropy of the pixels whose pseudo label is at least ``mu`` sure (CLIP-ES, Eq. 9).

    Args:
        logits: (B, K, h, w).
        labels: (B, h, w).
        confidence: (B, h, w) floating in [0, 1]; Eq. 8's or a CRF posterior.
        mu: the least confidence that counts.
        divide: as in ``cross_entropy``.

    Returns:
        a scalar.

    Raises:
        ValueError: if the shapes do not fit.
    """
    return cross_entropy(logits, confident_labels(labels, confidence, mu), divide=divide)


def balanced_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Half the mean over background pixels plus half the mean over foreground pixels of the batch.

    A batch without one of the two gets half the mean over the other, where the released code divides by zero.

    Args:
        logits: (B, K, h, w).
        labels: (B, h, w).

    Returns:
        a scalar.

    Raises:
        ValueError: if the shapes do not fit.
    """
    losses = _pixel_losses(logits, labels)  # (B, h, w)
    background = labels == BACKGROUND
    foreground = (labels != IGNORE) & ~background
    # torch.where, not a product: an infinite loss of the other half must not become NaN
    means = [torch.where(half, losses, 0).sum() / half.sum().clamp(min=1) for half in (background, foreground)]
    return (means[0] + means[1]) / 2


def _floored_softmax(logits: Tensor, floor: float) -> Tensor:
    """softmax + floor, normalised again: (B, K, h, w) float32."""
    probs = logits.float().softmax(1) + floor
    return probs / probs.sum(1, keepdim=True)


def auxiliary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """WeakCLIP's unreported loss: cross entropy of its matching scores at the size of the labels.

    Ignored pixels add nothing and are counted, as in mmsegmentation.

    Args:
        logits: (B, K, h, w), cosines over their temperature; further channels stand for no label.
        labels: (B, H, W); any value of K or more is ignored.

    Returns:
        a scalar, without the weight of 0.4.
    """
    large = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
    return cross_entropy(large, labels.masked_fill(labels >= logits.shape[1], IGNORE), divide="all")


def balanced_seed_loss(logits: Tensor, labels: Tensor, *, floor: float = WEAKCLIP_FLOOR) -> Tensor:
    """DSRG's balanced seed loss, WeakCLIP's Eq. 12: background and foreground seeds averaged apart, image by image.

    Images without seeds of a kind count as 0 in the mean over the batch.

    Args:
        logits: (B, K, h, w).
        labels: (B, h, w); any value of K or more is no seed.
        floor: added to every probability (WeakCLIP 1e-7, DSRG 1e-4).

    Returns:
        a scalar.
    """
    classes = logits.shape[1]
    log_probs = _floored_softmax(logits, floor).log()
    seeded = (labels >= 0) & (labels < classes)
    target = torch.where(seeded, labels, 0).long()  # (B, h, w)
    losses = -log_probs.gather(1, target[:, None])[:, 0]  # (B, h, w)
    total = losses.new_zeros(())
    for kind in (labels == BACKGROUND, seeded & (labels != BACKGROUND)):
        count = kind.sum((1, 2)).clamp(min=1e-4)  # (B,)
        total = total + (torch.where(kind, losses, 0).sum((1, 2)) / count).mean()
    return total


def boundary_loss(logits: Tensor, refined: Tensor, *, floor: float = WEAKCLIP_FLOOR) -> Tensor:
    """How far the network is from its own CRF-refined output, WeakCLIP's Eq. 13: mean_u sum_k q log(q / p).

    No gradient flows into q, nor where q / p is clipped to [0.05, 20].

    Args:
        logits: (B, K, h, w).
        refined: (B, K, h, w), the CRF's marginals q (``refine``).
        floor: added to every probability p.

    Returns:
        a scalar.

    Raises:
        ValueError: if the shapes differ.
    """
    if logits.shape != refined.shape:
        raise ValueError(f"got logits {tuple(logits.shape)} and refined {tuple(refined.shape)}, expected one shape")
    probs = _floored_softmax(logits, floor)
    q = refined.detach().float().clamp(min=1e-4)
    q = q / q.sum(1, keepdim=True)
    return (q * (q / probs).clamp(0.05, 20).log()).sum(1).mean()


@torch.no_grad()
def refine(images: Tensor, logits: Tensor, crf: CRF | None = None, *, floor: float = WEAKCLIP_FLOOR) -> Tensor:
    """The dense CRF's marginals of a network's own output on the grid of its logits, as the boundary loss wants them.

    Args:
        images: (B, 3, h, w) uint8, RGB, at the size of the logits (``shrink_to_corners``).
        logits: (B, K, h, w).
        crf: default: the preset "weakclip-train".
        floor: as in ``boundary_loss``.

    Returns:
        (B, K, h, w) float32.

    Raises:
        ValueError: if the shapes do not fit.
    """
    probs = _floored_softmax(logits, floor).clamp(min=1e-4)
    unaries = [unary_from_probs(p) for p in probs]  # (K, h, w) each
    return torch.stack(dense_crf_batch(list(images), unaries, crf or preset("weakclip-train")))


def shrink_to_corners(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures at the size of the logits, sampled corner to corner and cut to whole grey levels, as WeakCLIP does.

    Args:
        images: (B, 3, H, W) uint8.
        size: (h, w).

    Returns:
        (B, 3, h, w) uint8.
    """
    small = F.interpolate(images.double(), size, mode="bilinear", align_corners=True)
    return (small + 1e-9).to(torch.uint8)  # a whole level must not fall to the next one by rounding
