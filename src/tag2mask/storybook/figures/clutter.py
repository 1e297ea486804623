"""What stands around and is no class: trees, houses, lamps, fences, rocks, rails. All stand at y = 0."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tag2mask.storybook.canvas import Pen
from tag2mask.storybook.figures.colors import (
    ANY_COLOR,
    BLACK,
    BLUE,
    BROWN,
    CREAM,
    DARK_GLASS,
    GRAY,
    GREEN,
    LAMP,
    RED,
    STEEL,
    WHITE,
    WOOD,
    YELLOW,
    between,
    chance,
    darker,
    lighter,
    one,
    pick,
    vary,
)

Clutter = Callable[[Pen, np.random.Generator], None]


def tree(pen: Pen, rng: np.random.Generator) -> None:
    """A crown of balls, a fir, a poplar, or bare branches; about 1.3 high."""
    green = pick(rng, (60, 115, 50), (95, 135, 55), (45, 90, 60), (190, 140, 50), (170, 80, 45), by=16)
    trunk = pick(rng, (100, 70, 45), (80, 65, 55), by=12)
    kind = one(rng, ("round", "round", "fir", "poplar", "bare"))
    high = between(rng, 1.0, 1.4)
    pen.polygon([(-0.08, 0), (-0.05, -high * 0.6), (0.05, -high * 0.6), (0.09, 0)], trunk)
    if kind == "fir":
        for i in range(4):
            top, wide = -high * (0.4 + 0.2 * i), 0.42 - 0.09 * i
            pen.polygon([(-wide, top + 0.22), (0, top - 0.22), (wide, top + 0.22)], darker(green, 1 - 0.08 * (i % 2)))
    elif kind == "poplar":
        pen.blob([(-0.2, -0.3), (-0.22, -high * 0.7), (0, -high * 1.1), (0.22, -high * 0.7), (0.2, -0.3)], green)
        pen.blob([(0.02, -0.3), (0.05, -high * 0.9), (0.2, -high * 0.65), (0.18, -0.32)], darker(green, 0.8))
    elif kind == "bare":
        for _ in range(6):
            x, y = between(rng, -0.45, 0.45), -high * between(rng, 0.75, 1.05)
            pen.limb(
                [(0, -high * between(rng, 0.3, 0.58)), (x * 0.5, (y - 0.5) / 2 - 0.1), (x, y)],
                [0.06, 0.04, 0.02],
                trunk,
            )
    else:
        for x, y, size in ((0.08, -0.72, 0.4), (-0.26, -0.75, 0.28), (0.28, -0.68, 0.27), (-0.02, -0.98, 0.3)):
            pen.ellipse(x, y * high, size, size * 0.92, darker(green, 0.82))
            pen.ellipse(x - 0.04, y * high - 0.05, size * 0.85, size * 0.75, green)
        if chance(rng, 0.2):
            for _ in range(6):
                pen.ellipse(between(rng, -0.3, 0.3), -high * between(rng, 0.6, 1.1), 0.04, 0.04, RED)


def building(pen: Pen, rng: np.random.Generator) -> None:
    """A block of flats or an office."""
    wall = pick(rng, (175, 155, 145), (155, 105, 90), (190, 190, 195), (120, 130, 145), (205, 190, 150))
    half, high = between(rng, 0.3, 0.6), between(rng, 0.8, 1.5)
    pen.rectangle(-half, -high, half, 0.02, wall)
    pen.rectangle(half * 0.55, -high, half, 0.02, darker(wall, 0.8))
    pen.rectangle(-half - 0.03, -high - 0.05, half + 0.03, -high, darker(wall, 0.65))
    columns, rows = int(rng.integers(3, 5)), int(high / 0.26)
    glass = pick(rng, DARK_GLASS, LAMP, (120, 150, 170), by=15)
    for column in range(columns):
        for row in range(rows):
            left, top = -half * 0.85 + column * half * 1.75 / columns, -high + 0.07 + row * 0.25
            pen.rectangle(left, top, left + half * 1.1 / columns, top + 0.13, glass)
    pen.rectangle(-0.07, -0.2, 0.07, 0.02, darker(wall, 0.45))


def house(pen: Pen, rng: np.random.Generator) -> None:
    """A cottage with a pitched roof, windows, a door, perhaps a chimney."""
    wall, roof = (
        pick(rng, WHITE, CREAM, (205, 120, 90), YELLOW, (150, 175, 190)),
        pick(rng, (160, 65, 45), (90, 75, 70), BROWN),
    )
    half, high = between(rng, 0.42, 0.6), between(rng, 0.42, 0.58)
    if chance(rng, 0.6):
        pen.rectangle(half * 0.35, -high - 0.42, half * 0.58, -high - 0.1, darker(roof, 0.8))
    pen.rectangle(-half, -high, half, 0.02, wall)
    pen.rectangle(half * 0.6, -high, half, 0.02, darker(wall, 0.82))
    pen.polygon(
        [(-half - 0.1, -high), (-half * 0.55, -high - 0.38), (half * 0.55, -high - 0.38), (half + 0.1, -high)], roof
    )
    pen.polygon(
        [(-half - 0.1, -high), (half + 0.1, -high), (half + 0.1, -high + 0.04), (-half - 0.1, -high + 0.04)],
        darker(roof, 0.7),
    )
    for x in (-0.62, 0.3):
        pen.rectangle(half * x - 0.02, -high * 0.75, half * (x + 0.34) + 0.02, -high * 0.33, WHITE)
        pen.rectangle(half * x, -high * 0.71, half * (x + 0.34), -high * 0.37, DARK_GLASS)
    pen.rectangle(-half * 0.18, -high * 0.68, half * 0.16, 0.02, pick(rng, RED, GREEN, BLUE, BROWN))


def lamp(pen: Pen, rng: np.random.Generator) -> None:
    """A street lamp, or a standard lamp with a shade."""
    post = pick(rng, BLACK, GRAY, GREEN, BROWN, by=15)
    if chance(rng, 0.5):
        pen.rectangle(-0.025, -1.3, 0.025, 0, post)
        pen.rectangle(-0.09, -0.06, 0.09, 0, darker(post))
        pen.polygon([(-0.1, -1.5), (0.1, -1.5), (0.07, -1.3), (-0.07, -1.3)], LAMP)
        pen.polygon([(-0.14, -1.5), (0, -1.6), (0.14, -1.5)], post)
    else:
        pen.rectangle(-0.02, -1.1, 0.02, 0, post)
        pen.ellipse(0, -0.02, 0.16, 0.035, post)
        shade = pick(rng, CREAM, RED, YELLOW, WHITE)
        pen.polygon([(-0.13, -1.38), (0.13, -1.38), (0.24, -1.05), (-0.24, -1.05)], shade)
        pen.polygon([(0.04, -1.38), (0.13, -1.38), (0.24, -1.05), (0.08, -1.05)], darker(shade, 0.85))


def sign(pen: Pen, rng: np.random.Generator) -> None:
    """A road sign or a board on a post."""
    pen.rectangle(-0.025, -0.9, 0.025, 0, STEEL)
    face = pick(rng, RED, BLUE, YELLOW, GREEN, by=12)
    kind = one(rng, ("round", "triangle", "board", "stop"))
    if kind == "round":
        pen.ellipse(0, -1.0, 0.24, 0.24, face)
        pen.ellipse(0, -1.0, 0.17, 0.17, WHITE)
        pen.rectangle(-0.11, -1.03, 0.11, -0.97, BLACK)
    elif kind == "triangle":
        pen.polygon([(-0.27, -0.82), (0, -1.28), (0.27, -0.82)], RED)
        pen.polygon([(-0.18, -0.87), (0, -1.18), (0.18, -0.87)], WHITE)
        pen.rectangle(-0.02, -1.07, 0.02, -0.94, BLACK)
    elif kind == "stop":
        pen.box(-0.23, -1.23, 0.23, -0.78, RED, 0.16)
        pen.rectangle(-0.15, -1.04, 0.15, -0.97, WHITE)
    else:
        pen.box(-0.42, -1.2, 0.42, -0.8, face, 0.04)
        for i in range(3):
            pen.rectangle(-0.32, -1.12 + 0.1 * i, between(rng, 0.0, 0.33), -1.08 + 0.1 * i, WHITE)


def fence(pen: Pen, rng: np.random.Generator) -> None:
    """Pickets or rails, 4 long."""
    wood = pick(rng, WOOD, WHITE, BROWN, GRAY)
    kind = one(rng, ("pickets", "rails"))
    for y in (-0.36, -0.18):
        pen.rectangle(-2, y, 2, y + 0.055, darker(wood, 0.85))
    step = 0.14 if kind == "pickets" else 0.5
    wide = 0.035 if kind == "pickets" else 0.045
    for i in range(int(4 / step) + 1):
        x = -2 + i * step
        pen.polygon([(x - wide, 0), (x - wide, -0.46), (x, -0.5), (x + wide, -0.46), (x + wide, 0)], wood)


def rock(pen: Pen, rng: np.random.Generator) -> None:
    """One boulder, lit from above."""
    grey = pick(rng, (125, 122, 120), (140, 125, 110), (95, 98, 105), by=12)
    half, high = between(rng, 0.35, 0.6), between(rng, 0.25, 0.5)
    pen.polygon(
        [
            (-half, 0.03),
            (-half * 0.85, -high * 0.6),
            (-half * 0.3, -high),
            (half * 0.4, -high * 0.85),
            (half * 0.9, -high * 0.4),
            (half, 0.03),
        ],
        darker(grey, 0.75),
    )
    pen.polygon(
        [(-half * 0.85, -high * 0.6), (-half * 0.3, -high), (half * 0.4, -high * 0.85), (half * 0.1, -high * 0.45)],
        lighter(grey, 0.2),
    )
    pen.polygon([(-half, 0.03), (-half * 0.85, -high * 0.6), (half * 0.1, -high * 0.45), (0, 0.03)], grey)


def box(pen: Pen, rng: np.random.Generator) -> None:
    """A carton, a crate or a parcel."""
    card = pick(rng, (190, 150, 100), (170, 130, 85), RED, BLUE, WHITE, by=15)
    half, high, deep = between(rng, 0.25, 0.4), between(rng, 0.3, 0.55), between(rng, 0.08, 0.16)
    pen.rectangle(-half, -high, half, 0, card)
    pen.polygon(
        [(-half, -high), (-half + deep, -high - deep), (half + deep, -high - deep), (half, -high)], lighter(card, 0.3)
    )
    pen.polygon([(half, -high), (half + deep, -high - deep), (half + deep, -deep), (half, 0)], darker(card, 0.7))
    tape = pick(rng, CREAM, *ANY_COLOR)
    pen.rectangle(-0.05, -high, 0.05, 0, tape)
    if chance(rng, 0.4):
        pen.rectangle(-half, -high * 0.55, half, -high * 0.42, tape)


def bridge(pen: Pen, rng: np.random.Generator) -> None:
    """Arches that carry a road across, 5 long."""
    stone = pick(rng, (165, 150, 135), (150, 110, 95), (120, 130, 140), by=14)
    pen.rectangle(-2.5, -0.6, 2.5, -0.42, stone)
    pen.rectangle(-2.5, -0.68, 2.5, -0.6, darker(stone, 0.75))
    for i in range(4):
        x = -2.5 + i * 1.25
        arch = [
            (x + 0.2, 0.0),
            (x + 0.25, -0.2),
            (x + 0.45, -0.36),
            (x + 0.8, -0.36),
            (x + 1.0, -0.2),
            (x + 1.05, 0.0),
        ]
        pen.polygon([(x, 0), (x, -0.44), (x + 1.25, -0.44), (x + 1.25, 0), *arch[::-1]], darker(stone, 0.9))


def mountain(pen: Pen, rng: np.random.Generator) -> None:
    """A peak, perhaps with a white top."""
    color = pick(rng, (125, 128, 145), (110, 125, 110), (140, 120, 110), by=14)
    half, shift = between(rng, 0.9, 1.6), between(rng, -0.3, 0.3)
    pen.polygon([(-half, 0.03), (-half * 0.4, -0.55), (shift, -1), (half * 0.45, -0.5), (half, 0.03)], color)
    pen.polygon(
        [(shift, -1), (half * 0.45, -0.5), (half, 0.03), (shift * 0.4, 0.03), (shift + 0.1, -0.5)],
        darker(color, 0.82),
    )


def mountain_snow(pen: Pen, rng: np.random.Generator) -> None:
    """The white top of ``mountain`` for the same numbers."""
    pick(rng, BLACK, BLACK, BLACK, by=14)
    half, shift = between(rng, 0.9, 1.6), between(rng, -0.3, 0.3)
    left, right = shift + (-half * 0.4 - shift) * 0.5, shift + (half * 0.45 - shift) * 0.5
    pen.polygon(
        [(shift, -1), (right, -0.75), (shift + 0.08, -0.68), (shift - 0.06, -0.8), (left, -0.775)], (245, 247, 250)
    )


def cloud(pen: Pen, rng: np.random.Generator) -> None:
    """Some balls of white."""
    white = vary(rng, (244, 244, 246), 8)
    for x, y, rx in ((0, 0, 0.7), (0.4, -0.15, 0.4), (-0.3, -0.14, 0.42), (0.05, -0.28, 0.36)):
        pen.ellipse(x, y + 0.05, rx * between(rng, 0.85, 1.15), 0.27, darker(white, 0.93))
        pen.ellipse(x, y, rx, 0.25, white)


def window(pen: Pen, rng: np.random.Generator) -> None:
    """Four panes in a frame, perhaps with curtains."""
    frame, pane = pick(rng, WHITE, BROWN, WOOD), pick(rng, (170, 210, 240), (235, 190, 140), (60, 70, 100), by=15)
    half, high = between(rng, 0.35, 0.55), between(rng, 0.7, 1.0)
    pen.rectangle(-half, -high, half, 0, frame)
    pen.rectangle(-half + 0.05, -high + 0.05, half - 0.05, -0.05, pane)
    pen.rectangle(-0.02, -high, 0.02, 0, frame)
    pen.rectangle(-half, -high / 2 - 0.02, half, -high / 2 + 0.02, frame)
    if chance(rng, 0.5):
        cloth = pick(rng, *ANY_COLOR)
        for side in (-1, 1):
            pen.polygon(
                [
                    (side * (half + 0.1), -high - 0.06),
                    (side * half * 0.45, -high - 0.06),
                    (side * half * 0.75, 0.08),
                    (side * (half + 0.1), 0.08),
                ],
                cloth,
            )


def door(pen: Pen, rng: np.random.Generator) -> None:
    """A panelled door in its frame, 1.5 high."""
    wood = pick(rng, BROWN, WHITE, WOOD, GREEN, BLUE)
    pen.rectangle(-0.4, -1.55, 0.4, 0, darker(wood, 0.7))
    pen.rectangle(-0.34, -1.49, 0.34, 0, wood)
    for top in (-1.38, -0.68):
        for x in (-0.26, 0.04):
            pen.rectangle(x, top, x + 0.22, top + 0.55, darker(wood, 0.85))
    pen.ellipse(0.27, -0.72, 0.04, 0.04, YELLOW)


def keyboard(pen: Pen, rng: np.random.Generator) -> None:
    """Three rows of keys in perspective."""
    case = pick(rng, BLACK, WHITE, GRAY, by=10)
    key = lighter(case, 0.35) if sum(case) < 400 else darker(case, 0.7)
    pen.polygon([(-0.5, -0.14), (0.5, -0.14), (0.6, 0.12), (-0.6, 0.12)], case)
    for row in range(3):
        y, half = -0.11 + 0.075 * row, 0.46 + 0.03 * row
        for i in range(9):
            x = -half + i * 2 * half / 9
            pen.rectangle(x, y, x + half * 0.17, y + 0.05, key)


CLUTTER: dict[str, Clutter] = {
    "tree": tree,
    "building": building,
    "house": house,
    "lamp": lamp,
    "sign": sign,
    "fence": fence,
    "rock": rock,
    "box": box,
    "bridge": bridge,
    "mountain": mountain,
    "snow": mountain_snow,
    "cloud": cloud,
    "window": window,
    "door": door,
    "keyboard": keyboard,
}
"""Name of a thing -> the function that draws one."""
