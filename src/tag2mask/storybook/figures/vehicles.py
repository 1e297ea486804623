"""Car, bus, bicycle and motorbike. Wheels stand at y = 0; the front is on the right."""

from __future__ import annotations

import math

import numpy as np

from tag2mask.storybook.canvas import Color, Pen, Point
from tag2mask.storybook.figures.colors import (
    ANY_COLOR,
    BLACK,
    BLUE,
    BROWN,
    DARK_GLASS,
    GLASS,
    GRAY,
    GREEN,
    LAMP,
    ORANGE,
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

_PAINTS = (RED, BLUE, GREEN, YELLOW, WHITE, BLACK, GRAY, ORANGE, TEAL)
_REAR_LAMP = (190, 30, 30)


def wheel(pen: Pen, x: float, radius: float, spokes: int = 5) -> None:
    """A tyre with its rim, standing at y = 0."""
    part = pen.part()
    part.ellipse(x, -radius, radius, radius, RUBBER)
    part.ellipse(x, -radius, radius * 0.62, radius * 0.62, STEEL)
    for i in range(spokes):
        t = 2 * math.pi * i / spokes
        part.ellipse(
            x + radius * 0.38 * math.cos(t), -radius + radius * 0.38 * math.sin(t), radius * 0.13, radius * 0.13, GRAY
        )
    part.ellipse(x, -radius, radius * 0.16, radius * 0.16, darker(STEEL, 0.5))


def car(pen: Pen, rng: np.random.Generator, pose: str) -> None:
    """Saloon, hatchback, van, pick-up or beetle from the side, or any car from the front."""
    paint = pick(rng, *_PAINTS)
    if pose == "front" or (not pose and chance(rng, 0.25)):
        _car_front(pen, rng, paint)
        return
    glass = pick(rng, GLASS, DARK_GLASS, by=14)
    kind = one(rng, ("saloon", "saloon", "hatchback", "van", "pickup", "beetle"))
    half, roof, hip, nose = 0.8, -0.55, -0.34, -0.3
    half *= between(rng, 0.88, 1.12)
    roof *= between(rng, 0.92, 1.12)
    outline = [*_upper_outline(kind, half, roof, hip, nose), (half, nose + 0.08), (half, -0.1), (-half, -0.1)]
    pen.polygon(outline, paint)
    pen.polygon([(-half, -0.2), (half, -0.2), (half, -0.1), (-half, -0.1)], darker(paint, 0.72))
    pen.line([(-half * 0.95, hip + 0.05), (half * 0.93, nose + 0.04)], 0.02, lighter(paint))
    top = roof * (1.2 if kind == "van" else 1) + 0.05
    belt = hip + 0.015
    back = {"saloon": -0.6, "hatchback": -0.76, "van": 0.1, "pickup": -0.05, "beetle": -0.62}[kind] * half
    front = (0.62 if kind == "van" else 0.42) * half
    upper_back = back + (0.18 * half if kind in ("saloon", "beetle") else 0.08 * half)
    upper_front = front - (0.27 if kind != "van" else 0.2) * half
    post = (back + front) / 2 if kind not in ("pickup", "van") else back
    if post > back:
        pen.polygon([(back, belt), (upper_back, top), (post - 0.02, top), (post - 0.02, belt)], glass)
    pen.polygon([(post + 0.02, belt), (post + 0.02, top), (upper_front, top), (front, belt)], glass)
    pen.polygon(
        [(post + 0.05, belt), (post + 0.12, top), (post + 0.17, top), (post + 0.1, belt)], lighter(glass, 0.5)
    )
    for x in (post, post + 0.42 * half):
        pen.line([(x, belt + 0.02), (x, -0.13)], 0.012, darker(paint, 0.6))
    pen.rectangle(post + 0.03, belt + 0.05, post + 0.11, belt + 0.07, darker(paint, 0.5))
    pen.ellipse(half * 0.95, nose + 0.08, 0.05, 0.045, LAMP)
    pen.box(-half, hip + 0.06, -half + 0.05, hip + 0.15, _REAR_LAMP, 0.01)
    if chance(rng, 0.2):
        pen.rectangle(
            -half * 0.3, top - 0.12, half * 0.02, top - 0.05, pick(rng, YELLOW, BLUE, by=10)
        )  # taxi, police
    elif chance(rng, 0.2):
        pen.rectangle(-half * 0.98, -0.27, half * 0.98, -0.22, pick(rng, *ANY_COLOR))
    radius = between(rng, 0.13, 0.18)
    for x in (-half * 0.58, half * 0.6):
        pen.ellipse(x, -radius, radius * 1.22, radius * 1.22, darker(paint, 0.4))
        wheel(pen, x, radius)


def _upper_outline(kind: str, half: float, roof: float, hip: float, nose: float) -> list[Point]:
    """Of a car from the side: from its rear over the roof to its nose."""
    tops = {
        "saloon": [
            (-half, hip),
            (-half * 0.72, hip - 0.03),
            (-half * 0.45, roof),
            (half * 0.15, roof),
            (half * 0.48, hip - 0.02),
            (half * 0.95, nose),
        ],
        "hatchback": [
            (-half, hip),
            (-half * 0.9, hip - 0.05),
            (-half * 0.72, roof),
            (half * 0.15, roof),
            (half * 0.5, hip - 0.02),
            (half * 0.95, nose),
        ],
        "van": [(-half, roof * 1.2), (half * 0.4, roof * 1.2), (half * 0.72, hip - 0.06), (half * 0.97, nose)],
        "pickup": [
            (-half, hip),
            (-half * 0.15, hip),
            (-half * 0.1, roof),
            (half * 0.28, roof),
            (half * 0.5, hip - 0.02),
            (half * 0.97, nose),
        ],
        "beetle": [
            (-half, -0.2),
            (-half * 0.85, hip - 0.04),
            (-half * 0.45, roof),
            (half * 0.1, roof * 1.04),
            (half * 0.45, hip - 0.06),
            (half * 0.9, hip + 0.04),
        ],
    }
    return tops[kind]


def _car_front(pen: Pen, rng: np.random.Generator, paint: Color) -> None:
    half, roof = between(rng, 0.44, 0.55), between(rng, -0.8, -0.66)
    for side in (-1, 1):
        pen.part().box(side * half * 0.8 - 0.09, -0.25, side * half * 0.8 + 0.09, 0, RUBBER, 0.03)
        pen.ellipse(side * half * 1.08, -0.46, 0.07, 0.05, darker(paint, 0.8))  # mirrors
    pen.polygon([(-half * 0.68, roof), (half * 0.68, roof), (half * 0.95, -0.42), (-half * 0.95, -0.42)], paint)
    pen.box(-half, -0.46, half, -0.1, paint, 0.08)
    pen.rectangle(-half * 0.96, -0.2, half * 0.96, -0.1, darker(paint, 0.6))
    glass = pick(rng, GLASS, DARK_GLASS, by=14)
    pen.polygon(
        [(-half * 0.6, roof + 0.05), (half * 0.6, roof + 0.05), (half * 0.82, -0.45), (-half * 0.82, -0.45)], glass
    )
    pen.polygon(
        [(-half * 0.3, roof + 0.05), (-half * 0.1, roof + 0.05), (-half * 0.4, -0.45), (-half * 0.6, -0.45)],
        lighter(glass, 0.45),
    )
    for side in (-1, 1):
        pen.ellipse(side * half * 0.74, -0.31, 0.1, 0.065, LAMP)
        pen.ellipse(side * half * 0.74, -0.31, 0.05, 0.04, WHITE)
    pen.box(-half * 0.42, -0.35, half * 0.42, -0.23, BLACK, 0.03)
    for i in range(3):
        pen.rectangle(-half * 0.4, -0.335 + 0.035 * i, half * 0.4, -0.325 + 0.035 * i, STEEL)
    pen.rectangle(-0.12, -0.19, 0.12, -0.12, WHITE)


def bus(pen: Pen, rng: np.random.Generator, pose: str) -> None:
    """A tall box with a row of large windows: from the side, in three quarters, or from the front."""
    paint = pick(rng, RED, YELLOW, WHITE, GREEN, BLUE, ORANGE, TEAL)
    band = pick(rng, *ANY_COLOR)
    glass = pick(rng, GLASS, DARK_GLASS, by=12)
    view = pose or one(rng, ("side", "side", "three", "three", "front"))
    high = between(rng, 0.68, 0.84)
    if view == "front":
        _bus_front(pen.at(0, 0), rng, paint, band, glass, high, 0.36)
        return
    two_decks = chance(rng, 0.2)
    length = between(rng, 1.4, 1.9) * (0.75 if two_decks else 1)
    if two_decks:
        high = between(rng, 0.95, 1.1)
    if view == "three":
        length *= 0.72
    back, front = -length / 2, length / 2
    shrink = between(rng, 0.16, 0.3) if view == "three" else 0.0
    low = -0.1

    def at(u: float, v: float) -> Point:
        """u runs from the back to the front, v from the floor to the roof."""
        squeeze = shrink * (1 - u)
        return (back + (front - back) * u, low - (high - 0.1) * (v * (1 - squeeze) + squeeze * 0.35))

    def pane(u0: float, v0: float, u1: float, v1: float, color: Color) -> None:
        pen.polygon([at(u0, v0), at(u1, v0), at(u1, v1), at(u0, v1)], color)

    pane(0, 0, 1, 1, paint)
    pane(0, 0, 1, 0.14, darker(paint, 0.7))
    pane(0, 0.93, 1, 1, lighter(paint, 0.4))
    pane(0, 0.24, 1, 0.32, band)
    count = int(rng.integers(4, 7))
    for v0, v1 in ((0.36, 0.52), (0.66, 0.86)) if two_decks else ((0.44, 0.86),):
        for i in range(count):
            u = 0.04 + i * 0.8 / count
            pane(u, v0, u + 0.8 / count - 0.025, v1, glass)
            pane(u + 0.02, v0, u + 0.05, v1, lighter(glass, 0.45))
    pane(0.86, 0.06, 0.96, 0.86 if not two_decks else 0.52, darker(glass, 0.8))  # door
    pane(0.905, 0.06, 0.915, 0.8 if not two_decks else 0.52, darker(paint, 0.6))
    for u, size in ((0.2, 1 - shrink * 0.8), (0.74, 1.0)):
        x, y = at(u, 0)
        side = pen.at(x, y + 0.1 * size, size)
        side.ellipse(0, -0.13, 0.17, 0.17, darker(paint, 0.35))
        wheel(side, 0, 0.14)
    if view == "three":
        _bus_front(pen.at(front + 0.22, 0), rng, darker(paint, 0.88), band, glass, high, 0.22)
    else:
        pen.polygon([at(0.975, 0.42), at(1.0, 0.42), at(1.0, 0.9), at(0.975, 0.9)], darker(glass, 0.9))
        pen.ellipse(front - 0.03, -0.22, 0.035, 0.04, LAMP)
        pen.rectangle(back, -0.28, back + 0.025, -0.18, _REAR_LAMP)


def _bus_front(
    pen: Pen, rng: np.random.Generator, paint: Color, band: Color, glass: Color, high: float, half: float
) -> None:
    for side in (-1, 1):
        pen.part().box(side * half * 0.75 - half * 0.2, -0.2, side * half * 0.75 + half * 0.2, 0, RUBBER, 0.02)
    pen.box(-half, -high, half, -0.1, paint, half * 0.16)
    pen.rectangle(-half, -0.2, half, -0.1, darker(paint, 0.65))
    pen.rectangle(-half, -0.32, half, -0.27, band)
    pen.box(-half * 0.9, -high + 0.14, half * 0.9, -0.36, glass, half * 0.12)
    pen.polygon(
        [(-half * 0.5, -high + 0.15), (-half * 0.15, -high + 0.15), (-half * 0.5, -0.37), (-half * 0.85, -0.37)],
        lighter(glass, 0.4),
    )
    pen.rectangle(-half * 0.02, -high + 0.14, half * 0.02, -0.36, darker(paint, 0.5))
    pen.rectangle(-half * 0.6, -high + 0.04, half * 0.6, -high + 0.11, BLACK)
    pen.rectangle(-half * 0.4, -high + 0.06, half * between(rng, 0.1, 0.45), -high + 0.09, ORANGE)
    for side in (-1, 1):
        pen.ellipse(side * half * 0.74, -0.235, half * 0.16, 0.045, LAMP)
        pen.box(side * half * 1.13 - 0.035, -high + 0.16, side * half * 1.13 + 0.035, -high + 0.32, BLACK, 0.02)


def bicycle(pen: Pen, rng: np.random.Generator, pose: str) -> Point:
    """Two spoked rings and a frame; tells where the saddle is."""
    paint = pick(rng, RED, BLUE, GREEN, BLACK, YELLOW, WHITE, TEAL, ORANGE)
    radius, reach = between(rng, 0.27, 0.34), between(rng, 0.45, 0.56)
    tyre, tube = between(rng, 0.045, 0.075), between(rng, 0.045, 0.07)
    part = pen.part()
    for x in (-reach, reach):
        for i in range(5):
            t = math.pi * i / 5 + 0.2
            dx, dy = radius * math.cos(t), radius * math.sin(t)
            part.line([(x + dx, -radius + dy), (x - dx, -radius - dy)], 0.014, (165, 165, 170))
        part.ring(x, -radius, radius, tyre, RUBBER)
        part.ellipse(x, -radius, 0.04, 0.04, STEEL)
    crank, seat = (-0.05, -radius * 0.9), (-0.2, -radius - between(rng, 0.34, 0.46))
    head = (reach - 0.16, seat[1] + 0.02)
    low = chance(rng, 0.35)
    top = ((seat[0] + crank[0]) / 2, (seat[1] + crank[1]) / 2) if low else seat
    pen.line([(-reach, -radius), crank], tube, paint)
    pen.line([(-reach, -radius), (seat[0] + 0.02, seat[1] + 0.05)], tube * 0.8, paint)
    pen.line([top, (head[0] + 0.01, head[1] + 0.05)], tube, lighter(paint, 0.25))
    pen.line([(seat[0], seat[1] - 0.1), crank], tube, paint)
    pen.line([crank, (head[0] + 0.02, head[1] + 0.07)], tube, darker(paint, 0.8))
    pen.line([(reach, -radius), (head[0] - 0.02, head[1] - 0.08)], tube, paint)
    pen.ring(*crank, 0.075, 0.03, GRAY)
    turn = between(rng, 0, 3)
    dx, dy = 0.13 * math.cos(turn), 0.13 * math.sin(turn)
    pen.line([(crank[0] - dx, crank[1] - dy), (crank[0] + dx, crank[1] + dy)], 0.03, GRAY)
    bar = (head[0] - 0.02, head[1] - 0.08)
    grip = (0.15, 0.1) if chance(rng, 0.4) else (-0.14, -0.05)
    pen.limb([bar, (bar[0] + 0.08, bar[1] - 0.03), (bar[0] + grip[0], bar[1] + grip[1])], [0.04, 0.045, 0.05], BLACK)
    pen.blob(
        [(seat[0] - 0.14, seat[1] - 0.15), (seat[0] + 0.15, seat[1] - 0.1), (seat[0] - 0.08, seat[1] - 0.08)],
        pick(rng, BLACK, BROWN, by=12),
    )
    if chance(rng, 0.35):
        pen.box(head[0] + 0.07, head[1] - 0.1, head[0] + 0.32, head[1] + 0.1, (180, 140, 90), 0.03)  # basket
    if chance(rng, 0.3):
        pen.ring(-reach, -radius, radius * 1.14, 0.03, darker(paint, 0.7))  # mudguard
    return (seat[0], seat[1] - 0.15)


def motorbike(pen: Pen, rng: np.random.Generator, pose: str) -> Point:
    """Thick wheels, tank, engine, exhaust: a roadster, a chopper or a scooter; tells where the saddle is."""
    paint = pick(rng, RED, BLUE, BLACK, GREEN, ORANGE, YELLOW, WHITE)
    kind = one(rng, ("road", "road", "chopper", "scooter"))
    radius = {"road": 0.25, "chopper": 0.24, "scooter": 0.16}[kind] * between(rng, 0.92, 1.1)
    reach = {"road": 0.52, "chopper": 0.62, "scooter": 0.48}[kind] * between(rng, 0.94, 1.08)
    for x in (-reach, reach):
        wheel(pen, x, radius, 6)
        pen.part().ring(x, -radius, radius * 0.88, radius * 0.24, RUBBER)
    steel, seat_color = vary(rng, STEEL, 14), pick(rng, BLACK, BROWN, by=12)
    if kind == "scooter":
        pen.blob([(-0.72, -0.3), (-0.5, -0.46), (-0.05, -0.44), (0.0, -0.2), (-0.3, -0.14), (-0.6, -0.2)], paint)
        pen.box(-0.1, -0.2, 0.34, -0.12, darker(paint, 0.8), 0.03)
        pen.polygon([(0.26, -0.12), (0.36, -0.12), (0.46, -0.62), (0.32, -0.68)], paint)
        pen.box(-0.58, -0.54, -0.06, -0.44, seat_color, 0.04)
        pen.ellipse(0.42, -0.66, 0.07, 0.07, LAMP)
        pen.limb([(0.36, -0.66), (0.26, -0.78)], [0.05, 0.05], BLACK)
        pen.arc(reach, -radius, radius * 1.3, radius * 1.3, 190, 350, paint)
        return (-0.32, -0.54)
    pen.line([(reach, -radius), (reach - 0.22, -0.62)], 0.07, steel)
    pen.box(-0.2, -0.4, 0.18, -0.14, darker(steel, 0.55), 0.04)
    for i in range(3):
        pen.rectangle(-0.16, -0.36 + 0.07 * i, 0.14, -0.33 + 0.07 * i, steel)
    pen.limb([(0.05, -0.16), (-0.3, -0.13), (-reach - 0.18, -0.2)], [0.06, 0.06, 0.08], steel)
    pen.polygon(
        [(-reach, -radius), (-reach + 0.1, -0.42), (0.25, -0.42), (0.2, -0.34), (-reach + 0.2, -0.32)],
        darker(paint, 0.6),
    )
    pen.blob([(-0.12, -0.46), (0.02, -0.6), (0.28, -0.6), (0.36, -0.46), (0.1, -0.4)], paint)
    pen.blob([(0.0, -0.54), (0.1, -0.59), (0.26, -0.57), (0.1, -0.52)], lighter(paint, 0.5))
    pen.blob(
        [(-reach - 0.12, -0.56), (-0.2, -0.5), (-0.05, -0.48), (-0.1, -0.4), (-0.45, -0.4), (-reach - 0.05, -0.46)],
        seat_color,
    )
    pen.arc(reach, -radius, radius * 1.18, radius * 1.18, 215, 330, paint)
    pen.arc(-reach, -radius, radius * 1.18, radius * 1.18, 190, 300, darker(paint, 0.85))
    bar = (reach - 0.24, -0.66)
    up = 0.26 if kind == "chopper" else 0.08
    pen.limb([bar, (bar[0] - 0.03, bar[1] - up), (bar[0] - 0.15, bar[1] - up + 0.03)], [0.05, 0.045, 0.05], BLACK)
    if kind == "road" and chance(rng, 0.5):
        pen.polygon(
            [(reach - 0.32, -0.6), (reach - 0.2, -0.82), (reach + 0.02, -0.6), (reach - 0.05, -0.46)],
            lighter(paint, 0.15),
        )
    pen.part().ellipse(reach - 0.12, -0.58, 0.075, 0.08, LAMP)
    return (-0.28, -0.5)
