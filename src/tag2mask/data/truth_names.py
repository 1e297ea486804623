"""How files of true masks are called after their images, where that is not ``<id>.png``.

Two kinds of names are learned. What stands after the id ("a_gtFine_labelIds.png") is learned where most images have
such a file. A word before the id ("mask_a.png"), a word of the photographs that is another in the masks
("img_001.jpg", "mask_001.png") and folders that the masks do not have ("sub/a.jpg", "a.png") are learned where one
such rule gives every image a file of its own: then nothing is left to chance.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

import numpy as np

from tag2mask.data.columns import Strings
from tag2mask.data.image import without_suffix
from tag2mask.words import listing

__all__ = ["LEARNED_FROM", "LOSSY", "SUFFIXES", "Files", "Naming", "describe_files", "learn"]

SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".npy")
"""What files of ground truth end with, in any case."""

LOSSY = (".jpg", ".jpeg")

LEARNED_FROM = 200
"""Images without an ``<id>.png`` that are looked at to find out how the masks are called."""

_SEPARATORS = "_-. "
_OF_PHOTOGRAPHS = "img imgs image images photo photos picture rgb input frame leftimg8bit"
_OF_MASKS = (
    "mask masks seg segs segmentation label labels labelids gt gtfine gtcoarse truth groundtruth target ann annot "
    "annotation annotations"
)
_SHOWN = 3


@dataclass(frozen=True)
class Naming:
    """How the file of an image is called: what is taken from the name of the id, and what is added to it.

    before, after: words of the photograph's name that the mask's has not. start, end: what the mask's has instead.
    flat: the folders that an id names are not there.
    """

    before: str = ""
    after: str = ""
    start: str = ""
    end: str = ""
    flat: bool = False

    def stem(self, name: str) -> str | None:
        """The path of the mask of the id ``name``, without suffix; None where it is not called so."""
        path = PurePosixPath(name)
        core = path.name
        if len(core) <= len(self.before) + len(self.after):
            return None
        if _key(core[: len(self.before)]) != _key(self.before) or not _key(core).endswith(_key(self.after)):
            return None
        core = core[len(self.before) : len(core) - len(self.after)]
        called = f"{self.start}{core}{self.end}"
        return called if self.flat or str(path.parent) == "." else f"{path.parent}/{called}"

    def __str__(self) -> str:
        if not (self.before or self.after):
            inner = "<id>" if not self.flat else "<id without its folders>"
        else:
            inner = f"<id without {' and '.join(repr(word) for word in (self.before, self.after) if word)}>"
        return f"{self.start}{inner}{self.end}"


@dataclass(frozen=True)
class Files:
    """The files of folders by name, whatever the case of their letters and the form of their accents; picklable."""

    _listings: dict[Path, Strings] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {"_listings": {}}

    def named(self, folder: Path, stem: str, suffixes: Sequence[str]) -> Iterator[Path]:
        """Those of that name; only where no spelling is exact, those of another."""
        place = PurePosixPath(stem).parent
        names = self.of(folder / place)
        for suffix in suffixes:
            wanted = PurePosixPath(stem).name + suffix
            same = list(_starting(names, wanted, whole=True))
            exact = [entry for entry in same if entry == wanted]
            yield from (folder / place / entry for entry in exact or same)

    def of(self, folder: Path) -> Strings:
        """The names of the files in a folder, in the order of :func:`_key`."""
        if folder not in self._listings:
            try:
                names = sorted((entry.name for entry in folder.iterdir()), key=_key)
            except OSError:
                names = []
            data = [name.encode("utf-8", "surrogateescape") for name in names]
            offsets = np.cumsum([0, *map(len, data)]).astype(np.uint32)
            self._listings[folder] = Strings(np.frombuffer(b"".join(data), np.uint8), offsets)
        return self._listings[folder]


def learn(files: Files, folders: Sequence[Path], ids: Sequence[str], without: Sequence[str]) -> tuple[Naming, ...]:
    """How masks are called where most images have none called ``<id>.png``; empty: nothing is known.

    Args:
        files: of the folders.
        folders: where the masks are.
        ids: of all images.
        without: some of those that have no ``<id>.png``.
    """
    taken = {_key(name) for name in ids} | {_key(without_suffix(name)) for name in ids}
    counts: Counter[str] = Counter()
    for name in without:
        stem = without_suffix(name)
        counts.update({ending for folder in folders for ending in _endings(files, folder, stem, taken)})
    most = max(counts.values(), default=0)
    found = tuple(Naming(end=ending) for ending in sorted(counts) if 2 * counts[ending] >= most)
    if found:
        return found
    fitting = [rule for rule in _candidates(files, folders, ids) if _fits_all(files, folders, ids, rule)]
    return tuple(fitting) if len(fitting) == 1 else ()


def describe_files(files: Files, folders: Sequence[Path], ids: Sequence[str]) -> str:
    """What files there are and what was expected, with counts: for a message."""
    there = [name for folder in folders for name in _masks_in(files, folder)]
    others = sum(len(files.of(folder)) for folder in folders) - len(there)
    if there:
        held = f"the {len(there)} files there that could be masks are called {_some(there)}"
    else:
        some = [names[at] for names in map(files.of, folders) for at in range(len(names))]
        besides = f"of the {others} files and folders there, {_some(some)}," if others else "it is empty:"
        held = f"{besides} none ends with {', '.join(SUFFIXES)}"
    return f"{held}; expected for the {len(ids)} images: {_some([f'{name}.png' for name in ids])}"


def _some(names: Sequence[str]) -> str:
    shown = listing([repr(name) for name in names[:_SHOWN]])
    return f"{shown}, …" if len(names) > _SHOWN else shown


def _endings(files: Files, folder: Path, stem: str, taken: set[str]) -> Iterator[str]:
    """What stands between ``stem`` and the suffix in names that begin with it and belong to no other image."""
    path = PurePosixPath(stem)
    for entry in _starting(files.of(folder / path.parent), path.name):
        inner, dot, suffix = entry.rpartition(".")
        ending = normalize("NFC", inner)[len(normalize("NFC", path.name)) :]
        if (
            f"{dot}{suffix}".lower() in SUFFIXES
            and ending[:1] in _SEPARATORS
            and any(sign.isalpha() for sign in ending)
            and _key(str(path.parent / inner)) not in taken
        ):
            yield ending


def _candidates(files: Files, folders: Sequence[Path], ids: Sequence[str]) -> set[Naming]:
    """Rules that give the first image a file."""
    first = PurePosixPath(without_suffix(ids[0]))
    found: set[Naming] = set()
    for flat in (False, True) if any("/" in name for name in ids) else (False,):
        stems = [
            entry.rpartition(".")[0]
            for folder in folders
            for entry in _masks_in(files, folder if flat else folder / first.parent)
        ]
        for before, after in _words_of_photographs(first.name):
            core = first.name[len(before) : len(first.name) - len(after)]
            found |= {Naming(before, after, start, end, flat) for stem in stems for start, end in _around(core, stem)}
    return {rule for rule in found if _is_plain(rule)}


def _around(core: str, stem: str) -> Iterator[tuple[str, str]]:
    """What stands before and after ``core`` in a name, wherever it stands there as words of its own."""
    for at in range(len(stem) - len(core) + 1):
        start, end = stem[:at], stem[at + len(core) :]
        apart = (start == "" or start[-1] in _SEPARATORS) and (end == "" or end[0] in _SEPARATORS)
        if apart and _key(stem[at : at + len(core)]) == _key(core):
            yield start, end


def _is_plain(rule: Naming) -> bool:
    """Whether the words added hold no number, which may be another image's, and replace a word by one of masks."""
    words = [word for word in re.split(r"[_\-. ]+", f"{rule.start}_{rule.end}".lower()) if word]
    if any(sign.isdigit() for word in words for sign in word):
        return False
    return not (rule.before or rule.after) or any(word in _OF_MASKS.split() for word in words)


