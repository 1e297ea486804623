"""The data set that every reader returns: columns of packed bytes, from which samples are made when asked for.

A million images must fit, so no Python object is kept for a sample: its id and path are slices of one long byte
string, its tags a slice of one array.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tag2mask.data.truth_turn import Truth, TruthOf, Turn
from tag2mask.types import ClassSet, Sample, UserError
from tag2mask.words import listing

__all__ = ["Columns", "ColumnsBuilder", "Strings"]


@dataclass(frozen=True, eq=False)
class Strings:
    """Many short texts in one array.

    data: (total,) uint8, UTF-8. offsets: (N + 1,) uint32, or uint64 beyond 4 GiB.
    """

    data: NDArray[np.uint8]
    offsets: NDArray[np.unsignedinteger]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        return self.data[start:stop].tobytes().decode("utf-8", "surrogateescape")

    def take(self, indices: NDArray[np.int64]) -> Strings:
        """The texts at ``indices``, in that order."""
        data, offsets = _take(self.data, self.offsets, indices)
        return Strings(data, offsets)


@dataclass(eq=False)
class Columns:
    """A Dataset (see ``tag2mask.types``) in columns; picklable.

    ids, images: (N,) texts; images are POSIX paths relative to ``root``, or absolute where they lie elsewhere.
    tags: (T,) uint8, the tags of all samples one after the other; tag_offsets: (N + 1,).
    known: (N,) bool, False where the tags are not known. has_truth: (N,) bool.
    truth: reads the ground truth by id; truth_turn: which pixels it was drawn on, where its size does not tell.
    notes: what a user should know about the reading, a line each.
    """

    classes: ClassSet
    root: Path
    ids: Strings
    images: Strings
    tags: NDArray[np.uint8]
    tag_offsets: NDArray[np.unsignedinteger]
    known: NDArray[np.bool_]
    has_truth: NDArray[np.bool_]
    truth: Truth | None = None
    notes: tuple[str, ...] = ()
    truth_turn: Turn | None = None

    def __len__(self) -> int:
        return len(self.known)

    def __getitem__(self, index: int, /) -> Sample:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        name, image = self.ids[index], self.root / self.images[index]
        start, stop = int(self.tag_offsets[index]), int(self.tag_offsets[index + 1])
        return Sample(
            id=name,
            image=image,
            tags=tuple(self.tags[start:stop].tolist()) if self.known[index] else None,
            truth=(
                TruthOf(self.truth, name, image, self.truth_turn)
                if self.truth is not None and self.has_truth[index]
                else None
            ),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @property
    def nbytes(self) -> int:
        """Bytes held for all samples together."""
        arrays = (self.ids.data, self.ids.offsets, self.images.data, self.images.offsets)
        return sum(a.nbytes for a in (*arrays, self.tags, self.tag_offsets, self.known, self.has_truth))

    def subset(self, which: Iterable[int] | Iterable[str]) -> Columns:
        """The samples of these indices or of these ids, in the given order.

        Raises:
            UserError: an id that no sample has.
            IndexError: an index that is out of range.
        """
        wanted: Any = which if isinstance(which, np.ndarray) else list(which)
        if len(wanted) and isinstance(wanted[0], str):
            indices = self._find(wanted)
        elif isinstance(wanted, np.ndarray) and wanted.dtype.kind in "iu":
            indices = wanted.astype(np.int64)
        else:
            indices = np.array([operator.index(i) for i in wanted], dtype=np.int64)
        if len(indices) and not (-len(self) <= indices.min() and indices.max() < len(self)):
            raise IndexError(f"indices {indices.min()} to {indices.max()} of {len(self)} samples")
        indices = np.where(indices < 0, indices + len(self), indices)
        tags, tag_offsets = _take(self.tags, self.tag_offsets, indices)
        return replace(
            self,
            ids=self.ids.take(indices),
            images=self.images.take(indices),
            tags=tags,
            tag_offsets=tag_offsets,
            known=self.known[indices],
            has_truth=self.has_truth[indices],
        )

    def images_only(self, classes: ClassSet) -> Columns:
        """The same images under other classes, of which neither tags nor truth are known."""
        none = np.zeros(len(self), np.bool_)
        tags = np.zeros(0, np.uint8)
        offsets = np.zeros(len(self) + 1, np.uint32)
        return replace(self, classes=classes, tags=tags, tag_offsets=offsets, known=none, has_truth=none, truth=None)

    def with_notes(self, *notes: str) -> Columns:
        """The same samples with other notes."""
        return replace(self, notes=notes)

    def _find(self, names: Sequence[str]) -> NDArray[np.int64]:
        index = {self.ids[i]: i for i in range(len(self))}
        missing = [name for name in names if name not in index]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(names)} ids are not in {self.root}: {listing(missing)}; "
                f"its ids look like {self.ids[0] if len(self) else 'nothing, it is empty'!r}"
            )
        return np.array([index[name] for name in names], dtype=np.int64)


@dataclass
class ColumnsBuilder:
    """Collects samples one by one into Columns, holding no object for any of them."""

    _ids: bytearray = field(default_factory=bytearray)
    _id_ends: array = field(default_factory=lambda: array("Q", [0]))
    _images: bytearray = field(default_factory=bytearray)
    _image_ends: array = field(default_factory=lambda: array("Q", [0]))
    _tags: bytearray = field(default_factory=bytearray)
    _tag_ends: array = field(default_factory=lambda: array("Q", [0]))
    _known: bytearray = field(default_factory=bytearray)
    _has_truth: bytearray = field(default_factory=bytearray)

    def add(self, name: str, image: str, tags: Iterable[int] | None, has_truth: bool = False) -> None:
        """Adds a sample.

        Args:
            name: its id, a relative POSIX path without suffix that stays inside its folder.
            image: its path relative to the data set's root.
            tags: mask values in any order, or None where they are not known.
            has_truth: whether there is ground truth.

        Raises:
            UserError: an id that would leave the folder of artefacts.
        """
        if not name or name.startswith("/") or {"", ".", ".."} & set(name.split("/")):
            raise UserError(
                f"{image!r} would be called {name!r}, which does not stay inside a folder: "
                "give paths relative to the data set, without '..'"
            )
        self._ids += _clean(name).encode()
        self._id_ends.append(len(self._ids))
        self._images += image.encode("utf-8", "surrogateescape")
        self._image_ends.append(len(self._images))
        self._tags += bytes(sorted(set(tags or ())))
        self._tag_ends.append(len(self._tags))
        self._known.append(tags is not None)
        self._has_truth.append(has_truth)

    def build(self, classes: ClassSet, root: Path, truth: Truth | None = None, notes: Iterable[str] = ()) -> Columns:
        """The collected samples.

        Raises:
            ValueError: two samples have the same id, or a tag is no class.
        """
        ids = Strings(_bytes(self._ids), _offsets(self._id_ends))
        hashes = np.fromiter((hash(ids[i]) for i in range(len(ids))), np.int64, len(ids))  # a set would hold them all
        if len(np.unique(hashes)) != len(ids) and (shared := len(ids) - len({ids[i] for i in range(len(ids))})):
            raise ValueError(f"{shared} samples share an id with another")
        tags = _bytes(self._tags)
        if len(tags) and not (tags.min() >= 1 and tags.max() < len(classes)):
            raise ValueError(f"tags {tags.min()} to {tags.max()}, but {classes.id} has 1 to {len(classes) - 1}")
        return Columns(
            classes=classes,
            root=root,
            ids=ids,
            images=Strings(_bytes(self._images), _offsets(self._image_ends)),
            tags=tags,
            tag_offsets=_offsets(self._tag_ends),
            known=_bytes(self._known).astype(np.bool_),
            has_truth=_bytes(self._has_truth).astype(np.bool_),
            truth=truth,
            notes=tuple(notes),
        )


def _clean(name: str) -> str:
    """Artefacts and manifests are named after ids, so these are sound text even where a file's name is not."""
    name = name.replace("\\", "%5C")  # which would be a folder on Windows
    if name.isascii():
        return name
    return "".join(f"%{ord(c) - 0xDC00:02X}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in name)


def _bytes(data: bytearray) -> NDArray[np.uint8]:
    return np.frombuffer(bytes(data), dtype=np.uint8)


def _offsets(ends: array | NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
    kind = np.uint32 if ends[-1] < 2**32 else np.uint64
    return np.array(ends, dtype=np.uint64).astype(kind)


def _take(
    data: NDArray[np.uint8], offsets: NDArray[np.unsignedinteger], indices: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.unsignedinteger]]:
    """The rows at ``indices`` of rows packed one after the other."""
    starts = offsets[:-1][indices].astype(np.int64)  # (M,)
    lengths = offsets[1:][indices].astype(np.int64) - starts  # (M,)
    ends = np.concatenate([[0], np.cumsum(lengths)])  # (M + 1,)
    where = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], lengths)  # (total,) positions in data
    return data[where], _offsets(ends)
