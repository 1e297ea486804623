"""Which columns of a table hold the labels: one, several of them side by side, or one of 0 and 1 for each class."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tag2mask.classes import plain
from tag2mask.data.tag_cells import Words, cell_text
from tag2mask.data.tag_marks import kind_of
from tag2mask.types import UserError

__all__ = ["DRAFT", "LABELS", "SUGGESTED", "Row", "Rows", "label_columns", "numbered_labels", "shown"]

Row = tuple[str, str, Words]

LABELS = (
    "labels label tags tag class classes category categories classname classnames labelname labelnames tagname "
    "tagnames categoryname categorynames keywords choice choices",
)
"""What programs call the column of labels, folded."""
SUGGESTED = "suggested"
"""The column of tags that `tag2mask suggest` writes, which no person has confirmed."""
DRAFT = "tags.suggested.csv"
"""The file in which it is, beside the images."""
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
        cells = {"" if row[place] is None else str(row[place]) for _, row in rows}
        if place != image and header[place] and (kind := kind_of(header[place], cells)) is not None:
            kinds[place] = kind
    texts = [place for place, kind in kinds.items() if kind in ("text", "both")]
    marks = [place for place, kind in kinds.items() if kind == "mark"]
    whole = [p for p, kind in kinds.items() if kind == "number" and all(_is_whole(row[p]) for _, row in rows)]
    if numbered and (set(numbered) & set(texts) or set(numbered) <= set(whole)):
        return numbered, []
    if len(marks) > 1 or (marks and not texts) or list(kinds.values()).count("both") > 1 or "near" in kinds.values():
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


def shown(cells: Sequence[Any], sign: str = ",") -> str:
    """A row for a message."""
    text = sign.join(str(cell) for cell in cells)
    return text if len(text) <= 120 else f"{text[:120]}..."
