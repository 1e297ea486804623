"""Horse, cow, sheep, dog and cat. Feet stand at y = 0; the head is on the right; a body is about 1 long."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tag2mask.storybook.canvas import Color, Pen, Point
from tag2mask.storybook.figures.colors import (
    BLACK,
    BROWN,
    CREAM,
    DARK_WOOD,
    EYE,
    GRAY,
    ORANGE,
    RED,
    WHITE,
    between,
    chance,
    darker,
    lighter,
    one,
    pick,
    vary,
)

PINK_SKIN = (225, 160, 150)


@dataclass(frozen=True)
class _Build:
    """Half the body's length, its height at chest and flank, and length and width of a leg."""

    half: float
    chest: float
    flank: float
    leg: float
    thick: float

    @property
    def back(self) -> float:
        """Height of the back; up is negative."""
        return -self.leg - self.chest


def _built(rng: np.random.Generator, build: _Build, lying: bool) -> _Build:
    """Long or short, fat or thin; who lies has no legs to stand on."""
    fat = between(rng, 0.85, 1.2)
    build = replace(
        build,
        half=build.half * between(rng, 0.86, 1.16),
        chest=build.chest * fat,
        flank=build.flank * fat * between(rng, 0.92, 1.08),
        leg=build.leg * between(rng, 0.82, 1.15),
        thick=build.thick * between(rng, 0.85, 1.2),
    )
    return replace(build, leg=0.03) if lying else build


def _legs(pen: Pen, rng: np.random.Generator, build: _Build, color: Color, hoof: Color, pose: str, far: bool) -> None:
    """The two legs of the far or the near side."""
    hip = -build.leg - build.flank * 0.4
    if far:
        color, hoof = darker(color, 0.72), darker(hoof, 0.72)
    if pose == "lie":
        if not far:
            for x in (build.half * 0.6, -build.half * 0.55):
                pen.limb([(x, -0.07), (x + 0.26, -0.05)], [build.thick * 1.5, build.thick], color)
        return
    step = between(rng, 0.1, 0.2) if pose == "walk" else between(rng, 0, 0.05)
    for side, x in ((1, build.half * 0.72), (-1, -build.half * 0.74)):
        shift = step * (side if far else -side) + (0.06 if far else 0)
        bend = (0.03 if side > 0 else -0.05) * (1 + 3 * step)
        foot = (x + shift, -build.thick * 0.35)
        knee = (x + shift * 0.45 + bend, (hip + foot[1]) * 0.46)
        widths = [build.thick * (1.7 if side < 0 else 1.45), build.thick, build.thick * 0.8]
        pen.limb([(x, hip), knee, foot], widths, color)
        pen.rectangle(foot[0] - build.thick * 0.5, -build.thick * 0.5, foot[0] + build.thick * 0.65, 0, hoof)


def _body(pen: Pen, build: _Build, coat: Color) -> None:
    """The trunk, lit from above."""
    half, back, leg = build.half, build.back, build.leg
    deep = -leg - build.chest + build.flank

    def trunk(drop: float) -> list[Point]:
        low, mid = -leg - build.chest * drop, deep - build.flank * drop
        return [
            (-half, back + build.flank * 0.45),
            (-half * 0.86, back + 0.03),
            (-half * 0.2, back + 0.035),
            (half * 0.6, back),
            (half * 0.95, back + build.chest * 0.3),
            (half * 0.93, low - build.chest * 0.25),
            (half * 0.55, low),
            (-half * 0.35, mid + 0.02),
            (-half * 0.85, mid - 0.01),
        ]

    pen.blob(trunk(0), darker(coat, 0.78))
    pen.blob(trunk(0.22), coat)


def _patches(pen: Pen, rng: np.random.Generator, build: _Build, color: Color, count: int, size: float) -> None:
    for _ in range(count):
        x, y = between(rng, -0.72, 0.6) * build.half, build.back + between(rng, 0.3, 0.65) * build.flank
        rx, ry = between(rng, 0.5, 1.2) * size, between(rng, 0.4, 0.8) * size
        pen.ellipse(x, y, rx, min(ry, build.flank * 0.3), color, angle=between(rng, -30, 30))


