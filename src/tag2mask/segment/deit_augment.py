"""DeiT's augmentation, which MCTformer trains with: a random part of the picture, RandAugment, random erasing.

Sources: Szegedy et al. 2015 (the part), Cubuk et al. 2020 (RandAugment), Zhong et al. 2020 (erasing), with the
numbers of timm 0.4.12 ("rand-m9-mstd0.5-inc1"). As in ``segment.augment``, every random choice is a function of the
generator, and of what is drawn before the erased pixels no choice depends on another one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Generator, Tensor

from tag2mask.segment.augment import IMAGENET_MEAN

TRIES = 10
"""How many parts or rectangles are drawn, at most, until one fits."""

RATIO = (3 / 4, 4 / 3)
"""Of the part's width to its height."""

ERASED, ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)
"""The share of the picture that is erased, and the rectangle's height to its width."""

MAGNITUDE, SPREAD, LEVELS = 9.0, 0.5, 10.0
"""RandAugment's mean magnitude, its deviation, and the greatest one."""

LAYERS, APPLIED = 2, 0.5
"""So many changes are drawn for each picture, and each is made so often."""

_DRAWS = 4 * TRIES + 1 + 5 * LAYERS + 1 + 4 * TRIES


@dataclass(frozen=True)
class DeiTAugment:
    """What happens to a picture.

    crop: the side of the square that comes out, in pixels.
    area: the part of the picture that is enlarged or shrunk to it, as a share of its pixels: from, to.
    flip: probability of left for right.
    rand_augment: change colours and geometry, twice with probability 1/2 each.
    erase: probability that a rectangle becomes noise.
    mean, std: of that noise, and the mean colour is what comes in from beyond the picture: RGB in grey levels.
    """

    crop: int
    area: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    rand_augment: bool = True
    erase: float = 0.25
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = (0.229 * 255, 0.224 * 255, 0.225 * 255)

    @property
    def fill(self) -> tuple[float, float, float]:
        """The mean colour."""
        return self.mean


def augment_deit(image: Tensor, settings: DeiTAugment, generator: Generator) -> Tensor:
    """A picture as DeiT's training sees it.

    Args:
        image: (3, H, W) uint8.
        settings: what to do.
        generator: on the CPU.

    Returns:
        (3, crop, crop) float32, 0-255 but for erased pixels, which may be beyond.
    """
    u: list[float] = torch.rand(_DRAWS, generator=generator, dtype=torch.float64).tolist()
    parts, changes = u[: 4 * TRIES], u[4 * TRIES + 1 : 4 * TRIES + 1 + 5 * LAYERS]
    erase, rectangles = u[-4 * TRIES - 1], u[-4 * TRIES :]
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    top, left, height, width = part_of(image.shape[1], image.shape[2], settings.area, parts)
    picture = picture.crop((left, top, left + width, top + height))
    picture = picture.resize((settings.crop, settings.crop), Image.Resampling.BICUBIC)
    if u[4 * TRIES] < settings.flip:
        picture = ImageOps.mirror(picture)
    if settings.rand_augment:
        fill = tuple(min(255, round(value)) for value in settings.mean)
        for layer in range(LAYERS):
            picture = _change(picture, changes[5 * layer : 5 * layer + 5], fill)
    seen = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().contiguous()  # (3, crop, crop)
    if erase < settings.erase:
        found = rectangle_of(settings.crop, rectangles)
        if found is not None:
            top, left, height, width = found
            noise = torch.randn(3, height, width, generator=generator)
            mean, std = (torch.tensor(x)[:, None, None] for x in (settings.mean, settings.std))
            seen[:, top : top + height, left : left + width] = mean + std * noise
    return seen


