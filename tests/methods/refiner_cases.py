"""Small IRNs and PSAs, and an image with maps of an earlier run."""

from __future__ import annotations

import numpy as np
import torch

from methods.cases import FITS, random_classifier
from methods.toys import CLASSES
from tag2mask.methods import make_method
from tag2mask.ops.image import MEAN, STD
from tag2mask.types import Item, Prior, Scores


def make(name, **options):
    return make_method(name, CLASSES, **{"weights": random_classifier().name, **FITS[name], **options})


def item_of(seed, size=(27, 38)):
    """An image whose sides are no whole cells, and maps on a coarse grid over it."""
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8))
    maps = torch.from_numpy(rng.random((2, 6, 7), dtype=np.float32))
    scores = Scores(torch.tensor([1, 3]), maps, size)
    return Item("x", image, torch.tensor([1, 3]), Prior(lambda: scores, lambda: torch.zeros(size)))


def pixels_of(image):
    mean, std = np.array(MEAN)[:, None, None], np.array(STD)[:, None, None]
    return torch.from_numpy((image.numpy() / 255 - mean) / std).float()[None]
