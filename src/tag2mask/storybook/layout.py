"""Who stands where, how they are drawn, and whether a scene shows its trap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tag2mask.storybook.canvas import Canvas
from tag2mask.storybook.cast import Role, choose
from tag2mask.storybook.figures import FIGURES, helmet
from tag2mask.storybook.figures.clutter import CLUTTER
from tag2mask.storybook.figures.colors import between, chance, darker, pick, vary
from tag2mask.storybook.places import THING, Item, Stage, furnish, seed, set_stage

_SIZES: dict[str, tuple[float, float, float]] = {
    "aeroplane": (0.65, 1.9, 0.8),
    "bicycle": (0.5, 1.65, 0.85),
    "bird": (0.38, 1.2, 0.7),
    "boat": (0.8, 1.6, 1.2),
    "bottle": (0.28, 0.35, 1.02),
    "bus": (1.0, 1.5, 0.8),
    "car": (0.62, 1.5, 0.6),
    "cat": (0.39, 0.9, 0.75),
    "chair": (0.35, 0.75, 1.05),
    "cow": (0.76, 1.6, 0.95),
    "diningtable": (0.44, 1.5, 0.65),
    "dog": (0.49, 1.3, 0.85),
    "horse": (0.69, 1.6, 1.35),
    "motorbike": (0.68, 1.6, 0.85),
    "person": (0.25, 0.45, 1.03),
    "pottedplant": (0.48, 0.8, 1.05),
    "sheep": (0.51, 1.15, 0.8),
    "sofa": (1.27, 1.9, 0.8),
    "train": (1.1, 2.2, 0.9),
    "tvmonitor": (0.8, 1.2, 0.9),
}
"""Of each figure in its own units: median area, width, height."""

_SEATS = {"horse": 0.88, "bicycle": 0.8, "motorbike": 0.5, "chair": 0.5, "sofa": 0.36, "diningtable": 0.58}
"""How high one sits on it."""

_REACH = {"cat": 0.75, "dog": 0.9, "horse": 1.15, "cow": 1.05, "sheep": 0.75, "bird": 0.65}
"""How far the head reaches to the right."""


@dataclass(frozen=True)
class Actor:
    """A figure as it will be drawn, perhaps with another one on it; lengths in pixels, y where it stands."""

    name: str
    x: float
    y: float
    scale: float
    seed: int
    pose: str = ""
    flip: bool = False
    rider: tuple[str, str, float] | None = None
    shadow: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Its class and its rider's, in the order of drawing."""
        return (self.name,) if self.rider is None else (self.name, self.rider[0])


Layers = list[Actor | Item]


def plan(
    rng: np.random.Generator, size: tuple[int, int], classes: tuple[str, ...], kind: str
) -> tuple[Stage, Layers, str]:
    """The stage, what is to be drawn on it from far to near, and the trap that must come out ("plain": none).

    Raises:
        UserError: a kind of scene that these classes cannot show.
    """
    cast, place, trap = choose(rng, classes, kind)
    stage = set_stage(rng, place, size)
    behind, among = furnish(rng, stage)
    actors = _place(rng, stage, cast, trap)
    if trap == "contact":
        actors = _pushed_together(rng, actors)
    near: Layers = sorted([*among, *actors], key=lambda layer: layer.y)
    layers: Layers = list(behind)
    for layer in near:
        if isinstance(layer, Actor):
            layers += _surround(rng, stage, layer)
        layers.append(layer)
    return stage, layers, trap


# --- places --------------------------------------------------------------------------------------------


