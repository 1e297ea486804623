"""A scene as a training sees it: cropped, mirrored, in other light. What is random is drawn by sample, on the CPU;
the pixels are moved by batch, wherever the network is."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tag2mask.lab.cache import SceneCache
from tag2mask.lab.vocabulary import encode
from tag2mask.run.sampling import Draw, sample_generator
from tag2mask.storybook.captions import describe
from tag2mask.storybook.scenes import CLASSES


class Pair(NamedTuple):
    """One picture and its caption.

    image: (H, W, 3) uint8. view: nine numbers, how it is seen. meaning: of the caption, equal for captions that claim
    the same. tags: (C,) bool, which classes it shows. labels: (H, W) uint8, its pseudo mask, if there is one.
    """

    draw: Draw
    image: Tensor
    view: list[float]
    text: str
    meaning: int
    tags: Tensor
    labels: Tensor | None


class Pairs:
    """Pictures with a caption drawn again each time; ``pairs[draw]`` is one.

    crop: the least share of each side that a view keeps. A crop may lose an object that the caption names, so it
    is mild: with 0.9, a fifth of the picture at the very most, and from any one border a tenth of its side.
    masks: (n, H, W) uint8, pseudo masks of the scenes, to be seen with the pictures.
    """

    def __init__(
        self, cache: SceneCache, seed: int, crop: float, colour: float, masks: NDArray[np.uint8] | None = None
    ) -> None:
        self.cache, self.seed, self.crop, self.colour, self.masks = cache, seed, crop, colour, masks

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, draw: Draw) -> Pair:
        """The scene of this draw, as it is seen and described this time."""
        rng = sample_generator(self.seed, draw)
        facts = self.cache.facts[draw.sample]
        caption = describe(facts.names, facts.things, rng, facts.counts)
        image = torch.from_numpy(np.array(self.cache.images[draw.sample]))
        tags = torch.tensor([name in facts.names for name in CLASSES])
        labels = None if self.masks is None else torch.from_numpy(np.array(self.masks[draw.sample]))
        return Pair(draw, image, self._view(rng), caption.text, caption.meaning, tags, labels)

    def _view(self, rng: np.random.Generator) -> list[float]:
        """Height, width, top, left as shares; flip; contrast; shift of red, green, blue."""
        dice = rng.random(9).tolist()
        height, width = (self.crop + (1 - self.crop) * dice[i] for i in (0, 1))
        shifts = [self.colour * (2 * roll - 1) for roll in dice[5:9]]
        return [height, width, dice[2] * (1 - height), dice[3] * (1 - width), float(dice[4] < 0.5), *shifts]

    @staticmethod
    def collate(samples: list[Pair]) -> dict[str, Any]:
        """A batch: images (B, H, W, 3) uint8, views (B, 9), ids (B, L), tags (B, C), and step; the rest are (B,).

        Where there are pseudo masks, also labels (B, H, W).
        """
        ids, ends = encode([sample.text for sample in samples])
        labels = [sample.labels for sample in samples if sample.labels is not None]
        return {
            "step": samples[0].draw.step,
            "image": torch.stack([sample.image for sample in samples]),
            "view": torch.tensor([sample.view for sample in samples]),
            "ids": torch.from_numpy(ids),
            "end": torch.from_numpy(ends),
            "meaning": torch.tensor([sample.meaning for sample in samples]),
            "tags": torch.stack([sample.tags for sample in samples]),
            **({"labels": torch.stack(labels)} if labels else {}),
        }


def look(images: Tensor, views: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (B, H, W, 3) uint8 as their views (B, 9) show them: (B, 3, h, w) float32 in about [0, 1]."""
    pixels = images.permute(0, 3, 1, 2).float() / 255  # (B, 3, H, W)
    pixels = F.grid_sample(pixels, window(views, size), padding_mode="border", align_corners=False)  # (B, 3, h, w)
    contrast, shift = views[:, 5, None, None, None], views[:, 6:, None, None]
    return (1 + contrast) * (pixels - 0.5) + 0.5 + shift


def look_at_labels(labels: Tensor, views: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (B, H, W) uint8 in the windows of the same views: (B, h, w) int64, each that of the nearest pixel."""
    seen = F.grid_sample(
        labels[:, None].float(), window(views, size), mode="nearest", padding_mode="border", align_corners=False
    )
    return seen[:, 0].long()


def window(views: Tensor, size: tuple[int, int]) -> Tensor:
    """Where each cell of a view lies in its picture, (x, y) in [-1, 1]: (B, 9) -> (B, h, w, 2)."""
    height, width, top, left, flip = views[:, :5].T
    across = width * (1 - 2 * flip)
    # affine_grid maps the output's [-1, 1] into the input's, both over the whole picture
    theta = views.new_zeros(len(views), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = across, 2 * left + width - 1
    theta[:, 1, 1], theta[:, 1, 2] = height, 2 * top + height - 1
    return F.affine_grid(theta, [len(views), 3, *size], align_corners=False)


def find(places: Tensor, views: Tensor) -> Tensor:
    """Where places of a picture lie in its view: the inverse of ``window``.

    places: (B, h, w, 2), (x, y) in [-1, 1]. Returns (B, h, w, 2); what the view does not show is beyond [-1, 1].
    """
    height, width, top, left, flip = views[:, :5].T[..., None, None]  # (B, 1, 1) each
    x = (places[..., 0] - (2 * left + width - 1)) / (width * (1 - 2 * flip))
    y = (places[..., 1] - (2 * top + height - 1)) / height
    return torch.stack([x, y], -1)
