"""The figures of the first edition, one small function each.

A figure is drawn around its origin in units of its own size (roughly -1..1), feet and wheels down and,
for animals and vehicles, head to the right. ``FIGURES[name](pen, rng)`` draws one; colours and poses are
drawn from ``rng``, and from nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tag2mask.storybook.canvas import Color, Pen, Point

Figure = Callable[[Pen, np.random.Generator], None]

RED, BLUE, GREEN = (200, 40, 40), (50, 80, 190), (60, 140, 60)
YELLOW, ORANGE, PURPLE = (220, 200, 60), (225, 130, 50), (130, 70, 150)
WHITE, BLACK, GRAY, BROWN = (230, 230, 230), (40, 40, 45), (130, 130, 135), (130, 85, 50)
ANY_COLOR = (RED, BLUE, GREEN, YELLOW, WHITE, BLACK, BROWN, GRAY, ORANGE, PURPLE)

WOOD, DARK_WOOD = (190, 150, 100), (90, 60, 40)
GLASS = (180, 214, 232)
RUBBER, STEEL = (35, 35, 38), (170, 170, 175)
LAMP = (240, 235, 190)
EYE = (20, 20, 20)


def vary(rng: np.random.Generator, color: Color, by: int = 25) -> Color:
    """The colour with each channel moved by at most ``by``."""
    r, g, b = (int(c) + int(d) for c, d in zip(color, rng.integers(-by, by + 1, 3), strict=True))
    return (min(max(r, 0), 255), min(max(g, 0), 255), min(max(b, 0), 255))


def pick(rng: np.random.Generator, *colors: Color, by: int = 25) -> Color:
    """One of the colours, varied."""
    return vary(rng, colors[int(rng.integers(len(colors)))], by)


def darker(color: Color, factor: float = 0.7) -> Color:
    """The colour in the shade."""
    r, g, b = color
    return (int(r * factor), int(g * factor), int(b * factor))


# --- animals -------------------------------------------------------------------------------------------


def _quadruped(
    pen: Pen,
    rng: np.random.Generator,
    *,
    coat: Color,
    legs: Color,
    length: float,
    height: float,
    leg: float,
    neck: float = 0.2,
    skull: float = 0.16,
    tail: Color | None = None,
    head: Color | None = None,
    woolly: bool = False,
) -> Point:
    """Legs, body, tail, neck and head, and the middle of the head for what else sits on it."""
    for x in (-0.38, -0.25, 0.25, 0.38):
        pen.rectangle(x - 0.05, 0.1, x + 0.05, 0.1 + leg * rng.uniform(0.9, 1.1), legs)
    if woolly:
        for _ in range(9):
            pen.ellipse(rng.uniform(-0.45, 0.45), rng.uniform(-0.15, 0.15), 0.2, 0.2, coat)
    pen.ellipse(0, 0, length, height, coat)
    tip = (-length - 0.2 * rng.uniform(0.5, 1.2), rng.uniform(-0.3, 0.2))
    pen.line([(-length * 0.9, -0.05), tip], 0.07, tail or coat)
    x, y = length + 0.05, -neck - 0.1
    pen.line([(length * 0.7, -0.02), (x, y)], 0.2, coat)
    pen.ellipse(x, y, skull, skull * 0.9, head or coat)
    pen.ellipse(x + skull * 0.9, y + 0.05, skull * 0.6, skull * 0.45, head or coat)  # muzzle
    return x, y


def _pointed_ears(pen: Pen, x: float, y: float, color: Color) -> None:
    pen.polygon([(x - 0.12, y - 0.08), (x - 0.08, y - 0.28), (x, y - 0.1)], color)
    pen.polygon([(x + 0.02, y - 0.1), (x + 0.1, y - 0.28), (x + 0.14, y - 0.06)], color)


def _eye(pen: Pen, x: float, y: float) -> None:
    pen.ellipse(x + 0.03, y - 0.04, 0.025, 0.025, EYE)


def _cat(pen: Pen, rng: np.random.Generator) -> None:
    coat = pick(rng, ORANGE, GRAY, BLACK, WHITE)
    x, y = _quadruped(
        pen,
        rng,
        coat=coat,
        legs=darker(coat, 0.9),
        length=0.42,
        height=0.19,
        leg=0.3,
        skull=0.17,
    )
    _pointed_ears(pen, x, y, coat)
    _eye(pen, x, y)
    for stripe in (-0.2, -0.1, 0.0):
        pen.line([(stripe, -0.18), (stripe, 0.05)], 0.03, darker(coat, 0.6))


def _dog(pen: Pen, rng: np.random.Generator) -> None:
    coat = pick(rng, BROWN, WHITE, BLACK, (200, 160, 100))
    x, y = _quadruped(pen, rng, coat=coat, legs=coat, length=0.45, height=0.2, leg=0.38, skull=0.17)
    pen.ellipse(x - 0.12, y, 0.06, 0.15, darker(coat))  # hanging ear
    _eye(pen, x, y)


def _horse(pen: Pen, rng: np.random.Generator) -> None:
    coat = pick(rng, BROWN, DARK_WOOD, WHITE, (60, 50, 50))
    mane = darker(coat, 0.5)
    x, y = _quadruped(
        pen,
        rng,
        coat=coat,
        legs=darker(coat, 0.8),
        tail=mane,
        length=0.5,
        height=0.22,
        leg=0.6,
        neck=0.45,
        skull=0.14,
    )
    _pointed_ears(pen, x, y, coat)
    _eye(pen, x, y)
    pen.line([(0.33, -0.1), (0.5, -0.6)], 0.09, mane)


def _cow(pen: Pen, rng: np.random.Generator) -> None:
    coat = pick(rng, WHITE, BROWN, (230, 220, 200))
    x, y = _quadruped(
        pen,
        rng,
        coat=coat,
        legs=darker(coat, 0.85),
        length=0.6,
        height=0.3,
        leg=0.4,
        neck=0.1,
        skull=0.18,
    )
    for root, tip in ((-0.08, -0.14), (0.06, 0.14)):
        pen.line([(x + root, y - 0.1), (x + tip, y - 0.25)], 0.04, (235, 225, 200))  # horns
    _eye(pen, x, y)
    for _ in range(4):
        spot = vary(rng, (50, 40, 40), 10)
        at = rng.uniform(-0.4, 0.35), rng.uniform(-0.15, 0.12)
        pen.ellipse(*at, rng.uniform(0.06, 0.13), rng.uniform(0.05, 0.1), spot)


def _sheep(pen: Pen, rng: np.random.Generator) -> None:
    wool = vary(rng, (230, 228, 220), 12)
    face = pick(rng, (60, 55, 55), (210, 200, 190), by=12)
    x, y = _quadruped(
        pen,
        rng,
        coat=wool,
        legs=face,
        head=face,
        length=0.45,
        height=0.26,
        leg=0.3,
        neck=0.05,
        skull=0.13,
        woolly=True,
    )
    pen.ellipse(x - 0.12, y, 0.06, 0.15, darker(face))
    _eye(pen, x, y)


def _bird(pen: Pen, rng: np.random.Generator) -> None:
    feathers = pick(rng, RED, BLUE, YELLOW, BROWN, WHITE)
    wing = darker(feathers, 0.75)
    pen.polygon([(-0.3, 0), (-0.75, -0.12), (-0.75, 0.15)], wing)  # tail
    for x in (-0.02, 0.08):
        pen.line([(x, 0.17), (x, 0.36)], 0.03, (200, 140, 40))
    pen.ellipse(0, 0, 0.38, 0.2, feathers)
    pen.ellipse(0.35, -0.16, 0.15, 0.14, feathers)
    pen.polygon([(0.47, -0.18), (0.65, -0.13), (0.47, -0.08)], (230, 160, 40))  # beak
    pen.ellipse(0.38, -0.19, 0.025, 0.025, EYE)
    pen.polygon([(0.1, -0.05), (-0.25, -0.02), (-0.35, rng.uniform(-0.7, 0.2))], wing)


def _person(pen: Pen, rng: np.random.Generator) -> None:
    skin = pick(rng, (235, 190, 160), (190, 130, 95), (110, 75, 55), by=12)
    shirt = pick(rng, *ANY_COLOR)
    trousers = pick(rng, BLUE, BLACK, BROWN, GRAY)
    hair = pick(rng, (40, 30, 25), (120, 80, 40), (220, 190, 110), by=10)
    stride = rng.uniform(-0.1, 0.1)
    for side in (-1, 1):
        foot = side * (0.13 + stride)
        pen.line([(side * 0.1, 0.15), (foot, 0.75)], 0.15, trousers)
        pen.ellipse(foot + side * 0.02 + 0.01, 0.78, 0.11, 0.05, (40, 40, 40))
    for side in (-1, 1):
        hand = (side * 0.38, 0.1 * rng.uniform(-3, 1.5))
        pen.ellipse(*hand, 0.055, 0.055, skin)
        pen.line([(side * 0.18, -0.3), hand], 0.11, shirt)
    pen.polygon([(-0.22, -0.36), (0.22, -0.36), (0.19, 0.2), (-0.19, 0.2)], shirt)
    pen.rectangle(-0.05, -0.45, 0.05, -0.34, skin)
    pen.ellipse(0, -0.56, 0.14, 0.17, skin)
    pen.arc(0, -0.63, 0.15, 0.12, 180, 360, hair)
    for x in (-0.05, 0.05):
        pen.ellipse(x, -0.55, 0.018, 0.018, EYE)
    pen.line([(-0.04, -0.465), (0.04, -0.465)], 0.018, darker(skin, 0.6))  # mouth


# --- vehicles ------------------------------------------------------------------------------------------


def _wheel(pen: Pen, x: float, y: float, radius: float) -> None:
    pen.ellipse(x, y, radius, radius, RUBBER)
    pen.ellipse(x, y, radius * 0.5, radius * 0.5, STEEL)


def _car(pen: Pen, rng: np.random.Generator) -> None:
    paint = pick(rng, RED, BLUE, GREEN, YELLOW, WHITE, BLACK, GRAY)
    body = [(-0.7, 0.12), (-0.68, -0.08), (-0.4, -0.12), (-0.22, -0.36)]
    body += [(0.25, -0.36), (0.45, -0.1), (0.7, -0.04), (0.72, 0.12)]
    pen.polygon(body, paint)
    pen.polygon([(-0.3, -0.13), (-0.18, -0.3), (0.0, -0.3), (0.0, -0.13)], GLASS)
    pen.polygon([(0.05, -0.13), (0.05, -0.3), (0.22, -0.3), (0.34, -0.12)], GLASS)
    pen.ellipse(0.67, 0.0, 0.035, 0.035, LAMP)
    for x in (-0.42, 0.42):
        _wheel(pen, x, 0.13, 0.15)


def _bus(pen: Pen, rng: np.random.Generator) -> None:
    paint = pick(rng, RED, YELLOW, WHITE, GREEN, BLUE)
    pen.rectangle(-0.85, -0.45, 0.85, 0.28, paint)
    for i in range(5):
        left = -0.78 + i * 0.32
        pen.rectangle(left, -0.35, left + 0.24, -0.08, GLASS)
    pen.rectangle(-0.85, 0.05, 0.85, 0.1, darker(paint))
    pen.ellipse(0.8, 0.19, 0.035, 0.035, LAMP)
    for x in (-0.5, 0.5):
        _wheel(pen, x, 0.3, 0.14)


def _train(pen: Pen, rng: np.random.Generator) -> None:
    paint = pick(rng, RED, BLUE, GREEN, GRAY, WHITE)
    for left in (-0.95, 0.03):
        pen.rectangle(left, -0.3, left + 0.92, 0.22, paint)
        pen.rectangle(left, -0.36, left + 0.92, -0.3, darker(paint))
        for i in range(3):
            pen.rectangle(left + 0.1 + i * 0.27, -0.2, left + 0.28 + i * 0.27, -0.02, GLASS)
        for i in range(4):
            pen.ellipse(left + 0.12 + i * 0.23, 0.25, 0.07, 0.07, (40, 40, 42))
    pen.polygon([(0.95, -0.3), (1.2, 0.0), (1.2, 0.22), (0.95, 0.22)], paint)  # nose
    pen.polygon([(0.98, -0.21), (1.12, -0.04), (0.98, -0.04)], GLASS)


def _boat(pen: Pen, rng: np.random.Generator) -> None:
    hull = pick(rng, WHITE, RED, BLUE, BROWN)
    sail = pick(rng, WHITE, YELLOW, RED, BLUE)
    pen.polygon([(-0.7, 0.05), (0.8, 0.05), (0.5, 0.32), (-0.5, 0.32)], hull)
    pen.line([(0, 0.05), (0, -0.75)], 0.04, (100, 75, 50))
    pen.polygon([(0.05, -0.72), (0.6, -0.05), (0.05, -0.05)], sail)
    pen.polygon([(-0.05, -0.6), (-0.5, -0.05), (-0.05, -0.05)], darker(sail, 0.88))


def _aeroplane(pen: Pen, rng: np.random.Generator) -> None:
    paint = pick(rng, WHITE, GRAY, BLUE, by=15)
    pen.polygon([(-0.75, -0.02), (-0.9, -0.35), (-0.68, -0.35), (-0.5, -0.05)], darker(paint, 0.8))  # fin
    pen.ellipse(0, 0, 0.85, 0.13, paint)
    pen.polygon([(0.1, 0.02), (-0.3, 0.45), (-0.12, 0.45), (0.35, 0.03)], darker(paint, 0.8))  # wings
    pen.polygon([(0.1, -0.05), (-0.25, -0.32), (-0.1, -0.32), (0.3, -0.06)], darker(paint, 0.85))
    for i in range(6):
        pen.ellipse(-0.4 + i * 0.17, -0.03, 0.03, 0.03, (80, 110, 150))


def _bicycle(pen: Pen, rng: np.random.Generator) -> None:
    paint = pick(rng, RED, BLUE, GREEN, BLACK, YELLOW)
    turn = [i * math.pi / 9 for i in range(19)]
    for x in (-0.48, 0.48):
        pen.line([(x + 0.3 * math.cos(t), 0.2 + 0.3 * math.sin(t)) for t in turn], 0.055, RUBBER)
        for t in (0.0, 0.8, 1.6, 2.4):
            dx, dy = 0.28 * math.cos(t), 0.28 * math.sin(t)
            pen.line([(x + dx, 0.2 + dy), (x - dx, 0.2 - dy)], 0.015, (150, 150, 155))
    pen.line([(-0.48, 0.2), (-0.15, -0.2), (0.32, -0.2), (0.0, 0.2), (-0.48, 0.2)], 0.055, paint)
    pen.line([(-0.2, -0.33), (-0.15, -0.2), (0.0, 0.2)], 0.055, paint)
    pen.line([(0.48, 0.2), (0.3, -0.38), (0.42, -0.42)], 0.055, paint)
    pen.ellipse(-0.2, -0.35, 0.12, 0.04, (40, 35, 35))  # saddle


def _motorbike(pen: Pen, rng: np.random.Generator) -> None:
    paint = pick(rng, RED, BLUE, BLACK, GREEN, ORANGE)
    _wheel(pen, -0.5, 0.22, 0.27)
    _wheel(pen, 0.52, 0.22, 0.27)
    body = [(-0.55, -0.05), (-0.1, -0.02), (0.1, -0.18), (0.38, -0.2), (0.3, 0.05), (0.15, 0.25)]
    pen.polygon([*body, (-0.25, 0.25)], paint)
    pen.ellipse(-0.25, -0.1, 0.3, 0.07, (40, 35, 35))  # seat
    pen.rectangle(-0.15, 0.1, 0.15, 0.28, (120, 120, 125))  # engine
    pen.line([(0.52, 0.22), (0.34, -0.25), (0.22, -0.4)], 0.06, (90, 90, 95))
    pen.ellipse(0.42, -0.2, 0.08, 0.08, LAMP)


# --- indoors -------------------------------------------------------------------------------------------


def _bottle(pen: Pen, rng: np.random.Generator) -> None:
    glass = pick(rng, (50, 120, 60), (120, 70, 30), (90, 150, 190), (200, 210, 200))
    pen.rectangle(-0.2, -0.15, 0.2, 0.6, glass)
    pen.polygon([(-0.2, -0.15), (0.2, -0.15), (0.08, -0.4), (-0.08, -0.4)], glass)
    pen.rectangle(-0.08, -0.62, 0.08, -0.38, glass)
    pen.rectangle(-0.09, -0.7, 0.09, -0.6, vary(rng, RED, 40))  # cap
    pen.rectangle(-0.2, 0.05, 0.2, 0.35, (235, 230, 210))  # label


def _chair(pen: Pen, rng: np.random.Generator) -> None:
    wood = pick(rng, BROWN, RED, BLACK, WOOD)
    pen.rectangle(-0.3, -0.6, -0.2, 0.6, wood)
    pen.rectangle(0.2, 0.05, 0.3, 0.6, darker(wood, 0.8))
    pen.rectangle(-0.3, -0.02, 0.32, 0.1, wood)
    pen.rectangle(-0.3, -0.6, -0.12, 0, darker(wood, 0.9))
    pen.line([(-0.26, -0.55), (-0.26, 0)], 0.16, wood)


def _table(pen: Pen, rng: np.random.Generator) -> None:
    wood = pick(rng, BROWN, WOOD, WHITE, DARK_WOOD)
    for x in (-0.55, 0.45):
        pen.rectangle(x, 0.04, x + 0.06, 0.4, darker(wood, 0.6))
    for x in (-0.75, 0.68):
        pen.rectangle(x, 0.1, x + 0.08, 0.55, darker(wood, 0.8))
    pen.polygon([(-0.75, -0.12), (0.75, -0.12), (0.85, 0.05), (-0.85, 0.05)], wood)
    pen.rectangle(-0.85, 0.04, 0.85, 0.1, darker(wood))
    for _ in range(int(rng.integers(0, 3))):
        pen.ellipse(rng.uniform(-0.5, 0.5), -0.05, 0.14, 0.04, (235, 235, 235))  # plates


def _sofa(pen: Pen, rng: np.random.Generator) -> None:
    cloth = pick(rng, RED, BLUE, BROWN, GRAY, GREEN, (200, 190, 170))
    pen.polygon([(-0.75, -0.35), (0.75, -0.35), (0.78, 0.1), (-0.78, 0.1)], cloth)
    pen.rectangle(-0.7, 0.02, 0.7, 0.2, darker(cloth, 0.9))
    pen.rectangle(-0.68, 0.18, 0.68, 0.34, darker(cloth, 0.75))
    for side in (-1, 1):
        pen.ellipse(side * 0.8, 0.05, 0.14, 0.2, darker(cloth, 0.85))
        pen.rectangle(side * 0.92, 0.08, side * 0.68, 0.36, darker(cloth, 0.85))
    pen.line([(0, -0.3), (0, 0.18)], 0.02, darker(cloth, 0.6))
    if rng.random() < 0.5:
        pen.ellipse(rng.uniform(-0.5, 0.5), -0.02, 0.16, 0.12, pick(rng, *ANY_COLOR))  # cushion


def _potted_plant(pen: Pen, rng: np.random.Generator) -> None:
    green = vary(rng, (60, 130, 55), 30)
    for _ in range(9):
        lean, reach = rng.uniform(-1.4, 1.4), rng.uniform(0.4, 0.8)
        x, y = math.sin(lean) * reach, -math.cos(lean) * reach * 0.9
        pen.line([(0, 0), (x * 0.8, y * 0.8)], 0.03, darker(green))
        leaf = vary(rng, green, 15)
        pen.ellipse(x * 0.75, y * 0.75, 0.22, 0.1, leaf, angle=math.degrees(lean) - 90)
    clay = vary(rng, (170, 90, 55))
    pen.polygon([(-0.28, 0.1), (0.28, 0.1), (0.2, 0.55), (-0.2, 0.55)], clay)
    pen.rectangle(-0.32, 0.02, 0.32, 0.14, darker(clay, 0.85))


def _television(pen: Pen, rng: np.random.Generator) -> None:
    picture = pick(rng, (90, 140, 200), (60, 60, 70), (120, 180, 120), (190, 120, 160))
    pen.rectangle(-0.06, 0.3, 0.06, 0.45, (45, 45, 45))
    pen.ellipse(0, 0.47, 0.28, 0.05, (45, 45, 45))
    pen.rectangle(-0.6, -0.42, 0.6, 0.32, RUBBER)
    pen.rectangle(-0.53, -0.35, 0.53, 0.25, picture)
    pen.polygon([(-0.5, -0.33), (-0.2, -0.33), (-0.45, 0.1)], (150, 190, 225))  # reflection


FIGURES: dict[str, Figure] = {
    "aeroplane": _aeroplane,
    "bicycle": _bicycle,
    "bird": _bird,
    "boat": _boat,
    "bottle": _bottle,
    "bus": _bus,
    "car": _car,
    "cat": _cat,
    "chair": _chair,
    "cow": _cow,
    "diningtable": _table,
    "dog": _dog,
    "horse": _horse,
    "motorbike": _motorbike,
    "person": _person,
    "pottedplant": _potted_plant,
    "sheep": _sheep,
    "sofa": _sofa,
    "train": _train,
    "tvmonitor": _television,
}
"""Class name -> the function that draws it, in the order of VOC."""
