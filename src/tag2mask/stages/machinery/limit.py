"""The first images of a data set, for a try: a run of these is resumed by the same command without the limit."""

from __future__ import annotations

from dataclasses import dataclass

from tag2mask.run.folder import Run
from tag2mask.run.shard import Shard, in_shard
from tag2mask.types import Dataset
from tag2mask.words import many

__all__ = ["Limit", "first_images"]


@dataclass(frozen=True)
class Limit:
    """images: of the shard that are worked on, from the first on. total: of the shard. asked: the limit, if any."""

    images: int
    total: int
    asked: int | None

    def notes(self, run: Run) -> list[str]:
        """What a user should know: what was left for later, and what the run holds."""
        if self.asked is None or self.images == self.total:
            return []
        holds = sum(1 for _ in run.mask_ids())
        return [
            f"limited to the first {self.images} of {many(self.total, 'image')} (--limit {self.asked}): {run.path} "
            f"holds {many(holds, 'mask')} now; the same command without --limit makes the others"
        ]


def first_images(data: Dataset, shard: Shard, limit: int | None, total: int, *, tags: bool = True) -> Limit:
    """How many images of a shard lie before the end of a limit, which counts those of all shards.

    Args:
        data: the images, in order.
        limit: so many of them; None: all.
        total: images of the shard.
        tags: only tagged images count.
    """
    if limit is None:
        return Limit(total, total, None)
    images = counted = 0
    for sample in data:
        images += in_shard(sample.id, shard)
        counted += not tags or sample.tags is not None
        if counted == limit:
            break
    return Limit(images, total, limit)
