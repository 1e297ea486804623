"""People. A person is 1 high and stands at y = 0; seated ones have their seat there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tag2mask.storybook.canvas import Color, Pen, Point
from tag2mask.storybook.figures.colors import (
    ANY_COLOR,
    BLACK,
    BLUE,
    BROWN,
    CREAM,
    EYE,
    GRAY,
    GREEN,
    RED,
    WHITE,
    YELLOW,
    between,
    chance,
    darker,
    lighter,
    one,
    pick,
)

_SKINS = ((238, 195, 165), (205, 150, 115), (150, 100, 70), (95, 65, 50))
_HAIRS = ((40, 30, 26), (110, 70, 38), (222, 190, 110), (165, 75, 40), (170, 168, 165))


@dataclass(frozen=True)
class _Look:
    """What somebody wears and how broad they are."""

    skin: Color
    hair: Color
    shirt: Color
    second: Color
    trousers: Color
    shoes: Color
    pattern: str
    legs: str
    style: str
    hat: str
    width: float
    head: float


def _look(rng: np.random.Generator) -> _Look:
    shirt = pick(rng, *ANY_COLOR)
    return _Look(
        skin=pick(rng, *_SKINS, by=10),
        hair=pick(rng, *_HAIRS, by=12),
        shirt=shirt,
        second=pick(rng, *ANY_COLOR) if chance(rng, 0.5) else lighter(shirt, 0.55),
        trousers=pick(rng, BLUE, BLACK, BROWN, GRAY, CREAM, (60, 70, 110)),
        shoes=pick(rng, BLACK, BROWN, WHITE, RED, by=15),
        pattern=one(rng, ("plain", "plain", "stripes", "checks", "jacket", "dots")),
        legs=one(rng, ("trousers", "trousers", "skirt", "dress", "shorts")),
        style=one(rng, ("short", "short", "long", "bun", "bald")),
        hat=one(rng, ("", "", "", "cap", "brim", "beanie")),
        width=between(rng, 0.8, 1.3),
        head=between(rng, 0.1, 0.135),
    )


def person(pen: Pen, rng: np.random.Generator, pose: str) -> Point | None:
    """Stands, walks or waves, from the front or the side; sits on a chair ("sit") or rides ("ride")."""
    look = _look(rng)
    pose = pose or one(rng, ("stand", "stand", "wave", "walk", "walk"))
    if pose in ("sit", "ride", "helmet"):
        _seated(pen, rng, look, pose)
    elif pose == "walk":
        _from_the_side(pen, rng, look)
    else:
        _from_the_front(pen, rng, look, pose)
    return None


def _from_the_front(pen: Pen, rng: np.random.Generator, look: _Look, pose: str) -> None:
    w = look.width
    spread = between(rng, 0.03, 0.1)
    bare = look.legs in ("skirt", "dress", "shorts")
    for side in (-1, 1):
        foot = (side * (0.045 * w + spread), -0.03)
        top = (side * 0.055 * w, -0.45)
        pen.limb([top, foot], [0.1 * w, 0.065], look.skin if bare else look.trousers)
        pen.ellipse(foot[0] + side * 0.015, -0.022, 0.05, 0.024, look.shoes)
        if look.legs == "shorts":
            pen.limb([top, (foot[0] * 0.75, -0.28)], [0.12 * w, 0.1 * w], look.trousers)
    shoulder = (0.13 * w, -0.75)
    raised = pose == "wave"
    for side in (-1, 1):
        hand = (side * (0.19 * w + between(rng, 0, 0.1)), -between(rng, 0.38, 0.5))
        if raised and side == 1:
            hand = (side * (0.2 * w + between(rng, 0, 0.12)), -between(rng, 0.95, 1.12))
        elif chance(rng, 0.15):
            hand = (side * 0.08, -0.5)
        elbow = (side * (0.2 * w + 0.03), (shoulder[1] + hand[1]) / 2)
        pen.limb(
            [(side * shoulder[0], shoulder[1] + 0.02), elbow, hand], [0.085, 0.075, 0.05], darker(look.shirt, 0.85)
        )
        pen.ellipse(*hand, 0.036, 0.04, look.skin)
    _trunk(pen, look)
    _face(pen.part().at(0, -0.79 - look.head, look.head, between(rng, -6, 6)), rng, look, "front")


def _trunk(pen: Pen, look: _Look) -> None:
    """The upper body, with whatever is worn over the legs, darker on one side."""
    w = look.width
    pen.rectangle(-0.035, -0.83, 0.035, -0.74, darker(look.skin, 0.85))
    if look.legs == "skirt":
        pen.polygon([(-0.1 * w, -0.48), (0.1 * w, -0.48), (0.19 * w, -0.24), (-0.19 * w, -0.24)], look.trousers)
    if look.legs == "dress":
        pen.polygon(
            [(-0.1 * w, -0.52), (0.1 * w, -0.52), (0.2 * w, -0.2), (-0.2 * w, -0.2)], darker(look.shirt, 0.92)
        )
    half, waist = 0.15 * w, 0.115 * w
    pen.blob(
        [
            (-half, -0.75),
            (-0.07, -0.79),
            (0.07, -0.79),
            (half, -0.75),
            (waist, -0.55),
            (waist, -0.43),
            (-waist, -0.43),
            (-waist, -0.55),
        ],
        look.shirt,
    )
    pen.polygon([(half * 0.55, -0.78), (half, -0.73), (waist, -0.44), (waist * 0.5, -0.43)], darker(look.shirt, 0.8))
    if look.pattern in ("stripes", "checks"):
        for i in range(4):
            y = -0.72 + i * 0.075
            pen.rectangle(-waist, y, waist, y + 0.028, look.second)
    if look.pattern == "checks":
        for x in (-0.6, 0.0, 0.6):
            pen.rectangle(waist * x - 0.012, -0.76, waist * x + 0.012, -0.44, darker(look.second, 0.8))
    elif look.pattern == "dots":
        for i in range(9):
            pen.ellipse(waist * (-0.65 + 0.65 * (i % 3)), -0.71 + 0.1 * (i // 3), 0.018, 0.018, look.second)
    elif look.pattern == "jacket":
        pen.polygon([(-0.035, -0.79), (0.035, -0.79), (0.02, -0.44), (-0.02, -0.44)], look.second)
    if look.legs != "dress":
        pen.rectangle(-waist, -0.455, waist, -0.425, darker(look.trousers, 0.7))


def _from_the_side(pen: Pen, rng: np.random.Generator, look: _Look) -> None:
    """Walking to the right."""
    w, stride = look.width, between(rng, 0.08, 0.2)
    swing = between(rng, 0.05, 0.18)
    leg = look.skin if look.legs in ("skirt", "dress", "shorts") else look.trousers
    _arm(pen, look, (0, -0.72), -swing, 0.7)
    for side, tone in ((-1, 0.75), (1, 1.0)):
        color = darker(leg, tone)
        foot = (side * stride, -0.035)
        knee = (side * stride * 0.5 + 0.03, -0.25)
        pen.limb([(0, -0.46), knee, foot], [0.13 * w, 0.095, 0.065], color)
        pen.limb([(foot[0], -0.025), (foot[0] + 0.07, -0.022)], [0.05, 0.04], darker(look.shoes, tone))
        if look.legs == "shorts":
            pen.limb([(0, -0.46), (knee[0], -0.3)], [0.15 * w, 0.13 * w], darker(look.trousers, tone))
    pen.rectangle(-0.035, -0.83, 0.03, -0.74, darker(look.skin, 0.85))
    if look.legs in ("skirt", "dress"):
        cloth = look.trousers if look.legs == "skirt" else darker(look.shirt, 0.92)
        pen.polygon([(-0.085 * w, -0.5), (0.085 * w, -0.5), (0.16 * w + 0.04, -0.22), (-0.16 * w, -0.22)], cloth)
    back, belly = -0.09 * w, 0.1 * w * look.width
    pen.blob(
        [(back, -0.73), (0, -0.79), (belly * 0.9, -0.7), (belly, -0.55), (belly * 0.8, -0.43), (back, -0.43)],
        look.shirt,
    )
    pen.blob([(back, -0.73), (back * 0.3, -0.76), (back * 0.2, -0.45), (back, -0.44)], darker(look.shirt, 0.8))
    if look.pattern in ("stripes", "checks"):
        for i in range(4):
            pen.rectangle(back, -0.7 + i * 0.07, belly * 0.85, -0.675 + i * 0.07, look.second)
    _arm(pen, look, (0, -0.72), swing, 1.0)
    if chance(rng, 0.2):
        pen.box(back - 0.12, -0.76, back + 0.01, -0.5, look.second, 0.04)  # rucksack
    _face(pen.part().at(0.015, -0.79 - look.head, look.head, between(rng, -6, 8)), rng, look, "side")


def _arm(pen: Pen, look: _Look, shoulder: Point, swing: float, tone: float) -> None:
    x, y = shoulder
    hand = (x + swing + 0.04, y + 0.32)
    pen.limb(
        [shoulder, (x + swing * 0.4 - 0.02, y + 0.17), hand], [0.085, 0.075, 0.05], darker(look.shirt, tone * 0.9)
    )
    pen.ellipse(*hand, 0.036, 0.036, darker(look.skin, tone))


def _seated(pen: Pen, rng: np.random.Generator, look: _Look, pose: str) -> None:
    """Seen from the side, the seat at (0, 0): shins hang down from a chair or grip a mount."""
    lean = between(rng, 0.02, 0.09) if pose == "sit" else between(rng, 0.04, 0.16)
    color = look.trousers
    sits = pose == "sit"
    knee = (0.22, -0.06) if sits else (0.15, 0.1)
    foot = (0.22 + between(rng, -0.06, 0.08), 0.2) if sits else (0.06, 0.3)
    for tone in (0.72, 1.0):
        shift = 0.03 if tone < 1 else 0.0
        pen.limb([(-0.02, -0.06), (knee[0] + shift, knee[1])], [0.15, 0.105], darker(color, tone))
        pen.limb([(knee[0] + shift, knee[1]), (foot[0] + shift, foot[1])], [0.095, 0.065], darker(color, tone))
        pen.limb(
            [(foot[0] + shift, foot[1] + 0.01), (foot[0] + 0.07 + shift, foot[1] + 0.012)], [0.05, 0.04], look.shoes
        )
    w = look.width
    shoulder = (lean, -0.36)
    hand = (0.3, -0.16) if not sits else (0.2, -0.1 - between(rng, 0, 0.15))
    pen.limb([shoulder, (shoulder[0] + 0.1, -0.22), hand], [0.08, 0.07, 0.05], darker(look.shirt, 0.7))
    pen.rectangle(lean - 0.02, -0.47, lean + 0.045, -0.36, darker(look.skin, 0.85))
    back = -0.09 * w
    pen.blob(
        [
            (back, 0),
            (back + lean * 0.3, -0.2),
            (shoulder[0] - 0.08, -0.38),
            (shoulder[0] + 0.03, -0.42),
            (shoulder[0] + 0.1 * w, -0.32),
            (0.1 * w, -0.12),
            (0.09, 0.0),
        ],
        look.shirt,
    )
    if look.pattern in ("stripes", "checks"):
        for i in range(3):
            pen.rectangle(-0.06, -0.3 + i * 0.08, 0.08, -0.27 + i * 0.08, look.second)
    pen.limb([shoulder, (shoulder[0] + 0.08, -0.2), hand], [0.085, 0.075, 0.05], darker(look.shirt, 0.9))
    pen.ellipse(*hand, 0.035, 0.035, look.skin)
    face = pen.part().at(lean + 0.02, -0.43 - look.head, look.head, between(rng, -4, 8))
    _face(face, rng, look, "helmet" if pose == "helmet" else "side")


def _face(face: Pen, rng: np.random.Generator, look: _Look, view: str) -> None:
    """A head of radius 1 around (0, 0)."""
    side = 0.0 if view == "front" else 0.32
    hair = look.hair
    if look.style == "long":
        face.blob([(-1, -0.3), (-0.6, -1), (0.6, -1), (1 - side, -0.2), (0.95 - side * 2.2, 1.3), (-1, 1.4)], hair)
    elif look.style == "bun":
        face.ellipse(-0.2 - side * 1.8, -0.9, 0.42, 0.42, hair)
    face.ellipse(0, 0, 0.82, 1.0, look.skin)
    face.arc(0, 0, 0.82, 1.0, -10, 100, darker(look.skin, 0.9))
    face.ellipse(-0.05, -0.1, 0.74, 0.85, look.skin)
    if view == "front":
        for x in (-0.82, 0.82):
            face.ellipse(x, 0.05, 0.14, 0.2, darker(look.skin, 0.92))
    else:
        face.polygon([(0.7, -0.1), (1.02, 0.25), (0.72, 0.3)], look.skin)  # nose
        face.ellipse(-0.12, 0.1, 0.13, 0.2, darker(look.skin, 0.85))
    if look.style != "bald":
        face.arc(-side * 0.4, -0.15, 0.95, 0.95, 180, 360, hair)
        if view != "front":
            face.blob([(-0.95, -0.3), (-0.3, -0.6), (-0.3, 0.1), (-0.6, 0.6), (-0.9, 0.3)], hair)
        elif chance(rng, 0.5):
            face.polygon([(-0.9, -0.2), (-0.2, -0.6), (-0.85, 0.25)], hair)
    eyes = (-0.33, 0.33) if view == "front" else (0.42,)
    for x in eyes:
        face.ellipse(x, -0.02, 0.17, 0.13, (245, 245, 242))
        face.ellipse(x + side * 0.12, -0.02, 0.1, 0.12, EYE)
        face.line([(x - 0.2, -0.27), (x + 0.2, -0.27)], 0.09, darker(hair, 0.8))
    if view == "front":
        face.line([(0.02, 0.0), (0.1, 0.3), (-0.04, 0.33)], 0.07, darker(look.skin, 0.75))
    smile = between(rng, 0.05, 0.22)
    face.arc(side * 1.3, 0.5, 0.32, smile, 0, 180, (175, 70, 70))
    if chance(rng, 0.15) and view != "helmet":
        for x in eyes:
            face.ring(x, -0.02, 0.25, 0.06, BLACK)
    if chance(rng, 0.12):
        face.arc(side * 0.6, 0.25, 0.72, 0.85, 0, 180, hair)
        face.arc(side * 1.3, 0.5, 0.28, 0.14, 0, 180, (175, 70, 70))
    if view == "helmet":
        return
    if look.hat == "cap":
        face.arc(-side * 0.3, -0.35, 0.93, 0.8, 180, 360, look.second)
        face.box(
            -0.2 if view == "front" else 0.2, -0.48, 1.0 if view == "front" else 1.5, -0.28, darker(look.second), 0.1
        )
    elif look.hat == "brim":
        face.box(-1.5, -0.55, 1.5, -0.35, look.second, 0.1)
        face.box(-0.8, -1.25, 0.8, -0.5, look.second, 0.25)
        face.rectangle(-0.8, -0.7, 0.8, -0.53, darker(look.second, 0.5))
    elif look.hat == "beanie":
        face.arc(-side * 0.3, -0.35, 0.98, 0.95, 180, 360, look.second)
        face.rectangle(-0.98 - side * 0.3, -0.5, 0.98 - side * 0.3, -0.28, lighter(look.second))
        face.ellipse(-side * 0.3, -1.3, 0.25, 0.25, lighter(look.second))


def helmet(pen: Pen, rng: np.random.Generator, detail: int) -> None:
    """A helmet of radius 1 around (0, 0): a thing of no class."""
    shell = pick(rng, RED, BLUE, WHITE, BLACK, YELLOW, GREEN, by=20)
    thing = pen.thing(detail)
    thing.arc(0, 0.1, 1.1, 1.15, 165, 375, shell)
    thing.blob([(-1.08, 0), (-0.3, -0.1), (-0.25, 0.45), (-0.6, 0.75), (-1, 0.5)], shell)
    thing.line([(-0.8, -0.55), (0.9, -0.4)], 0.16, lighter(shell, 0.6))
