"""Words for messages and names: what is compared, the nearest known one, counts and listings."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

from tag2mask.types import UserError

T = TypeVar("T")

_AROUND = re.compile(r"^[\s_]+|[\s_]+$")
_BETWEEN = re.compile(r"[\s_-]+")
_UNSEEN = frozenset(("Cc", "Cs", "Zl", "Zp"))
"""Kinds of characters that are no part of a line: control, half of a pair, ends of lines and paragraphs."""
_BEFORE_A_WORD = re.compile(r"[\s_]+-+")


@lru_cache(maxsize=1 << 16)
def fold(word: str) -> str:
    """What is compared when two names of classes are: no case, and no space, "_" or "-" between letters.

    Beside a digit one of these counts as a space, so that "h1-1" is not "h11". A "-" that begins or ends a name, or
    stands before a word of it ("cat -dog"), stays: it may say that a class is absent.
    """
    folded = _AROUND.sub("", unicodedata.normalize("NFKC", word).casefold())
    return _BETWEEN.sub(_joined, folded)


def _joined(found: re.Match[str]) -> str:
    name, sign = found.string, found[0]
    if found.start() == 0 or found.end() == len(name) or _BEFORE_A_WORD.fullmatch(sign):
        return sign
    return " " if name[found.start() - 1].isdigit() or name[found.end()].isdigit() else ""


def plain(word: str) -> str:
    """What is compared when a column or a key is looked for: no case, no spaces, no "_" and no "-"."""
    folded = unicodedata.normalize("NFKC", word).casefold()
    return "".join(c for c in folded if not c.isspace() and c not in "_-")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like ``word``, or None where none is like it."""
    by_fold = {fold(k): k for k in known}
    found = difflib.get_close_matches(fold(word), by_fold, n=1)
    return by_fold[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word as it follows an unknown one in a message: " (did you mean 'cat'?)", or nothing."""
    near = nearest(word, known)
    return f" (did you mean {near!r}?)" if near else ""


def named(table: Mapping[str, T], name: str, what: str) -> T:
    """The entry of that name.

    Raises:
        UserError: there is none, with the nearest and all known names; ``what`` says of what kind.
    """
    if name in table:
        return table[name]
    raise UserError(
        f"no {what} is called {name!r}{did_you_mean(name, table)}: the known ones are {', '.join(sorted(table))}"
    )


def in_line(name: object, most: int = 200) -> str:
    """A name in a line of a message: line ends and the like spelled (``\\n``), a long one without its middle.

    A file may be called so that a terminal would do as it says.
    """
    text = str(name)
    if not text.isprintable():
        text = "".join(c if unicodedata.category(c) not in _UNSEEN else ascii(c)[1:-1] for c in text)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2) :]}"


def listing(names: Sequence[object], most: int = 5) -> str:
    """A few of many names for a message: "a, b, c and 12 more"."""
    shown = ", ".join(in_line(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def many(count: int, noun: str) -> str:
    """A count with its noun for a message: "1 class", "3 classes"."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def counted(what: str, names: Sequence[object]) -> list[str]:
    """A note "what: how many (which)", or none where there is nothing to say."""
    return [f"{what}: {len(names)} ({listing(names)})"] if names else []


def duration(seconds: float) -> str:
    """A length of time for a message: "40 s", "14 min", "3.2 h"."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def some(count: int, first: Sequence[str]) -> str:
    """How many, and a few of the first by name: "12 (a, b, c, d, e and 7 more)"."""
    shown = first[:5]
    more = f" and {count - len(shown)} more" if count > len(shown) else ""
    return f"{count} ({', '.join(map(in_line, shown))}{more})"


class Some:
    """Counts names and keeps the first of them."""

    def __init__(self, most: int = 20) -> None:
        self.count, self.first, self._most = 0, list[str](), most

    def add(self, name: str) -> None:
        """Count one."""
        self.count += 1
        if self.count <= self._most:
            self.first.append(name)

    def __str__(self) -> str:
        return some(self.count, self.first)

    def note(self, what: str) -> list[str]:
        """A note "what: how many (which)", or none where there is nothing to say."""
        return [f"{what}: {self}"] if self.count else []
