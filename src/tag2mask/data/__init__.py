"""Readers of tagged images, and writers of masks.

A reader gives a Dataset: one Sample an image, with the tags that are known and, where there is some, the ground
truth to be read when asked for. Its ``notes`` say what a user should know about the reading.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tag2mask import formats
from tag2mask.data.coco import read_coco
from tag2mask.data.columns import Columns
from tag2mask.data.folder import read_folder
from tag2mask.data.protocol import Asked, Reader
from tag2mask.data.tags import TagReading
from tag2mask.data.truth_turn import Turn
from tag2mask.data.voc import read_voc
from tag2mask.tables import find
from tag2mask.types import UserError

__all__ = ["TagReading", "find_reader", "is_file_of_data", "read_coco", "read_dataset", "read_folder", "read_voc"]


def read_dataset(
    path: Path | str, kind: str | None = None, *, truth_turn: Turn | None = None, **asked: Any
) -> Columns:
    """Reads a data set of any kind; the first note says which kind was taken, and why.

    Args:
        path: a folder, or a file.
        kind: a name in ``formats.readers()``. Default: detected by what is there.
        truth_turn: which pixels of photographs that EXIF turns the ground truth was drawn on, where the masks' size
            does not tell.
        asked: fields of ``data.protocol.Asked``.

    Raises:
        UserError: nothing there, an argument that this kind has no use for, or what the reader finds.
    """
    request = Asked(Path(path), **asked)
    if kind is None:
        kind, reason, notes = _detect(request)
    else:
        reason, notes = "as asked", ()
    reader = find_reader(kind)
    useful = (*reader.takes, "truth_values") if request.truth is not None else reader.takes
    options = ("tags", "split", "images", "truth", "truth_values")
    idle = [name for name in options if getattr(request, name) is not None and name not in useful]
    if idle:
        raise UserError(
            f"{path} is read as {kind} ({reason}), which has no use for {', '.join(idle)}: leave it out, "
            "or name another kind"
        )
    dataset = reader.read(request)
    return replace(dataset, notes=(f"read as {kind} ({reason})", *notes, *dataset.notes), truth_turn=truth_turn)


def find_reader(name: str) -> Reader:
    """The reader of that name. Raises UserError where there is none, or it does not import."""
    found: Reader = find("reader", name, {known: entry.where for known, entry in formats.readers().items()})
    return found


def is_file_of_data(path: Path) -> bool:
    """Whether data at a path, which may be gone, is a file and not a folder."""
    return not path.is_dir() and any(path.suffix.lower() in reader.suffixes for _, reader in _readers([]))


def _readers(notes: list[str]) -> Iterator[tuple[str, Reader]]:
    """All readers by name; of another package's that does not import, there is a note."""
    for name in formats.readers():
        try:
            yield name, find_reader(name)
        except UserError as error:
            notes.append(f"not asked whether it can read the data: {error}")


def _detect(request: Asked) -> tuple[str, str, tuple[str, ...]]:
    """The kind of data; what shows it; notes."""
    path, notes = request.path, list[str]()
    found = ((name, reader.recognise(request)) for name, reader in _readers(notes)) if path.exists() else ()
    signs = {name: sign for name, sign in found if sign is not None}
    if not signs:
        wrong = "does not exist" if not path.exists() else "is a file" if path.is_file() else "is of no known kind"
        raise UserError(f"{path} {wrong}: give {formats.said(formats.readers())}")
    sure = [name for name, sign in signs.items() if sign.sure]
    kind, *others = sure or signs
    if sure:
        notes += [f"it could be {name}, too ({signs[name].reason}): --kind {name} reads it so" for name in others]
    return kind, signs[kind].reason, tuple(notes)
