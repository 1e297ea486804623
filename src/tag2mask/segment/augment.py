"""Augmentation of a picture with its mask and confidence, pixel for pixel the same for all three.

Every random choice is a function of the generator that is handed in: each call draws the same count of numbers at
once, so a choice never depends on whether another one is switched on. With a generator per sample, seeded from
(seed, step, sample), training resumed at any step sees what it would have seen.

The order is that of the papers: scale, colour, flip, crop. Padding is the mean colour for the picture (0 once it is
standardised), 255 for the mask and 0 for the confidence: no loss ever sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from tag2mask.ops.image import MEAN
from tag2mask.segment.distort import Distort, distort, shift_hue
from tag2mask.segment.losses import resize_labels
from tag2mask.types import IGNORE, UserError

IMAGENET_MEAN = (MEAN[0] * 255, MEAN[1] * 255, MEAN[2] * 255)
"""Of red, green and blue, in grey levels."""

_LUMA = (0.2989, 0.587, 0.114)
_DRAWS = 12
_AGAIN = 10


@dataclass(frozen=True)
class Choice:
    """One of several factors; sizes are cut to whole pixels. DeepLabV2's is (0.5, 0.75, 1, 1.25, 1.5)."""

    factors: tuple[float, ...]

    def size(self, height: int, width: int, u: float) -> tuple[int, int]:
        """(h, w) for a uniform ``u`` in [0, 1)."""
        factor = self.factors[_integer(u, 0, len(self.factors) - 1)]
        return max(int(height * factor), 1), max(int(width * factor), 1)


@dataclass(frozen=True)
class Uniform:
    """A factor within [low, high); sizes are rounded. DeepLabV1-ResNet38's is 0.5 to 1.5, IRN's too."""

    low: float
    high: float

    def size(self, height: int, width: int, u: float) -> tuple[int, int]:
        """(h, w) for a uniform ``u`` in [0, 1)."""
        factor = self.low + u * (self.high - self.low)
        return max(round(height * factor), 1), max(round(width * factor), 1)


@dataclass(frozen=True)
class LongSide:
    """The longer side gets a whole number of pixels within [low, high]. CCT's is 200 to 800, CLIMS's 320 to 640."""

    low: int
    high: int

    def size(self, height: int, width: int, u: float) -> tuple[int, int]:
        """(h, w) for a uniform ``u`` in [0, 1)."""
        factor = _integer(u, self.low, self.high) / max(height, width)
        return max(round(height * factor), 1), max(round(width * factor), 1)


@dataclass(frozen=True)
class FitSide:
    """As large as fits (longest, shortest) pixels, times a factor within [low, high); sizes are rounded.

    WeakCLIP's is 2048, 512 and 0.5 to 2.
    """

    longest: int
    shortest: int
    low: float
    high: float

    def size(self, height: int, width: int, u: float) -> tuple[int, int]:
        """(h, w) for a uniform ``u`` in [0, 1)."""
        factor = min(self.longest / max(height, width), self.shortest / min(height, width))
        factor *= self.low + u * (self.high - self.low)
        return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


@dataclass(frozen=True)
class Colour:
    """How far colours move, in random order; PSA's is (0.3, 0.3, 0.3, 0.1).

    brightness, contrast, saturation: the factor is within [1 - value, 1 + value]. hue: in turns, within +- value.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0


@dataclass(frozen=True)
class Augment:
    """What happens to a picture, its mask and its confidence.

    crop: the side of the square that comes out, in pixels; None: the whole picture.
    scale: how its size is drawn; None: as it is.
    flip: probability of left for right.
    colour: how far colours move, or WeakCLIP's distortion; None: not at all.
    share: a crop of whose labels one has this share or more, or that has but one, is drawn again, up to ten times
        (WeakCLIP: 0.75); None: the first one is taken.
    place: where a picture smaller than the crop lies in it: at the top left (DeepLab, CCT), or anywhere (IRN, PSA,
        CLIMS, DeepLabV1-ResNet38).
    resample: of the picture: "bilinear" without smoothing as OpenCV does, or "bicubic" with smoothing as Pillow does.
    fill: what the picture is padded with: RGB in grey levels.
    """

    crop: int | None
    scale: Choice | Uniform | LongSide | FitSide | None = None
    flip: float = 0.5
    colour: Colour | Distort | None = None
    share: float | None = None
    place: Literal["corner", "anywhere"] = "corner"
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    fill: tuple[float, float, float] = IMAGENET_MEAN


@dataclass(frozen=True)
class Example:
    """A picture and what is known of its pixels.

    image: (3, h, w) RGB, 0-255, float32 once it is augmented. labels: (h, w) uint8. confidence: (h, w) float32, or
    several such maps, (n, h, w).
    """

    image: Tensor
    labels: Tensor | None = None
    confidence: Tensor | None = None


def _integer(u: float, low: int, high: int) -> int:
    """A uniform number of [0, 1) as one of low .. high, both included."""
    return low + min(int(u * (high - low + 1)), high - low)


@contextmanager
def _one_thread() -> Iterator[None]:
    """What torch resizes depends, in its last bits, on the number of threads, and processes that prepare batches have
    one: without this, the same command with other workers would end in other weights.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def augment(example: Example, settings: Augment, generator: Generator) -> Example:
    """Scale, recolour, flip and crop one example.

    Args:
        example: the image of any dtype; mask and confidence of the image's size, or None.
        settings: what to do.
        generator: on the CPU; exactly ``12`` numbers are drawn from it, and more where ``settings`` asks for them.

    Returns:
        the new example; its parts never share memory with those given.

    Raises:
        UserError: if the mask or the confidence is not of the image's size.
    """
    _check(example)
    u: list[float] = torch.rand(_DRAWS, generator=generator, dtype=torch.float64).tolist()
    image, labels, confidence = example.image.float(), example.labels, example.confidence
    if settings.scale is not None:
        size = settings.scale.size(image.shape[1], image.shape[2], u[0])
        image = _resize(image, size, settings.resample)
        labels, confidence = (None if x is None else resize_labels(x, size) for x in (labels, confidence))
    if isinstance(settings.colour, Distort):
        coins: list[float] = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        image = distort(image, settings.colour, coins, u[4:8])
    elif settings.colour is not None:
        image = recolour(image, settings.colour, u[4:8], u[8:12])
    if u[1] < settings.flip:
        image = image.flip(-1)
        labels, confidence = (None if x is None else x.flip(-1) for x in (labels, confidence))
    if settings.crop is None:
        parts = (None if x is None else x.clone() for x in (image, labels, confidence))
        return Example(*parts)  # type: ignore[arg-type]
    offsets = _offsets(image, labels, settings, u[2:4], generator)
    fill = torch.tensor(settings.fill)[:, None, None]
    return Example(
        _crop(image, settings.crop, offsets, fill),
        None if labels is None else _crop(labels, settings.crop, offsets, torch.tensor(IGNORE)),
        None if confidence is None else _crop(confidence, settings.crop, offsets, torch.tensor(0.0)),
    )


