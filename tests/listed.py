"""A data set whose samples are a list."""

from __future__ import annotations

from collections.abc import Iterator

from tag2mask.types import Sample


class Listed:
    """The sequence; derive a dataclass with ``samples``, ``root`` and ``classes`` from it."""

    samples: list[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> Sample:
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)
