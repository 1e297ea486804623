"""Captions: one sentence about a scene, in varied words, never naming what is not there.

As in captions of the web, things may be left out, called by another name, or named by their kind.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tag2mask.storybook.scenes import Scene

WORDS: dict[str, tuple[str, ...]] = {
    "aeroplane": ("aeroplane", "airplane", "plane", "jet"),
    "bicycle": ("bicycle", "bike", "cycle"),
    "bird": ("bird", "avian", "bird avian"),
    "boat": ("boat", "sailboat", "sailing boat"),
    "bottle": ("bottle", "glass bottle"),
    "bus": ("bus", "coach"),
    "car": ("car", "automobile"),
    "cat": ("cat", "kitten", "tabby"),
    "chair": ("chair", "seat", "chair seat"),
    "cow": ("cow", "cattle"),
    "diningtable": ("diningtable", "dining table", "table"),
    "dog": ("dog", "puppy", "hound"),
    "horse": ("horse", "pony"),
    "motorbike": ("motorbike", "motorcycle"),
    "person": ("person", "human", "people", "man", "woman", "person with clothes"),
    "pottedplant": ("pottedplant", "potted plant", "house plant"),
    "sheep": ("sheep", "lamb"),
    "sofa": ("sofa", "couch"),
    "train": ("train", "locomotive", "express"),
    "tvmonitor": ("tvmonitor", "screen", "television", "tv monitor", "tvmonitor screen"),
    "sky": ("sky",),
    "cloud": ("cloud", "clouds"),
    "water": ("water", "sea", "lake", "ocean"),
    "grass": ("grass", "meadow", "lawn"),
    "road": ("road", "street"),
    "railway": ("railway", "railroad", "rails"),
    "tree": ("tree", "trees"),
    "building": ("building", "tower"),
    "house": ("house",),
    "mountain": ("mountain", "hill"),
    "rock": ("rock",),
    "wall": ("wall",),
    "floor": ("floor",),
    "fence": ("fence",),
    "lamp": ("lamp",),
    "sign": ("sign",),
    "box": ("box",),
    "bridge": ("bridge",),
    "snow": ("snow",),
    "keyboard": ("keyboard",),
    "helmet": ("helmet",),
    "window": ("window",),
    "door": ("door",),
    "field": ("field",),
}
"""What a class or a thing of the background may be called; the first word is its own name."""

KINDS: dict[str, tuple[str, ...]] = {
    "animal": ("bird", "cat", "cow", "dog", "horse", "sheep"),
    "vehicle": ("aeroplane", "bicycle", "boat", "bus", "car", "motorbike", "train"),
    "furniture": ("chair", "diningtable", "sofa"),
}
"""Words for a whole kind."""

SENTENCES: tuple[str, ...] = (
    "{}",
    "{}.",
    "a page with {}.",
    "a picture book shows {}.",
    "a picture of {}.",
    "a photo of {}.",
    "a drawing of {}.",
    "an image of {}.",
    "a rendering of {}.",
    "an origami {}.",
    "a clean origami {}.",
    "a small picture of {}.",
    "a soft picture of {}.",
    "a bright drawing of {}.",
    "a dark drawing of {}.",
    "the {} on this page.",
    "this is {}.",
    "here we see {}.",
    "once there was {}.",
    "a scene with {}.",
    "someone painted {}.",
    "a toy {}.",
    "a quick sketch of {}.",
    "look, {}!",
)
"""Sentences around the enumeration; none names a thing of its own."""

_JOINTS = (" and ", ", ", " with ", " beside ")
_KEEP_CLASS, _KEEP_THING, _BY_KIND, _OWN_NAME = 0.9, 0.35, 0.1, 0.5


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One sentence naming some of what ``scene`` shows.

    A class is named nine times in ten, a thing of the background one time in three; at least one thing is
    always named.
    """
    named = [name for name in scene.names if rng.random() < _KEEP_CLASS]
    named += [thing for thing in scene.things if rng.random() < _KEEP_THING]
    named = named or list(scene.names) or list(scene.things)
    words = [_word(name, rng) for name in named]
    words = [words[i] for i in _shuffled(len(words), rng)]
    return _one(SENTENCES, rng).format(_one(_JOINTS, rng).join(words))


def _word(name: str, rng: np.random.Generator) -> str:
    """The name, another name, or the kind."""
    kinds = [kind for kind, members in KINDS.items() if name in members]
    if kinds and rng.random() < _BY_KIND:
        return kinds[0]
    return WORDS[name][0] if rng.random() < _OWN_NAME else _one(WORDS[name], rng)


def _one(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _shuffled(count: int, rng: np.random.Generator) -> list[int]:
    return sorted(range(count), key=[float(rng.random()) for _ in range(count)].__getitem__)
