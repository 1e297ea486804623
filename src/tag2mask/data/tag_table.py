"""Tag files in rows and columns: which sign stands between columns, which column is which, columns of 0 and 1.

Whatever the file's form, a row becomes ``(where, image, words)``: a place for messages, the image as it is written
there, and the words of its labels, or None where it has none.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from tag2mask.classes import plain
from tag2mask.data.image import is_image
from tag2mask.data.tag_cells import cell_text, words_of
from tag2mask.data.tag_columns import LABELS, SUGGESTED, Row, Rows, label_columns, numbered_labels, shown
from tag2mask.data.tag_one_hot import one_hot
from tag2mask.types import UserError
from tag2mask.words import counted, listing, many

__all__ = ["Row", "Rows", "There", "find_roles", "table_rows", "text_table"]

# what programs call the two columns, folded; the second line is looked at where the first has nothing
_IMAGE = (
    "image images img filename file imagename imagefile imagefilename imgname imgfile path filepath imagepath "
    "imgpath picture photo url imageurl",
    "imageid imgid id name key",
)
_LOOKED_AT = 1000
"""So many rows are looked at to find out which column holds the images."""

There = Callable[[str], bool]
"""Whether a cell names an image that is there."""


def text_table(text: str, source: str, there: There | None = None) -> Rows:
    """Reads CSV of any separator, with a header.

    Args:
        text: of the file.
        source: the file, for messages.
        there: whether a cell names an image that is there; by this a column of images is known that is not called so.

    Raises:
        UserError: no column of images or none of labels, a row that does not fit, or a column with two meanings.
    """
    first, _, rest = text.partition("\n")
    said = re.fullmatch(r'"?sep=(.)"?\s*', first.strip("\r"), re.IGNORECASE)
    body, skipped = (rest, 1) if said else (text, 0)
    signs = (said[1],) if said else (",", ";", "\t", "|")
    headers = {sign: _header(body, sign) for sign in signs}
    roles = {sign: _roles(header, source) for sign, header in headers.items()}
    for whole in (True, False):  # first by names of both columns, then of that of the images alone
        for sign, (image, labels) in roles.items():
            header = headers[sign]
            if image is not None and len(header) > 1 and (labels is not None or not whole):
                better, notes = _by_content(header, body, sign, source, there, named=image)
                rows = _csv_rows(body, sign, len(header), source, skipped)
                return _columns_read(header, rows, source, image if better is None else better, notes)
    for sign, header in headers.items():
        if len(header) == 2 and is_image(header[0]):
            cells = _csv_rows(body, sign, 2, source, skipped, headed=False)
            return Rows(
                _pairs(cells, 0, [1], source), [f"{source} has no header: its columns were read as image,labels"]
            )
    for sign, header in headers.items():
        found, notes = _by_content(header, body, sign, source, there) if len(header) > 1 else (None, [])
        if found is not None:
            rows = _csv_rows(body, sign, len(header), source, skipped)
            return _columns_read(header, rows, source, found, notes)
    raise _no_table(headers, source, there)


def _columns_read(
    header: Sequence[str], rows: Iterable[tuple[str, Sequence[Any]]], source: str, image: int, notes: list[str]
) -> Rows:
    found = table_rows(header, rows, source, image)
    return replace(found, notes=[*notes, *found.notes])


def _by_content(
    header: Sequence[str], body: str, sign: str, source: str, there: There | None, named: int | None = None
) -> tuple[int | None, list[str]]:
    """The column whose cells are names of images, and a note on it; None where the named one has some, or none has.

    Raises:
        UserError: several columns hold names of images, or the first line does.
    """
    if there is None:
        return None, []
    if named is None and any(is_image(cell) or there(cell) for cell in header):
        raise UserError(
            f"{source}: its first line, {shown(header, sign)!r}, is a row of an image, not names of columns: put "
            f"'image{sign}labels' above it, and ';' between the labels of an image"
        )
    lines = csv.reader(io.StringIO(body, newline=""), delimiter=sign, skipinitialspace=True)
    try:
        rows = [row for row in islice(lines, 1, _LOOKED_AT) if len(row) == len(header)]
    except csv.Error:
        return None, []
    cells = [[cell_text(row[place]) for row in rows if row[place].strip()] for place in range(len(header))]
    hits = [sum(is_image(cell) or there(cell) for cell in column) for column in cells]
    likely = [place for place, column in enumerate(cells) if column and hits[place] > len(column) / 2]
    if not likely or (named is not None and (hits[named] or len(likely) > 1)):
        return None, []
    if len(likely) > 1:
        both = " and ".join(repr(header[place]) for place in likely)
        raise UserError(
            f"{source}: the columns {both} both hold names of images: call the one that is meant 'image' in the "
            "first line"
        )
    place = likely[0]
    return place, [f"the column {header[place]!r} of {source} was taken for the images, as its cells are their names"]


def _no_table(headers: dict[str, list[str]], source: str, there: There | None) -> UserError:
    sign = max(headers, key=lambda one: len(headers[one]))
    header = headers[sign]
    if not header:
        return UserError(f"{source} is empty: write 'image,labels' in its first line, then a line for each image")
    if len(header) == 1:
        return UserError(
            f"{source} starts with {shown(header)!r}, which is one column: expected 'image,labels', two columns with "
            "a comma, semicolon or tab between them"
        )
    why = "" if there is None else ", nor do its cells name images that are there"
    return UserError(
        f"{source} has the columns {listing([repr(cell) for cell in header], most=10)} with {sign!r} between them, "
        f"but none is called as a column of images is{why}: call the columns 'image' and 'labels' in its first line "
        f"('image{sign}labels')"
    )


def _roles(header: Sequence[str], source: str) -> tuple[int | None, int | None]:
    several = numbered_labels(header, None)
    kept = [cell if place not in several[1:] else "" for place, cell in enumerate(header)]
    return find_roles(kept, source)


def find_roles(header: Sequence[str], source: str) -> tuple[int | None, int | None]:
    """Which column holds the images, and which the labels.

    Raises:
        UserError: there are two for one of them.
    """
    folded = [plain(cell_text(cell)) for cell in header]

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

    labels = find(LABELS, "the labels")
    return find(_IMAGE, "the image"), labels


def table_rows(
    header: Sequence[str], rows: Iterable[tuple[str, Sequence[Any]]], source: str, image: int | None = None
) -> Rows:
    """The rows of a table: a column of images, and one of labels, several of these, or one for each class.

    Args:
        header: what the columns are called.
        rows: a place for messages, and the cells, as many as ``header`` has.
        source: the file, for messages.
        image: the column of the images, where the header does not say it.

    Raises:
        UserError: what holds the labels is not clear, or a cell cannot be read.
    """
    several = numbered_labels(header, image)
    named, found = _roles(header, source)
    image = named if image is None else image
    assert image is not None
    labels = several if several else [] if found is None or found == image else [found]
    if not labels and SUGGESTED in map(plain, map(cell_text, header)):
        raise UserError(
            f"{source} holds tags that `tag2mask suggest` has suggested, and nobody has confirmed them: look them "
            f"over, then call the column {SUGGESTED!r} 'labels' in the first line"
        )
    notes: list[str] = []
    if (several and found is None) or not labels:
        rows = list(rows)
        labels, notes = label_columns(header, rows, source, image, several)
    if not labels:
        return one_hot(header, rows, source, image)
    if len(labels) > 1:
        notes = [f"the columns {' and '.join(repr(header[n]) for n in labels)} of {source} hold its labels together"]
    others = [repr(cell) for place, cell in enumerate(header) if place not in (image, *labels) and cell]
    return Rows(
        _pairs(rows, image, labels, source), notes + counted(f"columns of {source} that are not read", others)
    )


def _pairs(
    rows: Iterable[tuple[str, Sequence[Any]]], image: int, labels: Sequence[int], source: str
) -> Iterator[Row]:
    for where, cells in rows:
        name = cells[image]
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)
        if not isinstance(name, str) or not cell_text(name):
            raise UserError(f"{source}, {where}: no image is named: {shown(cells)!r}")
        try:
            said = [words for place in labels if (words := words_of(cells[place])) is not None]
        except ValueError as odd:
            raise UserError(
                f"{source}, {where}: labels are {odd.args[0]!r}, expected names alone, such as 'cat;dog' or "
                '["cat", "dog"]'
            ) from None
        yield where, cell_text(name), tuple(word for words in said for word in words) or None


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
                    f"{source}, {where}: {many(len(row), 'column')} instead of {width}: {shown(row, sign)!r}; "
                    f"put names that contain {'a comma' if sign == ',' else repr(sign)} in quotes, and ';' between "
                    "labels"
                )
            yield where, row
    except csv.Error as error:
        raise UserError(f"{source}, line {rows.line_num + skipped}: not readable CSV ({error})") from error