def _stripes(pen: Pen, build: _Build, color: Color) -> None:
    for i in range(6):
        x = build.half * (-0.75 + 0.26 * i)
        top = build.back + 0.035
        pen.polygon([(x - 0.025, top), (x + 0.025, top), (x - 0.01, top + build.flank * 0.6)], color)


def horse(pen: Pen, rng: np.random.Generator, pose: str) -> Point:
    """Long legs and neck, mane and full tail; stands, walks or grazes."""
    build = _built(rng, _Build(0.5, 0.34, 0.29, 0.52, 0.075), False)
    pose = pose or one(rng, ("stand", "walk", "walk", "graze"))
    coat = pick(rng, BROWN, DARK_WOOD, WHITE, (65, 55, 55), (185, 130, 75), GRAY, by=18)
    mane, hoof = pick(rng, darker(coat, 0.45), (235, 220, 180), BLACK, by=8), (50, 45, 42)
    legs = coat if chance(rng, 0.5) else darker(coat, 0.55)
    _legs(pen, rng, build, legs, hoof, pose, True)
    rump = (-build.half * 0.95, build.back + 0.08)
    swish = between(rng, 0, 0.14)
    pen.blob(
        [
            rump,
            (rump[0] - 0.1 - swish, rump[1] + 0.12),
            (rump[0] - 0.08 - swish, rump[1] + 0.48),
            (rump[0], rump[1] + 0.3),
        ],
        mane,
    )
    up = pose != "graze"
    reach = between(rng, 0.9, 1.15)
    root = (build.half * 0.72, build.back + 0.12)
    poll = (root[0] + 0.3 * reach, root[1] - 0.42 * reach) if up else (root[0] + 0.45, root[1] + 0.42 * reach)
    pen.limb([root, poll], [0.3, 0.15], darker(coat, 0.9))
    _body(pen, build, coat)
    if chance(rng, 0.25):
        _patches(pen, rng, build, pick(rng, WHITE, BROWN, by=10), 4, 0.13)
    _legs(pen, rng, build, legs, hoof, pose, False)
    offset = (-0.07, -0.02) if up else (0.03, -0.08)
    pen.limb(
        [(root[0] + offset[0] * 1.6, root[1] + offset[1] * 2), (poll[0] + offset[0] * 0.9, poll[1] + offset[1])],
        [0.1, 0.09],
        mane,
    )
    face = pen.part().at(*poll, 1.0, 48 if up else 75)
    for x in (-0.06, 0.0):
        face.polygon([(x - 0.03, -0.05), (x - 0.05, -0.2), (x + 0.04, -0.05)], darker(coat, 0.85))
    face.blob([(-0.1, -0.05), (0.08, -0.1), (0.34, -0.05), (0.38, 0.03), (0.3, 0.085), (0.05, 0.11)], coat)
    face.blob([(0.27, -0.05), (0.38, -0.02), (0.37, 0.06), (0.28, 0.08)], darker(coat, 0.6))
    if chance(rng, 0.4):
        face.limb([(0.05, -0.07), (0.25, -0.04)], [0.035, 0.03], WHITE)
    face.ellipse(0.08, -0.03, 0.022, 0.02, EYE)
    pen.ellipse(poll[0] - 0.01, poll[1] - 0.06, 0.05, 0.05, mane)
    return (0.0, build.back + 0.02)


