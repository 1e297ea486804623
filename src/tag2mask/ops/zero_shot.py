"""Is a class in the picture? CLIP's zero-shot score, of the whole picture and of crops of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CROP_SHARE = 0.6
"""Of a side of the picture, a side of a crop."""

VIEWS = 6
"""The whole picture, its four corners, its centre."""


def crop_views(image: Tensor) -> list[Tensor]:
    """The whole of (3, H, W), its four corners and its centre, each ``CROP_SHARE`` of a side: ``VIEWS`` tensors.

    The corners overlap, so that nothing near the middle is cut in all of them.
    """
    height, width = image.shape[1:]
    h, w = max(1, round(height * CROP_SHARE)), max(1, round(width * CROP_SHARE))
    corners = [(y, x) for y in (0, height - h) for x in (0, width - w)]
    places = [*corners, ((height - h) // 2, (width - w) // 2)]
    return [image, *(image[:, y : y + h, x : x + w] for y, x in places)]


def view_grid(size: tuple[int, int], tokens: int) -> tuple[int, int]:
    """The grid (h, w) of patches that a picture (H, W) is seen on: its shape kept, and at most ``tokens`` of them.

    A small picture is enlarged: a CLIP knows pictures of the size that it was trained on.
    """
    height, width = size
    h = min(tokens, max(1, math.isqrt(tokens * height // width)))
    w = min(tokens, max(1, math.isqrt(tokens * width // height)))
    return h, max(1, min(w, tokens // h))


def class_scores(embeddings: Tensor, classes: Tensor, others: Tensor, scale: float) -> Tensor:
    """How likely CLIP takes each class to be what is shown, among all classes and the other texts.

    In each view the scores of classes and other texts are 1 together (a softmax). The score of a class is the
    geometric mean of that in the whole picture and that in the crop that shows it best: both have to speak for it.

    Args:
        embeddings: (B, V, E) unit rows of each image's views, the whole picture first.
        classes: (C, E) unit rows. others: (M, E) unit rows of what else may be shown; M may be 0.
        scale: CLIP's temperature, as a factor.

    Returns:
        (B, C) within 0 and 1.
    """
    likeness = embeddings.double() @ torch.cat([classes, others]).double().T  # (B, V, C + M)
    shares = (scale * likeness).softmax(-1)[..., : len(classes)]  # (B, V, C)
    return (shares[:, 0] * shares.amax(1)).sqrt().float()
