"""Files of one JSON object a line that grow at their end, and stay readable when a writer is killed."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["JsonLines", "read_lines"]


class JsonLines:
    """Appends lines to one file, each with a single unbuffered write. Not for several threads at once.

    Raises:
        OSError: on construction or appending, if the disk is full or read-only.
    """

    def __init__(self, path: Path) -> None:
        self._file = io.FileIO(path, "ab")
        self._torn = _ends_torn(path)

    def append(self, line: Mapping[str, Any], *, sync: bool = False) -> None:
        """Add a line. It is in the file when this returns; sync: and on the disk, for a power cut."""
        # ASCII: lone surrogates of an undecodable file name survive, no character of a name ends a line, and a torn
        # line is torn between characters
        data = json.dumps(line).encode("ascii") + b"\n"
        if self._torn:
            data = b"\n" + data
        self._torn = True
        written = self._file.write(data)
        if written != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        if sync:
            os.fsync(self._file.fileno())
        self._torn = False

    def close(self) -> None:
        """Close the file; every line is already in it."""
        self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_lines(path: Path) -> Iterator[Any]:
    r"""What each line holds, in order; None for one that is not JSON: it was torn by a kill or a full disk.

    Only "\n" ends a line.
    """
    with open(path, "rb") as file:
        for line in file:
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield None


def _ends_torn(path: Path) -> bool:
    """Whether a killed writer left half a line, which the next one must not continue."""
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
