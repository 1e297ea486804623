"""Tables with a column of marks for each class: 0 and 1, x, yes and no and the like."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tag2mask.classes import fold
from tag2mask.data.tag_cells import cell_text
from tag2mask.data.tag_columns import Rows, shown
from tag2mask.data.tag_marks import MARKS, ZEROS, is_figure, is_nearly, names_no_class
from tag2mask.types import UserError
from tag2mask.words import counted, listing, many

__all__ = ["one_hot"]


@dataclass
class _Column:
    """What was seen in a column that may be a class."""

    name: str
    marks: dict[int | None, str] = field(default_factory=dict)  # with the place of the first
    spelled: dict[str, str] = field(default_factory=dict)  # the marks as they are written
    number: str | None = None
    text: str | None = None  # the first word that is no mark
    words: bool = False  # whether others than what is nearly a mark

    @property
    def near(self) -> bool:
        """Whether its words are nearly marks, such as "+" and "-"."""
        return self.text is not None and not self.words

    @property
    def sound(self) -> bool:
        """Whether it may be a class: marks or nothing, under a name."""
        return self.text is None and self.number is None and bool(self.name) and not names_no_class(self.name)

    def alike(self) -> list[str]:
        """Several words that would all be yes, or all no, where nothing in the column says otherwise."""
        words = [text for text in self.spelled if text.isalpha()]
        return sorted(words) if len(self.marks) == 1 and len(words) > 1 else []

    def see(self, cell: Any, where: str) -> bool:
        """Take note of a cell; whether it says that the class is there."""
        written = "" if cell is None else str(cell).strip()
        text = written.lower()
        if text in MARKS:
            self.marks.setdefault(MARKS[text], where)
            self.spelled.setdefault(text, written)
        elif is_figure(text):
            self.number = self.number or text
        else:
            self.text = self.text or text
            self.words = self.words or not is_nearly(text)
        return MARKS.get(text) == 1


_Held = Sequence[tuple[str, str, frozenset[int]]]
"""Of each row its place for messages, its image, and the columns that say that their class is there."""


def one_hot(header: Sequence[str], rows: Iterable[tuple[str, Sequence[Any]]], source: str, image: int) -> Rows:
    """The rows of a table with a column of images, and a column of 0 and 1 for each class.

    Raises:
        UserError: there is no such column, a value that may mean two things, or columns of one class that differ.
    """
    columns = [_Column(cell_text(cell)) for cell in header]
    held: list[tuple[str, str, frozenset[int]]] = []
    for where, cells in rows:
        name = cell_text(str(cells[image]))
        if not name:
            raise UserError(f"{source}, {where}: no image is named: {shown(cells)!r}")
        seen = [place for place, cell in enumerate(cells) if place != image and columns[place].see(cell, where)]
        held.append((where, name, frozenset(seen)))
    beside = [place for place in range(len(columns)) if place != image]
    classes = [place for place in beside if columns[place].sound and columns[place].marks.keys() - {None}]
    _check_marks(columns, classes, image, header, source)
    marks = {mark for place in classes for mark in columns[place].marks}
    empty = [] if marks & {0, -1} else [p for p in beside if columns[p].sound and p not in classes]
    notes = [
        f"the columns of {source} that hold only {_spelled(columns, classes)} were read as classes: {len(classes)}"
    ]
    notes += counted(f"columns of {source} that are empty, classes of no image", [repr(header[p]) for p in empty])
    classes = sorted([*classes, *empty])
    others = [repr(columns[p].name) for p in beside if p not in classes and columns[p].name]
    notes += counted(f"columns of {source} that are not read", others)
    notes += _twins(columns, classes, held, source)
    zeros = [name for _, name, ones in held if not ones.intersection(classes)] if marks & {0, -1} else []
    notes += counted(f"rows of {source} with no class that is there: {ZEROS}", zeros)
    return Rows(
        ((where, name, tuple(columns[p].name for p in classes if p in ones) or None) for where, name, ones in held),
        notes,
        tuple(columns[place].name for place in classes),
    )


def _spelled(columns: Sequence[_Column], classes: Sequence[int]) -> str:
    found = {text: written for place in classes for text, written in columns[place].spelled.items() if text}
    return " and ".join(found[text] for text in sorted(found))


def _twins(columns: Sequence[_Column], classes: Sequence[int], held: _Held, source: str) -> list[str]:
    """A note on columns that are of one class.

    Raises:
        UserError: they do not say the same.
    """
    groups: dict[str, list[int]] = {}
    for place in classes:
        groups.setdefault(fold(columns[place].name), []).append(place)
    several = [places for places in groups.values() if len(places) > 1]
    for places in several:
        differ = sum(0 < len(ones.intersection(places)) < len(places) for _, _, ones in held)
        if differ:
            names = " and ".join(repr(columns[place].name) for place in places)
            raise UserError(
                f"{source}: the columns {names} are of one class, but differ in {differ} of "
                f"{many(len(held), 'row')}: take out those that are wrong, or call them differently"
            )
    return counted(
        f"classes of {source} that have several columns, which agree", [repr(columns[p[0]].name) for p in several]
    )


def _guessed(columns: Sequence[_Column], image: int) -> str:
    """What other numbers than 0 and 1 may be."""
    found = [c.number for place, c in enumerate(columns) if place != image and c.number is not None]
    if any("%" in number or not float(number.replace(",", ".")).is_integer() for number in found):
        return (
            "; are these probabilities? From which on an image holds the class is not said: choose the threshold "
            "yourself"
        )
    return "; are these counts of objects, or grades of certainty?"


def _check_marks(
    columns: Sequence[_Column], classes: Sequence[int], image: int, header: Sequence[str], source: str
) -> None:
    numbers = [
        f"{column.name!r} ({column.number})"
        for place, column in enumerate(columns)
        if place != image and column.number is not None and column.text is None and not names_no_class(column.name)
    ]
    odd = [
        column
        for place, column in enumerate(columns)
        if place != image and column.text is not None and not names_no_class(column.name)
        if column.near or column.marks.keys() - {None}
    ]
    if odd:
        mixed = [f"{column.name!r} ({column.text!r})" for column in odd]
        instead = "" if all(column.near for column in odd) else ", or call a column of tags 'labels'"
        raise UserError(
            f"{source}: columns of 0 and 1 (or x, yes and no) for each class were expected beside "
            f"{columns[image].name!r}, but some of them hold other words too: {listing(mixed)}; write 1 where an "
            f"image holds the class and 0 where not{instead}"
        )
    if numbers:
        raise UserError(
            f"{source}: columns of 0 and 1 were expected beside {columns[image].name!r}, but some hold other "
            f"numbers: {listing(numbers)}{_guessed(columns, image)}; write 1 where an image holds the class and 0 "
            "where not, or take the column out"
        )
    if not classes:
        raise UserError(
            f"{source} has the columns {listing([repr(cell) for cell in header], most=10)}, and none beside "
            f"{columns[image].name!r} holds tags: give one column 'labels' with names ('cat;dog'), or a column of 0 "
            "and 1 for each class"
        )
    several = [(columns[place].name, columns[place].alike()) for place in classes if columns[place].alike()]
    if several:
        held = listing([f"{name!r} ({' and '.join(map(repr, alike))})" for name, alike in several])
        raise UserError(
            f"{source}: columns hold words that would all mean the same of their class: {held}; write 1 where an "
            "image holds the class and 0 where not, or, where they are names, call their column 'labels' and name "
            "them as classes by --classes"
        )
    marks = {mark for place in classes for mark in columns[place].marks}
    for sign, what in ((-1, "-1"), (None, "an empty cell")):
        if sign in marks and 0 in marks:
            column = next(columns[place] for place in classes if sign in columns[place].marks)
            raise UserError(
                f"{source}, {column.marks[sign]}: {column.name!r} is {what}, beside columns of 0 and 1: is the class "
                "absent there, or not known? Write 0 where it is absent, and leave out the rows of images that are "
                "not known"
            )
