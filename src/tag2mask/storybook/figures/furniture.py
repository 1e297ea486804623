"""Chairs, tables and sofas. All stand at y = 0."""

from __future__ import annotations

import numpy as np

from tag2mask.storybook.canvas import Color, Pen, Point
from tag2mask.storybook.figures.colors import (
    ANY_COLOR,
    BLACK,
    BLUE,
    BROWN,
    CREAM,
    DARK_WOOD,
    GRAY,
    GREEN,
    ORANGE,
    PINK,
    PURPLE,
    RED,
    RUBBER,
    STEEL,
    TEAL,
    WHITE,
    WOOD,
    between,
    chance,
    darker,
    lighter,
    one,
    pick,
)


def chair(pen: Pen, rng: np.random.Generator, pose: str) -> Point:
    """A dining chair, an armchair, a stool, or an office chair; tells where one sits on it."""
    kind = one(rng, ("dining", "dining", "dining", "front", "armchair", "office", "stool"))
    if pose == "seat":  # somebody will sit, seen from the side
        kind = one(rng, ("dining", "dining", "office"))
    wood = pick(rng, BROWN, RED, BLACK, WOOD, WHITE, TEAL, DARK_WOOD)
    cloth = pick(rng, *ANY_COLOR)
    seat = -between(rng, 0.42, 0.5)
    if kind == "dining":
        _dining_chair(pen, rng, seat, wood, cloth)
    elif kind == "front":
        _chair_from_front(pen, rng, seat, wood, cloth)
    elif kind == "armchair":
        _armchair(pen, cloth)
    elif kind == "office":
        _office_chair(pen, rng, seat, cloth)
    else:
        _stool(pen, rng, seat, wood, cloth)
    return (0.0, seat - 0.04)


def _dining_chair(pen: Pen, rng: np.random.Generator, seat: float, wood: Color, cloth: Color) -> None:
    """From the side, with rungs or cloth at its back."""
    back = -between(rng, 0.95, 1.15)
    tilt = between(rng, 0.02, 0.1)
    for x in (-0.12, 0.3):
        pen.limb([(x, seat), (x + 0.02, 0)], [0.065, 0.05], darker(wood, 0.62))
    for shift in (0.12, 0.0):
        pen.line([(-0.27 + shift, seat), (-0.27 - tilt + shift, back)], 0.06, darker(wood, 0.75 if shift else 1))
    if chance(rng, 0.5):
        for i in range(3):
            y = back + 0.08 + i * 0.14
            pen.polygon(
                [(-0.28 - tilt, y), (-0.13 - tilt, y - 0.02), (-0.13 - tilt, y + 0.05), (-0.28 - tilt, y + 0.07)],
                wood,
            )
    else:
        pen.polygon(
            [(-0.29 - tilt, back), (-0.13 - tilt, back - 0.03), (-0.14, seat - 0.12), (-0.28, seat - 0.1)], cloth
        )
    pen.polygon([(-0.32, seat), (0.22, seat), (0.36, seat - 0.07), (-0.16, seat - 0.07)], cloth)
    pen.polygon(
        [
            (-0.32, seat),
            (0.24, seat),
            (0.36, seat - 0.07),
            (0.36, seat),
            (0.24, seat + 0.07),
            (-0.32, seat + 0.07),
        ],
        wood,
    )
    for x in (-0.28, 0.2):
        pen.limb([(x, seat), (x * 1.08, -0.01)], [0.07, 0.055], wood)
    if chance(rng, 0.4):
        pen.line([(-0.28, seat * 0.4), (0.2, seat * 0.4)], 0.04, darker(wood, 0.8))


def _chair_from_front(pen: Pen, rng: np.random.Generator, seat: float, wood: Color, cloth: Color) -> None:
    """A dining chair, with bars at its back."""
    back = -between(rng, 0.95, 1.15)
    for x in (-0.2, 0.2):
        pen.rectangle(x - 0.03, seat, x + 0.03, -0.04, darker(wood, 0.6))
        pen.rectangle(x * 1.15 - 0.03, back, x * 1.15 + 0.03, seat, wood)
    for i in range(4):
        if chance(rng, 0.8):
            x = -0.15 + 0.1 * i
            pen.rectangle(x - 0.02, back + 0.1, x + 0.02, seat, darker(wood, 0.85))
    pen.box(-0.27, back, 0.27, back + 0.12, wood, 0.04)
    pen.polygon([(-0.23, seat - 0.08), (0.23, seat - 0.08), (0.3, seat + 0.04), (-0.3, seat + 0.04)], cloth)
    pen.rectangle(-0.3, seat + 0.04, 0.3, seat + 0.1, darker(wood, 0.8))
    for x in (-0.27, 0.27):
        pen.rectangle(x - 0.035, seat + 0.05, x + 0.035, 0, wood)


