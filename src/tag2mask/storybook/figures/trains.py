"""Trains: steam, express, tram, and trains that come towards us. They stand at y = 0, the front on the right."""

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
    DARK_GLASS,
    GLASS,
    GRAY,
    GREEN,
    LAMP,
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

_UNDER = (48, 46, 50)


def train(pen: Pen, rng: np.random.Generator, pose: str) -> None:
    """A steam engine, an express, a tram, or a train that comes towards us ("front", "three")."""
    kind = pose or one(rng, ("steam", "steam", "express", "express", "tram", "front", "three"))
    paint = pick(rng, RED, BLUE, GREEN, GRAY, WHITE, ORANGE, TEAL, CREAM)
    band, glass = pick(rng, *ANY_COLOR), pick(rng, GLASS, DARK_GLASS, by=12)
    if kind == "steam":
        _wagon(pen.at(-0.78, 0, 1), rng, pick(rng, RED, BROWN, GREEN, BLUE), band, glass, 0.42, int(rng.integers(3)))
        _steam_engine(pen.at(0.36, 0), rng, pick(rng, BLACK, GREEN, RED, BLUE, by=15))
    elif kind == "express":
        _wagon(pen.at(-0.66, 0), rng, paint, band, glass, 0.58, 0)
        pen.rectangle(-0.1, -0.4, -0.05, -0.12, _UNDER)
        _nose_car(pen.at(0.6, 0), rng, paint, band, glass)
    elif kind == "tram":
        half = between(rng, 0.6, 0.85)
        _wagon(pen, rng, paint, band, glass, half, 0)
        pen.box(-half - 0.08, -0.55, -half + 0.06, -0.14, paint, 0.06)
        pen.box(half - 0.06, -0.55, half + 0.08, -0.14, paint, 0.06)
        pen.box(half + 0.0, -0.5, half + 0.07, -0.3, glass, 0.02)
        _pantograph(pen, 0.1, -0.6)
    elif kind == "front":
        _train_face(pen, rng, paint, band, glass, 0.36, 0.9)
    else:
        _coming(pen, rng, paint, band, glass)


def _bogie(pen: Pen, x: float, wheels: int = 2, radius: float = 0.065) -> None:
    part = pen.part()
    for i in range(wheels):
        cx = x + (i - (wheels - 1) / 2) * radius * 2.4
        part.ellipse(cx, -radius, radius, radius, (62, 60, 64))
        part.ellipse(cx, -radius, radius * 0.45, radius * 0.45, STEEL)


def _pantograph(pen: Pen, x: float, y: float) -> None:
    pen.line([(x - 0.08, y), (x - 0.14, y - 0.12), (x - 0.02, y - 0.22)], 0.022, _UNDER)
    pen.line([(x - 0.1, y - 0.22), (x + 0.08, y - 0.22)], 0.025, _UNDER)


def _wagon(
    pen: Pen, rng: np.random.Generator, paint: Color, band: Color, glass: Color, half: float, load: int
) -> None:
    """A carriage (0), a tank (1) or an open wagon with its load (2)."""
    pen.rectangle(-half, -0.17, half, -0.1, _UNDER)
    for x in (-half * 0.62, half * 0.62):
        _bogie(pen, x)
    if load == 1:
        pen.box(-half, -0.48, half, -0.15, paint, 0.14)
        pen.rectangle(-half * 0.9, -0.24, half * 0.9, -0.17, darker(paint, 0.7))
        pen.rectangle(-0.06, -0.54, 0.06, -0.46, darker(paint, 0.8))
    elif load == 2:
        coal = pick(rng, BLACK, (150, 120, 80), by=15)
        for i in range(5):
            pen.ellipse(-half * 0.7 + i * half * 0.35, -0.38, half * 0.25, 0.09, coal)
        pen.polygon([(-half, -0.4), (half, -0.4), (half * 0.92, -0.14), (-half * 0.92, -0.14)], paint)
        for i in range(5):
            x = -half * 0.8 + i * half * 0.4
            pen.rectangle(x - 0.012, -0.4, x + 0.012, -0.14, darker(paint, 0.6))
    else:
        pen.rectangle(-half, -0.56, half, -0.14, paint)
        pen.rectangle(-half, -0.24, half, -0.14, darker(paint, 0.75))
        pen.box(-half, -0.61, half, -0.54, darker(paint, 0.55), 0.04)
        pen.rectangle(-half, -0.3, half, -0.26, band)
        count = max(2, int(half * 8))
        for i in range(count):
            left = -half * 0.93 + i * half * 1.86 / count
            pen.rectangle(left, -0.5, left + half * 1.35 / count, -0.34, glass)
        pen.rectangle(-half * 0.06, -0.51, half * 0.06, -0.15, darker(paint, 0.85))


