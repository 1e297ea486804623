"""Who appears: the cast of a scene of each kind, its place, and how large everybody is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tag2mask.storybook.figures.colors import between, chance, one
from tag2mask.storybook.places import HOMES, PLACES
from tag2mask.types import UserError

TRAPS: tuple[str, ...] = ("cooccurrence", "adjacency", "contact", "parts", "small", "crowds")
"""Kinds of scene that hold one difficulty each; kind "mixed" holds all of them now and then."""

PAIRS: dict[str, tuple[tuple[str, str, float], ...]] = {
    "horse": (("person", "ride", 1.05),),
    "bicycle": (("person", "ride", 1.5),),
    "motorbike": (("person", "helmet", 1.3),),
    "chair": (("person", "sit", 1.5), ("cat", "sit", 0.7)),
    "sofa": (("dog", "lie", 0.75), ("cat", "lie", 0.65), ("cat", "sit", 0.65), ("dog", "sit", 0.7)),
    "diningtable": (("bottle", "", 0.5), ("pottedplant", "", 0.5)),
}
"""Who may carry whom, in which pose, and how large in the carrier's units."""

RELATIVES: tuple[tuple[str, ...], ...] = (
    ("cat", "dog"),
    ("cow", "sheep", "horse"),
    ("car", "bus"),
    ("bicycle", "motorbike"),
    ("chair", "sofa", "diningtable"),
)
"""Classes of one kind that are found side by side."""

COMPANY: dict[str, str] = {"boat": "water", "train": "railway", "aeroplane": "sky"}
"""What hardly ever comes without its place."""

_MIX = (("plain", 0.56), ("adjacency", 0.14), ("contact", 0.1), ("parts", 0.08), ("small", 0.04), ("crowds", 0.08))


def _possible(trap: str, classes: Sequence[str]) -> bool:
    if trap == "adjacency":
        return any(m in classes and any(r[0] in classes for r in riders) for m, riders in PAIRS.items())
    if trap == "contact":
        return any(len(set(family) & set(classes)) > 1 for family in RELATIVES)
    if trap == "cooccurrence":
        return any(name in classes for name in COMPANY)
    if trap == "parts":
        return any(name in classes for name in _WITH_PARTS)
    return trap != "crowds" or len(classes) > 1


Role = tuple[str, float, str, tuple[str, str, float] | None]
"""A class, its share of the picture, its pose, and who rides it."""

_Cast = tuple[list[Role], str]
_WITH_PARTS = ("bird", "bicycle", "bus", "car", "cat", "cow", "dog", "horse", "motorbike", "person", "sheep")


def _share(rng: np.random.Generator, median: float, low: float = 0.012, high: float = 0.62) -> float:
    """A log-normal size, as areas of VOC's objects are."""
    wide = 2 ** (0.9 * (float(rng.random()) + float(rng.random()) + float(rng.random()) - 1.5) * 2)
    return float(min(max(median * wide, low), high))


def _home(rng: np.random.Generator, name: str) -> str:
    return one(rng, HOMES[name]) if chance(rng, 0.93) else one(rng, PLACES)


def _company(rng: np.random.Generator, place: str, classes: Sequence[str]) -> str:
    """Somebody who is at home in this place, or now and then a stranger."""
    at_home = [name for name in classes if place in HOMES[name]]
    return one(rng, at_home) if at_home and chance(rng, 0.92) else one(rng, classes)


def _plain(rng: np.random.Generator, classes: tuple[str, ...]) -> _Cast:
    # Who is nobody's company elsewhere plays the lead twice as often.
    name = one(rng, (*classes, *(name for name in classes if name in COMPANY)))
    place = _home(rng, name)
    count = 1 + int(chance(rng, 0.5)) + int(chance(rng, 0.3)) + int(chance(rng, 0.15))
    cast: list[Role] = [(name, _share(rng, 0.34 if count == 1 else 0.27), "", None)]
    while len(cast) < count:
        other = name if chance(rng, 0.4) else _company(rng, place, classes)
        cast.append((other, _share(rng, 0.16, high=0.4), "", None))
    return cast, place


