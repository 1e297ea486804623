"""Tag files: which image holds what, as CSV or JSON lines, and the names in them as mask values.

CSV: a header ``image,labels``, then a row an image, labels with ``;`` between them::

    image,labels
    cats/001.jpg,cat;sofa
    "odd, name.png",dog
    empty.jpg,

JSON lines: ``{"image": "cats/001.jpg", "labels": ["cat", "sofa"]}``; labels may be one text as in CSV, and
null says that they are not known. No labels means that the image holds background only.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal
from unicodedata import normalize

from tag2mask.classes import class_index, fold, load_classes, nearest, plain_classes
from tag2mask.data.columns import listing
from tag2mask.data.image import without_suffix
from tag2mask.types import ClassSet, UserError

__all__ = [
    "TagFile",
    "Unknown",
    "Vocabulary",
    "choose_classes",
    "classes_of",
    "find_tag_file",
    "match_images",
    "read_tag_file",
]

Unknown = Literal["error", "skip"]
"""What becomes of a name that is no class: all are reported at once, or left out."""

TagFile = Mapping[str, tuple[str, ...] | None]
"""Labels by image, both as written; None = not known."""


def find_tag_file(root: Path) -> Path | None:
    """``tags.csv`` or ``tags.jsonl`` in a folder, where there is one."""
    return next((root / name for name in ("tags.csv", "tags.jsonl") if (root / name).is_file()), None)


def choose_classes(classes: ClassSet | str | Path | None, root: Path) -> ClassSet | None:
    """The class set that was asked for, else the one that the data set brings along as ``classes.yaml``."""
    if isinstance(classes, ClassSet):
        return classes
    if classes is not None:
        return load_classes(classes)
    own = root / "classes.yaml"
    return load_classes(own) if own.is_file() else None


def read_tag_file(path: Path) -> dict[str, tuple[str, ...] | None]:
    """Reads a CSV or JSON-lines file. The labels of several rows of one image are put together.

    Raises:
        UserError: no such file, not UTF-8, or a row that is not as described above, with its line.
    """
    if not path.is_file():
        raise UserError(f"no tags file {path}: give a CSV or JSONL file with image and labels")
    read = _jsonl_rows if path.suffix.lower() in (".jsonl", ".ndjson", ".json") else _csv_rows
    tags: dict[str, tuple[str, ...] | None] = {}
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}  # few combinations occur: keep each once
    try:
        for image, labels in read(path):
            if labels is not None:
                labels = (tags.get(image) or ()) + labels
                labels = shared.setdefault(labels, labels)
            tags[image] = labels if labels is not None else tags.get(image)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as CSV UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path} is not readable CSV: {error}") from error
    return tags


def _csv_rows(path: Path) -> Iterator[tuple[str, tuple[str, ...] | None]]:
    with path.open(encoding="utf-8-sig", newline="") as file:  # -sig: spreadsheets put a byte order mark in front
        rows = csv.reader(file)
        header = [cell.strip().lower() for cell in next(rows, [])]
        if "image" not in header or "labels" not in header:
            got = ",".join(header) or "nothing"
            raise UserError(f"{path} starts with {got!r}: its first line must be 'image,labels'")
        image, labels = header.index("image"), header.index("labels")
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{path}, line {rows.line_num}: {len(row)} columns instead of {len(header)}: {','.join(row)!r}; "
                    "put names that contain a comma in quotes, and ';' between labels"
                )
            if not row[image].strip():
                raise UserError(f"{path}, line {rows.line_num}: no image is named: {','.join(row)!r}")
            yield row[image].strip(), _split(row[labels])


def _jsonl_rows(path: Path) -> Iterator[tuple[str, tuple[str, ...] | None]]:
    expected = 'expected {"image": "a.jpg", "labels": ["cat"]}'
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row: Any = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error.msg}): {expected}") from error
            if not isinstance(row, dict) or not isinstance(row.get("image"), str) or "labels" not in row:
                raise UserError(f"{path}, line {number}: got {line.strip()[:80]!r}, {expected}")
            labels = row["labels"]
            if isinstance(labels, str):
                labels = _split(labels)
            elif isinstance(labels, list) and all(isinstance(label, str) for label in labels):
                labels = tuple(label.strip() for label in labels if label.strip())
            elif labels is not None:
                raise UserError(f"{path}, line {number}: labels are {labels!r}, {expected}")
            yield row["image"], labels


def _split(cell: str) -> tuple[str, ...]:
    return tuple(label.strip() for label in cell.split(";") if label.strip())


class Vocabulary:
    """Turns names into mask values, and remembers those that are no class."""

    def __init__(self, classes: ClassSet, unknown: Unknown) -> None:
        self.classes = classes
        self.unknown = unknown
        self._index = class_index(classes)
        self._known: dict[str, int | None] = {}
        self._missed: Counter[str] = Counter()

    def tags(self, words: Sequence[str]) -> list[int]:
        """The mask values of names, without those that are no class."""
        found = []
        for word in words:
            tag = self._known.setdefault(word, self._index.get(fold(word)))
            if tag is None:
                self._missed[word] += 1
            else:
                found.append(tag)
        return found

    def check(self, source: object) -> list[str]:
        """To be called at the end: a note on what was left out.

        Raises:
            UserError: there were unknown names, and they are not to be skipped; all are listed.
        """
        if not self._missed:
            return []
        spellings = (*self.classes.foreground, *self.classes.aliases)
        listed = []
        for word, count in sorted(self._missed.items(), key=lambda item: (-item[1], item[0])):
            near = nearest(word, spellings)
            listed.append(f"{word!r} ({count}x{f', nearest: {near!r}' if near else ''})")
        what = f"{source} has names that are no class of {self.classes.id}: {', '.join(listed)}"
        if self.unknown == "skip":
            return [f"left out: {what}"]
        raise UserError(f"{what}; correct them, choose another class set, or leave them out with --unknown skip")


def classes_of(tags: TagFile, source: Path) -> tuple[ClassSet, list[str]]:
    """A class set of the names in a tag file, sorted, and notes. Of several spellings the first sorted is taken."""
    words = sorted({word for labels in tags.values() for word in labels or ()})
    names: dict[str, str] = {}
    for word in words:
        names.setdefault(fold(word), word)
    if not names:
        raise UserError(f"{source} names no class at all: name a class set, or add labels")
    chosen = sorted(names.values(), key=lambda word: (fold(word), word))
    note = f"the {len(chosen)} classes are those named in {source.name}: {listing(chosen, most=10)}"
    return plain_classes(chosen, source.stem), [note]


def match_images(
    tags: TagFile, images: Sequence[str], source: Path, root: Path
) -> tuple[dict[int, tuple[str, ...] | None], list[str]]:
    """Finds the image that each row of a tag file means.

    A row may give the path from the data set's root or from the tag file, with "/" or "\\", with or without suffix,
    in any Unicode normal form; a bare name without a folder is found wherever just one image is called so.

    Args:
        images: paths relative to ``root``.

    Returns:
        The labels by index into ``images``, and the rows that mean no image.

    Raises:
        UserError: a row points out of the folder or could mean several images, or no row means any.
    """
    prefix = _below(source.resolve().parent, root.resolve())
    bases = (root.as_posix(), root.resolve().as_posix())
    local = {key: _local(key, bases, prefix) for key in tags}
    outside = [key for key, path in local.items() if path is None]
    if outside:
        raise UserError(
            f"{source}: {len(outside)} rows point out of {root}: {listing(outside)}; give paths relative to it"
        )
    found: dict[int, tuple[str, ...] | None] = {}
    several: list[str] = []
    missing = {key: path for key, path in local.items() if path is not None}
    # From the strictest reading of a row to the loosest. A looser one never adds to what a stricter one found:
    # a row "a.jpg" whose image is gone must not speak for "a.png", which has its own row.
    for reading in (_as_it_is, _without_suffix, _bare, _bare_without_suffix):
        if not missing:
            break
        index: dict[str | None, int] = {}
        for position, image in enumerate(images):
            name = reading(normalize("NFC", image), image=True)
            index[name] = -1 if name in index else position
        stricter = set(found)
        for key, path in list(missing.items()):
            name = reading(path, image=False)
            position = index.get(name, -2) if name is not None else -2
            if position == -1:
                several.append(key)
            if position >= 0 and position not in stricter:
                del missing[key]
                before, labels = found.get(position), tags[key]
                found[position] = labels if before is None else before + (labels or ())
        if several:
            raise UserError(
                f"{source}: {len(several)} rows could mean several images: {listing(several)}; "
                f"give their path from {root}, with suffix"
            )
    if missing and not found:
        raise UserError(
            f"none of the {len(missing)} rows of {source} names an image that is there: rows say "
            f"{next(iter(missing))!r}, images in {root} are called {images[0]!r}"
        )
    return found, list(missing)


def _below(folder: Path, inner: Path) -> tuple[str, ...]:
    """The folders from one down to another, or () where it is not inside."""
    return inner.relative_to(folder).parts if inner.is_relative_to(folder) else ()


def _local(key: str, bases: tuple[str, ...], prefix: tuple[str, ...]) -> str | None:
    """A row's path from the root of the data set, or None where it leaves the root.

    A tags file beside the image folder may count from where it lies: ``prefix`` is what it then says too much.
    """
    path = normalize("NFC", key.replace("\\", "/"))
    base = next((base for base in bases if path.startswith(f"{base}/")), None)
    if base is not None:
        path = path.removeprefix(f"{base}/")
    elif PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive:
        return None
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if ".." in parts or not parts:
        return None
    if prefix and parts[: len(prefix)] == prefix and len(parts) > len(prefix):
        parts = parts[len(prefix) :]
    return "/".join(parts)


def _as_it_is(path: str, image: bool) -> str | None:
    return path


def _bare(path: str, image: bool) -> str | None:
    """The file's name; a row that gives a folder means that folder."""
    return path.rpartition("/")[2] if image or "/" not in path else None


def _bare_without_suffix(path: str, image: bool) -> str | None:
    name = _bare(path, image)
    return name if name is None else without_suffix(name)


def _without_suffix(path: str, image: bool) -> str | None:
    return without_suffix(path)