def _steam_engine(pen: Pen, rng: np.random.Generator, paint: Color) -> None:
    trim = pick(rng, RED, YELLOW, (200, 160, 70), by=15)
    pen.rectangle(-0.62, -0.2, 0.62, -0.13, trim)
    pen.box(-0.3, -0.5, 0.55, -0.18, paint, 0.05)  # boiler
    pen.rectangle(-0.3, -0.47, 0.54, -0.43, lighter(paint, 0.35))
    pen.rectangle(-0.3, -0.26, 0.54, -0.18, darker(paint, 0.6))
    for x in (-0.12, 0.12, 0.36):
        pen.rectangle(x, -0.5, x + 0.03, -0.18, trim)
    high = between(rng, 0.72, 0.88)
    pen.polygon([(0.36, -0.48), (0.33, -high), (0.52, -high), (0.49, -0.48)], darker(paint, 0.8))  # chimney
    pen.rectangle(0.3, -high - 0.05, 0.55, -high, trim)
    pen.arc(0.05, -0.49, 0.1, 0.13, 180, 360, trim)
    pen.rectangle(-0.62, -0.72, -0.26, -0.18, paint)  # cab
    pen.rectangle(-0.55, -0.65, -0.34, -0.47, LAMP)
    pen.box(-0.68, -0.79, -0.2, -0.71, darker(paint, 0.5), 0.03)
    pen.ellipse(0.56, -0.36, 0.05, 0.15, darker(paint, 0.7))
    pen.ellipse(0.58, -0.54, 0.05, 0.05, LAMP)
    part = pen.part()
    radius = between(rng, 0.12, 0.15)
    for x in (-0.4, -0.1, 0.2):
        part.ellipse(x, -radius, radius, radius, darker(trim, 0.75))
        part.ellipse(x, -radius, radius * 0.75, radius * 0.75, (60, 56, 58))
        for i in range(3):
            t = math.pi * i / 3
            dx, dy = radius * 0.7 * math.cos(t), radius * 0.7 * math.sin(t)
            part.line([(x - dx, -radius - dy), (x + dx, -radius + dy)], 0.02, trim)
    part.ellipse(0.46, -0.075, 0.075, 0.075, (60, 56, 58))
    part.line([(-0.4, -radius), (0.4, -radius - 0.02)], 0.03, STEEL)
    pen.polygon([(0.56, -0.17), (0.66, -0.17), (0.78, -0.02), (0.56, -0.02)], trim)
    if chance(rng, 0.6):
        grey = pick(rng, WHITE, GRAY, by=15)
        for i in range(4):  # steam belongs to no class, but it is nothing we name either
            size = 0.09 + 0.035 * i
            pen.thing(0).ellipse(
                0.36 - 0.2 * i, -high - 0.14 - 0.09 * i, size * 1.2, size * 0.8, lighter(grey, 0.2 + 0.1 * i)
            )