def cow(pen: Pen, rng: np.random.Generator, pose: str) -> Point:
    """A box of a body on short legs, horns, udder, broad muzzle; stands, grazes or lies."""
    pose = pose or one(rng, ("stand", "walk", "graze", "lie"))
    build = _built(rng, _Build(0.58, 0.44, 0.42, 0.3, 0.1), pose == "lie")
    coat = pick(rng, WHITE, WHITE, BROWN, CREAM, (170, 95, 60), BLACK, by=14)
    pale = sum(coat) > 500
    spots = pick(rng, (45, 40, 42), (120, 70, 40), by=10) if pale else WHITE
    legs, hoof = darker(coat, 0.92), (60, 50, 45)
    _legs(pen, rng, build, legs, hoof, pose, True)
    rump = (-build.half * 0.97, build.back + 0.06)
    tip = (rump[0] - between(rng, 0.03, 0.16), min(rump[1] + 0.45, -0.06))
    pen.limb([rump, (rump[0] - 0.06, rump[1] + 0.08), tip], [0.05, 0.035, 0.03], coat)
    pen.ellipse(tip[0], tip[1], 0.04, 0.07, darker(spots, 0.7) if pale else BLACK)
    if pose != "lie" and chance(rng, 0.7):
        pen.ellipse(-build.half * 0.42, -build.leg + 0.02, 0.13, 0.09, PINK_SKIN)
    head = (build.half + 0.16, build.back + between(rng, -0.06, 0.1))
    if pose == "graze":
        head = (build.half + 0.2, -0.24)
    pen.limb([(build.half * 0.65, build.back + 0.17), head], [0.36, 0.2], darker(coat, 0.88))
    _body(pen, build, coat)
    pen.blob(  # square shoulders and hips
        [(-build.half, build.back + 0.2), (-build.half * 0.9, build.back), (-build.half * 0.6, build.back + 0.1)],
        coat,
    )
    if chance(rng, 0.75):
        _patches(pen, rng, build, spots, int(rng.integers(3, 6)), 0.16)
    _legs(pen, rng, build, legs, hoof, pose, False)
    face = pen.part().at(*head, between(rng, 0.9, 1.15), 75 if pose == "graze" else between(rng, 25, 45))
    horn = pick(rng, (238, 228, 200), (120, 105, 90), by=8)
    if chance(rng, 0.85):
        for x, tip_x in ((-0.1, -0.16), (0.02, 0.1)):
            face.limb([(x, -0.1), (tip_x, -0.18), (tip_x + 0.05, -0.27)], [0.06, 0.045, 0.02], horn)
    face.ellipse(-0.17, -0.07, 0.1, 0.05, darker(coat, 0.75), angle=20)
    face.blob([(-0.13, -0.1), (0.05, -0.13), (0.2, -0.07), (0.27, 0.02), (0.18, 0.12), (-0.05, 0.12)], coat)
    if pale and chance(rng, 0.6):
        face.blob([(-0.12, -0.08), (0.04, -0.11), (0.08, 0.02), (-0.06, 0.06)], spots)
    face.ellipse(0.23, 0.03, 0.085, 0.095, PINK_SKIN if chance(rng, 0.7) else (90, 75, 70))
    face.ellipse(0.27, 0.0, 0.014, 0.02, EYE)
    face.ellipse(0.04, -0.04, 0.026, 0.026, WHITE)
    face.ellipse(0.045, -0.04, 0.018, 0.018, EYE)
    return (0.0, build.back)


