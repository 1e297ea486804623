"""Bottle, chair, table, sofa, potted plant and television. All stand at y = 0."""

from __future__ import annotations

import math

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
    body = [(-half, 0), (-half, shoulder), (-neck, shoulder - 0.15), (-neck, top), (neck, top), (neck, shoulder - 0.15), (half, shoulder), (half, 0)]
    pen.polygon(body, color)
    pen.polygon([(half * 0.35, 0), (half * 0.35, shoulder), (neck * 0.3, shoulder - 0.15), (neck * 0.3, top), (neck, top), (neck, shoulder - 0.15), (half, shoulder), (half, 0)], darker(color, 0.78))
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


def chair(pen: Pen, rng: np.random.Generator, pose: str) -> Point:
    """A dining chair, an armchair, a stool, or an office chair; tells where one sits on it."""
    kind = one(rng, ("dining", "dining", "dining", "front", "armchair", "office", "stool"))
    if pose == "seat":  # somebody will sit, seen from the side
        kind = one(rng, ("dining", "dining", "office"))
    wood = pick(rng, BROWN, RED, BLACK, WOOD, WHITE, TEAL, DARK_WOOD)
    cloth = pick(rng, *ANY_COLOR)
    seat = -between(rng, 0.42, 0.5)
    if kind == "dining":
        back = -between(rng, 0.95, 1.15)
        tilt = between(rng, 0.02, 0.1)
        for x in (-0.12, 0.3):
            pen.limb([(x, seat), (x + 0.02, 0)], [0.065, 0.05], darker(wood, 0.62))
        for shift in (0.12, 0.0):
            pen.line([(-0.27 + shift, seat), (-0.27 - tilt + shift, back)], 0.06, darker(wood, 0.75 if shift else 1))
        if chance(rng, 0.5):
            for i in range(3):
                y = back + 0.08 + i * 0.14
                pen.polygon([(-0.28 - tilt, y), (-0.13 - tilt, y - 0.02), (-0.13 - tilt, y + 0.05), (-0.28 - tilt, y + 0.07)], wood)
        else:
            pen.polygon([(-0.29 - tilt, back), (-0.13 - tilt, back - 0.03), (-0.14, seat - 0.12), (-0.28, seat - 0.1)], cloth)
        pen.polygon([(-0.32, seat), (0.22, seat), (0.36, seat - 0.07), (-0.16, seat - 0.07)], cloth)
        pen.polygon([(-0.32, seat), (0.24, seat), (0.36, seat - 0.07), (0.36, seat), (0.24, seat + 0.07), (-0.32, seat + 0.07)], wood)
        for x in (-0.28, 0.2):
            pen.limb([(x, seat), (x * 1.08, -0.01)], [0.07, 0.055], wood)
        if chance(rng, 0.4):
            pen.line([(-0.28, seat * 0.4), (0.2, seat * 0.4)], 0.04, darker(wood, 0.8))
    elif kind == "front":
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
    elif kind == "armchair":
        pen.box(-0.38, -0.95, 0.38, -0.2, cloth, 0.16)
        pen.box(-0.3, -0.86, 0.3, -0.4, lighter(cloth, 0.12), 0.1)
        pen.box(-0.34, -0.44, 0.34, -0.26, lighter(cloth, 0.2), 0.06)
        pen.rectangle(-0.34, -0.28, 0.34, -0.07, darker(cloth, 0.75))
        for side in (-1, 1):
            left, right = sorted((side * 0.3, side * 0.5))
            pen.box(left, -0.58, right, -0.06, darker(cloth, 0.88), 0.09)
            pen.rectangle(left + 0.04, -0.07, right - 0.05, 0, DARK_WOOD)
    elif kind == "office":
        for x in (-0.3, 0.0, 0.3):
            pen.limb([(0, -0.2), (x, -0.06)], [0.05, 0.04], BLACK)
            pen.ellipse(x, -0.035, 0.04, 0.035, RUBBER)
        pen.rectangle(-0.03, seat, 0.03, -0.15, STEEL)
        pen.limb([(-0.22, seat + 0.02), (-0.36, seat - 0.3)], [0.05, 0.05], BLACK)
        pen.blob([(-0.42, seat - 0.16), (-0.46, seat - 0.6), (-0.38, seat - 0.68), (-0.27, seat - 0.5), (-0.28, seat - 0.14)], cloth)
        pen.blob([(-0.3, seat + 0.05), (-0.3, seat - 0.05), (0.28, seat - 0.06), (0.34, seat), (0.28, seat + 0.05)], darker(cloth, 0.85))
        if chance(rng, 0.6):
            pen.limb([(-0.12, seat), (-0.1, seat - 0.2), (0.16, seat - 0.2)], [0.04, 0.04, 0.05], BLACK)
    else:
        wide = between(rng, 0.18, 0.28)
        for x in (-0.6, 0.6):
            pen.limb([(x * wide, seat), (x * wide * 1.7, -0.02)], [0.05, 0.05], darker(wood, 0.75))
        pen.limb([(0, seat), (0.05, -0.01)], [0.05, 0.05], wood)
        pen.line([(-wide * 0.8, seat * 0.4), (wide * 0.8, seat * 0.4)], 0.035, wood)
        pen.ellipse(0, seat + 0.03, wide, 0.075, darker(wood, 0.7))
        pen.ellipse(0, seat, wide, 0.075, cloth if chance(rng, 0.5) else lighter(wood, 0.2))
        seat -= 0.0
    return (0.0, seat - 0.04)


