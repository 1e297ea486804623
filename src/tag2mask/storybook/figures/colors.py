"""Colours of the figures, and the choices that make no two of them alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from tag2mask.storybook.canvas import Color, Pen, Point

Figure = Callable[[Pen, np.random.Generator, str], Point | None]
"""Draws one instance in a pose ("" for any) and says where another figure may sit or stand on it."""

T = TypeVar("T")

RED, BLUE, GREEN = (200, 45, 40), (50, 85, 190), (60, 140, 65)
YELLOW, ORANGE, PURPLE = (228, 200, 60), (225, 130, 50), (130, 75, 155)
PINK, TEAL, CREAM = (225, 140, 165), (55, 150, 155), (235, 225, 195)
WHITE, BLACK, GRAY, BROWN = (232, 232, 228), (42, 42, 48), (130, 130, 135), (130, 85, 50)
ANY_COLOR = (RED, BLUE, GREEN, YELLOW, WHITE, BLACK, BROWN, GRAY, ORANGE, PURPLE, PINK, TEAL, CREAM)

WOOD, DARK_WOOD = (190, 150, 100), (95, 62, 42)
GLASS, DARK_GLASS = (178, 212, 230), (70, 92, 112)
RUBBER, STEEL = (36, 36, 40), (172, 172, 178)
LAMP = (250, 238, 180)
EYE = (22, 20, 22)


def vary(rng: np.random.Generator, color: Color, by: int = 25) -> Color:
    """The colour with each channel moved by at most ``by``."""
    r, g, b = (int(c) + int(d) for c, d in zip(color, rng.integers(-by, by + 1, 3), strict=True))
    return (min(max(r, 0), 255), min(max(g, 0), 255), min(max(b, 0), 255))


def pick(rng: np.random.Generator, *colors: Color, by: int = 25) -> Color:
    """One of the colours, varied."""
    return vary(rng, one(rng, colors), by)


def darker(color: Color, factor: float = 0.7) -> Color:
    """The colour in the shade."""
    r, g, b = color
    return (int(r * factor), int(g * factor), int(b * factor))


def lighter(color: Color, amount: float = 0.3) -> Color:
    """The colour in the light, part of the way to white."""
    r, g, b = color
    return (int(r + (255 - r) * amount), int(g + (255 - g) * amount), int(b + (255 - b) * amount))


def one(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options."""
    return options[int(rng.random() * len(options))]


def chance(rng: np.random.Generator, share: float) -> bool:
    """True this often."""
    return bool(rng.random() < share)


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number from ``low`` to ``high``."""
    return low + (high - low) * float(rng.random())
