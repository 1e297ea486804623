"""The pictures of the report: thumbnails, overlays and the threshold curve, as bytes, data URIs and coordinates."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from tag2mask.stages.evaluation import Curve
from tag2mask.types import BACKGROUND, IGNORE, ClassSet, Constant, Power

LONGEST_SIDE = 256
LARGEST_SIDE = 960
"""Of pictures that open large, if their bytes allow it."""

_QUALITIES = (82, 72, 60)

# five colours from dark to light, of even steps to the eye and distinguished without red and green
_CONFIDENCE = np.array([[35, 23, 62], [70, 62, 129], [46, 117, 142], [67, 182, 138], [246, 230, 110]], float)
_UNSURE = np.array([236, 236, 240], float)

Pixels = NDArray[np.uint8]


def thumbnail_size(height: int, width: int, longest: int = LONGEST_SIDE) -> tuple[int, int]:
    """(h, w) with the longest side at most ``longest``; no side vanishes."""
    shrink = min(1.0, longest / max(height, width))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def resized(image: Pixels, size: tuple[int, int]) -> Pixels:
    """(H, W, 3) -> (h, w, 3) of ``size`` (h, w)."""
    small = Image.fromarray(image).resize(size[::-1], Image.Resampling.BOX, reducing_gap=2)
    return np.asarray(small)


def label_thumbnail(mask: Pixels, longest: int = LONGEST_SIDE) -> Pixels:
    """(H, W) -> (h, w), nearest: a label between two labels is none."""
    height, width = mask.shape
    height, width = thumbnail_size(height, width, longest)
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def mask_overlay(photo: Pixels, mask: Pixels, classes: ClassSet) -> Pixels:
    """The mask's colours over a paled photograph, outlined; ignored pixels are hatched in white.

    photo: (h, w, 3). mask: (h, w). Returns (h, w, 3).
    """
    out = _paled(photo, light=0.85, colour=0.5)  # (h, w, 3)
    colours = _lookup(classes)[mask]  # (h, w, 3)
    known = ((mask != BACKGROUND) & (mask != IGNORE))[..., None]
    out = np.where(known, 0.35 * out + 0.65 * colours, out)
    rows, columns = np.indices(mask.shape)
    hatched = (mask == IGNORE) & ((rows + columns) % 6 < 3)
    out = np.where(hatched[..., None], 0.3 * out + 0.7 * _UNSURE, out)
    edge = ndimage.maximum_filter(mask, 3) != ndimage.minimum_filter(mask, 3)
    return _pixels(np.where(edge[..., None], 255.0, out))


def map_overlay(photo: Pixels, maps: Tensor, tags: Tensor, classes: ClassSet) -> Pixels:
    """The strongest class's colour over a dark photograph, the more opaque the higher its score.

    photo: (h, w, 3). maps: (K, gh, gw); 1 and more is opaque. tags: (K,). Returns (h, w, 3).
    """
    out = _paled(photo, light=0.45, colour=0.15)
    if not len(tags):
        return _pixels(out)
    size = photo.shape[:2]
    full = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]  # (K, h, w)
    score, best = full.max(0)  # (h, w)
    colours = _lookup(classes)[tags[best].numpy()]  # (h, w, 3)
    # black and navy would not glow on a dark photograph
    glow = 0.7 * colours + 0.3 * 255
    share = score.clamp(0, 1).numpy()[..., None]
    return _pixels((1 - share) * out + share * glow)


def confidence_thumbnail(confidence: NDArray[np.float32]) -> Pixels:
    """(H, W) in [0, 1] -> (h, w, 3), dark where it is low."""
    height, width = thumbnail_size(*confidence.shape)
    small = F.interpolate(torch.from_numpy(confidence)[None, None], size=(height, width), mode="area")[0, 0]
    position = small.clamp(0, 1).numpy() * (len(_CONFIDENCE) - 1)  # (h, w)
    steps = np.arange(len(_CONFIDENCE))
    return _pixels(np.stack([np.interp(position, steps, channel) for channel in _CONFIDENCE.T], axis=-1))


def jpeg_within(pixels: Pixels, most: int) -> bytes:
    """(h, w, 3) as a JPEG of at most ``most`` bytes: of less quality, then smaller, down to 16 pixels a side."""
    image = Image.fromarray(pixels)
    while True:
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality, subsampling=0)  # optimize=True fails on large noise
            if buffer.tell() <= most or (quality == _QUALITIES[-1] and max(image.size) <= 16):
                return buffer.getvalue()
        image = _shrunk(image, most / buffer.tell(), Image.Resampling.BOX)


def layer_within(mask: Pixels, classes: ClassSet, most: int) -> bytes:
    """A mask to be laid on its photograph: a PNG of at most ``most`` bytes, like ``mask_overlay`` where it is.

    mask: (h, w). Background darkens a little, classes have their colours, ignored pixels are hatched in white. Of a
    mask that is larger than ``most`` the PNG is smaller; it is to be stretched over the photograph, not smoothed.
    """
    image = Image.fromarray(mask)
    while True:
        buffer = io.BytesIO()
        _layer(np.asarray(image), classes).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= most or max(image.size) <= 16:
            return buffer.getvalue()
        image = _shrunk(image, most / buffer.tell(), Image.Resampling.NEAREST)


def _shrunk(image: Image.Image, share: float, how: Image.Resampling) -> Image.Image:
    """An image of about that share of the pixels, at most 4 of 5."""
    side = min(0.9, share**0.5)
    width, height = image.size
    return image.resize((max(1, round(width * side)), max(1, round(height * side))), how)


def _layer(mask: Pixels, classes: ClassSet) -> Image.Image:
    """(h, w) -> a picture with a palette whose colours are more or less transparent."""
    shown = mask.copy()
    rows, columns = np.indices(mask.shape)
    edge = ndimage.maximum_filter(mask, 3) != ndimage.minimum_filter(mask, 3)
    shown[(mask == IGNORE) & ((rows + columns) % 8 >= 4)] = BACKGROUND
    free = next((value for value in range(255, -1, -1) if value != IGNORE and not (mask == value).any()), None)
    if free is not None:
        shown[edge] = free
    colours = _lookup(classes).astype(np.uint8)  # (256, 3)
    alpha = np.full(256, 166, np.uint8)
    colours[IGNORE], alpha[IGNORE] = _UNSURE, 190
    colours[BACKGROUND], alpha[BACKGROUND] = 0, 70
    if free is not None:
        colours[free], alpha[free] = 255, 235
    image = Image.fromarray(shown).convert("L")
    image.putpalette(colours.tobytes())
    image.info["transparency"] = alpha.tobytes()
    return image


def data_uri(picture: bytes) -> str:
    """A JPEG or PNG as it is embedded in a page."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def confidence_css() -> str:
    """The confidence colours as a CSS gradient, for the legend."""
    stops = ", ".join(css(colour) for colour in _CONFIDENCE.astype(int))
    return f"linear-gradient(90deg, {stops})"


