"""Masks and confidence maps as PNG: 8 bits a pixel, lossless, and the same bytes for the same pixels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from tag2mask.classes import color_map
from tag2mask.data.image import BadImage, open_image
from tag2mask.types import Color

__all__ = ["encode_confidence", "encode_mask", "read_confidence", "read_mask"]


def encode_mask(mask: ArrayLike, palette: Sequence[Color]) -> bytes:
    """An indexed PNG of a mask.

    Args:
        mask: (H, W) uint8.
        palette: one colour a mask value; values beyond it get VOC's colours (255 is cream white).

    Raises:
        ValueError: the mask is not (H, W) uint8.
    """
    pixels = np.asarray(mask)
    if pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise ValueError(f"a mask is (H, W) uint8, got {pixels.shape} {pixels.dtype}")
    image = Image.fromarray(pixels).convert("L")
    image.putpalette(_palette(tuple(palette)))
    return _png(image)


def encode_confidence(confidence: ArrayLike) -> bytes:
    """An 8-bit grey PNG, round(255 c), of confidences c: (H, W) float within [0, 1].

    Raises:
        ValueError: not (H, W), NaN, or outside [0, 1] by more than a rounding error.
    """
    values = np.asarray(confidence, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"a confidence map is (H, W), got {values.shape}")
    if not (values.min() >= -1e-5 and values.max() <= 1 + 1e-5):  # also true of NaN
        raise ValueError(f"confidences lie in [0, 1], got {values.min():g} to {values.max():g}")
    return _png(Image.fromarray(np.rint(255 * values.clip(0, 1)).astype(np.uint8)))


def read_mask(path: Path | str) -> NDArray[np.uint8]:
    """Reads an indexed or grey PNG as (H, W) uint8: the indices, never the colours. 1-bit files give 0 and 1.

    Raises:
        BadImage: no readable image, or one of colours.
    """
    with open_image(path) as image:
        if image.mode in ("P", "L", "1"):
            return np.array(image).astype(np.uint8)  # (H, W)
        if image.mode.startswith("I;16"):
            values = np.array(image)
            if values.max() <= 255:
                return values.astype(np.uint8)
            raise BadImage(Path(path), f"is no mask: its values go up to {values.max()}, a mask's only to 255")
        raise BadImage(
            Path(path),
            f"is a picture of mode {image.mode}, not a mask: give an indexed or 8-bit grey file whose pixels "
            "are the class numbers (in VOC's own masks colours only stand in the palette)",
        )


def read_confidence(path: Path | str) -> NDArray[np.float32]:
    """Reads what :func:`encode_confidence` wrote: (H, W) float32 within [0, 1].

    Raises:
        BadImage: no readable image, or not 8-bit grey.
    """
    with open_image(path) as image:
        if image.mode != "L":
            raise BadImage(Path(path), f"is no confidence map: mode {image.mode}, but 8-bit grey (L) is expected")
        return np.array(image).astype(np.float32) / np.float32(255)  # (H, W)


@lru_cache(maxsize=8)
def _palette(palette: tuple[Color, ...]) -> bytes:
    """All 256 colours, or Pillow packs several pixels into a byte."""
    return bytes(channel for color in (*palette, *color_map(256)[len(palette) :]) for channel in color)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()
