"""Bottles, potted plants and televisions. All stand at y = 0."""

from __future__ import annotations

import math

import numpy as np

from tag2mask.storybook.canvas import Color, Pen
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
    YELLOW,
    between,
    chance,
    darker,
    lighter,
    one,
    pick,
    vary,
)


def bottle(pen: Pen, rng: np.random.Generator, pose: str) -> None:
    """Wine, beer, water in plastic, milk or sauce, about 1 high."""
    kind = one(rng, ("wine", "wine", "beer", "water", "milk", "sauce"))
    glass = {
        "wine": ((40, 90, 55), (60, 30, 40), (105, 125, 60)),
        "beer": ((120, 70, 30), (60, 120, 60)),
        "water": ((165, 205, 228), (190, 222, 232), (130, 190, 200)),
        "milk": ((238, 238, 232), (235, 225, 200)),
        "sauce": ((190, 40, 35), (215, 175, 50), (90, 50, 35)),
    }[kind]
    color = pick(rng, *glass, by=14)
    half = {"wine": 0.15, "beer": 0.15, "water": 0.17, "milk": 0.19, "sauce": 0.16}[kind] * between(rng, 0.85, 1.2)
    shoulder = {"wine": -0.62, "beer": -0.55, "water": -0.68, "milk": -0.6, "sauce": -0.66}[kind]
    neck = {"wine": 0.055, "beer": 0.055, "water": 0.07, "milk": 0.1, "sauce": 0.05}[kind]
    top = -between(rng, 0.95, 1.08)
    body = [
        (-half, 0),
        (-half, shoulder),
        (-neck, shoulder - 0.15),
        (-neck, top),
        (neck, top),
        (neck, shoulder - 0.15),
        (half, shoulder),
        (half, 0),
    ]
    pen.polygon(body, color)
    pen.polygon(
        [
            (half * 0.35, 0),
            (half * 0.35, shoulder),
            (neck * 0.3, shoulder - 0.15),
            (neck * 0.3, top),
            (neck, top),
            (neck, shoulder - 0.15),
            (half, shoulder),
            (half, 0),
        ],
        darker(color, 0.78),
    )
    if kind == "water":
        for i in range(5):
            pen.rectangle(-half, -0.1 - 0.11 * i, half, -0.08 - 0.11 * i, darker(color, 0.85))
        pen.rectangle(-half, shoulder + 0.02, half, shoulder + 0.1, lighter(color, 0.5))
    label = pick(rng, CREAM, WHITE, RED, YELLOW, BLUE, GREEN, by=15)
    if chance(rng, 0.85):
        low, high = -between(rng, 0.08, 0.2), -between(rng, 0.42, 0.52)
        pen.rectangle(-half, high, half, low, label)
        pen.rectangle(half * 0.4, high, half, low, darker(label, 0.82))
        accent = pick(rng, *ANY_COLOR)
        if chance(rng, 0.5):
            pen.ellipse(0, (low + high) / 2, half * 0.5, half * 0.5, accent)
        else:
            pen.rectangle(-half, high + 0.04, half, high + 0.1, accent)
    pen.rectangle(-half * 0.78, shoulder + 0.04, -half * 0.55, -0.06, lighter(color, 0.55))  # gleam
    cap = pick(rng, RED, BLACK, BLUE, WHITE, (200, 170, 80), GREEN, by=15)
    pen.rectangle(-neck * 1.2, top - 0.06, neck * 1.2, top + (0.12 if kind == "wine" else 0.03), cap)


def potted_plant(pen: Pen, rng: np.random.Generator, pose: str) -> None:
    """A pot with leaves on stalks, a cactus, flowers, a bush, or upright blades."""
    plant = one(rng, (_leaves, _leaves, _cactus, _flowers, _bush, _blades))
    green = pick(rng, (60, 130, 55), (95, 150, 60), (40, 105, 70), by=20)
    high, wide = between(rng, 0.32, 0.46), between(rng, 0.17, 0.27)
    top = -high
    plant(pen, rng, top, green)
    clay = pick(rng, (175, 92, 58), (175, 92, 58), WHITE, BLUE, YELLOW, GRAY, TEAL)
    foot = wide * between(rng, 0.6, 1.0)
    pen.polygon([(-wide, top), (wide, top), (foot, 0), (-foot, 0)], clay)
    pen.polygon([(wide * 0.3, top), (wide, top), (foot, 0), (foot * 0.3, 0)], darker(clay, 0.78))
    if chance(rng, 0.4):
        pen.polygon(
            [(-wide * 0.9, top * 0.6), (wide * 0.9, top * 0.6), (wide * 0.85, top * 0.4), (-wide * 0.85, top * 0.4)],
            pick(rng, *ANY_COLOR),
        )
    if chance(rng, 0.7):
        pen.rectangle(-wide * 1.12, top - 0.03, wide * 1.12, top + 0.07, darker(clay, 0.88))