def sheep(pen: Pen, rng: np.random.Generator, pose: str) -> Point:
    """A cloud of wool on thin short legs with a small bare face."""
    pose = pose or one(rng, ("stand", "walk", "graze", "lie"))
    build = _built(rng, _Build(0.42, 0.42, 0.4, 0.22, 0.06), pose == "lie")
    wool = pick(rng, (234, 230, 220), (234, 230, 220), (205, 190, 165), (95, 85, 80), by=12)
    face_color = pick(rng, (52, 48, 50), (52, 48, 50), (215, 195, 180), by=10)
    _legs(pen, rng, build, face_color, darker(face_color, 0.6), pose, True)
    _legs(pen, rng, build, face_color, darker(face_color, 0.6), pose, False)
    middle = -build.leg - build.chest * 0.5
    bumps = 11
    shade = darker(wool, 0.8)
    ring = []
    for i in range(bumps):
        angle = 2 * np.pi * (i + between(rng, -0.2, 0.2)) / bumps
        ring.append((build.half * 0.82 * float(np.cos(angle)), middle + build.chest * 0.36 * float(np.sin(angle))))
    size = build.chest * 0.3
    pen.ellipse(0, middle, build.half * 0.9, build.chest * 0.45, shade)
    for x, y in ring:
        pen.ellipse(x, y, size, size * 0.85, shade if y > middle else wool)
    pen.ellipse(-0.02, middle - 0.04, build.half * 0.88, build.chest * 0.38, wool)
    for _ in range(7):  # curls
        x, y = between(rng, -0.65, 0.6) * build.half, middle + between(rng, -0.3, 0.22) * build.chest
        pen.arc(x, y, size * 0.42, size * 0.34, 20, 170, darker(wool, 0.88))
    head = (build.half + 0.06, middle - between(rng, 0.08, 0.26))
    if pose == "graze":
        head = (build.half + 0.1, -0.2)
    pen.ellipse(head[0] - 0.08, head[1] + 0.02, 0.17, 0.18, wool)
    face = pen.part().at(*head, between(rng, 0.9, 1.2), between(rng, 35, 60))
    face.ellipse(-0.06, 0.08, 0.11, 0.045, darker(face_color, 0.75), angle=60)
    face.ellipse(-0.07, -0.09, 0.1, 0.04, face_color, angle=-40)
    face.blob([(-0.1, -0.08), (0.08, -0.09), (0.2, -0.02), (0.18, 0.06), (0.04, 0.1), (-0.1, 0.08)], face_color)
    face.ellipse(-0.1, -0.04, 0.09, 0.08, wool)
    face.ellipse(0.04, -0.03, 0.026, 0.026, WHITE)
    face.ellipse(0.045, -0.03, 0.016, 0.016, EYE)
    face.ellipse(0.19, 0.01, 0.018, 0.014, darker(face_color, 0.5))
    return (0.0, build.back)


def dog(pen: Pen, rng: np.random.Generator, pose: str) -> Point:
    """A long snout with a black nose, hanging or pricked ears, tail up; stands, walks, sits or lies."""
    pose = pose or one(rng, ("stand", "walk", "walk", "sit", "lie"))
    coat = pick(rng, BROWN, WHITE, BLACK, (205, 165, 105), (165, 110, 60), GRAY, CREAM, by=16)
    second = pick(rng, WHITE, darker(coat, 0.5), (205, 165, 105), by=12)
    build = _built(rng, _Build(0.46, 0.27, 0.2, 0.3, 0.075), pose == "lie")
    if chance(rng, 0.25) and pose != "lie":
        build = replace(build, half=build.half * 1.15, leg=build.leg * 0.5)  # a dachshund
    if pose == "sit":
        head = _sitting_dog(pen, rng, coat, second)
    else:
        _legs(pen, rng, build, coat, darker(coat, 0.8), pose, True)
        rump = (-build.half * 0.92, build.back + 0.07)
        curl = between(rng, -0.1, 0.12)
        pen.limb(
            [rump, (rump[0] - 0.14, rump[1] - 0.14), (rump[0] - 0.12 + curl, rump[1] - 0.3)], [0.08, 0.07, 0.04], coat
        )
        head = (build.half + 0.13, build.back - between(rng, 0.08, 0.22))
        pen.limb([(build.half * 0.68, build.back + 0.13), head], [0.26, 0.18], darker(coat, 0.9))
        _body(pen, build, coat)
        if chance(rng, 0.4):
            _patches(pen, rng, build, second, 3, 0.1)
        _legs(pen, rng, build, coat, second if chance(rng, 0.3) else darker(coat, 0.8), pose, False)
        if chance(rng, 0.5):
            x, y = build.half * 0.68 + 0.12, build.back + 0.02
            pen.line([(x - 0.08, y - 0.1), (x + 0.09, y + 0.1)], 0.05, pick(rng, RED, (60, 90, 200), by=20))
    _dog_head(pen.part().at(*head, between(rng, 0.95, 1.25), between(rng, -12, 14)), rng, coat, second)
    return (0.0, build.back)


