"""All that is asked of a reader and of an exporter. docs/add-a-reader-or-exporter.md builds one of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tag2mask.data.columns import Columns
from tag2mask.data.tags import TagReading, Unknown
from tag2mask.types import ClassSet

__all__ = [
    "Asked",
    "Content",
    "Export",
    "ExportOptions",
    "FileExporter",
    "FolderExporter",
    "Labelled",
    "Picture",
    "Reader",
    "Sign",
]


@dataclass(frozen=True)
class Asked:
    """What a reader is asked for: the data's place, and what was said of it (None: nothing).

    path: a folder or a file. tags, split, images, truth, truth_values: options of the command line, of which a reader
    gets those that it takes. classes: a class set, its name or file, or "file" for the data's own names.
    unknown: what becomes of tags that are no class. reading: what was decided about tags that could mean two things.
    network: the classes of a network that is to look at the images: tags are not needed then.
    """

    path: Path
    tags: Path | str | None = None
    split: str | None = None
    images: Path | str | None = None
    truth: Path | str | None = None
    truth_values: str | None = None
    classes: ClassSet | str | Path | None = None
    unknown: Unknown = "error"
    network: ClassSet | None = None
    reading: TagReading | None = None


class Sign(NamedTuple):
    """What shows that data is of a kind, as the note says it: "it has JPEGImages".

    sure: nothing but data of this kind has it. What is not sure counts only where no reader is sure.
    """

    reason: str
    sure: bool = True


@dataclass(frozen=True)
class Reader:
    """One kind of data.

    recognise: what shows that the data is of this kind, None where nothing does; it looks at names, not at contents.
    read: the data; it raises UserError for all that a user can fix. ``data.columns.ColumnsBuilder`` makes Columns.
        Truth, where there is some, is a callable there, by id; only evaluation calls it.
    takes: which of tags, split, images, truth, truth_values it has a use for; others are refused.
    suffixes: of files that are such data (".json"), for data that is a file.
    """

    recognise: Callable[[Asked], Sign | None]
    read: Callable[[Asked], Columns]
    takes: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()


class Labelled(NamedTuple):
    """One image with its mask, as an exporter gets it.

    file: the image's path relative to the data's folder, or absolute where it lies elsewhere; "<id>.png" without the
    images. image: where it is, None where the images are not at hand. mask: (H, W) uint8, 0..C and 255.
    """

    id: str
    file: str
    image: Path | None
    mask: NDArray[np.uint8]


class Picture(NamedTuple):
    """A file of the data set that an export holds, too: copied, or as a link to it."""

    path: Path
    link: bool = False


Content = bytes | Picture | BinaryIO
"""A file of an export: its bytes, one of the data's own, or what a file that is open for reading holds."""


class ExportOptions(BaseModel):
    """The options of an exporter, as ``--set`` changes them: derive from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Export:
    """What an exporter writes: images with masks, one after the other, to be gone through once."""

    classes: ClassSet
    images: Iterable[Labelled]
    options: Any


@dataclass(frozen=True, kw_only=True)
class _Exporter:
    """What both kinds have.

    Options: a model derived from ExportOptions.
    needs_images: whether it is nothing without the data set: file names, sizes, the pictures themselves.
    whole: every image must have a mask, and they come in the order of their ids; else those without one are left out.
    only: the class set whose names a run must have, if the format knows no others.
    """

    Options: type[ExportOptions] = ExportOptions
    needs_images: bool = False
    whole: bool = False
    only: str | None = None


@dataclass(frozen=True, kw_only=True)
class FileExporter(_Exporter):
    """A format that is one file. It appears whole or not at all.

    write: writes it into a file that is open for that.
    called: such a file in messages: "COCO export of tag2mask". example: a name for one: "masks.json".
    mark: what stands in the first 1024 bytes of every such file and of no others; one without it is not replaced.
    """

    write: Callable[[Export, BinaryIO], None]
    called: str
    example: str
    mark: str


@dataclass(frozen=True, kw_only=True)
class FolderExporter(_Exporter):
    """A format that is a folder of files.

    files: (path inside the folder, content) of each; a file appears whole or not at all.
    """

    files: Callable[[Export], Iterator[tuple[str, Content]]]
