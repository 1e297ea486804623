"""Dense lessons: what each patch shows, by pseudo masks that were made from tags, the texts that say it, and which
patches show the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.classes import load_classes
from tag2mask.lab.views import look_at_labels
from tag2mask.storybook.phrases import CLIP_ES_SENTENCE, OWN_SENTENCES, PAPER_WORDS, imagenet_sentences

SAMPLES = 4
"""Pixels of a patch, along each side, that are looked at."""


def class_texts(classes: Sequence[str], seed: int, step: int) -> tuple[list[str], int]:
    """A text for every word of CLIP-ES's background set and then for every class; how many are background.

    The sentence is one for all, as at test time; half of the time it is CLIP-ES's. A class is called by VOC's own
    name half of the time, else as one of the papers calls it.
    """
    rng = np.random.default_rng([seed, step, 0x7E47])
    others = (*OWN_SENTENCES, *imagenet_sentences())
    sentence = CLIP_ES_SENTENCE if rng.random() < 0.5 else others[rng.integers(len(others))]
    background = load_classes("voc12").texts["clip-es"].background
    words = [PAPER_WORDS[name] for name in classes]
    own = rng.random(len(words)) < 0.5
    names = [word[0 if first else rng.integers(len(word))][0] for word, first in zip(words, own, strict=True)]
    return [sentence.format(each) for each in (*background, *names)], len(background)


def shares(labels: Tensor, views: Tensor, size: tuple[int, int], patch: int, classes: int) -> Tensor:
    """Which share of each patch of a view belongs to background and to each class.

    Args:
        labels: (B, H, W) uint8, of whole scenes; 0 is background, a class counts from 1.
        views: (B, 9), as ``look`` takes them.
        size: (h, w) of the view in pixels, multiples of ``patch``.
        classes: C.

    Returns:
        (B, N, 1 + C) float32; the patches in the order of the network's.
    """
    rows, columns = size[0] // patch, size[1] // patch
    seen = look_at_labels(labels, views, (rows * SAMPLES, columns * SAMPLES))  # (B, rows * S, columns * S) int64
    cells = seen.unflatten(2, (columns, SAMPLES)).unflatten(1, (rows, SAMPLES))  # (B, rows, S, columns, S)
    cells = cells.transpose(2, 3).flatten(3).flatten(1, 2)  # (B, N, S * S)
    out = torch.zeros(*cells.shape[:2], 1 + classes, device=labels.device)
    return out.scatter_add_(2, cells, torch.ones_like(cells, dtype=out.dtype)) / SAMPLES**2


def log_probabilities(similarity: Tensor, background: int, scale: Tensor) -> Tensor:
    """Log-probabilities of background and of each class: (..., T) cosine similarities -> (..., 1 + C).

    background: how many of the texts, the first ones, are of the background; their probabilities are added.
    """
    logits = (scale * similarity.float()).log_softmax(-1)
    return torch.cat([logits[..., :background].logsumexp(-1, keepdim=True), logits[..., background:]], -1)


def dense_loss(patches: Tensor, texts: Tensor, target: Tensor, background: int, scale: Tensor) -> Tensor:
    """Cross entropy between what each patch shows and what the texts say of it; see ``balanced``.

    Args:
        patches: (B, n, E). texts: (T, E), the first ``background`` of them of the background.
        target: (B, n, 1 + C) shares.
        scale: the inverse temperature.
    """
    with torch.autocast(patches.device.type, enabled=False):
        similarity = F.normalize(patches.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T  # (B, n, T)
        return balanced(-(target * log_probabilities(similarity, background, scale)).sum(-1), target)


def attention_loss(attention: Tensor, target: Tensor) -> Tensor:
    """Minus the logarithm of the share of each patch's attention that goes to patches that show the same.

    Args:
        attention: (B, n, n), not negative; each row's share matters, not its sum.
        target: (B, n, 1 + C) shares.
    """
    with torch.autocast(attention.device.type, enabled=False):
        same = target @ target.transpose(1, 2)  # (B, n, n)
        share = (attention.float() * same).sum(-1) / attention.float().sum(-1)  # (B, n)
        return balanced(-share.clamp_min(1e-4).log(), target)


def balanced(each: Tensor, target: Tensor) -> Tensor:
    """The mean of patches' losses (B, n), where things and background have equal weight, however large they are."""
    parts = torch.stack([target[..., 0], target[..., 1:].sum(-1)])  # (2, B, n), background and things
    return ((each * parts).sum((1, 2)) / parts.sum((1, 2)).clamp_min(1)).mean()