def _sitting_dog(pen: Pen, rng: np.random.Generator, coat: Color, second: Color) -> Point:
    """Haunches down, forelegs straight; gives the place of the head."""
    wag = between(rng, -0.12, 0.1)
    pen.limb([(-0.25, -0.08), (-0.46, -0.06), (-0.56, -0.2 + wag)], [0.08, 0.07, 0.04], coat)
    pen.blob(
        [(-0.3, -0.05), (-0.33, -0.25), (-0.12, -0.55), (0.12, -0.72), (0.22, -0.5), (0.18, -0.15), (0, 0)], coat
    )
    pen.limb([(0.14, -0.45), (0.2, -0.2), (0.2, -0.04)], [0.15, 0.085, 0.08], darker(coat, 0.8))
    pen.limb([(0.08, -0.45), (0.12, -0.2), (0.12, -0.04)], [0.15, 0.09, 0.085], coat)
    pen.blob([(-0.3, -0.04), (-0.3, -0.26), (-0.12, -0.34), (0.02, -0.2), (-0.02, -0.03)], darker(coat, 0.86))
    pen.limb([(-0.12, -0.035), (0.04, -0.035)], [0.07, 0.07], coat)
    if chance(rng, 0.5):
        pen.blob([(0.08, -0.6), (0.2, -0.55), (0.2, -0.35), (0.12, -0.3)], second)
    return (0.12, -0.78)


def _dog_head(face: Pen, rng: np.random.Generator, coat: Color, second: Color) -> None:
    snout = between(rng, 0.26, 0.36)
    hanging = chance(rng, 0.65)
    ear = darker(coat, 0.62) if chance(rng, 0.6) else second
    if not hanging:
        face.polygon([(-0.1, -0.1), (-0.12, -0.33), (0.03, -0.12)], darker(ear, 0.85))
    face.blob([(-0.16, -0.02), (-0.08, -0.15), (0.08, -0.14), (0.15, -0.04), (0.1, 0.12), (-0.08, 0.13)], coat)
    muzzle = second if chance(rng, 0.3) else coat
    face.blob([(0.05, -0.07), (snout, -0.03), (snout + 0.03, 0.05), (snout - 0.06, 0.1), (0.02, 0.12)], muzzle)
    if chance(rng, 0.35):
        face.blob(
            [(snout - 0.12, 0.08), (snout - 0.04, 0.08), (snout - 0.06, 0.2), (snout - 0.11, 0.19)], (215, 95, 105)
        )
    face.ellipse(snout + 0.01, -0.015, 0.045, 0.035, EYE)
    if chance(rng, 0.25):
        face.ellipse(0.05, -0.05, 0.06, 0.06, second)
    face.ellipse(0.06, -0.05, 0.026, 0.028, EYE)
    face.ellipse(0.067, -0.058, 0.009, 0.009, WHITE)
    if hanging:
        face.blob([(-0.12, -0.13), (-0.02, -0.1), (-0.04, 0.12), (-0.12, 0.2), (-0.17, 0.06)], ear)
    else:
        face.polygon([(-0.14, -0.08), (-0.05, -0.32), (0.02, -0.1)], ear)


