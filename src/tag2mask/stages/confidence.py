"""How sure the masks are, and how right where they are sure (CLIP-ES, appendix D, Table S3).

The paper's table has two halves: the share of pixels by confidence, and the mIoU of networks *trained* with the
pixels below mu ignored. The first is here as it is. In place of the second, which takes one training for each mu,
stands what those trainings would see: how many pixels are left at mu, and the mIoU of the masks on them.

Confidence is stored in steps of 1/255: a pixel counts as at least mu if its stored step is, which is right to 0.002.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tag2mask.ops.metrics import confusion_matrix, metrics
from tag2mask.types import IGNORE

EDGES = (0.0, 0.5, 0.8, 0.95, 1.0)
MUS = (0.7, 0.8, 0.95)
_LEVELS = 256


@dataclass(frozen=True)
class Kept:
    """What is left where only pixels of confidence mu or more are kept; fractions, NaN where there is nothing.

    share: of the scored pixels. miou: of the masks on the pixels that are left.
    """

    mu: float
    share: float
    miou: float


@dataclass(frozen=True)
class ConfidenceTable:
    """Table S3 of a run.

    shares: (from, to, share of all pixels); "to" is included in the last row alone. kept: one row for each mu.
    """

    images: int
    shares: tuple[tuple[float, float, float], ...]
    kept: tuple[Kept, ...]

    def text(self) -> str:
        """The table in a few lines, in per cent."""
        shares = ", ".join(f"{span(low, high)} {100 * share:.2f}" for low, high, share in self.shares)
        kept = ", ".join(
            f"mu {row.mu:g}: " + (f"{100 * row.miou:.1f} on {100 * row.share:.2f}" if row.share else "none")
            for row in self.kept
        )
        return (
            f"pixels by confidence, in %: {shares} ({self.images} images)\n"
            f"mIoU on the pixels that mu keeps, and their share, in %: {kept}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers for JSON."""
        return {
            "images": self.images,
            "shares": [{"from": low, "to": high, "share": share} for low, high, share in self.shares],
            "kept": [vars(row) for row in self.kept],
        }


def span(low: float, high: float) -> str:
    """A span of confidences as mathematics writes it."""
    return f"[{low:g}, {high:g}{']' if high >= 1 else ')'}"


@dataclass
class ConfidenceTally:
    """Counts while images pass; its size does not depend on their number."""

    classes: int
    images: int = 0
    levels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_LEVELS, np.int64))
    confusion: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.confusion = torch.zeros(len(MUS), self.classes, self.classes + 1, dtype=torch.int64)

    def add(self, truth: Tensor, mask: Tensor, confidence: NDArray[np.float32]) -> None:
        """Count one image: truth and mask (H, W) uint8, confidence (H, W) as ``read_confidence`` gives it.

        Raises:
            ValueError: the sizes differ.
        """
        if tuple(confidence.shape) != tuple(mask.shape):
            raise ValueError(f"the confidence is {confidence.shape}, the mask {tuple(mask.shape)}")
        steps = np.rint(confidence * (_LEVELS - 1)).astype(np.uint8)  # (H, W)
        self.images += 1
        self.levels += np.bincount(steps.ravel(), minlength=_LEVELS)
        for row, mu in enumerate(MUS):
            kept = torch.from_numpy(steps >= _step(mu))
            seen = torch.where(kept, mask, torch.full_like(mask, IGNORE))
            self.confusion[row] += confusion_matrix(truth, seen, self.classes)

    def table(self) -> ConfidenceTable:
        """What was counted."""
        total = max(int(self.levels.sum()), 1)
        shares = []
        for low, high in pairwise(EDGES):
            end = _LEVELS if high >= 1 else _step(high)
            shares.append((low, high, int(self.levels[_step(low) : end].sum()) / total))
        kept = []
        for mu, counts in zip(MUS, self.confusion, strict=True):
            found = metrics(counts)
            kept.append(Kept(mu, 1 - found.ignored, found.miou_kept))
        return ConfidenceTable(self.images, tuple(shares), tuple(kept))


def _step(mu: float) -> int:
    """The lowest stored step that counts as ``mu`` or more: ``round(255 c)`` of a confidence just there or above."""
    return math.ceil(mu * (_LEVELS - 1) - 1e-9)