def table(pen: Pen, rng: np.random.Generator, pose: str) -> Point:
    """Long or round, bare or with a cloth, often laid; tells where its top is."""
    wood = pick(rng, BROWN, WOOD, WHITE, DARK_WOOD, CREAM, TEAL)
    top = -between(rng, 0.5, 0.62)
    half, deep = between(rng, 0.6, 0.95), between(rng, 0.06, 0.13)
    if chance(rng, 0.35):
        pen.limb([(0, top), (0, -0.06)], [0.1, 0.12], darker(wood, 0.7))
        for x in (-0.3, 0.0, 0.3):
            pen.limb([(0, -0.14), (x, -0.03)], [0.08, 0.05], darker(wood, 0.7))
        half *= 0.85
        pen.ellipse(0, top + 0.05, half, deep + 0.03, darker(wood, 0.65))
        pen.ellipse(0, top, half, deep + 0.03, wood)
    else:
        for x in (-0.72, 0.72):
            pen.rectangle(x * half - 0.03, top, x * half + 0.03, -0.12, darker(wood, 0.5))
        for x in (-0.94, 0.94):
            pen.rectangle(x * half - 0.04, top + 0.05, x * half + 0.04, 0, darker(wood, 0.8))
        pen.polygon([(-half * 0.84, top - deep), (half * 0.84, top - deep), (half, top + deep * 0.5), (-half, top + deep * 0.5)], wood)
        pen.rectangle(-half, top + deep * 0.5, half, top + deep * 0.5 + 0.07, darker(wood, 0.68))
        for i in range(3):
            pen.line([(-half * 0.85, top - deep * (0.6 - 0.4 * i)), (half * 0.85, top - deep * (0.6 - 0.4 * i))], 0.01, darker(wood, 0.85))
        if chance(rng, 0.35):
            cloth = pick(rng, WHITE, RED, BLUE, CREAM, PINK, by=15)
            drop = between(rng, 0.12, 0.25)
            pen.polygon([(-half * 0.85, top - deep), (half * 0.85, top - deep), (half * 1.02, top + deep * 0.5), (-half * 1.02, top + deep * 0.5)], cloth)
            pen.polygon([(-half * 1.02, top + deep * 0.5), (half * 1.02, top + deep * 0.5), (half, top + drop), (-half, top + drop)], darker(cloth, 0.85))
            for i in range(5):
                x = -half * 0.9 + i * half * 0.4
                pen.polygon([(x, top + deep * 0.5), (x + 0.08, top + deep * 0.5), (x + 0.08, top + drop), (x, top + drop)], lighter(cloth, 0.3))
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
            pen.ellipse(-half + 0.1 + (i // 2) * half / seats, back + 0.15 + 0.13 * (i % 2), 0.03, 0.03, lighter(cloth, 0.45))
    for _ in range(int(rng.integers(0, 3))):
        x = between(rng, -0.8, 0.8) * half
        pen.at(x, -0.5, 1, between(rng, -20, 20)).box(-0.13, -0.12, 0.13, 0.12, other, 0.05)
    return (between(rng, -0.35, 0.35) * half, -0.36)


def potted_plant(pen: Pen, rng: np.random.Generator, pose: str) -> None:
    """A pot with leaves on stalks, a cactus, flowers, a bush, or upright blades."""
    kind = one(rng, ("leaves", "leaves", "cactus", "flowers", "bush", "blades"))
    green = pick(rng, (60, 130, 55), (95, 150, 60), (40, 105, 70), by=20)
    high, wide = between(rng, 0.32, 0.46), between(rng, 0.17, 0.27)
    top = -high
    if kind == "leaves":
        count = int(rng.integers(7, 12))
        for i in range(count):
            lean, reach = -1.35 + 2.7 * i / (count - 1) + between(rng, -0.1, 0.1), between(rng, 0.35, 0.75)
            x, y = math.sin(lean) * reach, top - math.cos(lean) * reach * 0.95
            pen.line([(0, top), (x * 0.8, top + (y - top) * 0.8)], 0.025, darker(green))
            leaf = vary(rng, green, 18)
            angle = math.degrees(lean) - 90
            pen.ellipse(x * 0.8, top + (y - top) * 0.8, 0.19, 0.075, leaf, angle=angle)
            pen.line([(x * 0.6, top + (y - top) * 0.6), (x, y)], 0.012, lighter(leaf, 0.35))
    elif kind == "cactus":
        tall = between(rng, 0.4, 0.7)
        pen.limb([(0, top + 0.05), (0, top - tall)], [0.22, 0.2], green)
        for side in (-1, 1):
            if chance(rng, 0.7):
                y = top - tall * between(rng, 0.3, 0.6)
                pen.limb([(0, y), (side * 0.22, y), (side * 0.22, y - 0.2)], [0.1, 0.12, 0.11], darker(green, 0.9 if side < 0 else 0.75))
        for x in (-0.06, 0.0, 0.06):
            pen.line([(x, top), (x, top - tall)], 0.012, lighter(green, 0.4))
        if chance(rng, 0.4):
            pen.ellipse(0.02, top - tall - 0.1, 0.06, 0.05, PINK)
    elif kind == "flowers":
        petal = pick(rng, RED, YELLOW, PINK, PURPLE, WHITE, ORANGE)
        for _ in range(int(rng.integers(4, 8))):
            x, y = between(rng, -0.4, 0.4), top - between(rng, 0.25, 0.6)
            pen.line([(x * 0.2, top), (x, y)], 0.025, darker(green))
            pen.ellipse(x * 0.6, top - 0.15, 0.13, 0.055, green, angle=-40 if x > 0 else 40)
            for i in range(5):
                t = 2 * math.pi * i / 5
                pen.ellipse(x + 0.065 * math.cos(t), y + 0.065 * math.sin(t), 0.05, 0.05, petal)
            pen.ellipse(x, y, 0.04, 0.04, YELLOW if sum(petal) < 620 else ORANGE)
    elif kind == "bush":
        pen.line([(0, top), (0, top - 0.3)], 0.05, BROWN)
        for i in range(12):
            x, y = between(rng, -0.3, 0.3), top - 0.34 + between(rng, -0.24, 0.22)
            size = between(rng, 0.09, 0.16)
            pen.ellipse(x, y, size, size * 0.9, lighter(green, 0.2) if i % 3 == 0 else vary(rng, green, 16))
    else:
        for _ in range(int(rng.integers(7, 12))):
            x, y = between(rng, -0.45, 0.45), top - between(rng, 0.4, 0.85)
            blade = vary(rng, green, 20)
            pen.polygon([(x * 0.25 - 0.045, top + 0.03), (x * 0.55 - 0.05, (top + y) / 2), (x, y), (x * 0.55 + 0.05, (top + y) / 2), (x * 0.25 + 0.045, top + 0.03)], blade)
            pen.line([(x * 0.25, top), (x * 0.8, top + (y - top) * 0.85)], 0.014, lighter(blade, 0.4))
    clay = pick(rng, (175, 92, 58), (175, 92, 58), WHITE, BLUE, YELLOW, GRAY, TEAL)
    foot = wide * between(rng, 0.6, 1.0)
    pen.polygon([(-wide, top), (wide, top), (foot, 0), (-foot, 0)], clay)
    pen.polygon([(wide * 0.3, top), (wide, top), (foot, 0), (foot * 0.3, 0)], darker(clay, 0.78))
    if chance(rng, 0.4):
        pen.polygon([(-wide * 0.9, top * 0.6), (wide * 0.9, top * 0.6), (wide * 0.85, top * 0.4), (-wide * 0.85, top * 0.4)], pick(rng, *ANY_COLOR))
    if chance(rng, 0.7):
        pen.rectangle(-wide * 1.12, top - 0.03, wide * 1.12, top + 0.07, darker(clay, 0.88))


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
            pen.rectangle(left + wide * 0.08, y, left + wide * between(rng, 0.4, 0.92), y + high * 0.07, lighter(color, 0.6) if sum(color) < 450 else darker(color, 0.5))
    elif shows == "ball":
        pen.ellipse(left + wide * between(rng, 0.3, 0.7), top + high * 0.5, high * 0.25, high * 0.25, pick(rng, *ANY_COLOR))
    pen.polygon([(left, top), (left + wide * 0.3, top), (left + wide * 0.1, bottom), (left, bottom)], lighter(color, 0.22))