def part_of(height: int, width: int, area: tuple[float, float], draws: Sequence[float]) -> tuple[int, int, int, int]:
    """A part of a picture: top, left, height and width in pixels.

    The first that fits of ``TRIES``; or else the middle of the picture, of a ratio within ``RATIO``.

    area: share of the pixels, from and to. draws: four uniform numbers for each try.
    """
    for a, r, y, x in _fours(draws):
        target = height * width * (area[0] + a * (area[1] - area[0]))
        ratio = _log_uniform(RATIO, r)
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
    w = min(width, max(1, round(height * RATIO[1])))
    h = min(height, max(1, round(width / RATIO[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def rectangle_of(side: int, draws: Sequence[float]) -> tuple[int, int, int, int] | None:
    """What is erased of a square: top, left, height and width; None where no try fits."""
    for a, r, y, x in _fours(draws):
        target = side * side * (ERASED[0] + a * (ERASED[1] - ERASED[0]))
        ratio = _log_uniform(ERASED_RATIO, r)
        h, w = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if h < side and w < side:
            return int(y * (side - h + 1)), int(x * (side - w + 1)), h, w
    return None


def _fours(draws: Sequence[float]) -> list[tuple[float, float, float, float]]:
    a, b, c, d = (draws[i::4] for i in range(4))
    return list(zip(a, b, c, d, strict=True))


def _log_uniform(between: tuple[float, float], u: float) -> float:
    low, high = map(math.log, between)
    return math.exp(low + u * (high - low))


Fill = tuple[int, ...]
Change = Callable[[Image.Image, float, float, Fill], Image.Image]
"""A picture, the strength from 0 to 1, a sign of 1 or -1, and the colour beyond the picture; to a picture."""


def _change(picture: Image.Image, draws: Sequence[float], fill: Fill) -> Image.Image:
    """One layer of RandAugment, by five uniform numbers."""
    which, applied, radius, angle, sign = draws
    if applied >= APPLIED:
        return picture
    normal = math.sqrt(-2 * math.log(1 - radius)) * math.cos(2 * math.pi * angle)
    strength = min(max(MAGNITUDE + SPREAD * normal, 0.0), LEVELS) / LEVELS
    return CHANGES[int(which * len(CHANGES))][1](picture, strength, 1.0 if sign < 0.5 else -1.0, fill)


def _affine(picture: Image.Image, matrix: tuple[float, ...], fill: Fill) -> Image.Image:
    affine, bicubic = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    return picture.transform(picture.size, affine, matrix, resample=bicubic, fillcolor=fill)


def _brighten(picture: Image.Image, by: int) -> Image.Image:
    """Dark values become brighter."""
    return picture.point([min(255, value + by) if value < 128 else value for value in range(256)] * 3)


def _posterize(picture: Image.Image, bits: int) -> Image.Image:
    """Keep so many of the 8 bits. At the full strength that is none: black, which ``ImageOps.posterize`` refuses."""
    return picture.point([value >> 8 - bits << 8 - bits for value in range(256)] * 3)


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Change:
    return lambda picture, strength, sign, _: kind(picture).enhance(1 + sign * 0.9 * strength)


CHANGES: tuple[tuple[str, Change], ...] = (
    ("autocontrast", lambda p, m, sign, fill: ImageOps.autocontrast(p)),
    ("equalize", lambda p, m, sign, fill: ImageOps.equalize(p)),
    ("invert", lambda p, m, sign, fill: ImageOps.invert(p)),
    ("rotate", lambda p, m, sign, fill: p.rotate(sign * 30 * m, Image.Resampling.BICUBIC, fillcolor=fill)),
    ("posterize", lambda p, m, sign, fill: _posterize(p, 4 - int(4 * m))),
    ("solarize", lambda p, m, sign, fill: ImageOps.solarize(p, 256 - int(256 * m))),
    ("solarize-add", lambda p, m, sign, fill: _brighten(p, int(110 * m))),
    ("colour", _enhanced(ImageEnhance.Color)),
    ("contrast", _enhanced(ImageEnhance.Contrast)),
    ("brightness", _enhanced(ImageEnhance.Brightness)),
    ("sharpness", _enhanced(ImageEnhance.Sharpness)),
    ("shear-x", lambda p, m, sign, fill: _affine(p, (1, sign * 0.3 * m, 0, 0, 1, 0), fill)),
    ("shear-y", lambda p, m, sign, fill: _affine(p, (1, 0, 0, sign * 0.3 * m, 1, 0), fill)),
    ("translate-x", lambda p, m, sign, fill: _affine(p, (1, 0, sign * 0.45 * m * p.size[0], 0, 1, 0), fill)),
    ("translate-y", lambda p, m, sign, fill: _affine(p, (1, 0, 0, 0, 1, sign * 0.45 * m * p.size[1]), fill)),
)
"""RandAugment's changes, each stronger with its strength where it has one."""
