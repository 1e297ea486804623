"""Tag files: which image holds what, read from any form that has one meaning, as it is written there.

The form of our own is CSV, a header ``image,labels``, then a row an image, labels with ``;`` between them::

    image,labels
    cats/001.jpg,cat;sofa
    "odd, name.png",dog
    nothing.jpg,background
    not yet tagged.jpg,

Read too are other separators of columns, other names of the two columns, columns that only their cells tell, several
columns of labels, columns of 0 and 1 (or x, yes and no) for each class, Label Studio's JSON and JSON-MIN, JSON and
JSON lines (``{"image": "cats/001.jpg", "labels": ["cat", "sofa"]}``), lists ``id 4 19`` of classes by their number,
``cls_labels.npy`` (a dict of vectors of 0 and 1), such vectors as lists, and a folder for each class. No labels means
that the image is not tagged yet; that it holds background only is said by the word ``background``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tag2mask.classes import plain
from tag2mask.data.tag_cells import NO, YES, Words
from tag2mask.data.tag_columns import Row, Rows
from tag2mask.data.tag_json import json_lines, json_rows
from tag2mask.data.tag_marks import ZEROS
from tag2mask.data.tag_table import There, find_roles, text_table
from tag2mask.data.text_file import read_text
from tag2mask.safe_pickle import read_npy_dict
from tag2mask.types import UserError
from tag2mask.words import counted, listing

__all__ = ["FOLDERS", "TAG_FILES", "TagList", "find_tag_file", "folder_tags", "read_tag_file"]

TAG_FILES = (
    "tags.csv",
    "tags.tsv",
    "tags.txt",
    "tags.jsonl",
    "tags.json",
    "labels.csv",
    "metadata.jsonl",
    "metadata.csv",
    "_classes.csv",
    "cls_labels.npy",
)
"""Where tags are looked for in a folder."""

FOLDERS = "folders"
"""Instead of a tag file: an image's folder is its class."""

_SPLITS = frozenset(("train", "training", "trainval", "val", "valid", "validation", "test", "testing"))
_NUMBERED = re.compile(r"(\S+?)((?:[\s,]+\d+)*)\s*")


@dataclass(frozen=True)
class TagList:
    """A tag file as it is written.

    rows: the words of each image, both as written; None = not tagged.
    notes: what a user should know about the reading.
    listed: the classes that the file lists besides, where its columns or folders are classes: such words are whole.
    width: how many classes vectors of 0 and 1 have: words are places in them, from 0. Else None.
    doubtful: whether all lists are of 0 and 1, each once: the numbers of two classes, or vectors.
    """

    rows: dict[str, Words]
    notes: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()
    width: int | None = None
    doubtful: bool = False


def find_tag_file(root: Path) -> Path | None:
    """The tag file in a folder, where there is one.

    Raises:
        UserError: there are several.
    """
    found = [root / name for name in TAG_FILES if (root / name).is_file()]
    if len(found) > 1:
        raise UserError(
            f"{root} has several tag files: {listing([path.name for path in found])}; name the one to take by --tags"
        )
    return found[0] if found else None


def read_tag_file(path: Path, there: There | None = None) -> TagList:
    """Reads a tag file. The labels of several rows of one image are put together.

    Args:
        path: of the file.
        there: whether a cell names an image that is there (see ``tag_images.names_of``).

    Raises:
        UserError: no such file, or nothing that is read as described above, with its line.
    """
    if not path.is_file():
        raise UserError(
            f"no tags file {path}: give a CSV or JSONL file with image and labels; labels themselves, such as "
            "'dog;person', are for one image, named by its file"
        )
    if path.suffix.lower() == ".npy":
        return _vectors(path)
    text, notes = read_text(path)
    source = path.name if len(str(path)) > 60 else str(path)
    kind = path.suffix.lower()
    if kind in (".jsonl", ".ndjson"):
        table = json_lines(text, source)
    elif kind == ".json" or text.lstrip()[:1] == "{":
        table = json_rows(text, source)
    else:
        table = _number_list(text, source) or text_table(text, source, there)
    read, width, asked, marks = _places(_sharing(table.rows), source)
    rows, said = _together(read, source)
    if width is not None:
        zeros = [repr(image) for image, words in rows.items() if words is None]
        said += counted(f"vectors of {source} that hold only 0: these images are {ZEROS}", zeros)
    return TagList(rows, (*notes, *table.notes, *marks, *said), table.listed, width, asked)


def _sharing(rows: Iterable[Row]) -> list[Row]:
    """The rows, equal labels kept once: few combinations occur in many rows."""
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    return [
        (where, image, None if words is None else shared.setdefault(words, words)) for where, image, words in rows
    ]


