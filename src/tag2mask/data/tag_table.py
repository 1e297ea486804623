"""Tag files in rows and columns: which sign stands between columns, which column is which, columns of 0 and 1.

Whatever the file's form, a row becomes ``(where, image, words)``: a place for messages, the image as it is written
there, and the words of its labels, or None where it has none.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tag2mask.classes import fold
from tag2mask.data.columns import counted, listing
from tag2mask.data.image import is_image
from tag2mask.data.tag_cells import Words, cell_text, words_of
from tag2mask.types import UserError

__all__ = ["Row", "Rows", "find_roles", "one_hot", "table_rows", "text_table"]

Row = tuple[str, str, Words]

# what programs call the two columns, folded; the second line is looked at where the first has nothing
_IMAGE = (
    "image images img filename file imagename imagefile imagefilename imgname imgfile path filepath imagepath "
    "imgpath picture photo url imageurl",
    "imageid imgid id name key",
)
_LABELS = (
    "labels label tags tag class classes category categories classname classnames labelname labelnames tagname "
    "tagnames categoryname categorynames keywords choice choices",
)
_NO_CLASS = frozenset(
    ("index", "id", "width", "height", "imagewidth", "imageheight", "size", "filesize", "unnamed:0")
)
"""Columns of numbers that programs put beside columns of 0 and 1."""

_MARKS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "-1": -1, "-1.0": -1, "": None}
_NUMBER = re.compile(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Rows:
    """What a table says. ``listed``: its classes, where the columns are classes. ``notes``: what was left out."""

    rows: Iterable[Row]
    notes: list[str]
    listed: tuple[str, ...] = ()


def text_table(text: str, source: str) -> Rows:
    """Reads CSV of any separator, with a header.

    Raises:
        UserError: no header that says image and labels, a row that does not fit it, or a column with two meanings.
    """
    first, _, rest = text.partition("\n")
    said = re.fullmatch(r'"?sep=(.)"?\s*', first.strip("\r"), re.IGNORECASE)
    body, skipped = (rest, 1) if said else (text, 0)
    signs = (said[1],) if said else (",", ";", "\t", "|")
    headers = {sign: _header(body, sign) for sign in signs}
    roles = {sign: find_roles(header, source) for sign, header in headers.items()}
    for sign, (image, labels) in roles.items():
        if image is not None and labels is not None:
            header = headers[sign]
            return table_rows(header, _csv_rows(body, sign, len(header), source, skipped), source)
    for sign, (image, _) in roles.items():
        if image is not None and len(headers[sign]) > 1:
            header = headers[sign]
            return one_hot(header, _csv_rows(body, sign, len(header), source, skipped), source)
    for sign, header in headers.items():
        if len(header) == 2 and is_image(header[0]):
            cells = _csv_rows(body, sign, 2, source, skipped, headed=False)
            return Rows(
                _pairs(cells, 0, 1, source), [f"{source} has no header: its columns were read as image,labels"]
            )
    got = next(iter(headers.values()))
    raise UserError(
        f"{source} starts with {_shown(got, signs[0]) or 'nothing'!r}: its first line must be 'image,labels'"
    )


def find_roles(header: Sequence[str], source: str) -> tuple[int | None, int | None]:
    """Which column holds the images, and which the labels.

    Raises:
        UserError: there are two for one of them.
    """
    folded = [fold(cell_text(cell)) for cell in header]

    def find(names: Sequence[str], what: str) -> int | None:
        for tier in names:
            places = [place for place, cell in enumerate(folded) if cell in tier.split()]
            if len(places) > 1:
                both = " and ".join(repr(header[place]) for place in places)
                raise UserError(
                    f"{source}: the columns {both} could both be {what}: rename the one that is meant to "
                    f"{'image' if what == 'the image' else 'labels'!r} and take the other out"
                )
            if places:
                return places[0]
        return None

    labels = find(_LABELS, "the labels")
    return find(_IMAGE, "the image"), labels


def table_rows(header: Sequence[str], rows: Iterable[tuple[str, Sequence[Any]]], source: str) -> Rows:
    """The rows of a table that has a column of images and one of labels; other columns are left out."""
    image, labels = find_roles(header, source)
    assert image is not None
    assert labels is not None
    others = [repr(cell) for place, cell in enumerate(header) if place not in (image, labels) and cell]
    return Rows(_pairs(rows, image, labels, source), counted(f"columns of {source} that are not read", others))


def _pairs(rows: Iterable[tuple[str, Sequence[Any]]], image: int, labels: int, source: str) -> Iterator[Row]:
    for where, cells in rows:
        name = cells[image]
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)
        if not isinstance(name, str) or not cell_text(name):
            raise UserError(f"{source}, {where}: no image is named: {_shown(cells)!r}")
        try:
            words = words_of(cells[labels])
        except ValueError as odd:
            raise UserError(
                f"{source}, {where}: labels are {odd.args[0]!r}, expected names alone, such as 'cat;dog' or "
                '["cat", "dog"]'
            ) from None
        yield where, cell_text(name), words


@dataclass
class _Column:
    """What was seen in a column that may be a class."""

    name: str
    marks: dict[int | None, str]  # 1, 0, -1, or None for an empty cell; with the place of the first
    number: str | None = None
    text: bool = False

    @property
    def is_class(self) -> bool:
        return not self.text and self.number is None and bool(self.marks.keys() - {None}) and bool(self.name)


def one_hot(header: Sequence[str], rows: Iterable[tuple[str, Sequence[Any]]], source: str) -> Rows:
    """The rows of a table with a column of images, and a column of 0 and 1 for each class.

    Raises:
        UserError: there is no such column, or a value that may mean two things.
    """
    image, _ = find_roles(header, source)
    assert image is not None
    columns = [_Column(cell_text(cell), {}) for cell in header]
    held: list[tuple[str, str, tuple[int, ...]]] = []
    for where, cells in rows:
        name = cell_text(str(cells[image]))
        if not name:
            raise UserError(f"{source}, {where}: no image is named: {_shown(cells)!r}")
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
                column.text = True
        held.append((where, name, tuple(ones)))
    classes = [place for place, column in enumerate(columns) if place != image and column.is_class]
    _check_marks(columns, classes, image, header, source)
    chosen = set(classes)
    others = [repr(c.name) for place, c in enumerate(columns) if place != image and place not in chosen and c.name]
    rows_ = ((where, name, tuple(columns[p].name for p in ones if p in chosen) or None) for where, name, ones in held)
    notes = [f"the columns of {source} that hold only 0 and 1 were read as classes: {len(classes)}"]
    notes += counted(f"columns of {source} that are not read", others)
    return Rows(rows_, notes, tuple(columns[place].name for place in classes))


def _check_marks(
    columns: Sequence[_Column], classes: Sequence[int], image: int, header: Sequence[str], source: str
) -> None:
    numbers = [
        f"{column.name!r} ({column.number})"
        for place, column in enumerate(columns)
        if place != image and column.number is not None and not column.text and fold(column.name) not in _NO_CLASS
    ]
    if not classes:
        raise UserError(f"{source} starts with {_shown(header)!r}: its first line must be 'image,labels'")
    if numbers:
        raise UserError(
            f"{source}: columns of 0 and 1 were expected beside {columns[image].name!r}, but some hold other "
            f"numbers: {listing(numbers)}; write 1 where an image holds the class and 0 where not, or take "
            "the column out"
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


def _header(text: str, sign: str) -> list[str]:
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=sign, skipinitialspace=True)
        return next(([cell_text(cell) for cell in row] for row in rows if any(cell.strip() for cell in row)), [])
    except csv.Error:
        return []


def _csv_rows(
    text: str, sign: str, width: int, source: str, skipped: int, headed: bool = True
) -> Iterator[tuple[str, Sequence[str]]]:
    # strict: a quote that is never closed would swallow the rows behind it
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=sign, skipinitialspace=True, strict=True)
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if headed:
                headed = False
                continue
            while len(row) > width and not row[-1].strip():
                row.pop()
            where = f"line {rows.line_num + skipped}"
            if len(row) != width:
                raise UserError(
                    f"{source}, {where}: {len(row)} columns instead of {width}: {_shown(row, sign)!r}; "
                    f"put names that contain {'a comma' if sign == ',' else repr(sign)} in quotes, and ';' between "
                    "labels"
                )
            yield where, row
    except csv.Error as error:
        raise UserError(f"{source}, line {rows.line_num + skipped}: not readable CSV ({error})") from error


def _shown(cells: Sequence[Any], sign: str = ",") -> str:
    text = sign.join(str(cell) for cell in cells)
    return text if len(text) <= 120 else f"{text[:120]}..."
