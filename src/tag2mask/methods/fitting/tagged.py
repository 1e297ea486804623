"""Pictures with tags as a training draws them: no masks, nothing but what the data set says of the whole image."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from tag2mask.data.image import BadImage
from tag2mask.data.pixels import read_pixels
from tag2mask.run.sampling import Draw, sample_dice
from tag2mask.run.warn import warn
from tag2mask.segment.augment import Augment, Example, augment
from tag2mask.segment.deit_augment import DeiTAugment, augment_deit
from tag2mask.types import Dataset

PictureBatch = tuple[Tensor, list[Tensor]]
"""Pictures (B, 3, h, w) float32, 0-255, and the tags of each, (K,) int64."""


def tag_targets(tags: Sequence[Tensor], classes: int) -> tuple[Tensor, Tensor]:
    """Tags of pictures as (B, C) of 0 and 1, and which pictures teach, (B,) bool: not those that could not be read.

    tags: (K,) int64 each, from 1, where the network is.
    """
    targets = torch.zeros(len(tags), classes, device=tags[0].device)
    for row, own in zip(targets, tags, strict=True):
        row[own - 1] = 1
    return targets, torch.tensor([bool(len(own)) for own in tags], device=targets.device)


class TaggedImages:
    """The images whose tags are known, augmented by (seed, step, sample).

    An image that cannot be read is a plain one without tags, with a warning.
    """

    def __init__(
        self,
        data: Dataset,
        settings: Augment | DeiTAugment,
        seed: int,
        *,
        tagged_only: bool = False,
        views: int | None = None,
    ) -> None:
        """tagged_only: leave out images whose tags are known to be none.

        views: each picture comes in so many ways alone, again and again; None: each time in a new one.
        """
        if settings.crop is None:
            raise ValueError("pictures of a batch are of one size: give a crop")
        self.data, self.settings, self.seed, self.views = data, settings, seed, views
        self.indices = array(
            "l", (i for i, s in enumerate(data) if s.tags is not None and (s.tags or not tagged_only))
        )
        self.warned: set[int] = set()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Picture (3, crop, crop) float32, 0-255, and tags (K,)."""
        index = self.indices[draw.sample]
        sample = self.data[index]
        try:
            image = read_pixels(sample.image)  # (3, H, W) uint8
        except (BadImage, OSError) as error:
            if index not in self.warned:
                self.warned.add(index)
                warn(f"{sample.id} cannot be learned from: {error}")
            plain = torch.tensor(self.settings.fill)[:, None, None]
            side = self.settings.crop or 1
            return plain.expand(3, side, side).clone(), torch.zeros(0, dtype=torch.int64)
        view = draw if self.views is None else Draw(draw.step % self.views, draw.sample)
        dice = sample_dice(self.seed, view)
        if isinstance(self.settings, DeiTAugment):
            seen = augment_deit(image, self.settings, dice)
        else:
            seen = augment(Example(image), self.settings, dice).image
        return seen, torch.tensor(sample.tags, dtype=torch.int64)

    @staticmethod
    def collate(samples: Sequence[tuple[Tensor, Tensor]]) -> PictureBatch:
        """Pictures stacked, (B, 3, h, w), and tags as a list."""
        pictures, tags = zip(*samples, strict=True)
        return torch.stack(pictures), list(tags)
