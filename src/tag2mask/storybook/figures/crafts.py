"""Boats and aeroplanes: a boat floats with its waterline at y = 0, an aeroplane has its middle there.

The front is on the right.
"""

from __future__ import annotations

import numpy as np

from tag2mask.storybook.canvas import Color, Pen
from tag2mask.storybook.figures.colors import (
    BLACK,
    BLUE,
    BROWN,
    CREAM,
    DARK_GLASS,
    DARK_WOOD,
    GLASS,
    GRAY,
    GREEN,
    ORANGE,
    RED,
    STEEL,
    TEAL,
    WHITE,
    YELLOW,
    between,
    chance,
    darker,
    lighter,
    one,
    pick,
)


def boat(pen: Pen, rng: np.random.Generator, pose: str) -> None:
    """A sailing boat, a rowing boat, a motor boat, a ship, or a fishing boat."""
    hull = pick(rng, WHITE, RED, BLUE, BROWN, GREEN, BLACK, WHITE)
    kind = pose or one(rng, ("sail", "sail", "row", "motor", "ship", "fishing"))
    half, deep = {
        "sail": (0.7, 0.24),
        "row": (0.75, 0.22),
        "motor": (0.8, 0.24),
        "ship": (0.95, 0.3),
        "fishing": (0.75, 0.34),
    }[kind]
    half, deep = half * between(rng, 0.88, 1.12), deep * between(rng, 0.85, 1.2)
    line = pick(rng, RED, BLUE, WHITE, YELLOW, BLACK)
    if kind == "sail":
        _sails(pen, rng, half, deep, line)
    elif kind == "motor":
        _motor(pen, half, deep)
    elif kind == "ship":
        _decks(pen, rng, half, deep, line)
    elif kind == "fishing":
        _wheelhouse(pen, half, deep, line)
    bow = between(rng, 0.05, 0.14)
    pen.blob(
        [
            (-half * 0.8, 0),
            (-half, -deep * 0.95),
            (-half * 0.97, -deep),
            (half * 0.7, -deep),
            (half * 1.12, -deep - bow),
            (half * 0.75, 0),
        ],
        hull,
    )
    pen.polygon(
        [(-half * 0.88, -deep * 0.42), (half * 0.93, -deep * 0.42), (half * 0.75, 0), (-half * 0.8, 0)],
        darker(hull, 0.66),
    )
    pen.polygon(
        [(-half * 0.98, -deep * 0.98), (half * 0.85, -deep), (half * 1.0, -deep * 0.8), (-half * 0.96, -deep * 0.75)],
        line,
    )
    if kind == "row":
        pen.polygon(
            [(-half * 0.85, -deep), (half * 0.75, -deep), (half * 0.5, -deep - 0.07), (-half * 0.7, -deep - 0.07)],
            DARK_WOOD,
        )
        for x in (-0.15, 0.25):
            pen.limb([(x + 0.2, -deep - 0.22), (x - 0.32, -0.02)], [0.035, 0.035], darker(ORANGE, 0.8))
            pen.ellipse(x - 0.36, 0, 0.1, 0.04, darker(ORANGE, 0.8), angle=-20)
    elif kind == "ship":
        for i in range(6):
            pen.ellipse(-half * 0.6 + i * half * 0.22, -deep * 0.6, 0.03, 0.03, DARK_GLASS)


def _sails(pen: Pen, rng: np.random.Generator, half: float, deep: float, line: Color) -> None:
    """Mast, sails and a pennant."""
    high, mast = between(rng, 0.95, 1.3), between(rng, -0.1, 0.1)
    sail = pick(rng, WHITE, WHITE, YELLOW, RED, BLUE, ORANGE)
    pen.line([(mast, -deep), (mast, -deep - high)], 0.04, DARK_WOOD)
    pen.polygon([(mast - 0.04, -deep - high * 0.96), (mast - 0.04, -deep - 0.1), (-half * 0.8, -deep - 0.1)], sail)
    pen.polygon(
        [(mast - 0.04, -deep - 0.3), (mast - 0.04, -deep - 0.1), (-half * 0.8, -deep - 0.1)], darker(sail, 0.82)
    )
    pen.polygon(
        [(mast + 0.04, -deep - high * 0.85), (mast + 0.04, -deep - 0.08), (half * 0.85, -deep - 0.05)],
        darker(sail, 0.9),
    )
    if chance(rng, 0.4):
        for i in range(3):
            y = -deep - 0.25 - i * high * 0.2
            reach = half * 0.8 * (1 + (y + deep + 0.1) / high)
            pen.line([(mast - 0.04, y), (-reach, y)], 0.04, line)
    pen.polygon([(mast, -deep - high), (mast - 0.16, -deep - high - 0.04), (mast, -deep - high - 0.09)], line)


