"""What became of every image: one JSON line each, appended by one writer, readable at any moment."""

from __future__ import annotations

import math
import threading
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tag2mask.run.inputs import Inputs, id_key, last_of_each
from tag2mask.run.json_lines import JsonLines, read_lines

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
        self._lines = JsonLines(path)
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
            self._lines.append(line)

    def comes_after(self, at: float) -> None:
        """Lines from now on are later than that, whatever the clock says."""
        with self._turn:
            self._latest = max(self._latest, at)

    def close(self) -> None:
        """Close the file; every line is already in it."""
        self._lines.close()


def read_manifest(path: Path) -> Iterator[Record]:
    """The records of one file in order; what is none, as a line torn by a kill or a full disk, is passed over."""
    for line in read_lines(path):
        try:
            record = _record(line)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            continue
        yield record


def _record(line: Any) -> Record:
    """What a line says. Raises what ``read_manifest`` catches where it is no record."""
    id, status, seconds, error, at = (line[key] for key in ("id", "status", "seconds", "error", "at"))
    fits = (
        isinstance(id, str)
        and status in get_args(Status)
        and isinstance(seconds, dict)
        and all(map(_is_number, seconds.values()))
        and (error is None or isinstance(error, str))
        and _is_number(at)
    )
    if not fits:
        raise ValueError("values of other kinds than those of a record")
    inputs = None if line.get("inputs") is None else Inputs.from_plain(line["inputs"])
    return Record(id, status, seconds, error, at, inputs)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class LastWords:
    """The last word on every image: within a file the last line, among files the latest in time.

    Of equals the later file's counts. Records are read again at each pass instead of kept: those of a million images
    would be a gigabyte. It holds some 10 bytes an image, and 25 a line while it is made.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = sorted(paths)
        keys, times, ends = array("Q"), array("d"), [0]
        for path in self._paths:
            for record in read_manifest(path):
                keys.append(id_key(record.id))
                times.append(record.at)
            ends.append(len(keys))
        last = last_of_each(keys, times)
        self._keys: NDArray[np.uint64] = np.asarray(keys)[last]
        self._counts = np.zeros(len(keys), np.bool_)  # by line
        self._counts[last] = True
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
