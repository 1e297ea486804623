"""Scenes of the first edition: a place, a few things around, one to three figures, then light and grain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tag2mask.storybook import grain
from tag2mask.storybook.canvas import Canvas, Color
from tag2mask.storybook.first.figures import FIGURES, darker, pick, vary
from tag2mask.storybook.scenes import Scene, instances, visible

PLACES: dict[str, tuple[str, ...]] = {
    "water": ("boat", "boat", "bird", "person"),
    "railway": ("train", "train", "person"),
    "grass": ("cow", "horse", "sheep", "dog", "person", "bird", "cat", "bicycle"),
    "road": ("car", "bus", "person", "dog", "bicycle", "motorbike"),
    "sky": ("aeroplane", "aeroplane", "bird"),
    "room": (
        "chair",
        "tvmonitor",
        "pottedplant",
        "bottle",
        "cat",
        "dog",
        "person",
        "sofa",
        "diningtable",
    ),
}
"""Where a scene may play, and who is at home there (named twice: twice as often)."""

SADDLES = {"horse": -0.55, "bicycle": -0.55, "motorbike": -0.5}
"""What can be ridden, and where the rider sits, in the mount's units."""

_GROUNDS: dict[str, Color] = {
    "water": (60, 110, 160),
    "grass": (90, 140, 60),
    "road": (120, 118, 115),
    "railway": (125, 115, 100),
}
_SKIES = ((140, 185, 235), (190, 205, 220), (235, 190, 150), (110, 150, 215))
_WALLS = ((220, 210, 190), (180, 200, 190), (200, 180, 180), (160, 170, 190))
_FLOORS = ((150, 110, 70), (120, 90, 70), (170, 160, 150))
_MEADOW = (100, 135, 70)


@dataclass(frozen=True)
class _Placed:
    """A figure with its place; ``depth`` orders far to near, and is where its rails or water lie."""

    name: str
    x: float
    y: float
    scale: float
    depth: float


@dataclass
class _Stage:
    """A scene while it is drawn; lengths in pixels, ``unit`` the shorter side of the picture."""

    rng: np.random.Generator
    canvas: Canvas
    place: str
    size: tuple[int, int]
    horizon: int
    things: list[str]

    @property
    def unit(self) -> int:
        return min(self.size)

    def note(self, thing: str) -> None:
        if thing not in self.things:
            self.things.append(thing)


def draw_first(seed: int, size: tuple[int, int], classes: tuple[str, ...]) -> Scene:
    """``draw_scene`` of the first edition, its arguments checked."""
    rng = np.random.default_rng(seed)
    at_home = {place: [c for c in who if c in classes] for place, who in PLACES.items()}
    places = [place for place, who in at_home.items() if who]
    place = places[int(rng.integers(len(places)))]

    stage = _set(rng, place, size)
    _decorate(stage)
    for placed in _lay_out(stage, at_home[place], classes):
        _surround(stage, placed)
        tilt = rng.uniform(-7, 7)
        if placed.name in ("aeroplane", "bird"):
            tilt += rng.uniform(-14, 14)
        value = classes.index(placed.name) + 1
        pen = stage.canvas.pen(value, placed.x, placed.y, placed.scale, tilt, bool(rng.random() < 0.5))
        FIGURES[placed.name](pen, rng)

    mask, figures = stage.canvas.mask(), stage.canvas.figures()
    seen = visible(mask, len(classes))
    tags = tuple(int(value) for value in np.flatnonzero(seen))
    mask = np.where(seen[mask], mask, 0).astype(np.uint8)
    return Scene(
        image=_develop(rng, stage.canvas.image()),
        mask=mask,
        detail=np.zeros_like(mask),  # this edition tells no details
        tags=tags,
        counts=tuple(instances(mask == tag, figures) for tag in tags),
        things=tuple(stage.things),
        classes=classes,
    )


# --- the place -----------------------------------------------------------------------------------------