def _armchair(pen: Pen, cloth: Color) -> None:
    """From the front."""
    pen.box(-0.38, -0.95, 0.38, -0.2, cloth, 0.16)
    pen.box(-0.3, -0.86, 0.3, -0.4, lighter(cloth, 0.12), 0.1)
    pen.box(-0.34, -0.44, 0.34, -0.26, lighter(cloth, 0.2), 0.06)
    pen.rectangle(-0.34, -0.28, 0.34, -0.07, darker(cloth, 0.75))
    for side in (-1, 1):
        left, right = sorted((side * 0.3, side * 0.5))
        pen.box(left, -0.58, right, -0.06, darker(cloth, 0.88), 0.09)
        pen.rectangle(left + 0.04, -0.07, right - 0.05, 0, DARK_WOOD)


def _office_chair(pen: Pen, rng: np.random.Generator, seat: float, cloth: Color) -> None:
    """From the side, on castors, with arms or without."""
    for x in (-0.3, 0.0, 0.3):
        pen.limb([(0, -0.2), (x, -0.06)], [0.05, 0.04], BLACK)
        pen.ellipse(x, -0.035, 0.04, 0.035, RUBBER)
    pen.rectangle(-0.03, seat, 0.03, -0.15, STEEL)
    pen.limb([(-0.22, seat + 0.02), (-0.36, seat - 0.3)], [0.05, 0.05], BLACK)
    pen.blob(
        [
            (-0.42, seat - 0.16),
            (-0.46, seat - 0.6),
            (-0.38, seat - 0.68),
            (-0.27, seat - 0.5),
            (-0.28, seat - 0.14),
        ],
        cloth,
    )
    pen.blob(
        [(-0.3, seat + 0.05), (-0.3, seat - 0.05), (0.28, seat - 0.06), (0.34, seat), (0.28, seat + 0.05)],
        darker(cloth, 0.85),
    )
    if chance(rng, 0.6):
        pen.limb([(-0.12, seat), (-0.1, seat - 0.2), (0.16, seat - 0.2)], [0.04, 0.04, 0.05], BLACK)


def _stool(pen: Pen, rng: np.random.Generator, seat: float, wood: Color, cloth: Color) -> None:
    """Round, on three legs."""
    wide = between(rng, 0.18, 0.28)
    for x in (-0.6, 0.6):
        pen.limb([(x * wide, seat), (x * wide * 1.7, -0.02)], [0.05, 0.05], darker(wood, 0.75))
    pen.limb([(0, seat), (0.05, -0.01)], [0.05, 0.05], wood)
    pen.line([(-wide * 0.8, seat * 0.4), (wide * 0.8, seat * 0.4)], 0.035, wood)
    pen.ellipse(0, seat + 0.03, wide, 0.075, darker(wood, 0.7))
    pen.ellipse(0, seat, wide, 0.075, cloth if chance(rng, 0.5) else lighter(wood, 0.2))


def table(pen: Pen, rng: np.random.Generator, pose: str) -> Point:
    """Long or round, bare or with a cloth, often laid; tells where its top is."""
    wood = pick(rng, BROWN, WOOD, WHITE, DARK_WOOD, CREAM, TEAL)
    top = -between(rng, 0.5, 0.62)
    half, deep = between(rng, 0.6, 0.95), between(rng, 0.06, 0.13)
    if chance(rng, 0.35):
        half *= 0.85
        _round_table(pen, top, half, deep, wood)
    else:
        _long_table(pen, top, half, deep, wood)
        if chance(rng, 0.35):
            _tablecloth(pen, rng, top, half, deep)
    for _ in range(int(rng.integers(0, 4))):
        x = between(rng, -0.7, 0.7) * half
        if chance(rng, 0.6):
            pen.ellipse(x, top, 0.13, 0.04, WHITE)
            pen.ellipse(x, top - 0.01, 0.07, 0.02, pick(rng, ORANGE, GREEN, BROWN))
        else:
            cup = pick(rng, *ANY_COLOR)
            pen.rectangle(x - 0.045, top - 0.1, x + 0.045, top + 0.01, cup)
            pen.ellipse(x, top - 0.1, 0.045, 0.015, darker(cup, 0.6))
    return (between(rng, -0.4, 0.4) * half, top + 0.01)


def _round_table(pen: Pen, top: float, half: float, deep: float, wood: Color) -> None:
    """On one leg."""
    pen.limb([(0, top), (0, -0.06)], [0.1, 0.12], darker(wood, 0.7))
    for x in (-0.3, 0.0, 0.3):
        pen.limb([(0, -0.14), (x, -0.03)], [0.08, 0.05], darker(wood, 0.7))
    pen.ellipse(0, top + 0.05, half, deep + 0.03, darker(wood, 0.65))
    pen.ellipse(0, top, half, deep + 0.03, wood)


