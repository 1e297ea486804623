"""Marks that say whether an image holds a class, such as 0 and 1, x, yes and no; and columns that are no class."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from tag2mask.classes import plain
from tag2mask.data.tag_nothing import says_nothing

__all__ = ["MARKS", "ZEROS", "is_figure", "is_nearly", "is_word_mark", "kind_of", "names_no_class"]

_YES = (
    *("1", "1.0", "true", "t", "x", "yes", "y", "ja", "j", "wahr", "oui", "vrai", "si", "s\u00ed", "s\u00ec"),
    *("verdadero", "vero", "sim", "verdadeiro", "tak", "waar", "\u2713", "\u2714", "\u2611", "\u2705"),
)
_NO = (
    *("0", "0.0", "false", "f", "no", "n", "nein", "falsch", "non", "faux", "falso", "n\u00e3o", "nao", "nie", "nee"),
    *("onwaar", "\u2717", "\u2718", "\u2715", "\u2716", "\u2610", "\u274c", "\u274e", "\u00d7"),
)
MARKS: dict[str, int | None] = {**dict.fromkeys(_YES, 1), **dict.fromkeys(_NO, 0), "-1": -1, "-1.0": -1, "": None}
"""What a cell in lower case says of a class: 1 = there, 0 = not there, -1 = one of these, None = nothing."""
_NEARLY = frozenset(
    ("+", "-", "\u00b1", "?", "o", ".", "unsure", "maybe", "unclear", "unsicher", "vielleicht", "xx", "(x)")
)
"""What may be a mark, but does not say which."""
_FIGURE = re.compile(r"[-+]?\d*[.,]?\d+(e[-+]?\d+)?\s*%?", re.IGNORECASE)
_NO_CLASS = frozenset(
    (
        *("index", "id", "nr", "no", "num", "number", "row", "unnamed:0", "width", "height", "imagewidth"),
        *("imageheight", "size", "filesize", "channels", "depth", "area", "istrain", "istest", "isval", "isvalid"),
        *("isvalidation", "split", "subset", "partition", "fold", "kfold", "cvfold", "total", "sum", "count"),
        *("counts", "nlabels", "nclasses", "nobjects", "numlabels", "numclasses", "numobjects", "checked"),
        *("reviewed", "verified", "approved", "done", "finished", "valid", "flagged", "gepr\u00fcft", "geprueft"),
        *("fertig", "difficult", "truncated", "occluded", "iscrowd", "confidence", "score", "year", "date", "time"),
        *("timestamp", "notes", "note", "comment", "comments", "remark", "remarks", "bemerkung", "bemerkungen"),
    )
)
"""Columns, folded, that programs and people put beside columns of classes."""

ZEROS = (
    "skipped as not tagged yet (of an image that holds none of the classes this is said by the word 'background', or "
    "by a class 'background' with a 1)"
)
"""What becomes of images of which zeros alone are said."""


def is_figure(cell: str) -> bool:
    """Whether a cell is a number, also one with a comma or "%"."""
    return _FIGURE.fullmatch(cell) is not None


def is_nearly(cell: str) -> bool:
    """Whether a cell in lower case may be a mark, but does not say which: "+", "?", "unsure", "n/a"."""
    return cell in _NEARLY or says_nothing(cell)


def is_word_mark(word: str) -> bool:
    """Whether a word is a mark, and no number: "yes", "FALSCH", "x"."""
    return MARKS.get(word.strip().lower()) is not None and not is_figure(word)


def names_no_class(header: str) -> bool:
    """Whether a column is called like those that are seldom a class: "is_train", "width", "checked"."""
    return plain(header) in _NO_CLASS


def kind_of(header: str, cells: Iterable[str]) -> Literal["mark", "number", "both", "near", "text"] | None:
    """What a column beside the images holds: marks, other numbers, marks and words, what are nearly marks, or words.

    None where it is empty or no class. "near" is of marks and figures with words that leave it open, such as "+" and
    "-", or yes and "unsure".
    """
    words = {cell.strip().lower() for cell in cells} - {""}
    marked = [word in MARKS for word in words]
    doubtful = [is_nearly(word) for word in words]
    figures = [is_figure(word) for word in words]
    known = all(map(any, zip(marked, doubtful, figures, strict=True)))
    if not words or (known and names_no_class(header)):
        return None
    if all(marked):
        return "mark"
    if all(figures):
        return "number"
    if known and (any(marked) or any(figures) or words & _NEARLY):
        return "near"
    return "both" if any(marked) else "text"
