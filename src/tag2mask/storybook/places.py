"""Places: where a scene plays, its ground, and what stands around there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tag2mask.storybook import grain
from tag2mask.storybook.canvas import Canvas, Color
from tag2mask.storybook.figures.colors import between, chance, darker, one, pick, vary
from tag2mask.storybook.phrases import THINGS

THING = {name: index + 1 for index, name in enumerate(THINGS)}
"""Name of a thing -> its value in ``Scene.detail``."""

PLACES: tuple[str, ...] = ("water", "railway", "grass", "road", "sky", "room", "snow")

HOMES: dict[str, tuple[str, ...]] = {
    "aeroplane": ("sky", "sky", "sky", "sky", "road", "grass"),
    "bicycle": ("road", "road", "grass"),
    "bird": ("sky", "grass", "water", "snow", "road"),
    "boat": ("water",),
    "bottle": ("room",),
    "bus": ("road", "road", "road", "snow"),
    "car": ("road", "road", "grass", "snow"),
    "cat": ("room", "room", "grass", "road"),
    "chair": ("room", "room", "room", "grass"),
    "cow": ("grass", "grass", "grass", "snow"),
    "diningtable": ("room",),
    "dog": ("grass", "room", "road", "snow"),
    "horse": ("grass", "grass", "snow", "road"),
    "motorbike": ("road", "road", "grass"),
    "person": ("road", "grass", "room", "snow", "water", "railway"),
    "pottedplant": ("room", "room", "room", "road"),
    "sheep": ("grass", "grass", "snow"),
    "sofa": ("room",),
    "train": ("railway",),
    "tvmonitor": ("room",),
}
"""Where each class is at home; named twice: twice as often."""

_GROUNDS: dict[str, tuple[Color, ...]] = {
    "water": ((60, 110, 160), (70, 130, 140), (45, 80, 120), (120, 150, 170)),
    "grass": ((90, 140, 60), (120, 150, 80), (75, 115, 60), (150, 145, 85)),
    "road": ((120, 118, 115), (95, 95, 100), (150, 142, 130)),
    "railway": ((125, 115, 100), (110, 108, 105), (140, 125, 105)),
    "snow": ((228, 232, 240), (210, 220, 235)),
    "field": ((205, 180, 90), (150, 120, 75), (165, 175, 80)),
}
_SKIES = ((140, 185, 235), (190, 205, 220), (235, 190, 150), (110, 150, 215), (70, 80, 120), (215, 200, 205))
_WALLS = ((220, 210, 190), (180, 200, 190), (205, 175, 170), (160, 170, 190), (235, 225, 170), (130, 150, 140))
_FLOORS = ((150, 110, 70), (120, 90, 70), (170, 160, 150), (100, 75, 60), (150, 90, 80))


@dataclass(frozen=True)
class Item:
    """A thing that stands around, as it will be drawn; lengths in pixels, y where it stands."""

    name: str
    x: float
    y: float
    scale: float
    seed: int
    flip: bool = False


@dataclass
class Stage:
    """A scene while it is drawn. horizon: its row in pixels; shore: where land begins again, or H."""

    canvas: Canvas
    place: str
    size: tuple[int, int]
    horizon: int
    shore: int

    @property
    def unit(self) -> float:
        """A length in pixels that grows with the picture: the side of a square of its area."""
        return float((self.size[0] * self.size[1]) ** 0.5)


def seed(rng: np.random.Generator) -> int:
    """A seed for one figure, so that it looks the same drawn alone."""
    return int(rng.integers(2**32))


def set_stage(rng: np.random.Generator, place: str, size: tuple[int, int]) -> Stage:
    """Sky and ground, or wall and floor, with their lines and marks."""
    height, width = size
    ground = np.empty((height, width, 3), np.float32)
    detail = np.empty((height, width), np.uint8)
    low = between(rng, 0.5, 0.75) if place == "room" else between(rng, 0.25, 0.6)
    horizon, shore = int(low * height), height

    def strip(top: int, bottom: int, thing: str, color: Color, amount: float, cell: float) -> None:
        detail[top:bottom] = THING[thing]
        if bottom > top:
            _fill(rng, ground[top:bottom], color, amount, cell)

    if place == "room":
        strip(0, horizon, "wall", pick(rng, *_WALLS), 4, 4)
        strip(horizon, height, "floor", pick(rng, *_FLOORS), 6, 4)
    elif place == "sky":
        horizon = height
        strip(0, height, "sky", pick(rng, *_SKIES), 8, height / 6)
    else:
        strip(0, horizon, "sky", pick(rng, *_SKIES), 8, height / 6)
        top = horizon
        far = {"grass": ("field", "grass"), "road": ("grass", "field", "road"), "railway": ("grass", "field")}
        if place in far and chance(rng, 0.75):
            top += int(between(rng, 0.03, 0.14) * height)
            thing = one(rng, far[place])
            strip(horizon, top, thing, pick(rng, *_GROUNDS[thing]), 9, 4)
        if place == "water" and chance(rng, 0.35):
            shore = int(between(rng, 0.76, 0.9) * height)
            thing = one(rng, ("grass", "rock", "snow"))
            color = pick(rng, *_GROUNDS.get(thing, ((125, 122, 118), (190, 175, 140))))
            strip(shore, height, thing, color, 12, 3)
        strip(top, shore, place, pick(rng, *_GROUNDS[place]), 8 if place != "snow" else 4, 3)
    stage = Stage(Canvas(grain.to_bytes(ground), detail), place, size, horizon, shore)
    _mark(rng, stage)
    return stage


def _fill(rng: np.random.Generator, ground: NDArray[np.float32], color: Color, amount: float, cell: float) -> None:
    """Paint a part of the ground (h, W, 3) in one colour with coarse lumps and fine grain."""
    size = ground.shape[:2]
    lumps = grain.smooth(rng, size, cell) * np.float32(amount)  # (h, W)
    fine = grain.smooth(rng, size, 1.5) * np.float32(0.5 * amount)
    for channel, level in enumerate(np.asarray(color, np.float32)):  # twice as quick as all three at a time
        np.add(level + lumps, fine, out=ground[..., channel])


def _mark(rng: np.random.Generator, stage: Stage) -> None:
    """Waves, road marks, tufts, boards: lines on the ground."""
    height, width = stage.size
    canvas, place, unit = stage.canvas, stage.place, stage.unit
    deep = stage.shore - stage.horizon
    if place == "water":
        pen = canvas.pen(0, detail=THING["water"])
        foam = vary(rng, (150, 190, 220))
        for _ in range(16):
            y = stage.horizon + deep * float(rng.random()) ** 1.3
            near = 0.3 + (y - stage.horizon) / height
            x = between(rng, -0.1, 1) * width
            y1, half = min(y + unit * 0.012 * near, stage.shore), unit * 0.2 * near * between(rng, 0.3, 1)
            pen.rectangle(x, y, x + half, y1, foam)
    elif place == "road":
        pen = canvas.pen(0, detail=THING["road"])
        paint = pick(rng, (230, 230, 220), (220, 190, 80), by=10)
        y = stage.horizon + deep * between(rng, 0.35, 0.85)
        step = unit * between(rng, 0.12, 0.25)
        for i in range(int(width / step) + 1):
            pen.rectangle(i * step, y, (i + 0.55) * step, y + unit * 0.014, paint)
        if chance(rng, 0.4):
            kerb = stage.horizon + deep * between(rng, 0.16, 0.25)
            pen.rectangle(0, kerb, width, kerb + unit * 0.012, (190, 188, 182))
    elif place in ("grass", "snow"):
        pen = canvas.pen(0, detail=THING[place])
        color = pick(rng, (60, 105, 45), (120, 160, 70)) if place == "grass" else pick(rng, (190, 205, 228), by=8)
        for _ in range(14):
            x, y = between(rng, 0, 1) * width, stage.horizon + deep * between(rng, 0.2, 1)
            size = unit * between(rng, 0.01, 0.03)
            for lean in (-0.8, 0.0, 0.8):
                pen.polygon([(x - size * 0.3, y), (x + lean * size, y - size * 1.6), (x + size * 0.3, y)], color)
    elif place == "room":
        skirting = canvas.pen(0, detail=THING["wall"])
        skirting.rectangle(
            0, stage.horizon - unit * 0.025, width, stage.horizon, pick(rng, (240, 238, 230), (110, 80, 60), by=10)
        )
        if chance(rng, 0.35):
            paper = pick(rng, *_WALLS)
            step = unit * between(rng, 0.08, 0.2)
            for i in range(int(width / step) + 1):
                skirting.rectangle(i * step, 0, (i + 0.35) * step, stage.horizon - unit * 0.025, paper)
        floor = canvas.pen(0, detail=THING["floor"])
        line = pick(rng, (80, 60, 45), (120, 110, 100), by=12)
        for i in range(5):
            y = stage.horizon + (height - stage.horizon) * (0.1 + 0.2 * i)
            floor.rectangle(0, y, width, y + 0.8, line)
        if chance(rng, 0.4):
            rug = pick(rng, (170, 60, 60), (60, 90, 150), (190, 160, 90), (90, 130, 100))
            middle, y = between(rng, 0.25, 0.75) * width, stage.horizon + (height - stage.horizon) * 0.6
            floor.ellipse(middle, y, unit * 0.45, (height - stage.horizon) * 0.3, darker(rug))
            floor.ellipse(middle, y, unit * 0.42, (height - stage.horizon) * 0.27, rug)


def furnish(rng: np.random.Generator, stage: Stage) -> tuple[list[Item], list[Item]]:
    """What is behind everything, and what stands among the figures."""
    height, width = stage.size
    unit, horizon, place = stage.unit, stage.horizon, stage.place

    def item(name: str, y: float, low: float, high: float) -> Item:
        x = between(rng, -0.05, 1.05) * width
        return Item(name, x, y, unit * between(rng, low, high), seed(rng), chance(rng, 0.5))

    behind: list[Item] = []
    among: list[Item] = []
    if place == "room":
        for name, share in (("window", 0.4), ("door", 0.25)):
            if chance(rng, share):
                y = horizon if name == "door" else horizon - unit * between(rng, 0.15, 0.3)
                behind.append(item(name, y, 0.25, 0.42))
        around: tuple[str, ...] = ("lamp", "box", "box", "keyboard")
    else:
        if chance(rng, 0.55):
            for _ in range(int(rng.integers(1, 4))):
                behind.append(item("cloud", between(rng, 0.03, 0.8) * horizon, 0.1, 0.22))
        far = {
            "water": ("mountain", "bridge", "tree", "house", "building"),
            "railway": ("tree", "building", "house", "mountain", "bridge"),
            "grass": ("tree", "tree", "house", "mountain", "fence"),
            "road": ("building", "building", "house", "tree", "fence"),
            "snow": ("mountain", "tree", "house", "rock"),
            "sky": ("cloud",),
        }[place]
        if chance(rng, 0.75) and place != "sky":
            name = one(rng, far)
            large = 0.6 if name == "mountain" else 0.28
            for _ in range(int(rng.integers(1, 5 if name != "bridge" else 2))):
                built = item(name, horizon + 1, large * 0.5, large)
                behind.append(built)
                if name == "mountain" and (place == "snow" or chance(rng, 0.4)):
                    behind.append(Item("snow", built.x, built.y, built.scale, built.seed, built.flip))
        around = {
            "water": ("rock", "rock"),
            "railway": ("sign", "lamp", "fence", "box"),
            "grass": ("tree", "rock", "fence", "sign", "box"),
            "road": ("lamp", "sign", "tree", "box", "fence"),
            "snow": ("tree", "rock", "fence", "sign"),
            "sky": (),
        }[place]
    while around and chance(rng, 0.45) and len(among) < 4:
        depth = between(rng, 0.1, 1.0)
        name = one(rng, around)
        y = horizon + (height - horizon) * depth
        size = 0.12 + 0.3 * depth
        among.append(item(name, y, size * 0.6, size))
    return behind, among
