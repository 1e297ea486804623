"""Which columns of a table hold the labels: one, several of them side by side, or one of 0 and 1 for each class."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tag2mask.classes import plain
from tag2mask.data.columns import counted, listing
from tag2mask.data.tag_cells import Words, cell_text
from tag2mask.types import UserError

__all__ = ["LABELS", "Row", "Rows", "label_columns", "numbered_labels", "one_hot", "shown"]

Row = tuple[str, str, Words]

LABELS = (
    "labels label tags tag class classes category categories classname classnames labelname labelnames tagname "
    "tagnames categoryname categorynames keywords choice choices",
)
"""What programs call the column of labels, folded."""
_NO_CLASS = frozenset(
    ("index", "id", "width", "height", "imagewidth", "imageheight", "size", "filesize", "unnamed:0")
)
"""Columns of numbers that programs put beside columns of 0 and 1."""

_YES = dict.fromkeys(("1", "1.0", "true", "x", "\u2713", "\u2714", "\u2611", "yes", "y", "ja", "j"), 1)
_NO = dict.fromkeys(("0", "0.0", "false", "no", "n", "nein"), 0)
_MARKS = {**_YES, **_NO, "-1": -1, "-1.0": -1, "": None}
_NUMBER = re.compile(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", re.IGNORECASE)
_NUMBERED = re.compile(r"(.*?[^\W\d])[.#(\[]?\d{1,3}[)\]]?")


@dataclass(frozen=True)
class Rows:
    """What a table says. ``listed``: its classes, where the columns are classes. ``notes``: what was left out."""

    rows: Iterable[Row]
    notes: list[str]
    listed: tuple[str, ...] = ()


def numbered_labels(header: Sequence[str], image: int | None) -> list[int]:
    """The columns that are called labels and differ by a number or by nothing: label1, label2; label, label.1."""
    groups = {stem: places for stem, places in _groups(header, image).items() if stem in LABELS[0].split()}
    return next(iter(groups.values())) if len(groups) == 1 else []


def _groups(header: Sequence[str], image: int | None) -> dict[str, list[int]]:
    """Columns by what they are called without a number behind it, where that is several."""
    groups: dict[str, list[int]] = {}
    for place, cell in enumerate(header):
        name = plain(cell_text(cell))
        match = _NUMBERED.fullmatch(name)
        if place != image and name:
            groups.setdefault(match[1] if match else name, []).append(place)
    return {stem: places for stem, places in groups.items() if len(places) > 1}


def label_columns(
    header: Sequence[str], rows: Sequence[tuple[str, Sequence[Any]]], source: str, image: int, numbered: list[int]
) -> tuple[list[int], list[str]]:
    """The columns that hold labels by what is in them, and notes. No column where columns of 0 and 1 are the classes.

    Raises:
        UserError: more than one column could be that of the labels.
    """
    kinds: dict[int, str] = {}
    for place in range(len(header)):
        cells = {"" if row[place] is None else str(row[place]).strip().lower() for _, row in rows} - {""}
        if place == image or not cells or not header[place]:
            continue
        marked = [cell in _MARKS for cell in cells]
        number = all(map(_NUMBER.fullmatch, cells))
        kinds[place] = "mark" if all(marked) else "number" if number else "both" if any(marked) else "text"
    texts = [place for place, kind in kinds.items() if kind in ("text", "both")]
    marks = [place for place, kind in kinds.items() if kind == "mark"]
    whole = [p for p, kind in kinds.items() if kind == "number" and all(_is_whole(row[p]) for _, row in rows)]
    if numbered and (set(numbered) & set(texts) or set(numbered) <= set(whole)):
        return numbered, []
    if len(marks) > 1 or (marks and not texts) or list(kinds.values()).count("both") > 1:
        return [], []
    for places in _groups(header, image).values():
        if texts and set(texts) <= set(places) and set(places) <= {*texts, *(set(places) - kinds.keys())}:
            return places, []
    possible = texts + marks or ([] if len(kinds) > 1 else whole)
    if len(possible) > 1:
        shown_ = " and ".join(repr(header[place]) for place in possible)
        raise UserError(
            f"{source}: beside the images in {header[image]!r}, the columns {shown_} could all hold the labels: call "
            "the one that is meant 'labels' in the first line"
        )
    if not possible:
        return [], []
    return possible, [f"the column {header[possible[0]]!r} of {source} was taken for the labels"]


def _is_whole(value: Any) -> bool:
    return value is None or re.fullmatch(r"\d*", str(value).strip()) is not None


@dataclass
class _Column:
    """What was seen in a column that may be a class."""

    name: str
    marks: dict[int | None, str]  # 1, 0, -1, or None for an empty cell; with the place of the first
    number: str | None = None
    text: str | None = None

    @property
    def is_class(self) -> bool:
        return self.text is None and self.number is None and bool(self.marks.keys() - {None}) and bool(self.name)


def one_hot(header: Sequence[str], rows: Iterable[tuple[str, Sequence[Any]]], source: str, image: int) -> Rows:
    """The rows of a table with a column of images, and a column of 0 and 1 for each class.

    Raises:
        UserError: there is no such column, or a value that may mean two things.
    """
    columns = [_Column(cell_text(cell), {}) for cell in header]
    held: list[tuple[str, str, tuple[int, ...]]] = []
    for where, cells in rows:
        name = cell_text(str(cells[image]))
        if not name:
            raise UserError(f"{source}, {where}: no image is named: {shown(cells)!r}")
        ones = []
        for place, (column, cell) in enumerate(zip(columns, cells, strict=True)):
            if place == image:
                continue
            text = "" if cell is None else str(cell).strip().lower()
            if text in _MARKS:
                column.marks.setdefault(_MARKS[text], where)
                if _MARKS[text] == 1:
                    ones.append(place)
            elif _NUMBER.fullmatch(text):
                column.number = column.number or text
            else:
                column.text = column.text or text
        held.append((where, name, tuple(ones)))
    classes = [place for place, column in enumerate(columns) if place != image and column.is_class]
    _check_marks(columns, classes, image, header, source)
    chosen = set(classes)
    others = [repr(c.name) for place, c in enumerate(columns) if place != image and place not in chosen and c.name]
    rows_ = ((where, name, tuple(columns[p].name for p in ones if p in chosen) or None) for where, name, ones in held)
    notes = [f"the columns of {source} that hold only 0 and 1 were read as classes: {len(classes)}"]
    notes += counted(f"columns of {source} that are not read", others)
    return Rows(rows_, notes, tuple(columns[place].name for place in classes))


def _guessed(columns: Sequence[_Column], image: int) -> str:
    """What other numbers than 0 and 1 may be."""
    found = [float(c.number) for place, c in enumerate(columns) if place != image and c.number is not None]
    if any(not number.is_integer() for number in found):
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
        if place != image
        and column.number is not None
        and column.text is None
        and plain(column.name) not in _NO_CLASS
    ]
    mixed = [
        f"{column.name!r} ({column.text!r})"
        for place, column in enumerate(columns)
        if place != image and column.text is not None and column.marks.keys() - {None}
    ]
    if mixed:
        raise UserError(
            f"{source}: columns of 0 and 1 (or x, yes and no) for each class were expected beside "
            f"{columns[image].name!r}, but some of them hold other words too: {listing(mixed)}; write 1 where an "
            "image holds the class and 0 where not, or call a column of tags 'labels'"
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
    marks = {mark for place in classes for mark in columns[place].marks}
    for odd, what in ((-1, "-1"), (None, "an empty cell")):
        if odd in marks and 0 in marks:
            column = next(columns[place] for place in classes if odd in columns[place].marks)
            raise UserError(
                f"{source}, {column.marks[odd]}: {column.name!r} is {what}, beside columns of 0 and 1: is the class "
                "absent there, or not known? Write 0 where it is absent, and leave out the rows of images that are "
                "not known"
            )


def shown(cells: Sequence[Any], sign: str = ",") -> str:
    """A row for a message."""
    text = sign.join(str(cell) for cell in cells)
    return text if len(text) <= 120 else f"{text[:120]}..."
