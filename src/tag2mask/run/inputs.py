"""What an image's artefacts were made of: the content of its file, its tags, and what an earlier run found of it.

A file is known by its size and time of change, and by a digest of its content where these differ: a copy of the data
on another machine is the same data. The time is the later one of its content's and of its entry's, which no copying,
unpacking or renaming sets back.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Inputs", "KnownInputs", "Stamp", "content_of", "id_key", "last_of_each", "stamp_from", "stamp_plain"]

_DIGEST = 16  # bytes


@dataclass(frozen=True)
class Stamp:
    """A file at one moment: its size in bytes, when it was changed (Unix time in nanoseconds), a digest in hex."""

    size: int
    changed: int
    digest: str

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The stamp of a file. What is changed after this call is another content: the time is taken first.

        Raises:
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST))
        return cls(status.st_size, _changed(status), digest.hexdigest())


@dataclass(frozen=True)
class Inputs:
    """What decides an image's artefacts besides the settings of its run.

    image: the file. tags: mask values, or None where they play no part. earlier: the maps, or the mask, of an earlier
    run that was refined, or None.
    """

    image: Stamp
    tags: tuple[int, ...] | None = None
    earlier: Stamp | None = None

    def plain(self) -> dict[str, Any]:
        """As a manifest keeps it."""
        kept: dict[str, Any] = {"image": stamp_plain(self.image)}
        if self.tags is not None:
            kept["tags"] = list(self.tags)
        if self.earlier is not None:
            kept["earlier"] = stamp_plain(self.earlier)
        return kept

    @classmethod
    def from_plain(cls, kept: Mapping[str, Any]) -> Inputs:
        """What :meth:`plain` gave. Raises KeyError, TypeError, ValueError, ... for anything else."""
        tags, earlier = kept.get("tags"), kept.get("earlier")
        return cls(
            stamp_from(kept["image"]),
            None if tags is None else tuple(int(tag) for tag in tags),
            None if earlier is None else stamp_from(earlier),
        )


def stamp_plain(stamp: Stamp) -> list[Any]:
    """A stamp as a file of JSON lines keeps it."""
    return [stamp.size, stamp.changed, stamp.digest]


def stamp_from(kept: Any) -> Stamp:
    """What :func:`stamp_plain` gave. Raises OverflowError, TypeError or ValueError for anything else."""
    size, changed, digest = kept
    if not isinstance(digest, str) or len(digest) != 2 * _DIGEST:
        raise ValueError(f"digest {digest!r}")
    return Stamp(int(size), int(changed), digest)


_STAMP = np.dtype([("size", "<i8"), ("changed", "<i8"), ("digest", f"V{_DIGEST}")])
_ROW = np.dtype([("key", "<u8"), ("at", "<f8"), ("ok", "?"), ("tags", "<i8"), ("image", _STAMP), ("earlier", _STAMP)])
_PACK = struct.Struct(f"<Qd?qqq{_DIGEST}sqq{_DIGEST}s")
_NOTHING = (-1, -1, bytes(_DIGEST))


def last_of_each(keys: ArrayLike, times: ArrayLike) -> NDArray[np.intp]:
    """The places of the last row of each key, the keys ascending; of equal times the later row counts."""
    order = np.lexsort((times, keys))  # type: ignore[arg-type]  # stable
    ordered = np.asarray(keys)[order]
    last = np.ones(len(ordered), np.bool_)
    last[:-1] = ordered[1:] != ordered[:-1]
    return order[last]


class KnownInputs:
    """The inputs of many images by id, some 100 bytes each; the last word on each counts.

    Tags are kept as a 63-bit hash.
    """

    def __init__(self, rows: Iterable[tuple[str, float, Inputs | None]]) -> None:
        """rows: (id, when, inputs), in any order; None where the last try did not end in a mask."""
        packed = bytearray()
        for id, at, inputs in rows:
            packed += _PACK.pack(id_key(id), at, inputs is not None, *_fields(inputs))
        table: NDArray[Any] = np.frombuffer(packed, _ROW)
        order = last_of_each(table["key"], table["at"])
        self._table = table[order[table["ok"][order]]]  # one copy: they are large
        # a field of the table is not contiguous, and searching in one would copy it each time
        self._keys = np.ascontiguousarray(self._table["key"])

    def __len__(self) -> int:
        return len(self._table)

    def find(self, id: str) -> KnownImage | None:
        """What an image's mask was made of, or None where there is none."""
        key = id_key(id)
        place = int(np.searchsorted(self._keys, np.uint64(key)))
        if place == len(self._keys) or int(self._keys[place]) != key:
            return None
        return KnownImage(self._table[place])


class KnownImage:
    """One image of ``KnownInputs``."""

    def __init__(self, row: Any) -> None:
        self._row = row

    def has_tags(self, tags: tuple[int, ...] | None) -> bool:
        """Whether it was labelled with these tags."""
        return int(self._row["tags"]) == _tags_hash(tags)

    @property
    def inputs_of(self) -> tuple[Stamp, Stamp | None]:
        """The stamps of the image and of what an earlier run found, as they were."""
        earlier = self._row["earlier"]
        return _stamped(self._row["image"]), None if int(earlier["size"]) == -1 else _stamped(earlier)

    def image_now(self, path: Path) -> Stamp | None:
        """The stamp of the image's file if its content is what it was, with its time of now, else None.

        Raises:
            OSError: it cannot be looked at.
        """
        return _same(self.inputs_of[0], path)

    def earlier_now(self, path: Path | None) -> tuple[bool, Stamp | None]:
        """Whether what an earlier run found is what it was, and its stamp; None: there is no earlier run.

        Raises:
            OSError: it was there, and cannot be looked at now.
        """
        before = self.inputs_of[1]
        if before is None:
            return path is None or not path.exists(), None
        if path is None:
            return False, None
        now = _same(before, path)
        return now is not None, now


def _stamped(row: Any) -> Stamp:
    return Stamp(int(row["size"]), int(row["changed"]), row["digest"].tobytes().hex())


def _same(before: Stamp, path: Path) -> Stamp | None:
    status = path.stat()
    if status.st_size == before.size and _changed(status) == before.changed:
        return before
    if status.st_size != before.size:
        return None
    now = Stamp.of(path)
    return now if now.digest == before.digest else None


def _changed(status: os.stat_result) -> int:
    return max(status.st_mtime_ns, status.st_ctime_ns)


def content_of(path: Path, before: Stamp | None) -> str | None:
    """The digest of a file's content, not read where size and time are as ``before``; None: there is no file."""
    try:
        status = path.stat()
        if before is not None and (status.st_size, _changed(status)) == (before.size, before.changed):
            return before.digest
        return Stamp.of(path).digest
    except OSError:
        return None


def _fields(inputs: Inputs | None) -> tuple[Any, ...]:
    if inputs is None:
        return (0, *_NOTHING, *_NOTHING)
    return (_tags_hash(inputs.tags), *_packed(inputs.image), *_packed(inputs.earlier))


def _packed(stamp: Stamp | None) -> tuple[int, int, bytes]:
    return _NOTHING if stamp is None else (stamp.size, stamp.changed, bytes.fromhex(stamp.digest))


def _tags_hash(tags: tuple[int, ...] | None) -> int:
    return -1 if tags is None else _hash(bytes(tags)) >> 1


def id_key(id: str) -> int:
    """A 64-bit hash of an id."""
    return _hash(id.encode("utf-8", "surrogatepass"))


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
