"""Scenes: a place, what stands around in it, figures from far to near, then light and grain.

The scenes hold the traps of photographs on purpose: boats come with water and trains with rails, a rider
touches the horse, near figures hide far ones, several classes share a picture, and some figures stand
where nobody expects them. Each trap is also a kind of scene of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tag2mask.storybook.canvas import PART, Canvas
from tag2mask.storybook.cast import TRAPS
from tag2mask.storybook.figures import FIGURES
from tag2mask.storybook.layout import Actor, draw_actor, draw_item, holds_trap, plan
from tag2mask.storybook.light import develop
from tag2mask.storybook.phrases import THINGS
from tag2mask.storybook.places import Item
from tag2mask.types import MAX_CLASSES, UserError
from tag2mask.words import did_you_mean

CLASSES: tuple[str, ...] = tuple(FIGURES)
"""All figures: the classes of VOC, in its order."""

EDITION = 2
"""Of the drawings: raised by hand whenever a seed gives other pixels, so that caches and trainings know."""

SMALLEST = 16
"""Least height and width of a scene, in pixels."""

VISIBLE = 0.004
"""A class with a smaller share of the picture is taken out of the mask and the tags: nobody would tag it."""

COUNTED = 0.001
"""An instance with a smaller share is not counted, except where a class has no larger one."""

NOTED = 0.005
"""A thing of the background with a smaller share is not named."""

_LARGEST = 0.62  # no class covers more than this share, if a few tries suffice
_TRIES = 24


@dataclass(frozen=True)
class Scene:
    """One drawn picture with everything that is known of it.

    image: (H, W, 3) uint8. mask: (H, W) uint8, exact: 0 is background, v is ``classes[v - 1]``, no 255.
    detail: (H, W) uint8, exact: t + 1 where the background shows ``THINGS[t]``, 255 on the part that gives a
        figure away (its face, its wheels), else 0.
    tags: the values in the mask, ascending. counts: visible instances of each tag.
    things: those of ``THINGS`` that cover more than 0.5 % of the picture.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    detail: NDArray[np.uint8]
    tags: tuple[int, ...]
    counts: tuple[int, ...]
    things: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The tags as class names."""
        return tuple(self.classes[tag - 1] for tag in self.tags)


def draw_scene(
    seed: int,
    size: tuple[int, int] = (192, 256),
    classes: Sequence[str] = CLASSES,
    kind: str = "mixed",
) -> Scene:
    """Draws the scene of this seed; equal arguments give equal bytes.

    Args:
        seed: 0 or more.
        size: (H, W) in pixels, any aspect.
        classes: the figures that may appear, of ``CLASSES``; mask value v stands for ``classes[v - 1]``.
        kind: "mixed", or one of ``TRAPS``.

    Raises:
        UserError: an unknown or repeated class, no class, an unknown kind, one that these classes cannot show, or a
            side under ``SMALLEST`` pixels.
    """
    classes = check_scene(size, classes, kind)
    rng = np.random.default_rng(seed)
    for _ in range(_TRIES):  # hardly ever more than two: a figure may hide what its trap is about
        stage, layers, trap = plan(rng, size, classes, kind)
        paint(stage.canvas, layers, classes)
        mask, detail, figures = stage.canvas.mask(), stage.canvas.detail(), stage.canvas.figures()
        actors = [layer for layer in layers if isinstance(layer, Actor)]
        seen = visible(mask, len(classes))
        shares = np.bincount(mask.ravel(), minlength=len(classes) + 1)[1:] / mask.size
        if seen.any() and shares.max() < _LARGEST and holds_trap(trap, actors, figures, detail == PART, seen[mask]):
            break
    rows = [(a.x, a.y - (0 if a.pose == "fly" else 0.35 * a.scale), a.scale) for a in actors for _ in a.names]
    spots = np.array([(0, 0, 1), *rows], np.float32)
    gone = (mask > 0) & ~seen[mask]
    return Scene(
        image=develop(rng, stage.canvas.image(), figures, spots),
        mask=mask * ~gone,
        detail=detail * ~gone,
        tags=tuple(int(value) for value in np.flatnonzero(seen)),
        counts=tuple(instances(mask == value, figures) for value in np.flatnonzero(seen)),
        things=_things(detail),
        classes=classes,
    )


def paint(canvas: Canvas, layers: Sequence[Actor | Item], classes: Sequence[str]) -> None:
    """Draw figures and things in this order."""
    for layer in layers:
        if isinstance(layer, Actor):
            draw_actor(canvas, layer, classes)
        else:
            draw_item(canvas, layer)


def check_scene(size: tuple[int, int], classes: Sequence[str], kind: str) -> tuple[str, ...]:
    """The classes as a tuple, if such scenes can be drawn. Arguments as ``draw_scene``.

    Raises:
        UserError: they cannot; that these classes cannot show a trap, only the drawing tells.
    """
    if min(size) < SMALLEST:
        raise UserError(
            f"a scene of {size[0]}x{size[1]} pixels is too small to draw; take at least {SMALLEST}x{SMALLEST}"
        )
    if kind not in ("mixed", *TRAPS):
        raise UserError(f"no kind of scene {kind!r}; take mixed, {', '.join(TRAPS)}")
    unknown = [name for name in classes if name not in FIGURES]
    if unknown:
        hint = did_you_mean(unknown[0], CLASSES)
        raise UserError(f"no figure for class {unknown[0]!r}{hint}; known: {', '.join(CLASSES)}")
    if not classes or len(set(classes)) < len(classes) or len(classes) > MAX_CLASSES:
        raise UserError(f"got the classes {list(classes)}; name at least one class, and each only once")
    return tuple(classes)


def visible(mask: NDArray[np.uint8], classes: int) -> NDArray[np.bool_]:
    """Which mask values are large enough to be tagged: (classes + 1,) bool."""
    seen: NDArray[np.bool_] = np.bincount(mask.ravel(), minlength=classes + 1) > VISIBLE * mask.size
    seen[0] = False
    return seen


def instances(of_class: NDArray[np.bool_], figures: NDArray[np.uint8]) -> int:
    """How many figures of a class are large enough to be counted, one at least; figures: their numbers, (H, W)."""
    pixels = np.bincount(figures[of_class])
    return max(1, int((pixels > COUNTED * figures.size).sum()))


def _things(detail: NDArray[np.uint8]) -> tuple[str, ...]:
    pixels = np.bincount(detail.ravel(), minlength=len(THINGS) + 1)
    return tuple(name for value, name in enumerate(THINGS, 1) if pixels[value] > NOTED * detail.size)