def _nose_car(pen: Pen, rng: np.random.Generator, paint: Color, band: Color, glass: Color) -> None:
    sharp = between(rng, 0.15, 0.4)
    pen.rectangle(-0.65, -0.17, 0.5, -0.1, _UNDER)
    _bogie(pen, -0.42)
    _bogie(pen, 0.32)
    pen.polygon(
        [(-0.65, -0.6), (0.35, -0.6), (0.5, -0.52), (0.5 + sharp, -0.22), (0.48 + sharp, -0.13), (-0.65, -0.13)],
        paint,
    )
    pen.polygon([(-0.65, -0.23), (0.49 + sharp, -0.23), (0.48 + sharp, -0.13), (-0.65, -0.13)], darker(paint, 0.75))
    pen.polygon([(-0.65, -0.3), (0.42 + sharp, -0.3), (0.49 + sharp, -0.24), (-0.65, -0.24)], band)
    pen.box(-0.62, -0.52, 0.22, -0.35, glass, 0.03)
    for i in range(4):
        pen.rectangle(-0.46 + i * 0.2, -0.52, -0.43 + i * 0.2, -0.35, darker(paint, 0.8))
    pen.polygon([(0.33, -0.53), (0.47, -0.5), (0.44 + sharp * 0.5, -0.36), (0.33, -0.36)], darker(glass, 0.75))
    pen.ellipse(0.43 + sharp, -0.2, 0.035, 0.03, LAMP)
    if chance(rng, 0.6):
        _pantograph(pen, -0.3, -0.6)


def _train_face(
    pen: Pen, rng: np.random.Generator, paint: Color, band: Color, glass: Color, half: float, high: float
) -> None:
    """The front of a train: rounded roof, split screen, three lamps, buffers."""
    part = pen.part()
    for side in (-1, 1):
        part.box(side * half * 0.62 - half * 0.14, -0.12, side * half * 0.62 + half * 0.14, 0, (62, 60, 64), 0.02)
    pen.rectangle(-half * 0.86, -0.16, half * 0.86, -0.06, _UNDER)
    pen.blob(
        [
            (-half, -0.14),
            (-half, -high * 0.7),
            (-half * 0.55, -high * 0.97),
            (half * 0.55, -high * 0.97),
            (half, -high * 0.7),
            (half, -0.14),
        ],
        paint,
    )
    pen.rectangle(-half * 0.97, -0.3, half * 0.97, -0.13, darker(paint, 0.7))
    nose = pick(rng, YELLOW, RED, WHITE, band, by=12)
    pen.box(-half * 0.85, -high * 0.5, half * 0.85, -0.18, nose, half * 0.2)
    for side in (-1, 1):
        pen.box(
            min(side * half * 0.1, side * half * 0.8),
            -high * 0.82,
            max(side * half * 0.1, side * half * 0.8),
            -high * 0.56,
            glass,
            0.03,
        )
        pen.ellipse(side * half * 0.62, -0.27, half * 0.13, half * 0.13, LAMP)
        pen.ellipse(side * half * 0.5, -0.12, half * 0.17, half * 0.17, STEEL)
        pen.ellipse(side * half * 0.5, -0.12, half * 0.1, half * 0.1, _UNDER)
    pen.ellipse(0, -high * 0.89, half * 0.12, half * 0.1, LAMP)
    pen.rectangle(-half * 0.2, -0.1, half * 0.2, -0.04, BLACK)


def _coming(pen: Pen, rng: np.random.Generator, paint: Color, band: Color, glass: Color) -> None:
    """Two or three carriages that shrink into the distance behind the face."""
    vanish = (-between(rng, 1.3, 1.9), -between(rng, 0.25, 0.42))
    high, edge = 0.86, -0.02

    def at(u: float, y: float) -> Point:
        return (edge + (vanish[0] - edge) * u, y + (vanish[1] - y) * u)

    end = between(rng, 0.62, 0.78)
    pen.polygon([at(0, -0.16), at(end, -0.16), at(end, -0.02), at(0, -0.02)], _UNDER)
    pen.polygon([at(0, -0.14), at(0, -high * 0.93), at(end, -high * 0.93), at(end, -0.14)], darker(paint, 0.85))
    pen.polygon([at(0, -0.3), at(0, -0.22), at(end, -0.22), at(end, -0.3)], band)
    u = 0.05
    while u < end - 0.04:
        step = 0.085 * (1 - u)
        pen.polygon(
            [at(u, -high * 0.8), at(u + step, -high * 0.8), at(u + step, -high * 0.52), at(u, -high * 0.52)], glass
        )
        u += step * 1.4
    for u in (0.3, 0.52):
        pen.polygon([at(u, -high * 0.93), at(u + 0.015, -high * 0.93), at(u + 0.015, -0.1), at(u, -0.1)], _UNDER)
    _train_face(pen.at(0.26, 0), rng, paint, band, glass, 0.3, high)
