"""What the words of a tag file mean: several labels in one, classes by number, words that are no names.

Where a word has two meanings, the reading stops and names the setting that decides.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal
from unicodedata import category

from tag2mask.classes import BUILT_IN, class_index, fold, load_classes
from tag2mask.data.tag_list import TagList
from tag2mask.data.tag_nothing import is_background, quoted, says_absent, says_nothing
from tag2mask.data.tag_numbers import all_numbers, named_numbers
from tag2mask.types import ClassSet, UserError
from tag2mask.words import counted

__all__ = ["TagReading", "settle"]


@dataclass(frozen=True)
class TagReading:
    """How tags are read that could mean two things; None asks where they do.

    separator: what stands between the labels of a cell besides ";", or "none": nothing does.
    twins: names that look like one class ("tree", "trees") stay two ("keep") or become one ("merge").
    count_from: the number of the first class, 0 or 1, where labels are numbers.
    """

    separator: str | None = None
    twins: Literal["keep", "merge"] | None = None
    count_from: Literal[0, 1] | None = None


_STRONG = (",", ";", "|", "/", "&", "+", "\u3001", "\uff0c", "\u060c", " and ")
"""What may stand between labels, and seldom stands in a name."""
_WEAK = (" ", "_", "-")
"""What may stand between labels, and often stands in a name."""
_HASHTAG = re.compile(r"#([^\W\d][\w-]*)")
_HASHTAGS = re.compile(rf"\s*{_HASHTAG.pattern}([\s,;|]*{_HASHTAG.pattern})*\s*")
_INVISIBLE = "\u00ad\u200b\u200e\u200f\u2060\ufeff"


def settle(
    tags: TagList, classes: ClassSet | None, reading: TagReading, source: str
) -> tuple[dict[str, tuple[str, ...] | None], list[str]]:
    """The labels of each image one by one, and notes on how they were found.

    Args:
        tags: as they are written.
        classes: the classes that the words are to name; None where the words are the classes.
        reading: what was decided about words of two meanings.
        source: the file, for messages.

    Raises:
        UserError: words that have two meanings, of which none was chosen.
    """
    index: Mapping[str, int] = class_index(classes) if classes is not None else {}
    tags, hashes = _without_hashes(tags, index, source)
    counts = Counter(word for words in tags.rows.values() for word in words or ())
    clean = {word: _clean(word) for word in counts}
    unclean = [repr(new) for old, new in clean.items() if old.strip() != new and _has_control(old)]
    notes = counted(f"labels of {source} from which invisible characters were removed", unclean)
    words: dict[str, tuple[str, ...]] = {word: (new,) if new else () for word, new in clean.items()}
    if tags.width is not None or all_numbers(clean.values(), index):
        words, said = named_numbers(words, tags, classes, reading.count_from, source)
    elif tags.listed:
        said = []
    else:
        words, said = _split(words, tags, counts, index if classes is not None else None, reading, source)
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}

    def one_by_one(row: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if row is None:
            return None
        if row not in shared:
            shared[row] = tuple(part for word in row for part in words[word])
        return shared[row] or None

    return {image: one_by_one(row) for image, row in tags.rows.items()}, [*hashes, *notes, *said]


def _without_hashes(tags: TagList, index: Container[str], source: str) -> tuple[TagList, list[str]]:
    """Labels with hashtags in them as these are without "#", and a note on them. A hashtag never holds a space."""
    marked = {
        word: tuple(_HASHTAG.findall(word))
        for words in tags.rows.values()
        for word in words or ()
        if _HASHTAGS.fullmatch(word) and not says_nothing(word) and fold(word) not in index
    }
    if not marked or tags.listed:
        return tags, []
    rows = {
        image: None if words is None else tuple(one for word in words for one in marked.get(word, (word,)))
        for image, words in tags.rows.items()
    }
    shown = [f"{word!r} = {' + '.join(map(repr, ones))}" for word, ones in marked.items()]
    return replace(tags, rows=rows), counted(f"labels of {source} that are hashtags, read without '#'", shown)


def _has_control(word: str) -> bool:
    return any(category(c) == "Cc" or c in _INVISIBLE for c in word)


def _clean(word: str) -> str:
    if _has_control(word):
        word = "".join(c for c in word if category(c) != "Cc" and c not in _INVISIBLE)
    word = " ".join(word.split())
    return word if says_nothing(word) else word.strip(" ,|")


# --- several labels in one -----------------------------------------------------------------------------


def _split(
    words: Mapping[str, tuple[str, ...]],
    tags: TagList,
    counts: Counter[str],
    index: Container[str] | None,
    reading: TagReading,
    source: str,
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Each word as the labels that it holds."""
    final = dict(words)
    # what is looked at, with the images that have it: the parts of "dog -cat" do not say what is there
    held: Counter[str] = Counter()
    for word, new in words.items():
        if new and (reading.separator is not None or not says_absent(new[0])):
            held[new[0]] += counts[word]
    if reading.separator == "none":
        return final, []
    if reading.separator is not None:
        chosen = _cut(held, lambda word: _parts(word, reading.separator or "", loose=True))
        said = "as asked"
    elif index is not None:
        chosen = _cut_at_classes(held, index, source)
        said = "as the parts are classes"
    else:
        chosen = _cut_at_what_recurs(held, tags, source)
        said = "as the parts recur as labels"
    for word, new in words.items():
        if new and new[0] in chosen:
            final[word] = chosen[new[0]]
    shown = [f"{word!r} = {' + '.join(map(repr, parts))}" for word, parts in chosen.items()]
    return final, counted(f"labels of {source} that are several, {said}", shown)


