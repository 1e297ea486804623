"""Words that are to become classes: whether they are names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tag2mask.data.tag_marks import is_word_mark
from tag2mask.data.tag_nothing import NUMBER, quoted, says_absent, says_nothing
from tag2mask.types import UserError

__all__ = ["check_names"]

_FIGURE = r"(?:[01]?[.]\d+|1[.]0*|\d{1,3}(?:[.]\d+)?\s*%)"
_WITH_FIGURE = re.compile(
    rf".*[^\W\d_].*?[\s:=@_|([-]\s*{_FIGURE}\s*[)\]]?|.*[^\W\d_].*?\s*(?:[:=]\s*|\(\s*)\d+(?:[.]\d+)?\s*%?\s*\)?"
    rf"|[(\[]?{_FIGURE}[)\]]?[\s:=]+.*[^\W\d_].*|[01]?[.]\d+|\d+(?:[.]\d+)?\s*%",
    re.DOTALL,
)


def check_names(counts: Mapping[str, int], source: str, skip: bool) -> None:
    """Stops where words that would become classes are no names.

    Args:
        counts: each word, and how many images have it.
        source: the file, for messages.
        skip: whether words for nothing, and for what is absent, are left out instead.

    Raises:
        UserError: marks such as yes and no alone, words for nothing or for what is absent, numbers, or figures beside
            a name.
    """
    if counts and all(map(is_word_mark, counts)):
        raise UserError(
            f"{source} has marks for labels: {quoted(list(counts), counts)}; which class are they about? Name "
            "their column after that class ('image,cat'), write names, or, where they are names, name the "
            "classes by --classes"
        )
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
