"""Which images, tags and files a fit is of, and what has changed since."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any

import numpy as np

from tag2mask.run.inputs import id_key
from tag2mask.types import Dataset
from tag2mask.words import listing, many

__all__ = ["FIT_DATA", "Surveyed", "what_changed"]

FIT_DATA = "fit_data.json"

_SHOWN = 5
_PACK = Struct("<QII")
_ROW = np.dtype([("id", "<u8"), ("tags", "<u4"), ("files", "<u4")])  # hashes: they say which, never whether


@dataclass(frozen=True)
class Surveyed:
    """What a fit is of.

    total: images in the shard. images: in all shards. fingerprint: of ids, tags and contents of all, in order.
    rows: of each image, to say which changed.
    """

    total: int
    images: int
    fingerprint: str
    rows: np.ndarray

    def plain(self) -> dict[str, Any]:
        """As FIT_DATA keeps it."""
        packed = base64.b64encode(zlib.compress(self.rows.tobytes())).decode()
        return {"images": self.images, "fingerprint": self.fingerprint, "rows": packed}

    def is_of(self, stored: Any) -> bool:
        """Whether what FIT_DATA holds is of the same."""
        return isinstance(stored, dict) and stored.get("fingerprint") == self.fingerprint


def row(id: str, tags: tuple[int, ...] | None, contents: Sequence[str | None]) -> bytes:
    """One image of ``Surveyed.rows``."""
    return _PACK.pack(id_key(id), zlib.crc32(json.dumps(tags).encode()), zlib.crc32(json.dumps(contents).encode()))


def as_rows(rows: bytearray) -> np.ndarray:
    """(N,) of them."""
    return np.frombuffer(bytes(rows), _ROW)


def what_changed(stored: Any, now: Surveyed, data: Dataset) -> str:
    """The images that differ from those of a fit: "3 images whose tags changed (a, b, c); 1 new image (d)".

    Without a record of each image, or where their order alone differs: how many there were, and are.
    """
    counts = f"{stored.get('images', '?')} images then, {now.images} now"
    try:
        before = np.frombuffer(zlib.decompress(base64.b64decode(stored["rows"])), _ROW)
    except (KeyError, TypeError, ValueError, zlib.error):
        return counts
    old = {int(each["id"]): each for each in before}
    groups: dict[str, list[int]] = {"tags": [], "files": [], "new": []}
    for place, each in enumerate(now.rows):
        then = old.pop(int(each["id"]), None)
        if then is None:
            groups["new"].append(place)
        elif then["tags"] != each["tags"]:
            groups["tags"].append(place)
        elif then["files"] != each["files"]:
            groups["files"].append(place)
    said = {"tags": "whose tags changed", "files": "whose picture or earlier maps changed", "new": "not there before"}
    parts = [
        f"{many(len(places), 'image')} {said[kind]} ({listing(_ids(places, data), _SHOWN)})"
        for kind, places in groups.items()
        if places
    ]
    parts += [f"{many(len(old), 'image')} no longer there"] if old else []
    return "; ".join(parts) or counts


def _ids(places: Sequence[int], data: Dataset) -> list[str]:
    """Their ids; beyond the first few, which are shown, places stand for them."""
    return [data[place].id if n < _SHOWN else str(place) for n, place in enumerate(places)]
