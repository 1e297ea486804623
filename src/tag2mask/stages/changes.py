"""Which images of a run are finished: those whose artefacts were made of what the data are now.

A run that goes on makes again what was made of another picture, of other tags, or of other maps of an earlier run,
and nothing else. It says how many and which.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np

from tag2mask.data.columns import listing, many
from tag2mask.run.current import Named, earlier_file
from tag2mask.run.folder import Run
from tag2mask.run.inputs import Inputs, Stamp, id_key
from tag2mask.run.shard import Shard, in_shard
from tag2mask.types import Dataset, Sample, UserError

Removed = Literal["keep", "drop"]
"""What becomes of the masks of images that are no longer in the data, or have no tags any more."""

_SHOWN = 5


class Changes:
    """Compares a run with the data, image by image, while it is planned; counts what differs.

    Args:
        run: open to write, before anything is written.
        earlier: the run that it starts from, if it does.
        found: what it takes from there, "maps" or "masks".
        tags: whether the masks depend on tags.
        untagged: whether images without tags get a mask, too.
    """

    def __init__(
        self,
        run: Run,
        earlier: Run | None = None,
        found: str | None = None,
        *,
        tags: bool = True,
        untagged: bool = False,
    ) -> None:
        self._run, self._earlier, self._found, self._tags, self._untagged = run, earlier, found, tags, untagged
        self._stale: dict[str, str] = {}
        self._known = run.inputs()
        self._again = Named()

    def finished(self, sample: Sample) -> bool:
        """Whether the sample's artefacts are there and were made of what it is now."""
        if not self._run.finished(sample.id) or (sample.tags is None and not self._untagged):
            return False  # of one that lost its tags, ``left_over`` speaks
        reason, stamped = self._compare(sample)
        if reason is None:
            if stamped is not None:
                with suppress(OSError):  # it only spares the next call a look at the content
                    self._run.record(sample.id, "ok", inputs=stamped)
            return True
        self._stale[sample.id] = reason
        return False

    def made(self, id: str) -> None:
        """Count one that was made just now."""
        if id in self._stale:
            self._again.add(self._stale.pop(id), id)

    def inputs(self, sample: Sample) -> Inputs:
        """What the sample's artefacts will have been made of. Raises OSError where a file cannot be read."""
        earlier = self._earlier_file(sample)
        return Inputs(
            Stamp.of(sample.image),
            sample.tags if self._tags else None,
            Stamp.of(earlier) if earlier is not None and earlier.exists() else None,
        )

    def notes(self) -> list[str]:
        """What was made again, and why: a line each."""
        return [f"made again: {line}" for line in self._again.lines()]

    def _compare(self, sample: Sample) -> tuple[str | None, Inputs | None]:
        """Why the artefacts are of something else, or new stamps of the same, or neither."""
        known = self._known.find(sample.id)
        if known is None:
            return "unknown", None
        if not known.has_tags(sample.tags if self._tags else None):
            return "tags", None
        try:
            image, (same, earlier) = known.image_now(sample.image), known.earlier_now(self._earlier_file(sample))
        except OSError:
            return None, None  # a file that cannot be looked at now is no reason to lose its mask
        if image is None:
            return "picture", None
        if not same:
            return "earlier", None
        if (image, earlier) == known.inputs_of:
            return None, None
        return None, Inputs(image, sample.tags if self._tags else None, earlier)

    def _earlier_file(self, sample: Sample) -> Path | None:
        if self._earlier is None or self._found is None:
            return None
        return earlier_file(self._earlier, sample.id, self._found)


def left_over(run: Run, data: Dataset, shard: Shard, removed: Removed, *, tags: bool = True) -> list[str]:
    """Finds masks of images that are not in the data any more, or lost their tags; drops them if asked.

    Args:
        run: open to write.
        data: of all shards.
        removed: "drop" removes their artefacts.
        tags: whether the masks depend on tags.

    Returns:
        A note on them, if there are any.
    """
    has_place = _keys(sample.id for sample in data if not tags or sample.tags is not None)
    gone: list[str] = []
    count = 0
    for id in list(_outside(run.mask_ids(), has_place)):
        if not in_shard(id, shard):
            continue
        count += 1
        if len(gone) < _SHOWN:
            gone.append(id)
        if removed == "drop":
            try:
                run.discard(id)
            except OSError as error:
                raise UserError(f"{run.mask_path(id)} cannot be removed ({error.strerror})") from error
    if not count:
        return []
    more = f" and {count - len(gone)} more" if count > len(gone) else ""
    what = f"{many(count, 'mask')} of images that are no longer in the data{', or no longer tagged' if tags else ''}"
    kept = "kept, and left out by export, report and train (--removed drop removes them)"
    done = "removed" if removed == "drop" else kept
    return [f"{what}: {done}: {listing(gone)}{more}"]


def _keys(ids: Iterable[str]) -> np.ndarray:
    return np.sort(np.fromiter((id_key(id) for id in ids), np.uint64))


def _outside(ids: Iterable[str], keys: np.ndarray) -> Iterator[str]:
    for id in ids:
        place = int(np.searchsorted(keys, np.uint64(id_key(id))))
        if place == len(keys) or int(keys[place]) != id_key(id):
            yield id