def _place(rng: np.random.Generator, stage: Stage, cast: Sequence[Role], trap: str) -> list[Actor]:
    """Large figures stand near, low and often over the border, small ones far; side by side where they can."""
    height, width = stage.size
    actors = []
    start = float(rng.random())
    for index, (name, share, pose, rider) in enumerate(cast):
        area, wide, high = _SIZES[name]
        if rider is not None:
            area, high = area + 0.6 * _SIZES[rider[0]][0] * rider[2] ** 2, _SEATS[name] + 0.72 * rider[2]
        scale = (share * height * width / area) ** 0.5
        if trap != "parts":
            scale = min(scale, 1.25 * width / wide, 1.25 * height / high)
        else:
            scale *= 1.15
        room = wide * scale / width
        slot = (start + index / len(cast)) % 1.0 + between(rng, -0.3, 0.3) / len(cast)
        margin = min(0.42, 0.45 * room) if chance(rng, 0.8) and trap != "small" else 0.08
        x = (margin + (1 - 2 * margin) * slot) * width
        flip = chance(rng, 0.5)
        if trap == "parts" and wide > 0.6:  # the head or the front must not be cut off
            x = min(width * 0.5, 0.97 * width - _REACH.get(name, 0.5 * wide) * scale)
            x = width - x if flip else x
        flies = name == "aeroplane" or (name == "bird" and (stage.place == "sky" or chance(rng, 0.4)))
        if flies or stage.place == "sky":
            low = 0.15 if stage.place == "sky" else 0.08
            y = between(rng, low, 0.85 if stage.place == "sky" else max(0.2, stage.horizon / height)) * height
            if not flies:
                y += 0.5 * high * scale
            elif name == "bird":
                pose = "fly"
        else:
            y = _ground(rng, stage, name, scale * high)
        shadow = not flies and stage.place != "sky"
        actors.append(Actor(name, x, y, scale, seed(rng), pose, flip, rider, shadow))
    return actors


def _ground(rng: np.random.Generator, stage: Stage, name: str, tall: float) -> float:
    """Where somebody of this height stands."""
    height = stage.size[0]
    near = min(1.0, (tall / height) ** 0.8 + between(rng, -0.12, 0.2))
    y = stage.horizon + (height - stage.horizon) * max(0.06, near * 0.97)
    if stage.place == "water" and name == "boat":
        y = min(y, stage.shore - 2.0)
    elif stage.place == "water" and stage.shore < height:
        y = max(y, stage.shore + 0.3 * (height - stage.shore))
    top = y - tall
    if top < 0.03 * height:  # a close-up shows the head, and loses the feet
        y += 0.03 * height - top + between(rng, 0, 0.06) * height
    return y


def _pushed_together(rng: np.random.Generator, actors: Sequence[Actor]) -> list[Actor]:
    """The second figure comes up to the first until they touch, a little nearer or farther."""
    first, second = actors[0], actors[1]
    gap = 0.5 * (_SIZES[first.name][1] * first.scale + _SIZES[second.name][1] * second.scale)
    side = -1 if chance(rng, 0.5) else 1
    shift = side * gap * between(rng, 0.55, 0.85)
    y = first.y + between(rng, -0.06, 0.06) * first.scale
    return [replace(first, x=first.x - shift / 2), replace(second, x=first.x + shift / 2, y=y), *actors[2:]]


def _surround(rng: np.random.Generator, stage: Stage, actor: Actor) -> list[Item]:
    """What a figure brings along: rails, a pond, a rock in the water, a keyboard."""
    x, y, scale, place = actor.x, actor.y, actor.scale, stage.place
    if actor.name == "train" and place != "sky" and (place == "railway" or chance(rng, 0.4)):
        return [Item("railway", x, y, scale, seed(rng))]
    if actor.name == "boat" and place not in ("water", "sky") and chance(rng, 0.35):
        return [Item("water", x, y, scale, seed(rng))]
    if place == "water" and actor.pose != "fly" and actor.name not in ("boat", "aeroplane") and y < stage.shore:
        return [Item("rock", x, y + 0.35 * scale, 1.35 * scale * max(0.6, _SIZES[actor.name][1]), seed(rng))]
    if actor.name == "tvmonitor" and place == "room" and chance(rng, 0.45):
        return [Item("keyboard", x, y + 0.17 * scale, 0.9 * scale, seed(rng))]
    if actor.name == "motorbike" and chance(rng, 0.3):
        return [Item("helmet", x + 1.05 * scale, y - 0.16 * scale, 0.17 * scale, seed(rng))]
    return []


# --- drawing -------------------------------------------------------------------------------------------


