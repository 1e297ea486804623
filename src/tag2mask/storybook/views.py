"""A scene as a training sees it: cropped, mirrored, in other light. What is random is drawn by sample, on the CPU;
the pixels are moved by batch, wherever the network is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.run.sampling import Draw, sample_generator
from tag2mask.storybook.cache import SceneCache
from tag2mask.storybook.captions import describe
from tag2mask.storybook.vocabulary import encode


class Pairs:
    """Pictures with a caption drawn anew each time; ``pairs[draw]`` is one.

    crop: the least share of each side that a view keeps. A crop may lose an object that the caption names, so it
    is mild: with 0.9, a fifth of the picture at the very most, and from any one border a tenth of its side.
    """

    def __init__(self, cache: SceneCache, seed: int, crop: float, colour: float) -> None:
        self.cache, self.seed, self.crop, self.colour = cache, seed, crop, colour

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, draw: Draw) -> tuple[Draw, Tensor, list[float], str, int]:
        """The draw, the picture (H, W, 3) uint8, how it is viewed, its caption, and the caption's meaning."""
        rng = sample_generator(self.seed, draw)
        told = self.cache.told[draw.sample]
        caption = describe(told.names, told.things, rng, told.counts)
        image = torch.from_numpy(np.array(self.cache.images[draw.sample]))
        return draw, image, self._view(rng), caption.text, caption.meaning

    def _view(self, rng: np.random.Generator) -> list[float]:
        """Height, width, top, left as shares; flip; contrast; shift of red, green, blue."""
        dice = rng.random(9).tolist()
        height, width = (self.crop + (1 - self.crop) * dice[i] for i in (0, 1))
        shifts = [self.colour * (2 * roll - 1) for roll in dice[5:9]]
        return [height, width, dice[2] * (1 - height), dice[3] * (1 - width), float(dice[4] < 0.5), *shifts]

    @staticmethod
    def collate(samples: list[tuple[Draw, Tensor, list[float], str, int]]) -> dict[str, Any]:
        """A batch: images (B, H, W, 3) uint8, views (B, 9), ids (B, L), and step; the rest are (B,)."""
        draws, images, views, texts, meanings = zip(*samples, strict=True)
        ids, ends = encode(texts)
        return {
            "step": draws[0].step,
            "index": torch.tensor([draw.sample for draw in draws]),
            "image": torch.stack(images),
            "view": torch.tensor(views),
            "ids": torch.from_numpy(ids),
            "end": torch.from_numpy(ends),
            "meaning": torch.tensor(meanings),
        }


def look(images: Tensor, views: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (B, H, W, 3) uint8 as their views (B, 9) show them: (B, 3, h, w) float32 in about [0, 1]."""
    height, width, top, left, flip = views[:, :5].T
    across = width * (1 - 2 * flip)
    # affine_grid maps the output's [-1, 1] into the input's, both over the whole picture
    theta = views.new_zeros(len(views), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = across, 2 * left + width - 1
    theta[:, 1, 1], theta[:, 1, 2] = height, 2 * top + height - 1
    pixels = images.permute(0, 3, 1, 2).float() / 255  # (B, 3, H, W)
    grid = F.affine_grid(theta, [len(views), 3, *size], align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)  # (B, 3, h, w)
    contrast, shift = views[:, 5, None, None, None], views[:, 6:, None, None]
    return (1 + contrast) * (pixels - 0.5) + 0.5 + shift
