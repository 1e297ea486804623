"""Birds, perched at y = 0 or flying with their middle there; the head is on the right."""

from __future__ import annotations

import numpy as np

from tag2mask.storybook.canvas import Color, Pen, Point
from tag2mask.storybook.figures.colors import (
    BLACK,
    BLUE,
    BROWN,
    EYE,
    GRAY,
    ORANGE,
    RED,
    TEAL,
    WHITE,
    YELLOW,
    between,
    chance,
    darker,
    lighter,
    pick,
    vary,
)


def bird(pen: Pen, rng: np.random.Generator, pose: str) -> Point | None:
    """Perched or standing from the side, or flying ("fly") with its middle at (0, 0)."""
    feathers = pick(rng, RED, BLUE, YELLOW, BROWN, WHITE, GRAY, BLACK, TEAL, ORANGE)
    wing = darker(feathers, 0.7) if chance(rng, 0.7) else pick(rng, WHITE, BLACK, BROWN)
    belly = lighter(feathers, 0.45) if chance(rng, 0.6) else pick(rng, ORANGE, WHITE, YELLOW)
    beak = pick(rng, (235, 165, 45), (60, 55, 50), (215, 90, 50), by=12)
    if pose == "fly":
        _flying(pen, rng, feathers, wing, belly, beak)
        return None
    tall = between(rng, 0.05, 0.4) if chance(rng, 0.6) else between(rng, 0.04, 0.1)
    fat = between(rng, 0.8, 1.25)
    middle = -0.16 * fat - tall - 0.05
    for x in (-0.03, 0.07):
        pen.line([(x, middle), (x + 0.02, -0.015)], 0.03, beak)
        pen.line([(x - 0.05, -0.015), (x + 0.1, -0.015)], 0.03, beak)
    up = between(rng, -0.16, 0.12)
    tail = between(rng, 0.3, 0.55)
    pen.polygon(
        [
            (-0.2, middle - 0.05),
            (-0.3 - tail, middle + up - 0.05),
            (-0.28 - tail, middle + up + 0.09),
            (-0.15, middle + 0.1),
        ],
        wing,
    )
    neck = between(rng, 0.06, 0.4) if tall > 0.2 else between(rng, 0.0, 0.08)
    head = (0.3, middle - 0.18 * fat - neck)
    pen.limb([(0.2, middle - 0.02), head], [0.24, 0.14 if neck > 0.1 else 0.22], feathers)
    pen.blob(
        [
            (-0.34, middle),
            (-0.1, middle - 0.19 * fat),
            (0.22, middle - 0.17 * fat),
            (0.35, middle),
            (0.2, middle + 0.18 * fat),
            (-0.1, middle + 0.17 * fat),
        ],
        feathers,
    )
    pen.blob(
        [(-0.1, middle + 0.05), (0.32, middle - 0.02), (0.2, middle + 0.17 * fat), (-0.05, middle + 0.16 * fat)],
        belly,
    )
    pen.blob(
        [
            (0.15, middle - 0.07),
            (-0.05, middle - 0.13),
            (-0.42, middle + 0.03),
            (-0.1, middle + 0.1),
            (0.1, middle + 0.07),
        ],
        wing,
    )
    for i in range(2):
        pen.line([(-0.28, middle + 0.03 + i * 0.03), (0.0, middle - 0.02 + i * 0.05)], 0.014, darker(wing, 0.7))
    _bird_head(pen.part().at(*head), rng, feathers, beak)
    return None


def _bird_head(face: Pen, rng: np.random.Generator, feathers: Color, beak: Color) -> None:
    size = between(rng, 0.12, 0.17)
    length = between(rng, 0.12, 0.32)
    if chance(rng, 0.2):
        for dx in (-0.08, -0.02, 0.04):
            face.polygon(
                [(dx - 0.02, -size * 0.8), (dx - 0.06, -size - 0.12), (dx + 0.03, -size * 0.8)], darker(feathers)
            )
    thick = between(rng, 0.04, 0.075)
    face.polygon([(size * 0.8, -thick), (size + length, 0.02), (size * 0.8, thick)], beak)
    face.polygon([(size * 0.8, 0.0), (size + length, 0.02), (size * 0.8, thick)], darker(beak, 0.75))
    face.ellipse(0, 0, size, size * 0.95, feathers)
    face.ellipse(size * 0.35, -size * 0.2, 0.042, 0.042, (245, 240, 225))
    face.ellipse(size * 0.38, -size * 0.2, 0.026, 0.026, EYE)


def _flying(pen: Pen, rng: np.random.Generator, feathers: Color, wing: Color, belly: Color, beak: Color) -> None:
    lift = between(rng, -0.75, 0.45)
    span = between(rng, 0.5, 0.8)
    pen.polygon([(0.12, -0.04), (-0.1 + span * 0.1, lift * 0.8 - 0.1), (-0.3, lift), (-0.2, 0.02)], darker(wing, 0.8))
    pen.polygon([(-0.2, -0.03), (-0.65, -0.1), (-0.6, 0.02), (-0.66, 0.13), (-0.2, 0.07)], wing)
    pen.blob([(-0.36, 0), (-0.05, -0.13), (0.28, -0.1), (0.38, 0), (0.2, 0.13), (-0.1, 0.12)], feathers)
    pen.blob([(-0.15, 0.05), (0.3, 0.03), (0.18, 0.12), (-0.05, 0.11)], belly)
    tip = (-0.15 - span * 0.35, lift * 1.1 + between(rng, -0.1, 0.1))
    pen.blob(
        [(0.18, -0.05), (0.1, lift * 0.55), tip, (tip[0] - 0.05, tip[1] * 0.75), (-0.3, lift * 0.25), (-0.18, 0.03)],
        wing,
    )
    pen.line([(0.05, 0), (tip[0] * 0.6, tip[1] * 0.7)], 0.02, darker(wing, 0.75))
    _bird_head(pen.part().at(0.38, -0.07), rng, vary(rng, feathers, 8), beak)