def cat(pen: Pen, rng: np.random.Generator, pose: str) -> Point:
    """A round face seen from the front, pointed ears, whiskers, a long tail; stands, walks, sits or lies."""
    pose = pose or one(rng, ("stand", "walk", "sit", "sit", "lie"))
    coat = pick(rng, ORANGE, GRAY, BLACK, WHITE, (190, 150, 110), CREAM, by=16)
    dark = darker(coat, 0.6) if sum(coat) > 200 else lighter(coat, 0.2)
    striped = chance(rng, 0.5)
    build = _built(rng, _Build(0.4, 0.2, 0.19, 0.2, 0.065), pose == "lie")
    wave = between(rng, -0.12, 0.12)
    if pose == "sit":
        pen.limb(
            [(-0.15, -0.06), (-0.4, -0.05), (-0.5, -0.25), (-0.42 + wave, -0.42)], [0.08, 0.07, 0.06, 0.06], coat
        )
        fat = between(rng, 0.85, 1.2)
        hip = 0.27 * fat
        pen.blob(
            [(-hip, -0.06), (-hip * 0.95, -0.28), (-0.1, -0.56), (0.12, -0.56), (hip, -0.28), (hip, -0.06), (0, 0)],
            coat,
        )
        pen.blob([(-hip, -0.05), (-hip, -0.24), (-0.12, -0.1), (-0.1, 0)], darker(coat, 0.82))
        pen.blob([(hip, -0.05), (hip, -0.24), (0.12, -0.1), (0.1, 0)], darker(coat, 0.82))
        for x in (-0.065, 0.065):
            pen.limb([(x, -0.36), (x, -0.04)], [0.1, 0.09], coat)
            pen.ellipse(x, -0.03, 0.055, 0.035, lighter(coat, 0.35))
        if chance(rng, 0.5):
            pen.ellipse(0, -0.42, 0.1, 0.13, lighter(coat, 0.5))
        head = (0.0, -0.62)
    else:
        _legs(pen, rng, build, coat, lighter(coat, 0.3), pose, True)
        rump = (-build.half * 0.9, build.back + 0.06)
        end = (rump[0] - 0.2 + wave, rump[1] - 0.42) if pose != "lie" else (rump[0] + 0.1, -0.04)
        middle = (rump[0] - 0.2, rump[1] - 0.16) if pose != "lie" else (rump[0] - 0.14, -0.06)
        pen.limb([rump, middle, end], [0.075, 0.065, 0.055], coat)
        pen.ellipse(*end, 0.035, 0.045, dark)
        _body(pen, build, coat)
        if striped:
            _stripes(pen, build, dark)
        elif chance(rng, 0.4):
            _patches(pen, rng, build, pick(rng, WHITE, ORANGE, BLACK, by=14), 3, 0.09)
        _legs(pen, rng, build, coat, lighter(coat, 0.3), pose, False)
        head = (build.half + 0.07, build.back - between(rng, 0.02, 0.1))
        pen.limb([(build.half * 0.7, build.back + 0.1), head], [0.2, 0.18], coat)
    _cat_head(pen.part().at(*head, between(rng, 0.9, 1.2), between(rng, -12, 12)), rng, coat, dark, striped)
    return (0.0, build.back)


def _cat_head(face: Pen, rng: np.random.Generator, coat: Color, dark: Color, striped: bool) -> None:
    for side in (-1, 1):
        face.polygon([(side * 0.19, -0.04), (side * 0.18, -0.28), (side * 0.03, -0.13)], coat)
        face.polygon([(side * 0.16, -0.09), (side * 0.16, -0.22), (side * 0.07, -0.13)], PINK_SKIN)
    face.ellipse(0, 0, 0.21, 0.175, coat)
    if striped:
        for x in (-0.06, 0.0, 0.06):
            face.polygon([(x - 0.016, -0.165), (x + 0.016, -0.165), (x, -0.07)], dark)
        for side in (-1, 1):
            face.polygon([(side * 0.2, 0.0), (side * 0.2, 0.05), (side * 0.12, 0.03)], dark)
    face.ellipse(0, 0.075, 0.1, 0.07, lighter(coat, 0.45))
    iris = pick(rng, (150, 190, 70), (215, 175, 60), (110, 165, 200), by=12)
    for side in (-1, 1):
        face.ellipse(side * 0.085, -0.02, 0.045, 0.04, iris)
        face.ellipse(side * 0.085, -0.02, 0.016, 0.038, EYE)
        for rise in (-0.02, 0.03):
            face.line([(side * 0.08, 0.075), (side * 0.27, 0.06 + rise * 2)], 0.01, lighter(dark, 0.35))
    face.polygon([(-0.03, 0.04), (0.03, 0.04), (0, 0.075)], vary(rng, (215, 120, 120), 12))
    face.line([(0, 0.07), (0, 0.105), (0.045, 0.125)], 0.012, dark)
    face.line([(0, 0.105), (-0.045, 0.125)], 0.012, dark)
