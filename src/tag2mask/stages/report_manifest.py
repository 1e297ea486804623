"""What the manifests of a run say of its images, counted as a report shows it."""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from dataclasses import dataclass, field

from tag2mask.run.manifest import LastWords, Record
from tag2mask.words import listing


@dataclass
class First:
    """Counts rows and keeps the first of them in their order."""

    most: int
    count: int = 0
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *row: str) -> None:
        """Count one."""
        self.count += 1
        if len(self.rows) < self.most or row < self.rows[-1]:
            insort(self.rows, row)
            del self.rows[self.most :]

    @property
    def more(self) -> int:
        """How many are not kept."""
        return self.count - len(self.rows)


@dataclass
class Told:
    """What became of the images; it does not grow with their number.

    failures: (id, why). skipped: ids by reason. seconds, images: of each stage.
    """

    failures: First
    skipped: dict[str, First] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    images: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @classmethod
    def of(cls, records: LastWords, shown: int) -> Told:
        """Count the last word on every image; so many failures are named."""
        told = cls(First(shown))
        for record in records:
            told.add(record)
        return told

    def add(self, record: Record) -> None:
        """Count one image."""
        if record.status == "failed":
            self.failures.add(record.id, record.error or "")
        elif record.status == "skipped":
            self.skipped.setdefault(record.error or "no reason noted", First(_NAMED)).add(record.id)
        for stage, seconds in record.seconds.items():
            self.seconds[stage] += seconds
            self.images[stage] += 1

    def stages(self) -> list[tuple[str, float, float]]:
        """(stage, seconds in all, ms an image), the longest first."""
        longest = sorted(self.seconds, key=self.seconds.__getitem__, reverse=True)
        return [(stage, self.seconds[stage], 1000 * self.seconds[stage] / self.images[stage]) for stage in longest]

    def left_out(self) -> list[tuple[str, int, str]]:
        """(why, how many, some of their ids) of those that were skipped, the most first."""
        rows = [(why, some.count, _named(some)) for why, some in self.skipped.items()]
        return sorted(rows, key=lambda row: -row[1])


_NAMED = 5


def _named(some: First) -> str:
    shown = listing([id for (id,) in some.rows], _NAMED)
    return f"{shown} and {some.more} more" if some.more else shown
