"""Which images of a run are finished: those whose artefacts were made of what the data are now.

A run that is resumed makes again what was made of another picture, of other tags, or of other maps of an earlier run,
and nothing else. It says how many and which.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Literal

import numpy as np

from tag2mask.run.current import Comparison, Named
from tag2mask.run.folder import Run
from tag2mask.run.inputs import Inputs, Stamp, id_key
from tag2mask.run.shard import Shard, in_shard
from tag2mask.types import Dataset, Sample, UserError
from tag2mask.words import listing, many

Removed = Literal["keep", "drop"]
"""What becomes of the masks of images that are no longer in the data, or have no tags any more."""

_SHOWN = 5
_FEW = 10
"""So many masks are dropped whatever their share is."""


class Changes:
    """Compares a run with the data, image by image, while it is planned; counts what is made again.

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
        self._run, self._tags = run, tags
        self._compare = Comparison(run, earlier, found, tags=tags, untagged=untagged)
        self._stale: dict[str, str] = {}
        self._again = Named()

    def finished(self, sample: Sample) -> bool:
        """Whether the sample's artefacts are there and were made of what it is now."""
        if not self._run.finished(sample.id):
            return False
        reason, stamped = self._compare.look(sample)
        if reason is None:
            if stamped is not None:
                with suppress(OSError):  # it only spares the next call a look at the content
                    self._run.record(sample.id, "ok", inputs=stamped)
            return True
        if reason != "untagged":  # of one that lost its tags, ``left_over`` speaks
            self._stale[sample.id] = reason
        return False

    def made(self, id: str) -> None:
        """Count one that was made just now."""
        if id in self._stale:
            self._again.add(self._stale.pop(id), id)

    def inputs(self, sample: Sample) -> Inputs:
        """What the sample's artefacts will have been made of. Raises OSError where a file cannot be read."""
        earlier = self._compare.earlier_file(sample.id)
        return Inputs(
            Stamp.of(sample.image),
            sample.tags if self._tags else None,
            Stamp.of(earlier) if earlier is not None and earlier.exists() else None,
        )

    def notes(self) -> list[str]:
        """What was made again, and why: a line each."""
        return [f"made again: {line}" for line in self._again.lines()]


def left_over(run: Run, data: Dataset, shard: Shard, removed: Removed, *, tags: bool = True) -> list[str]:
    """Finds masks of images that are not in the data any more, or lost their tags; drops them if asked.

    Args:
        run: open to write.
        data: of all shards.
        removed: "drop" removes their artefacts; not of most of the run at once, as of a disk that is half mounted.
        tags: whether the masks depend on tags.

    Returns:
        A note on them, if there are any.

    Raises:
        UserError: most of the run would be dropped, or a mask cannot be removed.
    """
    has_place = _keys(sample.id for sample in data if not tags or sample.tags is not None)
    gone: list[str] = []
    count = masks = 0
    for id in run.mask_ids():
        if in_shard(id, shard):
            masks += 1
            if _outside(id, has_place):
                count += 1
                if removed == "drop" or len(gone) < _SHOWN:
                    gone.append(id)
    if not count:
        return []
    what = f"{many(count, 'mask')} of images that are no longer in the data"
    what += ", or no longer tagged" if tags else ""
    shown = listing(sorted(gone)[:_SHOWN]) + (f" and {count - _SHOWN} more" if count > _SHOWN else "")
    if removed == "keep":
        return [f"{what}: kept, and left out by export, report and train (--removed drop removes them): {shown}"]
    if count > max(masks // 2, _FEW):
        raise UserError(
            f"--removed drop would remove {count} of {masks} masks of {run.path}, of images that are no longer in "
            f"{data.root}{' or tagged' if tags else ''} ({shown}). Is the data whole? If it is, take a new folder, "
            "or --overwrite"
        )
    for id in gone:
        try:
            run.discard(id)
        except OSError as error:
            raise UserError(f"{run.mask_path(id)} cannot be removed ({error.strerror})") from error
    return [f"{what}: removed: {shown}"]


def _keys(ids: Iterable[str]) -> np.ndarray:
    return np.sort(np.fromiter((id_key(id) for id in ids), np.uint64))


def _outside(id: str, keys: np.ndarray) -> bool:
    key = np.uint64(id_key(id))
    place = int(np.searchsorted(keys, key))
    return place == len(keys) or keys[place] != key
