"""Names of classes that may be slips of the pen for others: nothing is put together, a note asks."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby

from tag2mask.classes import fold
from tag2mask.words import counted

__all__ = ["notes_on_slips"]

RARER = 3
"""A name may be a slip for another one that is on so many times more images."""

_LONG = 8
"""Names with so many letters may have two slips, shorter ones one."""

_SHORTEST = 3
"""With fewer letters, too many names are but one slip away from each other."""

_LETTERS_MISSING, _LETTERS_REPLACED = 5, 6
"""How many letters a name needs for one that is missing, or another, to be a slip."""

_PREFIXES = (("inter", "exter"), ("in", "ex"), ("hypo", "hyper"), ("endo", "ecto"), ("micro", "macro"), ("in", "un"))
"""Pairs of prefixes that make two words of one."""

_ROMAN = re.compile("[ivxlc]+")


def notes_on_slips(counts: Mapping[str, int], source: str, alike: Sequence[Collection[str]] = ()) -> list[str]:
    """A note on rare names that are common ones but for a letter or two ("dgo" beside "dog"), if there are any.

    Names that differ in a digit ("room 1", "room 2") are two, and so are those that are equally common.

    Args:
        counts: the names that stay classes of their own, and how many images (or objects) have each.
        source: the file that names them, for the note.
        alike: groups of names that are said to look like one class already.
    """
    found = [
        f"{rare!r} ({counts[rare]}) like {common!r} ({counts[common]})" for rare, common in _pairs(counts, alike)
    ]
    what = f"names of {source} that are rare and like a common one: a slip? each stays a class until it is corrected"
    return counted(what, found)


def _pairs(counts: Mapping[str, int], alike: Sequence[Collection[str]]) -> Iterator[tuple[str, str]]:
    """Each rare name with the commonest one that it may be a slip for."""
    folded = {name: fold(name) for name in counts}
    common_first = sorted(counts, key=lambda name: (-counts[name], name))
    for rare in counts:
        if not counts[rare]:
            continue  # on no image, so nobody wrote it
        for common in common_first:
            if counts[common] < RARER * counts[rare]:
                break
            said = any(rare in group and common in group for group in alike)
            if not said and _may_be_slip(folded[rare], folded[common]) and not _count_on(rare, common):
                yield rare, common
                break


def _may_be_slip(one: str, other: str) -> bool:
    """Whether one folded name is the other but for a slip or two, and not another word.

    The shorter they are, the more words are but a letter apart: a replaced letter counts from six letters on, one
    that is missing or too many from five, and below only letters that changed places or stand twice. Letters in front
    make another word ("unripe"), and so do prefixes that say the opposite, and digits.
    """
    shorter = min(len(one), len(other))
    most = 2 if shorter >= _LONG else 1
    if shorter < _SHORTEST or abs(len(one) - len(other)) > most or not _comparable(one, other):
        return False
    if _swapped(one, other) or _runs(one) == _runs(other):
        return True
    if shorter < _LETTERS_REPLACED and (len(one) == len(other) or shorter < _LETTERS_MISSING):
        return False
    return _edits(one, other) <= most


def _comparable(one: str, other: str) -> bool:
    """Whether a difference can be a slip at all: of letters that have two cases, and that make no other word."""
    if any(c.isalpha() and c.lower() == c.upper() for c in one + other) or _digits(one) != _digits(other):
        return False
    if one.endswith(other) or other.endswith(one):
        return False
    opposites = (
        one.startswith(a) and other.startswith(b) and one.removeprefix(a) == other.removeprefix(b)
        for pair in _PREFIXES
        for a, b in (pair, pair[::-1])
    )
    return not any(opposites)


def _count_on(rare: str, common: str) -> bool:
    """Whether the names differ in what counts: words of one letter, or Roman numerals ("room b", "type ii")."""
    one, other = ([word for word in re.split(r"[\W_]+", name.casefold()) if word] for name in (rare, common))
    if len(one) != len(other):
        return False
    differing = [pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]]
    return any(min(map(len, pair)) == 1 or all(map(_ROMAN.fullmatch, pair)) for pair in differing)


def _swapped(one: str, other: str) -> bool:
    """Whether two neighbouring letters changed places."""
    if len(one) != len(other):
        return False
    at = [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    return len(at) == 2 and at[1] == at[0] + 1 and one[at[0]] == other[at[1]] and one[at[1]] == other[at[0]]


def _runs(name: str) -> str:
    """The name with one letter for each that stands several times in a row."""
    return "".join(letter for letter, _ in groupby(name))


def _digits(name: str) -> list[str]:
    return [c for c in name if c.isdigit()]


def _edits(one: str, other: str) -> int:
    """How many letters were left out, added, replaced or swapped with the next (optimal string alignment)."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        row = [i]
        for j, against in enumerate(other, start=1):
            row.append(min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != against)))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == against:
                row[j] = min(row[j], before[j - 2] + 1)
        before, last = last, row
    return last[-1]