def _leaves(pen: Pen, rng: np.random.Generator, top: float, green: Color) -> None:
    """On stalks, spread like a fan."""
    count = int(rng.integers(7, 12))
    for i in range(count):
        lean, reach = -1.35 + 2.7 * i / (count - 1) + between(rng, -0.1, 0.1), between(rng, 0.35, 0.75)
        x, y = math.sin(lean) * reach, top - math.cos(lean) * reach * 0.95
        pen.line([(0, top), (x * 0.8, top + (y - top) * 0.8)], 0.025, darker(green))
        leaf = vary(rng, green, 18)
        angle = math.degrees(lean) - 90
        pen.ellipse(x * 0.8, top + (y - top) * 0.8, 0.19, 0.075, leaf, angle=angle)
        pen.line([(x * 0.6, top + (y - top) * 0.6), (x, y)], 0.012, lighter(leaf, 0.35))


def _cactus(pen: Pen, rng: np.random.Generator, top: float, green: Color) -> None:
    """With arms, and now and then a flower."""
    tall = between(rng, 0.4, 0.7)
    pen.limb([(0, top + 0.05), (0, top - tall)], [0.22, 0.2], green)
    for side in (-1, 1):
        if chance(rng, 0.7):
            y = top - tall * between(rng, 0.3, 0.6)
            pen.limb(
                [(0, y), (side * 0.22, y), (side * 0.22, y - 0.2)],
                [0.1, 0.12, 0.11],
                darker(green, 0.9 if side < 0 else 0.75),
            )
    for x in (-0.06, 0.0, 0.06):
        pen.line([(x, top), (x, top - tall)], 0.012, lighter(green, 0.4))
    if chance(rng, 0.4):
        pen.ellipse(0.02, top - tall - 0.1, 0.06, 0.05, PINK)


def _flowers(pen: Pen, rng: np.random.Generator, top: float, green: Color) -> None:
    """Several, of one colour."""
    petal = pick(rng, RED, YELLOW, PINK, PURPLE, WHITE, ORANGE)
    for _ in range(int(rng.integers(4, 8))):
        x, y = between(rng, -0.4, 0.4), top - between(rng, 0.25, 0.6)
        pen.line([(x * 0.2, top), (x, y)], 0.025, darker(green))
        pen.ellipse(x * 0.6, top - 0.15, 0.13, 0.055, green, angle=-40 if x > 0 else 40)
        for i in range(5):
            t = 2 * math.pi * i / 5
            pen.ellipse(x + 0.065 * math.cos(t), y + 0.065 * math.sin(t), 0.05, 0.05, petal)
        pen.ellipse(x, y, 0.04, 0.04, YELLOW if sum(petal) < 620 else ORANGE)


def _bush(pen: Pen, rng: np.random.Generator, top: float, green: Color) -> None:
    """On a stem."""
    pen.line([(0, top), (0, top - 0.3)], 0.05, BROWN)
    for i in range(12):
        x, y = between(rng, -0.3, 0.3), top - 0.34 + between(rng, -0.24, 0.22)
        size = between(rng, 0.09, 0.16)
        pen.ellipse(x, y, size, size * 0.9, lighter(green, 0.2) if i % 3 == 0 else vary(rng, green, 16))


def _blades(pen: Pen, rng: np.random.Generator, top: float, green: Color) -> None:
    """Upright and pointed."""
    for _ in range(int(rng.integers(7, 12))):
        x, y = between(rng, -0.45, 0.45), top - between(rng, 0.4, 0.85)
        blade = vary(rng, green, 20)
        pen.polygon(
            [
                (x * 0.25 - 0.045, top + 0.03),
                (x * 0.55 - 0.05, (top + y) / 2),
                (x, y),
                (x * 0.55 + 0.05, (top + y) / 2),
                (x * 0.25 + 0.045, top + 0.03),
            ],
            blade,
        )
        pen.line([(x * 0.25, top), (x * 0.8, top + (y - top) * 0.85)], 0.014, lighter(blade, 0.4))