def _motor(pen: Pen, half: float, deep: float) -> None:
    """A cabin of glass, and the motor."""
    pen.polygon(
        [(-half * 0.45, -deep), (-half * 0.35, -deep - 0.26), (half * 0.15, -deep - 0.26), (half * 0.45, -deep)],
        WHITE,
    )
    pen.polygon(
        [
            (-half * 0.3, -deep - 0.04),
            (-half * 0.27, -deep - 0.21),
            (half * 0.12, -deep - 0.21),
            (half * 0.32, -deep - 0.04),
        ],
        DARK_GLASS,
    )
    pen.rectangle(-half - 0.06, -deep - 0.08, -half + 0.1, -0.06, BLACK)


def _decks(pen: Pen, rng: np.random.Generator, half: float, deep: float, line: Color) -> None:
    """A ship's decks with their windows, and its funnels."""
    for i in range(int(rng.integers(1, 4))):
        pen.rectangle(
            -half * (0.7 - 0.1 * i), -deep - 0.17 * (i + 1), half * (0.35 - 0.1 * i), -deep - 0.17 * i, WHITE
        )
        for j in range(6):
            x = -half * 0.5 + j * half * 0.14
            pen.rectangle(x, -deep - 0.17 * i - 0.12, x + 0.06, -deep - 0.17 * i - 0.05, DARK_GLASS)
    for x in (-0.3, -0.05)[: int(rng.integers(1, 3))]:
        top = -deep - between(rng, 0.6, 0.8)
        pen.rectangle(half * x - 0.08, top, half * x + 0.08, -deep - 0.15, line)
        pen.rectangle(half * x - 0.08, top, half * x + 0.08, top + 0.08, BLACK)


def _wheelhouse(pen: Pen, half: float, deep: float, line: Color) -> None:
    """That of a fishing boat, with its crane."""
    pen.rectangle(-half * 0.55, -deep - 0.36, -half * 0.05, -deep, CREAM)
    pen.rectangle(-half * 0.6, -deep - 0.42, 0.0, -deep - 0.35, line)
    pen.rectangle(-half * 0.48, -deep - 0.3, -half * 0.15, -deep - 0.16, DARK_GLASS)
    pen.line([(half * 0.2, -deep), (half * 0.2, -deep - 0.7)], 0.04, DARK_WOOD)
    pen.line([(half * 0.2, -deep - 0.68), (half * 0.9, -deep - 0.1)], 0.018, DARK_WOOD)


def aeroplane(pen: Pen, rng: np.random.Generator, pose: str) -> None:
    """A jet, a propeller plane, a biplane, or a jet seen from below."""
    paint = pick(rng, WHITE, WHITE, GRAY, BLUE, RED, YELLOW, by=14)
    livery = pick(rng, RED, BLUE, GREEN, ORANGE, TEAL, YELLOW)
    kind = pose or one(rng, ("jet", "jet", "propeller", "biplane", "below"))
    if kind == "below":
        _from_below(pen, rng, paint, livery)
    elif kind == "jet":
        _jet(pen, rng, paint, livery)
    else:
        _propeller_plane(pen, rng, paint, livery, kind == "biplane")


def _jet(pen: Pen, rng: np.random.Generator, paint: Color, livery: Color) -> None:
    half, thick = between(rng, 0.8, 1.0), between(rng, 0.11, 0.16)
    sweep = between(rng, 0.3, 0.5)
    wing = darker(paint, 0.75)
    pen.polygon([(0.18, -0.04), (-0.1, -0.04), (-sweep, -0.3), (-sweep + 0.12, -0.3)], darker(wing, 0.85))
    pen.polygon([(-half * 0.72, -0.04), (-half * 1.02, -0.45), (-half * 0.82, -0.45), (-half * 0.5, -0.06)], livery)
    pen.blob(
        [
            (-half, -0.08),
            (-half * 0.6, -thick * 0.8),
            (half * 0.6, -thick),
            (half * 0.92, -thick * 0.45),
            (half, 0.02),
            (half * 0.85, thick * 0.7),
            (half * 0.3, thick),
            (-half * 0.5, thick * 0.7),
        ],
        paint,
    )
    pen.blob(
        [
            (-half * 0.9, -0.03),
            (half * 0.3, thick * 0.35),
            (half * 0.95, 0.05),
            (half * 0.6, thick * 0.9),
            (-half * 0.4, thick * 0.75),
        ],
        darker(paint, 0.8),
    )
    if chance(rng, 0.7):
        pen.polygon([(-half * 0.85, -0.03), (half * 0.93, -0.03), (half * 0.93, 0.01), (-half * 0.8, 0.01)], livery)
    for i in range(8):
        x = -half * 0.5 + i * half * 0.15
        pen.box(x, -thick * 0.55, x + 0.055, -thick * 0.55 + 0.05, DARK_GLASS, 0.02)
    pen.polygon([(half * 0.74, -thick * 0.72), (half * 0.9, -thick * 0.45), (half * 0.74, -thick * 0.4)], DARK_GLASS)
    pen.polygon([(-half * 0.62, -0.02), (-half * 1.0, 0.12), (-half * 0.85, 0.12), (-half * 0.45, 0.0)], wing)
    pen.box(-0.12, 0.13, 0.2, 0.26, darker(livery, 0.9), 0.06)
    pen.polygon([(0.28, 0.03), (-0.12, 0.05), (-sweep - 0.12, 0.42), (-sweep + 0.06, 0.42)], wing)


