"""Masks on disk, for the tests of truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

MASK = np.array([[0, 1, 2, 3], [0, 1, 2, 255], [0, 0, 0, 0]], np.uint8)


def save(path: Path, pixels: np.ndarray = MASK, palette: list | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".npy":
        np.save(path, pixels)
        return path
    image = Image.fromarray(pixels)
    if palette is not None:
        image = Image.fromarray(pixels).convert("P")
        image.putpalette([channel for colour in palette for channel in colour])
    image.save(path, format="PNG" if path.suffix.lower() == ".png" else None)
    return path
