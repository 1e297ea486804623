"""What formats of other tools share: where pictures lie, names of labels, and lists that are written as they come."""

from __future__ import annotations

import json
import tempfile
from typing import Any, BinaryIO, Literal, cast

from pydantic import Field

from tag2mask.data.protocol import ExportOptions, Labelled, Picture
from tag2mask.types import IGNORE, ClassSet, UserError

IGNORED = "ignore"
"""The label of pixels that belong to no class for sure (255), where a tool knows labels by name."""

_IN_MEMORY = 1 << 20


class PieceOptions(ExportOptions):
    """The option of formats with a shape for each object."""

    min_pixels: int = Field(
        0, ge=0, description="leave out pieces of fewer pixels than that; 0: none, so that every pixel comes back"
    )


class ToolOptions(ExportOptions):
    """The option that every format with pictures has."""

    images: Literal["copy", "link", "none"] = Field(
        "copy", description="copy the pictures into the export, link to them, or leave them out"
    )


def label_names(classes: ClassSet) -> dict[int, str]:
    """The label of every mask value but background: the classes, and ``IGNORED`` for 255.

    Raises:
        UserError: a class has that name itself.
    """
    if IGNORED in classes.foreground:
        raise UserError(f'{classes.id} has a class "{IGNORED}", the label that ignored pixels (255) get; rename it')
    return {**dict(enumerate(classes.foreground, start=1)), IGNORE: IGNORED}


def picture_name(image: Labelled) -> str:
    """The picture's name inside an export: its id with its own suffix."""
    return image.id + (image.image.suffix if image.image is not None else "")


def picture(image: Labelled, folder: str, options: ToolOptions) -> list[tuple[str, Picture]]:
    """The picture as a file of the export, in a list of one; of none where pictures are left out."""
    if options.images == "none" or image.image is None:
        return []
    return [(f"{folder}/{picture_name(image)}", Picture(image.image, link=options.images == "link"))]


def encoded(value: Any) -> bytes:
    """A value as JSON, the same bytes each time."""
    return json.dumps(value, ensure_ascii=False).encode()


class Lines:
    """Lines of text that may be more than memory holds. begin, between, end: what stands around and between them."""

    def __init__(self, begin: bytes = b"", between: bytes = b"\n", end: bytes = b"\n") -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - closed by who reads it
        self._between, self._end, self._count = between, end, 0
        self._file.write(begin)

    def add(self, line: str | bytes) -> None:
        """One more."""
        self._file.write(self._between * (self._count > 0) + (line.encode() if isinstance(line, str) else line))
        self._count += 1

    def file(self) -> BinaryIO:
        """All of them, to be read; nothing can be added any more."""
        self._file.write(self._end)
        self._file.seek(0)
        return cast(BinaryIO, self._file)


def json_list(begin: bytes = b"[\n", end: bytes = b"]\n") -> Lines:
    """Lines that are the items of a JSON list: each is added ``encoded``."""
    return Lines(begin, b",\n", b"\n" + end)