def _words_of_photographs(name: str) -> Iterator[tuple[str, str]]:
    """What may be taken from the name of a photograph, with the sign beside it: nothing, or such a word."""
    yield "", ""
    words = _OF_PHOTOGRAPHS.split()
    for sign in _SEPARATORS:
        head, tail = name.partition(sign), name.rpartition(sign)
        if head[1] and head[0].lower() in words:
            yield head[0] + sign, ""
        if tail[1] and tail[2].lower() in words:
            yield "", sign + tail[2]


def _fits_all(files: Files, folders: Sequence[Path], ids: Sequence[str], rule: Naming) -> bool:
    """Whether every image has exactly one file by the rule, and none has another's."""
    seen: set[Path] = set()
    for name in ids:
        stem = rule.stem(without_suffix(name))
        found = [] if stem is None else [path for each in folders for path in files.named(each, stem, SUFFIXES)]
        if len(found) != 1 or found[0] in seen:
            return False
        seen.add(found[0])
    return True


def _masks_in(files: Files, folder: Path) -> list[str]:
    names = files.of(folder)
    return [names[at] for at in range(len(names)) if PurePosixPath(names[at]).suffix.lower() in SUFFIXES]


def _key(name: str) -> str:
    """What is compared when two spellings of a file's name are."""
    return name.lower() if name.isascii() else normalize("NFC", name).casefold()


def _starting(names: Strings, prefix: str, *, whole: bool = False) -> Iterator[str]:
    """The names that begin with ``prefix``, or are it as a whole."""
    wanted = _key(prefix)
    for place in range(bisect_left(range(len(names)), wanted, key=lambda at: _key(names[at])), len(names)):
        key = _key(names[place])
        if not (key == wanted if whole else key.startswith(wanted)):
            return
        yield names[place]
