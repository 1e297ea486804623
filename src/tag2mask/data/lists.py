"""Text files that list images, one a line, as ``ImageSets`` has them and as other programs write them."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from tag2mask.data.image import without_suffix
from tag2mask.types import UserError

__all__ = ["ImageList", "read_list"]

_FLAGS = frozenset({"-1", "0", "1"})


@dataclass(frozen=True)
class ImageList:
    """What a list names.

    positions: of its images, in its order. missing: the entries that are no image, with their line where more than
    a name stands there. repeated: the ids named again. flags: how often -1, 0 and 1 follow an id, where one of them
    follows every id (``ImageSets/Main/cat_train.txt``: whether a cat is there).
    """

    positions: list[int]
    missing: list[str]
    repeated: list[str]
    flags: Counter[str]


def read_list(path: Path, ids: Sequence[str]) -> ImageList:
    """Finds the images that a list names.

    A line is an id, an id and a number (ImageSets/Main), or an image and its mask. Paths may have "/" or a backslash,
    begin with "./" or with the folders of another machine, and end with a suffix; "#" begins a comment.

    Args:
        path: a text file, UTF-8 or with a byte order mark.
        ids: of all images.

    Raises:
        UserError: the file is no text, or cannot be read.
    """
    index = {normalize("NFC", name): position for position, name in enumerate(ids)}
    found: dict[int, None] = {}
    missing: list[str] = []
    repeated: list[str] = []
    flags: Counter[str] = Counter()
    entries = 0
    for number, line in enumerate(_text(path).splitlines(), start=1):
        position = next((index[name] for name in _spellings(line.strip()) if name in index), None)
        text = line.partition("#")[0].strip() if position is None else line.strip()
        if not text:
            continue
        entries += 1
        words = text.split()
        if len(words) > 1 and words[-1] in _FLAGS:
            flags[words[-1]] += 1
        if position is None:
            missing.append(text if len(words) == 1 and text.isprintable() else f"line {number}: {text[:80]!r}")
        elif position in found:
            repeated.append(ids[position])
        else:
            found[position] = None
    return ImageList(list(found), missing, repeated, flags if flags.total() == entries else Counter())


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a text file of image ids") from error
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: neither UTF-8 nor UTF-16 with its mark; save the list of image ids as UTF-8 text"
        ) from error
    if "\0" in text:
        raise UserError(f"{path} is no text: give a list of image ids, saved as UTF-8")
    return text


def _spellings(line: str) -> Iterator[str]:
    """The ids that a line could mean, from the strictest reading to the loosest."""
    line = normalize("NFC", line)
    readings = [line, line.partition("#")[0].strip()]
    readings += [readings[1].partition(mark)[0].strip() for mark in (",", ";", "\t")]
    words = readings[1].split()
    readings += [
        readings[1].rsplit(maxsplit=less)[0] for less in range(1, len(words))
    ]  # what is called "my cat", too
    for reading in dict.fromkeys(readings):
        for text in (reading, reading.strip("\"'")):
            yield text
            yield without_suffix(text)
    for reading in dict.fromkeys(readings):
        path = without_suffix(reading.strip("\"'").replace("\\", "/")).removeprefix("./").strip("/")
        yield path.rpartition("JPEGImages/")[2]
        while path:  # folders of another machine stand in front
            yield path
            path = path.partition("/")[2]