def _fill(rng: np.random.Generator, ground: NDArray[np.float32], color: Color, amount: float, cell: float) -> None:
    """Paint a part of the ground (h, W, 3) in one colour with coarse lumps and fine grain."""
    if len(ground) == 0:
        return
    size = ground.shape[:2]
    lumps = grain.smooth(rng, size, cell) * np.float32(amount)
    fine = grain.smooth(rng, size, 1.5) * np.float32(0.6 * amount)
    ground[:] = np.asarray(color, np.float32) + lumps + fine


def _set(rng: np.random.Generator, place: str, size: tuple[int, int]) -> _Stage:
    """Sky and ground, or wall and floor."""
    height, width = size
    ground = np.empty((height, width, 3), np.float32)
    if place == "room":
        horizon = int(rng.uniform(0.5, 0.75) * height)
        _fill(rng, ground[:horizon], pick(rng, *_WALLS), 6, 4)
        _fill(rng, ground[horizon:], pick(rng, *_FLOORS), 10, 4)
        things = ["wall", "floor"]
    elif place == "sky":
        horizon = int(rng.uniform(0.3, 0.6) * height)
        _fill(rng, ground, pick(rng, *_SKIES), 8, 20)
        things = ["sky"]
    else:
        horizon = int(rng.uniform(0.3, 0.6) * height)
        _fill(rng, ground[:horizon], pick(rng, *_SKIES), 8, 20)
        things = ["sky", place]
        top = horizon
        if place in ("road", "railway"):
            top += int(rng.uniform(0.02, 0.12) * height)
            _fill(rng, ground[horizon:top], vary(rng, _MEADOW), 12, 4)
            _fill(rng, ground[top:], vary(rng, _GROUNDS[place]), 10, 2)
        else:
            _fill(rng, ground[top:], vary(rng, _GROUNDS[place]), 12, 3)
    return _Stage(rng, Canvas(grain.to_bytes(ground)), place, size, horizon, things)