def _check(example: Example) -> None:
    size = tuple(example.image.shape[1:])
    for name, part in (("mask", example.labels), ("confidence", example.confidence)):
        if part is not None and tuple(part.shape[-2:]) != size:
            got = "x".join(str(side) for side in part.shape)
            raise UserError(
                f"got a {name} of {got} pixels (height x width) for an image of {size[0]}x{size[1]}, expected equal "
                "sizes; make the masks from these images"
            )


def _resize(image: Tensor, size: tuple[int, int], resample: str) -> Tensor:
    """(3, H, W) float32 -> (3, h, w)."""
    if resample == "bilinear":
        return F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
    for part in ((image.shape[1], size[1]), size):  # Pillow: columns, then rows, and whole grey levels after each
        image = F.interpolate(image[None], part, mode="bicubic", align_corners=False, antialias=True)[0]
        image = image.round().clamp(0, 255)
    return image


def _offsets(
    image: Tensor, labels: Tensor | None, settings: Augment, first: list[float], generator: Generator
) -> list[int]:
    """Where the crop begins: at the first place drawn, or at the first of ten more that has enough of two labels."""
    places = [first]
    if settings.share is not None and labels is not None:
        places += torch.rand(_AGAIN, 2, generator=generator, dtype=torch.float64).tolist()
    offsets: list[int] = []
    for place in places:
        offsets = [_offset(side, settings, u) for side, u in zip(image.shape[1:], place, strict=True)]
        if settings.share is None or labels is None or _varied(labels, offsets, settings):
            break
    return offsets


def _varied(labels: Tensor, offsets: list[int], settings: Augment) -> bool:
    """Whether a crop has two labels or more, and none of them too large a share."""
    crop = settings.crop or max(labels.shape)
    y, x = (max(offset, 0) for offset in offsets)
    counts = torch.bincount(labels[y : y + crop, x : x + crop].flatten().long(), minlength=IGNORE + 1)[:IGNORE]
    return int((counts > 0).sum()) > 1 and float(counts.max() / counts.sum()) < (settings.share or 1)


def _offset(side: int, settings: Augment, u: float) -> int:
    """Where the crop begins in a side of the picture; negative: where the picture begins in the crop."""
    room = side - (settings.crop or side)
    if room >= 0:
        return _integer(u, 0, room)
    return -_integer(u, 0, -room) if settings.place == "anywhere" else 0


def _crop(x: Tensor, crop: int, offsets: list[int], fill: Tensor) -> Tensor:
    """(..., H, W) -> (..., crop, crop), ``fill`` where the picture is not."""
    out = fill.to(x.dtype).expand(*x.shape[:-2], crop, crop).clone()
    (y0, y1, a0, a1), (x0, x1, b0, b1) = (
        (max(o, 0), min(o + crop, side), max(-o, 0), max(-o, 0) + min(o + crop, side) - max(o, 0))
        for o, side in zip(offsets, x.shape[-2:], strict=True)
    )
    out[..., a0:a1, b0:b1] = x[..., y0:y1, x0:x1]
    return out


def recolour(image: Tensor, colour: Colour, amounts: list[float], order: list[float]) -> Tensor:
    """Move brightness, contrast, saturation and hue of a picture.

    Args:
        image: (3, H, W) float32, RGB, 0-255.
        colour: the farthest moves.
        amounts: four numbers in [0, 1): 0.5 moves nothing, 0 the farthest down.
        order: four numbers; the move of the smallest comes first.

    Returns:
        (3, H, W) float32 within 0-255.
    """
    limits = (colour.brightness, colour.contrast, colour.saturation, colour.hue)
    moves = [limit * (2 * amount - 1) for limit, amount in zip(limits, amounts, strict=True)]
    for kind in sorted(range(4), key=lambda i: order[i]):
        move = moves[kind]
        if limits[kind] == 0:
            continue
        if kind == 3:
            image = shift_hue(image, move)
            continue
        grey = torch.zeros(())  # brightness: towards black
        if kind:
            grey = (image * torch.tensor(_LUMA)[:, None, None]).sum(0, keepdim=True)  # (1, H, W)
            grey = grey.mean() if kind == 1 else grey
        image = (grey + (1 + move) * (image - grey)).clamp(0, 255)
    return image
