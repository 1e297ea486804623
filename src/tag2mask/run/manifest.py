"""What became of every image: one JSON line each, appended by one writer, readable at any moment."""

from __future__ import annotations

import errno
import io
import json
import os
import threading
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tag2mask.run.inputs import Inputs, id_key

Status = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class Record:
    """One line: seconds by stage, why it failed or was skipped, what its mask was made of. ``at`` is Unix time."""

    id: str
    status: Status
    seconds: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    at: float = 0.0
    inputs: Inputs | None = None


class Manifest:
    """Appends records to one file, each with a single unbuffered write, from any thread.

    Raises:
        OSError: on construction or appending, if the disk is full or read-only.
    """

    def __init__(self, path: Path):
        self._file = io.FileIO(path, "ab")
        self._torn = _ends_torn(path)
        self._turn = threading.Lock()
        self._latest = 0.0

    def append(self, record: Record) -> None:
        """Add a line. It is in the file when this returns."""
        line: dict[str, Any] = {
            "id": record.id,
            "status": record.status,
            "seconds": {stage: round(seconds, 4) for stage, seconds in record.seconds.items()},
            "error": record.error,
        }
        if record.inputs is not None:
            line["inputs"] = record.inputs.plain()
        with self._turn:
            # a clock that was set back must not make the last word an old one
            self._latest = max(round(record.at or time.time(), 3), self._latest + 0.001)
            line["at"] = round(self._latest, 3)
            # ASCII: lone surrogates of an undecodable file name survive, and a torn line is torn between characters
            data = json.dumps(line).encode("ascii") + b"\n"
            if self._torn:
                data = b"\n" + data
            self._torn = True
            written = self._file.write(data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
            self._torn = False

    def comes_after(self, at: float) -> None:
        """Lines from now on are later than that, whatever the clock says."""
        with self._turn:
            self._latest = max(self._latest, at)

    def close(self) -> None:
        """Close the file; every line is already in it."""
        self._file.close()


def _ends_torn(path: Path) -> bool:
    """Whether a killed writer left half a line, which the next one must not continue."""
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def read_manifest(path: Path) -> Iterator[Record]:
    """The records of one file in order; a line that was torn by a kill or a full disk is passed over."""
    with open(path, "rb") as file:
        for line in file:
            try:
                fields = json.loads(line)
                inputs = None if fields.get("inputs") is None else Inputs.from_plain(fields["inputs"])
                yield Record(fields["id"], fields["status"], fields["seconds"], fields["error"], fields["at"], inputs)
            except (ValueError, KeyError, TypeError):
                continue


def merge_manifests(paths: Iterable[Path]) -> dict[str, Record]:
    """The last word on every image: within a file the last line, among files the latest in time."""
    merged: dict[str, Record] = {}
    for path in sorted(paths):
        for record in read_manifest(path):
            if record.id not in merged or record.at >= merged[record.id].at:
                merged[record.id] = record
    return merged


class LastWords:
    """The last word on every image, as ``merge_manifests`` has them, read again at each pass instead of kept.

    It holds some 10 bytes an image, and 25 a line while it is made: records of a million images would be a gigabyte.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = sorted(paths)
        keys, times, ends = array("Q"), array("d"), [0]
        for path in self._paths:
            for record in read_manifest(path):
                keys.append(id_key(record.id))
                times.append(record.at)
            ends.append(len(keys))
        by_id = np.lexsort((times, keys))  # stable: of equal times the later line counts
        ordered = np.asarray(keys)[by_id]
        last = np.ones(len(ordered), np.bool_)
        last[:-1] = ordered[1:] != ordered[:-1]
        self._keys: NDArray[np.uint64] = ordered[last]
        self._counts = np.zeros(len(ordered), np.bool_)  # by line
        self._counts[by_id[last]] = True
        self._ends = ends

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, id: str) -> bool:
        key = np.uint64(id_key(id))
        place = int(np.searchsorted(self._keys, key))
        return place < len(self._keys) and self._keys[place] == key

    def __iter__(self) -> Iterator[Record]:
        """The records, in the order of the files; lines that were added since are not among them."""
        for path, begin, end in zip(self._paths, self._ends, self._ends[1:], strict=False):
            for record, counts in zip(read_manifest(path), self._counts[begin:end], strict=False):
                if counts:
                    yield record