def draw_actor(canvas: Canvas, actor: Actor, classes: Sequence[str]) -> None:
    """Shadow, figure, and who rides it. The same actor is drawn the same on every canvas."""
    rng = np.random.default_rng(actor.seed)
    x, y, scale = actor.x, actor.y, actor.scale
    flies = actor.name == "aeroplane" or actor.pose == "fly"
    if actor.shadow and actor.name != "boat":
        canvas.shade(x, y, _SIZES[actor.name][1] * 0.55 * scale, 0.09 * scale, 0.5)
    elif actor.shadow:
        canvas.shade(x, y + 0.03 * scale, 0.9 * scale, 0.12 * scale, 0.35)
    tilt = between(rng, -14, 14) if flies else between(rng, -4, 4) if actor.name == "boat" else 0.0
    outlined = between(rng, 0.2, 0.55) if chance(rng, 0.4) else 0.0
    pen = canvas.pen(classes.index(actor.name) + 1, x, y, scale, tilt, actor.flip)
    seat = FIGURES[actor.name](pen, rng, actor.pose)
    if outlined:
        canvas.outline(pen.label.figure, outlined)
    if actor.rider is None or seat is None:
        return
    name, pose, ratio = actor.rider
    sx, sy = pen.pixel(*seat)
    if pose not in ("ride", "helmet"):
        canvas.shade(sx, sy, 0.3 * scale * ratio, 0.06 * scale, 0.35)
    on_top = canvas.pen(classes.index(name) + 1, sx, sy, scale * ratio, tilt, actor.flip)
    FIGURES[name](on_top, rng, pose)
    if pose == "helmet":
        head = on_top.at(0.1, -0.555, 0.115)
        helmet(head, rng, THING["helmet"])
    if outlined:
        canvas.outline(on_top.label.figure, outlined)


def draw_item(canvas: Canvas, item: Item) -> None:
    """A thing of no class, with its shadow."""
    rng = np.random.default_rng(item.seed)
    pen = canvas.pen(0, item.x, item.y, item.scale, 0.0, item.flip, THING[item.name])
    if item.name in ("tree", "lamp", "sign", "fence", "rock", "box"):
        wide = {"tree": 0.4, "lamp": 0.18, "sign": 0.15, "fence": 1.9, "rock": 0.6, "box": 0.45}[item.name]
        canvas.shade(item.x, item.y, wide * item.scale, 0.08 * item.scale, 0.4)
    if item.name == "railway":
        _rails(canvas, item, rng)
    elif item.name == "water":
        color = pick(rng, (60, 110, 160), (70, 130, 140))
        pen.ellipse(0, 0, 1.35, 0.26, darker(color, 0.85))
        pen.ellipse(0, 0.01, 1.25, 0.22, color)
    elif item.name == "helmet":
        helmet(pen, rng, THING["helmet"])
    else:
        CLUTTER[item.name](pen, rng)


def _rails(canvas: Canvas, item: Item, rng: np.random.Generator) -> None:
    """Ballast, sleepers and two rails across the picture."""
    pen = canvas.pen(0, 0, item.y, item.scale, detail=THING["railway"])
    width = canvas.width / item.scale
    pen.rectangle(0, -0.03, width, 0.17, vary(rng, (105, 96, 86), 10))
    wood, x = vary(rng, (84, 60, 42), 12), 0.0
    while x < width:
        pen.polygon([(x + 0.03, 0), (x + 0.11, 0), (x + 0.08, 0.13), (x - 0.02, 0.13)], wood)
        x += 0.2
    for y in (0.0, 0.09):
        pen.rectangle(0, y, width, y + 0.018, (186, 188, 192))
        pen.rectangle(0, y + 0.018, width, y + 0.032, (80, 76, 74))


# --- has the trap come out? ----------------------------------------------------------------------------


def holds_trap(
    trap: str,
    actors: Sequence[Actor],
    figures: NDArray[np.uint8],
    part: NDArray[np.bool_],
    tagged: NDArray[np.bool_],
) -> bool:
    """Whether the drawn picture shows what its kind is about.

    figures: (H, W) uint8, the number of the figure at each pixel. part: (H, W) bool, faces and wheels.
    tagged: (H, W) bool, the pixels of classes that are large enough to be tagged.
    """
    names = ["", *(name for actor in actors for name in actor.names)]
    pixels = np.bincount(figures[tagged], minlength=len(names))
    shares = pixels / figures.size
    if trap in ("adjacency", "contact"):
        return bool((shares[1:3] > 0.01).all()) and touch(figures == 1, figures == 2)
    if trap == "parts":
        largest = int(shares[1:].argmax()) + 1
        of_part = int((part & (figures == largest)).sum())
        return bool(shares[largest] > 0.18 and of_part > 0.12 * pixels[largest] and of_part > 0.03 * figures.size)
    if trap == "small":
        return bool(shares.max() < 0.03)
    if trap == "crowds":
        there = [name for name, share in zip(names, shares, strict=True) if share > 0.001]
        return len(there) >= 5 and len(set(there)) >= 2
    return True


def touch(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> bool:
    """Whether some pixel of one mask is beside a pixel of the other."""
    return bool((ndimage.binary_dilation(a) & b).any())