def css(colour: Sequence[int]) -> str:
    """A colour as CSS has it."""
    return "rgb({}, {}, {})".format(*(int(channel) for channel in colour))


def _paled(photo: Pixels, light: float, colour: float) -> NDArray[np.float64]:
    luma = photo.astype(float) @ np.array([0.299, 0.587, 0.114])  # (h, w, 3) -> (h, w)
    return light * ((1 - colour) * luma[..., None] + colour * photo)


def _pixels(values: NDArray[np.float64]) -> Pixels:
    return values.round().clip(0, 255).astype(np.uint8)


def _lookup(classes: ClassSet) -> NDArray[np.float64]:
    table = np.zeros((256, 3))
    table[: len(classes.palette)] = classes.palette
    return table


# --- the threshold curve

PLOT_WIDTH, PLOT_HEIGHT = 460, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 14, 14, 40


@dataclass(frozen=True)
class Mark:
    """A point of a curve that has something to say. x, y in SVG units."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """One polyline: ``points`` as SVG takes them."""

    source: str
    points: str
    best: Mark
    used: Mark | None


@dataclass(frozen=True)
class Panel:
    """One axis system with the lines of every source. Ticks are (position, text)."""

    title: str
    label: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    width: int = PLOT_WIDTH
    height: int = PLOT_HEIGHT
    left: int = _LEFT
    right: int = PLOT_WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = PLOT_HEIGHT - _BOTTOM


def panels(curves: Sequence[Curve]) -> tuple[Panel, ...]:
    """Powers and constants, one panel each, with one common height of mIoU."""
    if not curves:
        return ()
    top = max(miou for curve in curves for _, miou in curve.points if miou == miou)
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if top / s <= 6)
    ceiling = max(step, step * math.ceil(top / step + 0.2))
    return (
        _panel("Power", "exponent a of (1 − max)ᵃ", Power, curves, (0.25, 0.5, 1, 2, 4, 10), step, ceiling),
        _panel("Constant", "constant background score", Constant, curves, (0.2, 0.4, 0.6, 0.8), step, ceiling),
    )


def _panel(
    title: str,
    label: str,
    kind: type[Power] | type[Constant],
    curves: Sequence[Curve],
    ticks: Sequence[float],
    step: float,
    ceiling: float,
) -> Panel:
    values = [rule.number for rule, _ in curves[0].points if isinstance(rule, kind)]
    # exponents double, constants add
    scale = math.log2 if kind is Power else float
    low, high = scale(min(values)), scale(max(values))

    def x(value: float) -> float:
        return round(_LEFT + (scale(value) - low) / (high - low) * (PLOT_WIDTH - _LEFT - _RIGHT), 1)

    def y(miou: float) -> float:
        return round(PLOT_HEIGHT - _BOTTOM - miou / ceiling * (PLOT_HEIGHT - _TOP - _BOTTOM), 1)

    lines = []
    for curve in curves:
        points = sorted((rule.number, miou) for rule, miou in curve.points if isinstance(rule, kind))
        marks = {value: Mark(x(value), y(miou), f"{value:g}: {100 * miou:.1f}") for value, miou in points}
        best = max(points, key=lambda point: point[1])[0]
        used = marks[curve.used.number] if isinstance(curve.used, kind) else None
        path = " ".join(f"{mark.x},{mark.y}" for mark in marks.values())
        lines.append(Line(curve.source, path, marks[best], used))
    return Panel(
        title=title,
        label=label,
        lines=tuple(lines),
        x_ticks=tuple((x(tick), f"{tick:g}") for tick in ticks),
        y_ticks=tuple((y(k * step), f"{100 * k * step:.0f}") for k in range(round(ceiling / step) + 1)),
    )