def _cut(words: Iterable[str], cut: Callable[[str], tuple[str, ...] | None]) -> dict[str, tuple[str, ...]]:
    return {word: parts for word in words if (parts := cut(word)) is not None}


def _parts(word: str, sign: str, loose: bool = False) -> tuple[str, ...] | None:
    """The parts of a word between signs, or None where there are not two; each begins as a name does, or is loose."""
    parts = tuple(part for piece in word.split(sign) if (part := piece.strip()))
    if len(parts) < 2 or says_nothing(word):
        return None
    return parts if loose or all(part[0].isalnum() for part in parts) else None


def _ask(source: str, words: Sequence[str], counts: Mapping[str, int], sign: str) -> UserError:
    return UserError(
        f"{source} has labels with {sign!r} inside: {quoted(words, counts)}; is each of them one name, or several "
        f"labels? --separator {sign!r} splits them there, --separator none keeps them whole (';' always stands "
        "between labels)"
    )


def _cut_at_classes(counts: Counter[str], index: Container[str], source: str) -> dict[str, tuple[str, ...]]:
    """A word that is no class is cut where all parts are; where only some are, it is asked."""

    def known(word: str) -> bool:
        return fold(word) in index or is_background(word)

    chosen: dict[str, tuple[str, ...]] = {}
    doubtful: dict[str, list[str]] = {}
    any_sign = re.compile("|".join(map(re.escape, _STRONG)))
    for word in counts:
        if known(word):
            continue
        whole = tuple(part.strip() for part in any_sign.split(word) if part.strip())
        cuts = [whole, *(parts for sign in _WEAK if (parts := _parts(word, sign)) is not None)]
        full = next((parts for parts in cuts if len(parts) > 1 and all(map(known, parts))), None)
        if full is not None:
            chosen[word] = full
        elif len(whole) > 1 and any(map(known, whole)):
            sign = next(sign for sign in _STRONG if sign in word)
            doubtful.setdefault(sign, []).append(word)
    for sign, words in doubtful.items():
        raise _ask(source, words, counts, sign)
    return chosen


def _cut_at_what_recurs(counts: Counter[str], tags: TagList, source: str) -> dict[str, tuple[str, ...]]:
    """Words are cut at a sign where all parts recur as labels elsewhere; else it is asked."""
    now: dict[str, tuple[str, ...]] = {word: (word,) for word in counts}
    for sign in _STRONG:
        pieces = {piece for parts in now.values() for piece in parts}
        several = _cut(sorted(pieces), lambda piece, sign=sign: _parts(piece, sign))  # type: ignore[misc]
        whole = {fold(piece) for piece in pieces if piece not in several}
        inside: dict[str, set[str]] = {}
        for piece, parts in several.items():
            for part in parts:
                inside.setdefault(fold(part), set()).add(fold(piece))
        doubtful = [
            piece
            for piece, parts in several.items()
            if not all(fold(part) in whole or inside[fold(part)] - {fold(piece)} for part in parts)
        ]
        if doubtful:
            holders = [word for word, parts in now.items() if set(parts) & set(doubtful)]
            raise _ask(source, holders, counts, sign)
        now = _cut_pieces(now, several)
    for sign in _WEAK:
        now = _cut_at_weak(now, counts, tags, sign, source)
    return {word: parts for word, parts in now.items() if parts != (word,)}


def _cut_pieces(
    now: Mapping[str, tuple[str, ...]], several: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    return {word: tuple(p for piece in parts for p in several.get(piece, (piece,))) for word, parts in now.items()}


def _cut_at_weak(
    now: dict[str, tuple[str, ...]], counts: Counter[str], tags: TagList, sign: str, source: str
) -> dict[str, tuple[str, ...]]:
    """A space, "_" or "-" is part of many names: it is asked only where something speaks for several labels."""
    pieces = {piece for parts in now.values() for piece in parts}
    usual = _usual_names()
    several = {
        piece: parts
        for piece in sorted(pieces)
        if fold(piece) not in usual and (parts := _parts(piece, sign)) is not None
    }
    if not several:
        return now
    names = {fold(piece) for piece in pieces if piece not in several}
    apart = any(len(row or ()) > 1 for row in tags.rows.values()) or any(len(parts) > 1 for parts in now.values())
    full = [piece for piece, parts in several.items() if all(fold(part) in names for part in parts)]
    if sign == " " and not apart and len(full) == len(several):
        return {
            word: tuple(p for piece in parts for p in several.get(piece, (piece,))) for word, parts in now.items()
        }
    doubtful = [piece for piece, parts in several.items() if all(fold(p) in names or fold(p) in usual for p in parts)]
    # Nothing separates labels in the whole file, and most of its labels have spaces: is the space what does?
    if sign == " " and not apart and len({*map(fold, several)}) >= max(2, len({*map(fold, pieces)}) / 2):
        doubtful = list(several)
    if doubtful:
        holders = [word for word, parts in now.items() if set(parts) & set(doubtful)]
        raise _ask(source, holders, counts, sign)
    return now


@lru_cache
def _usual_names() -> frozenset[str]:
    """The classes of VOC and COCO, by all their names."""
    return frozenset(key for name in BUILT_IN for key in class_index(load_classes(name)))
