"""Examples that a segmentation network is trained on: an image with its mask (``segment.targets``), augmented.

Drawn for ``run.training.fit``: which image and how it is augmented are functions of (seed, batch, sample). An image
or mask that cannot be read is replaced by the next one in the order of the data set, augmented with the numbers that
the bad one would have had; so the replacement, too, depends on nothing but the draw and the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tag2mask.data.image import BadImage
from tag2mask.data.pixels import read_pixels
from tag2mask.run.sampling import Draw, sample_dice
from tag2mask.segment.augment import Augment, Example, augment
from tag2mask.segment.targets import Targets
from tag2mask.types import UserError

MOST_IN_A_ROW = 50
"""So many images one after the other that cannot be read are no accident."""


class Batch(NamedTuple):
    """Examples of one size.

    images: (B, 3, h, w) float32, RGB, 0-255. labels: (B, h, w) uint8. confidence: (B, h, w) float32, or None where
    it was not asked for. pixels: (B,) bool, True where a person drew or corrected the labels. samples: (B,) int64,
    the positions drawn. step: the batch's number over the whole training. replaced: (id, why) of images that could
    not be read.
    """

    images: Tensor
    labels: Tensor
    confidence: Tensor | None
    pixels: Tensor
    samples: Tensor
    step: int
    replaced: tuple[tuple[str, str], ...] = ()


class Drawn(NamedTuple):
    """One example, as ``Examples`` draws it; see ``Batch``."""

    example: Example
    pixels: bool
    draw: Draw
    replaced: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Examples:
    """The data set that ``run.training.fit`` draws from; picklable.

    confidence: read the confidence maps, too.
    """

    targets: Targets
    settings: Augment
    seed: int
    confidence: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, draw: Draw) -> Drawn:
        """One augmented example.

        Raises:
            UserError: it cannot be read, and neither can the 49 after it.
        """
        replaced = []
        for position in _from(draw.sample, len(self)):
            try:
                example = self.read(position)
                seen = augment(example, self.settings, sample_dice(self.seed, draw))
            except (BadImage, UserError, OSError, ValueError) as problem:
                replaced.append((self.targets.sample(position).id, str(problem)))
                continue
            return Drawn(seen, bool(self.targets.pixels[position]), draw, tuple(replaced))
        raise UserError(
            f"{len(replaced)} images in a row cannot be read, the first one: {replaced[0][1]}; look whether the data "
            "and the run are still there, then give the same command again"
        )

    def read(self, position: int) -> Example:
        """The image at ``position`` with its mask, as they are on disk.

        Raises:
            BadImage: one of the files cannot be read.
            UserError: a mask with values outside the class set.
        """
        image = read_pixels(self.targets.sample(position).image)  # (3, H, W)
        labels = self.targets.labels(position)
        return Example(image, labels, self.targets.confidence(position, labels) if self.confidence else None)

    @staticmethod
    def collate(drawn: Sequence[Drawn]) -> Batch:
        """Several examples of one size as a batch."""
        examples = [each.example for each in drawn]
        confidence = [e.confidence for e in examples if e.confidence is not None]
        return Batch(
            images=torch.stack([e.image for e in examples]),
            labels=torch.stack([e.labels for e in examples if e.labels is not None]),
            confidence=torch.stack(confidence) if confidence else None,
            pixels=torch.tensor([each.pixels for each in drawn]),
            samples=torch.tensor([each.draw.sample for each in drawn]),
            step=drawn[0].draw.step,
            replaced=tuple(pair for each in drawn for pair in each.replaced),
        )


def _from(start: int, count: int) -> Iterator[int]:
    """Positions from ``start`` on, around the end."""
    return ((start + further) % count for further in range(min(count, MOST_IN_A_ROW)))