def _long_table(pen: Pen, top: float, half: float, deep: float, wood: Color) -> None:
    """On four legs, of boards."""
    for x in (-0.72, 0.72):
        pen.rectangle(x * half - 0.03, top, x * half + 0.03, -0.12, darker(wood, 0.5))
    for x in (-0.94, 0.94):
        pen.rectangle(x * half - 0.04, top + 0.05, x * half + 0.04, 0, darker(wood, 0.8))
    pen.polygon(
        [
            (-half * 0.84, top - deep),
            (half * 0.84, top - deep),
            (half, top + deep * 0.5),
            (-half, top + deep * 0.5),
        ],
        wood,
    )
    pen.rectangle(-half, top + deep * 0.5, half, top + deep * 0.5 + 0.07, darker(wood, 0.68))
    for i in range(3):
        pen.line(
            [(-half * 0.85, top - deep * (0.6 - 0.4 * i)), (half * 0.85, top - deep * (0.6 - 0.4 * i))],
            0.01,
            darker(wood, 0.85),
        )


def _tablecloth(pen: Pen, rng: np.random.Generator, top: float, half: float, deep: float) -> None:
    """Striped where it hangs down."""
    cloth = pick(rng, WHITE, RED, BLUE, CREAM, PINK, by=15)
    drop = between(rng, 0.12, 0.25)
    pen.polygon(
        [
            (-half * 0.85, top - deep),
            (half * 0.85, top - deep),
            (half * 1.02, top + deep * 0.5),
            (-half * 1.02, top + deep * 0.5),
        ],
        cloth,
    )
    pen.polygon(
        [
            (-half * 1.02, top + deep * 0.5),
            (half * 1.02, top + deep * 0.5),
            (half, top + drop),
            (-half, top + drop),
        ],
        darker(cloth, 0.85),
    )
    for i in range(5):
        x = -half * 0.9 + i * half * 0.4
        pen.polygon(
            [(x, top + deep * 0.5), (x + 0.08, top + deep * 0.5), (x + 0.08, top + drop), (x, top + drop)],
            lighter(cloth, 0.3),
        )


def sofa(pen: Pen, rng: np.random.Generator, pose: str) -> Point:
    """Two or three seats between arms; tells where one may lie on it."""
    cloth = pick(rng, RED, BLUE, BROWN, GRAY, GREEN, CREAM, PURPLE, TEAL, PINK, (90, 60, 45))
    seats = int(rng.integers(2, 4))
    half = 0.3 * seats + 0.04
    back, round_ = -between(rng, 0.68, 0.85), between(rng, 0.05, 0.16)
    for x in (-half - 0.02, half + 0.02):
        pen.rectangle(x - 0.04, -0.09, x + 0.04, 0, DARK_WOOD)
    pen.box(-half - 0.04, back, half + 0.04, -0.12, cloth, round_)
    for i in range(seats):
        left = -half + i * 2 * half / seats
        right = left + 2 * half / seats
        pen.box(left + 0.01, back + 0.06, right - 0.01, -0.36, lighter(cloth, 0.12), round_ * 0.7)
        if chance(rng, 0.3):
            pen.ellipse((left + right) / 2, back + 0.2, 0.02, 0.02, darker(cloth, 0.6))
        pen.box(left + 0.01, -0.42, right - 0.01, -0.25, lighter(cloth, 0.22), 0.05)
        pen.line([(left, -0.4), (left, -0.24)], 0.018, darker(cloth, 0.6))
    pen.rectangle(-half - 0.02, -0.26, half + 0.02, -0.07, darker(cloth, 0.72))
    wide = between(rng, 0.14, 0.22)
    for side in (-1, 1):
        left, right = sorted((side * half, side * (half + wide)))
        pen.box(left, -0.56, right, -0.06, darker(cloth, 0.86), round_)
        pen.box(left + 0.015, -0.56, right - 0.015, -0.46, lighter(cloth, 0.1), round_)
    pattern = one(rng, ("", "", "stripes", "dots"))
    other = pick(rng, *ANY_COLOR)
    if pattern == "stripes":
        for i in range(seats * 3):
            x = -half + 0.07 + i * 2 * half / (seats * 3)
            pen.rectangle(x, back + 0.08, x + 0.04, -0.38, lighter(cloth, 0.4))
    elif pattern == "dots":
        for i in range(seats * 4):
            pen.ellipse(
                -half + 0.1 + (i // 2) * half / seats, back + 0.15 + 0.13 * (i % 2), 0.03, 0.03, lighter(cloth, 0.45)
            )
    for _ in range(int(rng.integers(0, 3))):
        x = between(rng, -0.8, 0.8) * half
        pen.at(x, -0.5, 1, between(rng, -20, 20)).box(-0.13, -0.12, 0.13, 0.12, other, 0.05)
    return (between(rng, -0.35, 0.35) * half, -0.36)