def _propeller_plane(pen: Pen, rng: np.random.Generator, paint: Color, livery: Color, biplane: bool) -> None:
    wing = lighter(livery, 0.1)
    pen.polygon([(-0.62, -0.02), (-0.86, -0.36), (-0.66, -0.38), (-0.46, -0.06)], livery)
    for x in (0.1, 0.34):
        pen.line([(x, 0.1), (x + 0.04, 0.3)], 0.035, GRAY)
        pen.part().ellipse(x + 0.04, 0.32, 0.085, 0.085, BLACK)
        pen.part().ellipse(x + 0.04, 0.32, 0.035, 0.035, STEEL)
    pen.blob(
        [(-0.85, -0.1), (-0.3, -0.14), (0.1, -0.18), (0.55, -0.14), (0.66, 0), (0.5, 0.14), (0, 0.16), (-0.6, 0.02)],
        paint,
    )
    pen.polygon([(-0.7, 0.0), (0.6, 0.05), (0.5, 0.13), (0, 0.15)], darker(paint, 0.72))
    pen.polygon([(-0.1, -0.16), (0.02, -0.34), (0.24, -0.34), (0.36, -0.15)], GLASS)
    pen.line([(0.13, -0.34), (0.13, -0.16)], 0.03, paint)
    pen.box(-0.9, -0.12, -0.55, -0.06, darker(livery, 0.8), 0.03)
    if biplane:
        for x in (-0.08, 0.32):
            pen.line([(x, -0.46), (x, 0.12)], 0.025, DARK_WOOD)
        pen.box(-0.22, 0.08, 0.46, 0.15, wing, 0.04)
        pen.box(-0.26, -0.52, 0.5, -0.44, wing, 0.04)
    else:
        pen.polygon([(-0.22, -0.34), (0.34, -0.38), (0.4, -0.33), (0.1, -0.29), (-0.2, -0.29)], wing)
        pen.polygon([(0.2, -0.02), (-0.1, 0.0), (-0.2, 0.2), (0.06, 0.2)], darker(wing, 0.8))
    turn = between(rng, -0.1, 0.1)
    pen.limb([(0.7 + turn, -0.34), (0.7, 0), (0.7 - turn, 0.34)], [0.03, 0.06, 0.03], BLACK)
    pen.ellipse(0.69, 0, 0.05, 0.07, livery)


def _from_below(pen: Pen, rng: np.random.Generator, paint: Color, livery: Color) -> None:
    sweep, span = between(rng, 0.25, 0.5), between(rng, 0.7, 0.95)
    for side in (-1, 1):
        tone = 0.78 if side > 0 else 0.92
        pen.polygon(
            [(0.3, side * 0.05), (-sweep, side * span), (-sweep - 0.14, side * span), (-0.18, side * 0.05)],
            darker(paint, tone),
        )
        pen.polygon(
            [(-0.6, side * 0.04), (-0.88, side * 0.34), (-0.98, side * 0.34), (-0.85, side * 0.02)],
            darker(livery, tone),
        )
        pen.box(-0.08, side * span * 0.4 - 0.05, 0.18, side * span * 0.4 + 0.05, livery, 0.04)
    pen.blob(
        [(-1, 0), (-0.7, -0.08), (0.6, -0.1), (0.92, -0.04), (0.98, 0), (0.92, 0.04), (0.6, 0.1), (-0.7, 0.08)], paint
    )
    pen.polygon([(-0.9, 0.0), (0.95, 0.02), (0.6, 0.09), (-0.7, 0.07)], darker(paint, 0.82))