def television(pen: Pen, rng: np.random.Generator, pose: str) -> None:
    """Flat on a foot, a monitor, or an old box with knobs and aerials; something or nothing on the screen."""
    kind = one(rng, ("flat", "flat", "monitor", "old"))
    half, high = between(rng, 0.55, 0.8), between(rng, 0.6, 0.8)
    case = pick(rng, RUBBER, RUBBER, GRAY, WHITE, by=12)
    if kind == "old":
        case = pick(rng, BROWN, DARK_WOOD, RUBBER, RED, CREAM, by=14)
        half = between(rng, 0.45, 0.58)
        for side in (-1, 1):
            if chance(rng, 0.75):
                pen.line([(0, -high), (side * between(rng, 0.15, 0.35), -high - 0.3)], 0.025, STEEL)
            pen.rectangle(side * half * 0.7 - 0.04, -0.08, side * half * 0.7 + 0.04, 0, darker(case, 0.5))
        pen.box(-half, -high, half, -0.06, case, 0.07)
        pen.rectangle(-half, -0.14, half, -0.06, darker(case, 0.7))
        left, top, right, bottom = -half + 0.07, -high + 0.08, half - 0.22, -0.16
        pen.box(left - 0.02, top - 0.02, right + 0.02, bottom + 0.02, darker(case, 0.5), 0.06)
        for i in range(2):
            pen.ellipse(half - 0.1, -high + 0.16 + 0.14 * i, 0.045, 0.045, STEEL)
        for i in range(3):
            pen.rectangle(half - 0.16, -0.3 + i * 0.045, half - 0.05, -0.28 + i * 0.045, darker(case, 0.5))
    else:
        foot = between(rng, 0.1, 0.2)
        if kind == "monitor":
            half = between(rng, 0.45, 0.6)
        pen.rectangle(-0.06, -foot, 0.06, 0, darker(case, 0.7))
        pen.box(-half * 0.45, -0.05, half * 0.45, 0, darker(case, 0.85), 0.02)
        pen.box(-half, -foot - high, half, -foot, case, 0.03)
        edge = between(rng, 0.03, 0.06)
        left, top, right, bottom = -half + edge, -foot - high + edge, half - edge, -foot - edge - 0.02
    _screen(pen, rng, left, top, right, bottom)


def _screen(pen: Pen, rng: np.random.Generator, left: float, top: float, right: float, bottom: float) -> None:
    color: Color = pick(rng, (90, 140, 200), (45, 48, 56), (110, 170, 120), (190, 120, 160), (225, 220, 205))
    wide, high = right - left, bottom - top
    pen.rectangle(left, top, right, bottom, color)
    shows = one(rng, ("off", "hills", "bars", "text", "ball"))
    if shows == "hills":
        pen.rectangle(left, top + high * 0.65, right, bottom, pick(rng, GREEN, (190, 160, 90)))
        pen.ellipse(left + wide * between(rng, 0.2, 0.8), top + high * 0.25, high * 0.12, high * 0.12, YELLOW)
    elif shows == "bars":
        for i in range(5):
            x = left + wide * i / 5
            pen.rectangle(x, top, x + wide / 5, bottom, pick(rng, *ANY_COLOR))
    elif shows == "text":
        for i in range(5):
            y = top + high * (0.12 + 0.17 * i)
            pen.rectangle(
                left + wide * 0.08,
                y,
                left + wide * between(rng, 0.4, 0.92),
                y + high * 0.07,
                lighter(color, 0.6) if sum(color) < 450 else darker(color, 0.5),
            )
    elif shows == "ball":
        pen.ellipse(
            left + wide * between(rng, 0.3, 0.7), top + high * 0.5, high * 0.25, high * 0.25, pick(rng, *ANY_COLOR)
        )
    pen.polygon(
        [(left, top), (left + wide * 0.3, top), (left + wide * 0.1, bottom), (left, bottom)], lighter(color, 0.22)
    )
