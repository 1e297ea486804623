"""Labels that are numbers: of classes in their order, or places in a vector of 0 and 1."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from tag2mask.classes import fold
from tag2mask.data.tag_list import TagList
from tag2mask.data.tag_nothing import NUMBER, is_background
from tag2mask.types import ClassSet, UserError
from tag2mask.words import many

__all__ = ["all_numbers", "named_numbers"]

_IN_ORDER = "name the classes that they stand for, in their order, by --classes (voc12, coco14, or a YAML file)"
_BACKGROUND = "background"


def all_numbers(words: Iterable[str], index: Container[str]) -> bool:
    """Whether all words are numbers, and none of them the name of a class (folded, in ``index``)."""
    names = [word for word in words if word and not is_background(word)]
    return bool(names) and all(NUMBER.fullmatch(word) and fold(word) not in index for word in names)


def named_numbers(
    words: Mapping[str, tuple[str, ...]],
    tags: TagList,
    classes: ClassSet | None,
    count_from: int | None,
    source: str,
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The names that numbers stand for, and a note that says which.

    Args:
        words: each word as it is written, and as it is read. tags: where they stand.
        classes: the classes that they are of. count_from: the number of the first class, where that was said.
        source: the file, for messages.

    Raises:
        UserError: no class set is named, numbers that it does not have, or that could be counted in two ways.
    """
    numbers = {word: int(float(new[0])) for word, new in words.items() if new and not is_background(new[0])}
    if classes is None:
        raise _no_classes(set(numbers.values()), tags.width, source)
    if tags.width is not None:
        named, note = _places(tags.width, classes, source)
    else:
        named, note = _counted(set(numbers.values()), tags, numbers, classes, count_from, source)
    return {word: (named[numbers[word]],) if word in numbers else new for word, new in words.items()}, [note]


def _no_classes(numbers: set[int], width: int | None, source: str) -> UserError:
    if width is not None:
        return UserError(f"{source} has vectors of 0 and 1 for {many(width, 'class')}: {_IN_ORDER}")
    hint = ""
    if numbers <= {0, 1}:
        hint = (
            "; where 0 is the background, put 'background' first in that file; where 0 and 1 say whether an image "
            "holds one class, name their column after that class ('image,cat')"
        )
    return UserError(f"{source} has numbers for labels: {_IN_ORDER}{hint}")


def _places(width: int, classes: ClassSet, source: str) -> tuple[Mapping[int, str], str]:
    """What the places in vectors are of; the background has one where the class list names it."""
    names = classes.names if classes.lists_background and width == len(classes) else classes.foreground
    if width != len(names):
        hint = ", or put 'background' first in them where its place is the first" if width == len(names) + 1 else ""
        raise UserError(
            f"{source} has vectors of {many(width, 'class')}, but {classes.id} has {len(names)} without the "
            f"background: name other classes by --classes{hint}"
        )
    said = f"0 = {names[0]!r}, {width - 1} = {names[-1]!r}"
    return dict(enumerate(names)), f"the places in the vectors of {source} are classes of {classes.id}: {said}"


def _counted(
    found: set[int],
    tags: TagList,
    numbers: Mapping[str, int],
    classes: ClassSet,
    count_from: int | None,
    source: str,
) -> tuple[Mapping[int, str], str]:
    """The names of classes by number. Where the first class is 1, 0 is the background."""
    names, lowest, highest = classes.foreground, min(found), max(found)
    if tags.doubtful and count_from is None:
        raise UserError(
            f"{source} has lists of 0 and 1, each of them once in every list: are these the numbers of two classes, "
            "which all images would hold, or vectors with a place for each class? --count-from 0 or --count-from 1 "
            "says that they are numbers, of which the first class is 0 or 1; write the names of the classes where "
            "they are vectors"
        )
    in_all = all(row is None or any(numbers.get(word) == 0 for word in row) for row in tags.rows.values())
    held = many(len(names), "class")
    first = count_from
    if (first is None and classes.lists_background) or (first is None and lowest >= 1 and highest == len(names)):
        first = 1
    elif first is None and (lowest, highest) == (0, len(names) - 1) and not in_all:
        first = 0
    if first is None and highest <= len(names):
        zero = f"--count-from 0: it is {names[0]!r}; " if highest < len(names) else ""
        asked = (
            f"is 0 a class, or the background? {zero}--count-from 1: it is the background, and 1 is {names[0]!r}"
            if lowest == 0
            else f"is the first class, {names[0]!r}, number 0 or number 1? --count-from 0 or --count-from 1 says so"
        )
        raise UserError(f"{source} has numbers from {lowest} to {highest} for the {held} of {classes.id}: {asked}")
    if first is None or highest >= first + len(names):
        wanted = "0 or 1" if first is None else first
        raise UserError(
            f"{source} has numbers from {lowest} to {highest}, but {classes.id} has {held}, counted from {wanted}: "
            "name other classes by --classes"
        )
    named = {first + place: name for place, name in enumerate(names)}
    if first == 1:
        named[0] = _BACKGROUND
    shown = sorted({lowest, highest, *({1} & found)})
    said = ", ".join(f"{number} = {named[number]!r}" for number in shown)
    return named, f"the numbers in {source} are classes of {classes.id}, counted from {first}: {said}"