def _cooccurrence(rng: np.random.Generator, classes: tuple[str, ...]) -> _Cast:
    """Three times in four together; else the place without its class, or the class elsewhere."""
    name = one(rng, [name for name in COMPANY if name in classes])
    draw = float(rng.random())
    if draw < 0.75:
        cast: list[Role] = [(name, _share(rng, 0.14), "", None) for _ in range(1 + int(chance(rng, 0.3)))]
        return cast, COMPANY[name]
    others = [other for other in classes if other != name]
    if draw < 0.88 and others:
        return [(_company(rng, COMPANY[name], others), _share(rng, 0.12), "", None)], COMPANY[name]
    place = one(rng, [place for place in PLACES if place != COMPANY[name]])
    return [(name, _share(rng, 0.14), "", None)], place


def _adjacency(rng: np.random.Generator, classes: tuple[str, ...]) -> _Cast:
    mounts = [m for m, riders in PAIRS.items() if m in classes and any(r[0] in classes for r in riders)]
    mount = one(rng, mounts)
    rider = one(rng, [r for r in PAIRS[mount] if r[0] in classes])
    cast: list[Role] = [(mount, _share(rng, 0.28, 0.06), "seat" if rider[0] == "person" else "", rider)]
    place = _home(rng, mount)
    if chance(rng, 0.2):
        cast.append((_company(rng, place, classes), _share(rng, 0.07), "", None))
    return cast, place


def _contact(rng: np.random.Generator, classes: tuple[str, ...]) -> _Cast:
    family = one(rng, [both for f in RELATIVES if len(both := [name for name in f if name in classes]) > 1])
    first = one(rng, family)
    second = one(rng, [name for name in family if name != first])
    share = _share(rng, 0.2, 0.06, 0.36)
    return [(first, share, "", None), (second, share * between(rng, 0.6, 1.1), "", None)], _home(rng, first)


def _parts(rng: np.random.Generator, classes: tuple[str, ...]) -> _Cast:
    name = one(rng, [name for name in classes if name in _WITH_PARTS])
    return [(name, _share(rng, 0.5, 0.4, 0.75), "", None)], _home(rng, name)


def _small(rng: np.random.Generator, classes: tuple[str, ...]) -> _Cast:
    name = one(rng, classes)
    place = _home(rng, name)
    cast: list[Role] = []
    for _ in range(int(rng.integers(1, 5))):
        other = name if chance(rng, 0.5) else _company(rng, place, classes)
        cast.append((other, between(rng, 0.008, 0.02), "", None))
    return cast, place


def _crowds(rng: np.random.Generator, classes: tuple[str, ...]) -> _Cast:
    name = one(rng, classes)
    place = _home(rng, name)
    several = [name, _company(rng, place, classes), _company(rng, place, classes)]
    count = int(rng.integers(6, 12))
    cast: list[Role] = []
    for i in range(count):
        cast.append((several[i % 3] if i < 3 else one(rng, several), _share(rng, 0.05, 0.012, 0.12), "", None))
    return cast, place


_CASTS = {
    "plain": _plain,
    "cooccurrence": _cooccurrence,
    "adjacency": _adjacency,
    "contact": _contact,
    "parts": _parts,
    "small": _small,
    "crowds": _crowds,
}


def choose(rng: np.random.Generator, classes: tuple[str, ...], kind: str) -> tuple[list[Role], str, str]:
    """The cast, its place, and the trap that the scene must show ("plain": none).

    Raises:
        UserError: a kind of scene that these classes cannot show.
    """
    trap = kind
    if kind == "mixed":
        draw, trap = float(rng.random()), "plain"
        for name, share in _MIX:
            if draw < share:
                trap = name
                break
            draw -= share
        if not _possible(trap, classes):
            trap = "plain"
    elif not _possible(kind, classes):
        raise UserError(f"no {kind} scene can be drawn of {', '.join(classes)}; add classes or take another kind")
    cast, place = _CASTS[trap](rng, classes)
    return cast, place, trap
