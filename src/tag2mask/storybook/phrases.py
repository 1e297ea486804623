"""What may be said of a scene: names and synonyms of classes and things, words for kinds, numbers, sentences.

Tables alone; ``captions`` speaks with them, ``vocabulary`` lists their words.
"""

from __future__ import annotations

from importlib import resources

Word = tuple[str, str]
"""Singular and plural; they are equal where the word has no plural of its own ("sheep", "water")."""


def _plain(*singulars: str) -> tuple[Word, ...]:
    return tuple((word, _plural(word)) for word in singulars)


def _plural(word: str) -> str:
    if word.endswith(("s", "x", "ch", "sh")):
        return f"{word}es"
    return f"{word[:-1]}ies" if word.endswith("y") and word[-2] not in "aeiou" else f"{word}s"


def _mass(*words: str) -> tuple[Word, ...]:
    return tuple((word, word) for word in words)


PAPER_WORDS: dict[str, tuple[Word, ...]] = {
    "aeroplane": _plain("aeroplane"),
    "bicycle": _plain("bicycle"),
    "bird": (*_plain("bird"), ("bird avian", "birds"), ("avian", "avians")),
    "boat": _plain("boat"),
    "bottle": _plain("bottle"),
    "bus": _plain("bus"),
    "car": _plain("car"),
    "cat": _plain("cat"),
    "chair": (*_plain("chair", "seat"), ("chair seat", "chairs")),
    "cow": _plain("cow"),
    "diningtable": _plain("diningtable", "dining table"),
    "dog": _plain("dog"),
    "horse": _plain("horse"),
    "motorbike": _plain("motorbike"),
    "person": (
        ("person", "people"),
        ("person with clothes,people,human", "people"),
        ("person with clothes", "people with clothes"),
        *_plain("player", "human"),
    ),
    "pottedplant": _plain("pottedplant", "potted plant"),
    "sheep": _mass("sheep"),
    "sofa": _plain("sofa"),
    "train": _plain("train"),
    "tvmonitor": (*_plain("tvmonitor", "screen", "tv monitor"), ("tvmonitor screen", "tvmonitor screens")),
}
"""What the papers call a class: VOC's names, CLIP-ES's and CLIMS's; the first is VOC's own."""

OTHER_WORDS: dict[str, tuple[Word, ...]] = {
    "aeroplane": _plain("airplane", "plane"),
    "bicycle": _plain("bike"),
    "bus": _plain("coach"),
    "car": _plain("automobile"),
    "cow": _mass("cattle"),
    "diningtable": _plain("table"),
    "motorbike": _plain("motorcycle"),
    "pottedplant": _plain("house plant"),
    "sofa": (("couch", "couches"),),
    "tvmonitor": (("television", "televisions"), ("tv", "tvs")),
}
"""What people also call a class; no words for a part of it only, as "kitten" is, which would often be false."""

THINGS: tuple[str, ...] = (
    "sky",
    "cloud",
    "water",
    "grass",
    "road",
    "railway",
    "tree",
    "building",
    "house",
    "mountain",
    "rock",
    "wall",
    "floor",
    "fence",
    "lamp",
    "sign",
    "box",
    "bridge",
    "snow",
    "keyboard",
    "helmet",
    "window",
    "door",
    "field",
)
"""What a scene may show that is no class."""

THING_WORDS: dict[str, tuple[str, ...]] = {
    "sky": ("sky",),
    "cloud": ("cloud", "clouds"),
    "water": ("water", "sea", "lake", "river", "ocean"),
    "grass": ("grass", "lawn"),
    "road": ("road", "street"),
    "railway": ("railway", "railroad", "track"),
    "tree": ("tree", "trees", "branches"),
    "house": ("house", "houses"),
    "mountain": ("mountain", "valley"),
    "rock": ("rock", "rocks", "stone"),
    "wall": ("wall",),
    "floor": ("floor",),
    "fence": ("fence",),
    "lamp": ("lamp",),
    "sign": ("sign",),
    "box": ("box", "boxes"),
    "bridge": ("bridge",),
    "snow": ("snow",),
    "keyboard": ("keyboard",),
    "helmet": ("helmet",),
    "window": ("window",),
    "door": ("door",),
    "field": ("field",),
}
"""What a thing may be called: the background words of CLIP-ES and CLIMS are all here or in ``KINDS``. Of a thing
no number is known, so its plural says no more than its singular."""

KINDS: dict[Word, tuple[str, ...]] = {
    ("animal", "animals"): ("bird", "cat", "cow", "dog", "horse", "sheep"),
    ("vehicle", "vehicles"): ("aeroplane", "bicycle", "boat", "bus", "car", "motorbike", "train"),
    ("furniture", "furniture"): ("chair", "diningtable", "sofa"),
    ("household item", "household items"): ("bottle", "pottedplant", "tvmonitor"),
    ("indoor item", "indoor items"): ("bottle", "chair", "diningtable", "pottedplant", "sofa", "tvmonitor"),
    ("electronic item", "electronic items"): ("tvmonitor", "keyboard"),
    ("appliance", "appliances"): ("tvmonitor",),
    ("kitchenware", "kitchenware"): ("bottle",),
    ("accessory", "accessories"): ("helmet",),
    ("outdoor item", "outdoor items"): ("sign", "fence", "lamp", "bridge"),
    ("building", "buildings"): ("building", "house"),
    ("ground", "ground"): ("grass", "road", "floor", "field", "snow"),
    ("land", "land"): ("grass", "field", "mountain"),
}
"""Words for several classes or things, among them the super-classes of CD-CLIP: true where one of them is there."""

MORE_WORDS: tuple[str, ...] = ("foods", "sports", "background")
"""Known, though no caption names a food or a sport: nothing like it is drawn."""

NUMBERS: dict[int, str] = {2: "two", 3: "three", 4: "four", 5: "five"}
MANY = 3
"""From so many on, "many" and "several" are said."""

OWN_SENTENCES: tuple[str, ...] = (
    "{}",
    "{}.",
    "{}!",
    "a page with {}.",
    "a picture book shows {}.",
    "a picture of {}.",
    "an image of {}.",
    "a scene with {}.",
    "this is {}.",
    "here we see {}.",
    "there is {}.",
    "once there was {}.",
    "look, {}!",
    "a computer graphics {}.",
    "a small picture of {}.",
    "a bright drawing of {}.",
    "a dark drawing of {}.",
)
"""Sentences around the enumeration; none names a thing of its own."""

BACKDROPS: tuple[str, ...] = ("{} in the background", "a background of {}")
"""How a thing may be said to stand behind."""

CLIP_ES_SENTENCE = "a clean origami {}."


def imagenet_sentences() -> tuple[str, ...]:
    """The ImageNet templates that say nothing of a number."""
    text = resources.files("tag2mask.classes").joinpath("imagenet_templates.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if not {"many", "one"} & set(line.split()))


def class_words(name: str) -> tuple[Word, ...]:
    """All that a class may be called."""
    return (*PAPER_WORDS[name], *OTHER_WORDS.get(name, ()))


def thing_words(name: str) -> tuple[str, ...]:
    """All that a thing may be called, but for kinds; empty for a building, which "building" names as a kind."""
    return THING_WORDS.get(name, ())


def kinds_of(name: str) -> tuple[Word, ...]:
    """The words for kinds that a class or a thing belongs to."""
    return tuple(word for word, members in KINDS.items() if name in members)
