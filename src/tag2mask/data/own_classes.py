"""The classes of data that bring their own names: a known class set where it fits, else the names themselves.

This is the one place that says which names are one class, which look as if they were, and which are no class.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal
from unicodedata import combining, normalize

from tag2mask.classes import class_index, fold, load_classes, plain_classes
from tag2mask.data.slips import notes_on_slips
from tag2mask.data.tag_check import check_names
from tag2mask.data.tag_nothing import is_background, no_names
from tag2mask.types import ClassSet, UserError
from tag2mask.words import counted, listing

__all__ = ["classes_of_names", "classes_of_tags"]

_IRREGULAR = {
    "people": "person",
    "persons": "person",
    "men": "man",
    "women": "woman",
    "children": "child",
    "mice": "mouse",
    "geese": "goose",
    "feet": "foot",
    "teeth": "tooth",
    "oxen": "ox",
    "knives": "knife",
    "leaves": "leaf",
    "wolves": "wolf",
    "calves": "calf",
    "shelves": "shelf",
    "loaves": "loaf",
}


def classes_of_names(
    names: Sequence[str],
    id: str,
    source: str,
    known: str | None,
    *,
    whole: bool,
    counts: Mapping[str, int],
) -> tuple[ClassSet, list[str]]:
    """The class set of data that names its classes, and what a user should know about it.

    Args:
        names: as the data has them, in the order of the mask values to come. "background" among them is no class,
            and of several spellings of one name (see ``classes.fold``) the first is taken.
        id: what a class set of these names is called.
        source: the file or folder that names them, for the notes.
        known: a built-in class set, which is taken where it fits; None for the names themselves in any case.
        whole: whether ``names`` are all the classes that the data knows, so that the known set fits only where it
            has these and no others; else ``names`` are those that occur, and it fits where it has all of them.
        counts: how many images or objects have each name, where it is known: a rare one may be a slip.

    Raises:
        UserError: no name at all, one that is empty, or more than 254.
    """
    classes, notes = _distinct(names, source)
    if any(is_background(name) for name in names):
        notes.append(f"{source} has a class 'background': it is left out, mask value 0 is the background")
    if known is not None:
        fitting = load_classes(known)
        index = class_index(fitting)
        tags = {index[key] for key in classes if key in index}
        if classes.keys() <= index.keys() and (not whole or len(tags) == len(fitting.foreground)):
            return fitting, [f"the classes are {known}'s, which has every name in {source}", *notes]
    own = plain_classes(list(classes.values()), id)
    said = listing([repr(name) for name in own.foreground], most=10)
    groups = _look_alikes(classes.values())
    alike = [" and ".join(map(repr, group)) for group in groups]
    notes += counted(f"names in {source} that look like one class, and stay two", alike)
    notes += _inner(classes.values(), source)
    notes += notes_on_slips({name: counts.get(name, 0) for name in own.foreground}, source, groups)
    return own, [f"{_these(len(own.foreground))} named in {source}: {said}", *notes]


def classes_of_tags(
    rows: Mapping[str, Sequence[str] | None],
    id: str,
    source: str,
    *,
    images: Collection[Sequence[str] | None],
    listed: Sequence[str] = (),
    twins: Literal["keep", "merge"] | None = None,
    skip: bool = False,
) -> tuple[ClassSet, list[str]]:
    """A class set of the words that images are tagged with, sorted, and what a user should know about it.

    Of several spellings of one name (see ``classes.fold``) the commonest is taken.

    Args:
        rows: the labels by image, as the file says.
        id: what the class set is called.
        source: the file or folder, for messages.
        images: the labels of each image that is there: what is counted.
        listed: classes that it lists besides, whether an image has them or not.
        twins: what becomes of names that look like one class ("tree", "trees", "tree."): None stops.
        skip: whether words for nothing are left out; else they stop.

    Raises:
        UserError: no name at all, words that are no names, names that look like one class, or more than 254.
    """
    spelled = Counter(word for words in rows.values() for word in set(words or ()) if not is_background(word))
    spelled.update(dict.fromkeys((word for word in listed if not is_background(word)), 0))
    check_names(spelled, source, skip)
    classes, notes = _distinct(
        sorted(spelled.keys() - no_names(spelled), key=lambda word: (-spelled[word], word)), source
    )
    if not classes:
        raise UserError(f"{source} names no class at all: name a class set, or add labels")
    held = Counter(key for words in images for key in {fold(word) for word in words or ()})
    groups = _look_alikes(classes.values())
    # the most frequent name of a group stands for it
    groups = [sorted(group, key=lambda name: (-held[fold(name)], len(name), name)) for group in groups]
    shown = [" and ".join(f"{name!r} ({held[fold(name)]})" for name in group) for group in groups]
    aliases: dict[str, str] = {}
    if groups and twins is None:
        raise UserError(
            f"{source} has names that look like one class: {listing(shown)}; --twins merge makes one class of them, "
            "--twins keep leaves them apart, and a classes.yaml beside the images settles each by its aliases"
        )
    if twins == "merge":
        aliases = {name: group[0] for group in groups for name in group[1:]}
        for group in groups:
            keys = {fold(name) for name in group}
            held[fold(group[0])] = sum(not keys.isdisjoint(map(fold, words or ())) for words in images)
        notes += counted(f"names of {source} that became one class", shown)
    else:
        notes += counted(f"names of {source} that look like one class, and stay two", shown)
    chosen = sorted((n for n in classes.values() if n not in aliases), key=lambda word: (fold(word), word))
    own = plain_classes(chosen, id, aliases)  # no more than 254, so the notes compare no more
    notes += _inner(chosen, source)
    notes += notes_on_slips({name: held[fold(name)] for name in chosen}, source, groups)
    with_counts = listing([f"{name!r} ({held[fold(name)]})" for name in chosen], most=40)
    first = f"{_these(len(chosen))} named in {source}, with the number of images that have each: {with_counts}"
    return own, [first, *notes]


def _distinct(names: Iterable[str], source: str) -> tuple[dict[str, str], list[str]]:
    """The first spelling of each name by what is compared, and a note that names the others."""
    classes: dict[str, str] = {}
    twins: list[str] = []
    for name in names:
        if is_background(name):
            continue
        first = classes.setdefault(fold(name), name)
        if first != name:
            form = " (another Unicode form)" if normalize("NFC", first) == normalize("NFC", name) else ""
            twins.append(f"{name!r} = {first!r}{form}")
    return classes, counted(f"spellings in {source} that are one class", twins)


def _look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ by number, accents or signs around them alone."""
    groups: dict[str, list[str]] = {}
    keys = {name: _bare(name) for name in names}
    whole = set(keys.values())
    for name, key in keys.items():
        groups.setdefault(next((one for one in _singulars(key) if one in whole), key), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _bare(name: str) -> str:
    plain = "".join(c for c in normalize("NFKD", name.casefold()) if not combining(c))
    words = "".join(c if c.isalnum() else " " for c in plain).split()
    if not words:
        return fold(name)
    # digits that stand apart stay apart: "h1-1" does not look like "h11"
    return re.sub(r"(?<!\d) | (?!\d)", "", " ".join([*words[:-1], _IRREGULAR.get(words[-1], words[-1])]))


def _singulars(name: str) -> Iterable[str]:
    """What a plural may be the plural of."""
    if name.endswith("ies"):
        yield name[:-3] + "y"
    if name.endswith("es"):
        yield name[:-2]
    if name.endswith("s"):
        yield name[:-1]


def _inner(names: Iterable[str], source: str) -> list[str]:
    """A note on names that recur as a word of a longer one."""
    words = {name: [fold(word) for word in name.replace("_", " ").replace("-", " ").split()] for name in names}
    single = {parts[0]: name for name, parts in words.items() if len(parts) == 1}
    inner = [
        f"{single[part]!r} in {name!r}"
        for name, parts in words.items()
        if len(parts) > 1
        for part in dict.fromkeys(parts)
        if part in single
    ]
    return counted(f"names of {source} that recur in longer ones, each a class of its own", inner)


def _these(count: int) -> str:
    return "the class is the one" if count == 1 else f"the {count} classes are those"
