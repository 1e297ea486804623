"""Words that are no names of classes: for background, for nothing, numbers, figures beside a name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from tag2mask.classes import fold
from tag2mask.data.columns import listing
from tag2mask.types import UserError

__all__ = ["NUMBER", "check_names", "is_background", "no_names", "quoted", "says_absent", "says_nothing"]

_NOTHING = frozenset(
    (
        *(
            "none",
            "nan",
            "null",
            "nil",
            "na",
            "n/a",
            "n.a.",
            "nothing",
            "no",
            "empty",
            "void",
            "undefined",
            "unknown",
        ),
        *("unlabeled", "unlabelled", "untagged", "nolabel", "nolabels", "notag", "notags", "noobject", "noobjects"),
        *("nottagged", "notlabeled", "notlabelled", "ignore", "bg", "negative"),
    )
)
"""Folded words that say that there is no label."""
NUMBER = re.compile(r"\d+(\.0+)?")
"""A label that is the number of a class."""
_ABSENT = re.compile(
    r"[-!~\u00ac\u2212\u2013]+\s*\w.*|.*[\s,;|/&+][-!~\u00ac\u2212\u2013][^\W\d].*"
    r"|(no|not|non|without|kein|keine|keinen|ohne|sans)[\s_-]+[^\W\d].*",
    re.DOTALL | re.IGNORECASE,
)
"""What may say that a class is absent: "-cat", "dog !cat", "no cat"."""
_FIGURE = r"(?:[01]?[.]\d+|1[.]0*|\d{1,3}(?:[.]\d+)?\s*%)"
_WITH_FIGURE = re.compile(
    rf".*[^\W\d_].*?[\s:=@_|([-]\s*{_FIGURE}\s*[)\]]?|.*[^\W\d_].*?\s*(?:[:=]\s*|\(\s*)\d+(?:[.]\d+)?\s*%?\s*\)?"
    rf"|[(\[]?{_FIGURE}[)\]]?[\s:=]+.*[^\W\d_].*|[01]?[.]\d+|\d+(?:[.]\d+)?\s*%",
    re.DOTALL,
)


def is_background(word: str) -> bool:
    """Whether a word says that there is background: "background", "_background_"."""
    return fold(word) == "background"


def says_nothing(word: str) -> bool:
    """Whether a word says that there is no label, such as "none", "N/A" or "-"."""
    folded = fold(word)
    return folded in _NOTHING or (word.isascii() and not any(c.isalnum() for c in word))


def says_absent(word: str) -> bool:
    """Whether a word may say that something is not there, such as "-cat", "!cat", "no cat" or "not-cat"."""
    return not says_nothing(word) and _ABSENT.fullmatch(word) is not None


def no_names(words: Iterable[str]) -> set[str]:
    """The words that say that there is no label, or that a class is absent."""
    return {word for word in words if says_nothing(word) or says_absent(word)}


def check_names(counts: Mapping[str, int], source: str, skip: bool) -> None:
    """Stops where words that would become classes are no names.

    Args:
        counts: each word, and how many images have it.
        source: the file, for messages.
        skip: whether words for nothing, and for what is absent, are left out instead.

    Raises:
        UserError: words for nothing or for what is absent, numbers, or figures beside a name.
    """
    nothing = [word for word, count in counts.items() if says_nothing(word) and count]
    if nothing and not skip:
        raise UserError(
            f"{source} has words that may say that there is no label: {quoted(nothing, counts)}; write 'background' "
            "for an image that holds none of the classes, leave the cell empty for one that is not tagged yet, leave "
            "these words out with --unknown skip, or name them as classes by --classes"
        )
    absent = [word for word in counts if says_absent(word)]
    if absent and not skip:
        raise UserError(
            f"{source} has words that may say that something is absent: {quoted(absent, counts)}; write only what is "
            "there, leave these words out with --unknown skip, or, where they are names, name the classes by "
            "--classes"
        )
    numbers = [word for word in counts if NUMBER.fullmatch(word)]
    if numbers:
        raise UserError(
            f"{source} has numbers for labels: {quoted(numbers, counts)}; name the classes that they stand for, in "
            "their order, by --classes, or write names"
        )
    figures = [word for word in counts if _WITH_FIGURE.fullmatch(word)]
    if figures:
        raise UserError(
            f"{source} has figures beside or instead of names: {quoted(figures, counts)}; take confidences and "
            "counts out of the labels, or, where they belong to the names, name the classes by --classes"
        )


def quoted(words: Sequence[str], counts: Mapping[str, int]) -> str:
    """Words for a message, the most frequent first, each with its count."""
    return listing([f"{word!r} ({counts[word]}x)" for word in sorted(words, key=lambda w: (-counts[w], w))])