def _decorate(stage: _Stage) -> None:
    """Waves, road marks, clouds, and one kind of backdrop along the horizon: paint of no class."""
    rng, place = stage.rng, stage.place
    height, width = stage.size
    pen = stage.canvas.pen(0)
    if place == "water":
        for _ in range(25 * width // 256 + 1):
            x, y = rng.uniform(0, width), rng.uniform(stage.horizon, height)
            pen.line([(x, y), (x + rng.uniform(5, 25), y)], 0.8, vary(rng, (120, 165, 205)))
    if place == "road":
        y = rng.uniform(stage.horizon + 0.15 * height, height)
        for x in range(0, width, 30):
            pen.rectangle(x, y, x + 15, y + 2.5, (230, 230, 220))
    if place in ("sky", "water", "grass", "road") and rng.random() < 0.6:
        for _ in range(int(rng.integers(1, 4))):
            _cloud(stage)
        stage.note("cloud")
    if place in ("grass", "road", "railway") and rng.random() < 0.55:
        kind = ("tree", "building", "mountain")[int(rng.integers(3))]
        for _ in range(int(rng.integers(1, 4))):
            _backdrop(stage, kind)
        stage.note(kind)


def _cloud(stage: _Stage) -> None:
    rng = stage.rng
    x, y = rng.uniform(0, stage.size[1]), rng.uniform(0, stage.horizon * 0.7)
    pen = stage.canvas.pen(0, x, y, stage.unit * rng.uniform(0.08, 0.16))
    white = vary(rng, (245, 245, 245), 8)
    pen.ellipse(0, 0, 0.7, 0.3, white)
    pen.ellipse(0.4, -0.15, 0.4, 0.3, white)
    pen.ellipse(-0.3, -0.12, 0.4, 0.28, white)


def _backdrop(stage: _Stage, kind: str) -> None:
    rng = stage.rng
    pen = stage.canvas.pen(0, rng.uniform(0, stage.size[1]), stage.horizon, stage.unit * rng.uniform(0.15, 0.3))
    if kind == "tree":
        leaves = vary(rng, (55, 110, 50), 20)
        pen.rectangle(-0.08, -0.5, 0.08, 0.1, (100, 70, 45))
        pen.ellipse(0, -0.8, 0.45, 0.45, leaves)
        pen.ellipse(0.2, -0.6, 0.35, 0.3, darker(leaves, 0.9))
    elif kind == "building":
        wall = pick(rng, (170, 150, 140), (150, 100, 85), (190, 190, 195))
        pen.rectangle(-0.45, -1, 0.45, 0.05, wall)
        for column in range(3):
            for row in range(3):
                left, top = -0.35 + column * 0.27, -0.9 + row * 0.27
                pen.rectangle(left, top, left + 0.15, top + 0.15, (90, 110, 130))
    else:
        pen.polygon([(-1.5, 0.05), (0, -1), (1.5, 0.05)], vary(rng, (130, 130, 145), 12))


# --- the figures ---------------------------------------------------------------------------------------


def _lay_out(stage: _Stage, at_home: Sequence[str], classes: Sequence[str]) -> list[_Placed]:
    """One to three figures, some of them strangers here, and a rider now and then; far ones first."""
    rng, unit = stage.rng, stage.unit
    height, width = stage.size
    draw = rng.random()
    count = 1 if draw < 0.45 else 2 if draw < 0.83 else 3
    figures = []
    for _ in range(count):
        who = at_home if rng.random() < 0.85 else classes
        name = who[int(rng.integers(len(who)))]
        scale = unit * rng.uniform(0.26, 0.62) * (1.2 if count == 1 else 0.85)
        if name == "aeroplane" or (name == "bird" and rng.random() < 0.6):
            low, high = (0.2, 0.8) if stage.place == "sky" else (0.15, 0.5)
        elif stage.place == "sky":
            low, high = 0.25, 0.75
        else:
            low, high = max(stage.horizon / height, 0.35), 0.85
        x, y = rng.uniform(0.12, 0.88) * width, rng.uniform(low, high) * height
        figures.append(_Placed(name, x, y, scale, y))
        if name in SADDLES and "person" in classes and rng.random() < 0.35:
            seat = y + SADDLES[name] * scale * 0.9
            lean = rng.uniform(-0.1, 0.1) * scale
            figures.append(_Placed("person", x + lean, seat, scale * 0.85, y + 0.01))
    return sorted(figures, key=lambda placed: placed.depth)


def _surround(stage: _Stage, placed: _Placed) -> None:
    """What a figure brings along: rails under most trains, a pond under most boats on land."""
    rng = stage.rng
    if placed.name == "train" and rng.random() < 0.9:
        width = stage.size[1]
        y, gauge = placed.y + 0.34 * placed.scale, 0.09 * placed.scale
        pen = stage.canvas.pen(0)
        pen.rectangle(0, y - 2, width, y + 0.14 * placed.scale, vary(rng, (105, 95, 85), 8))
        for x in range(0, width, 13):
            pen.rectangle(x, y - 1, x + 4.5, y + 0.12 * placed.scale, (85, 60, 40))  # sleepers
        for rail in (y, y + gauge):
            pen.line([(0, rail), (width, rail)], 2, (175, 175, 180))
        stage.note("railway")
    if placed.name == "boat" and stage.place != "water" and rng.random() < 0.7:
        pen = stage.canvas.pen(0, placed.x, placed.y + 0.3 * placed.scale, placed.scale)
        pen.ellipse(0, 0, 1.3, 0.3, vary(rng, (60, 110, 160)))
        stage.note("water")


# --- the light -----------------------------------------------------------------------------------------


def _develop(rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Uneven light, grain of the paper, sometimes a soft focus, and coloured noise: (H, W, 3) uint8."""
    size = (image.shape[0], image.shape[1])
    light = 1 + np.float32(0.06) * grain.smooth(rng, size, size[0] / 3)
    paper = grain.white(rng, (*size, 1)) * np.float32(0.79 * rng.uniform(2, 6))
    shot = np.clip(image.astype(np.float32) * light + paper, 0, 255)
    if rng.random() < 0.3:
        shot = grain.blur(shot)
    return grain.to_bytes(shot + grain.white(rng, shot.shape) * np.float32(rng.uniform(1, 5)))