def _places(rows: list[Row], source: str) -> tuple[list[Row], int | None, bool, list[str]]:
    """Rows whose lists are vectors of 0 and 1 as the places that hold 1; their length; whether that is open; notes.

    A list of classes by their numbers has none of them twice, so that a vector is known by its repeats. One of 0 and
    1 alone, each of them once, may be either: it stays as it is. One of true and false is always a vector.

    Raises:
        UserError: lists of true and false of several lengths, or beside others.
    """
    lists = [words for _, _, words in rows if words is not None]
    lengths = {len(words) for words in lists}
    figures = {word for words in lists for word in words}
    notes: list[str] = []
    if figures & {YES, NO}:
        if len(lengths) != 1 or not figures <= {YES, NO}:
            others = sorted(figures - {YES, NO})
            got = f"beside other labels ({listing(others)})" if others else f"of {listing(sorted(lengths))} places"
            raise UserError(f"{source} has lists of true and false {got}, expected one for each class in every list")
        notes.append(f"the lists of true and false in {source} are read as vectors of 1 and 0")
    elif len(lengths) != 1 or lengths == {1} or not figures <= {"0", "1"}:
        return rows, None, False, []
    elif not any(len(set(words)) < len(words) for words in lists):
        return rows, None, True, []
    placed = [
        (where, image, tuple(str(n) for n, word in enumerate(words or ()) if word in ("1", YES)) or None)
        for where, image, words in rows
    ]
    return placed, lengths.pop(), False, notes


def _together(rows: Iterable[Row], source: str) -> tuple[dict[str, Words], list[str]]:
    """The words of each image, those of its rows one after the other, and a note on images that have several."""
    found: dict[str, Words] = {}
    again: Counter[str] = Counter()
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}  # few combinations occur: keep each once
    for _, image, words in rows:
        again.update([image] if image in found else [])
        if words is not None:
            words = (found.get(image) or ()) + words
            words = shared.setdefault(words, words)
        found[image] = words if words is not None else found.get(image)
    several = [f"{image!r}: {count + 1} rows" for image, count in again.items()]
    return found, counted(f"images with several rows in {source}, whose labels are put together", several)


def _number_list(text: str, source: str) -> Rows | None:
    """Lines ``id 4 19``, an image and the numbers of its classes; None where the text is something else."""
    rows: list[Row] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = _NUMBERED.fullmatch(line)
        if match is None:
            return None
        rows.append((f"line {number}", match[1], tuple(re.findall(r"\d+", match[2])) or None))
    header = re.split(r"[\s,;|]+", text.lstrip().partition("\n")[0].strip())
    if any(set(image) & set(",;|") for _, image, _ in rows):
        return None  # a table of columns with their names in the first line, or of figures with a comma
    if not any(words for _, _, words in rows) or find_roles(header, source) != (None, None):
        return None  # a table with its header in the first line, or no list
    return Rows(rows, [])


def _vectors(path: Path) -> TagList:
    """The field's ``cls_labels.npy``: a dict of vectors of 0 and 1 by image."""
    rows: dict[str, Words] = {}
    widths: set[int] = set()
    for key, value in read_npy_dict(path).items():
        name = str(key.decode() if isinstance(key, bytes) else key)
        vector = np.asarray(value)
        if vector.ndim != 1 or vector.dtype.kind not in "biuf" or not np.isin(vector, (0, 1)).all():
            raise UserError(f"{path}: {name!r} has {vector.dtype} {vector.shape}, expected a vector of 0 and 1")
        widths.add(len(vector))
        rows[name] = tuple(str(place) for place in np.flatnonzero(vector)) or None
    if len(widths) != 1:
        raise UserError(f"{path}: vectors of {listing(sorted(widths)) or 'no'} classes, expected as many in each")
    zeros = [repr(name) for name, words in rows.items() if words is None]
    notes = counted(f"vectors of {path.name} that hold only 0: these images are {ZEROS}", zeros)
    return TagList(rows, tuple(notes), width=widths.pop())


def folder_tags(images: Sequence[str], root: Path) -> TagList:
    """Tags by the folder that an image lies in; folders called train, val or test around them are passed over.

    Raises:
        UserError: no image lies in a folder, or some lie deeper than in one.
    """
    rows: dict[str, Words] = {}
    deep: list[str] = []
    for image in images:
        folders = image.split("/")[:-1]
        while folders and plain(folders[0]) in _SPLITS:
            folders = folders[1:]
        if len(folders) > 1:
            deep.append(image)
        rows[image] = tuple(folders) or None
    if deep:
        raise UserError(
            f"{root}: --tags {FOLDERS} takes an image's folder for its class, but {len(deep)} lie in folders of "
            f"folders: {listing(deep)}; give the folder right above those of the classes, or write tags.csv"
        )
    names = sorted({word for words in rows.values() for word in words or ()})
    if not names:
        raise UserError(f"{root}: --tags {FOLDERS} takes an image's folder for its class, but no image is in one")
    return TagList(rows, listed=tuple(names))
