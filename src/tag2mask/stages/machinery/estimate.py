"""How long a stage would take here: it does two images into a folder of its own, which is removed again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tag2mask.data.image import BadImage, image_size, read_image
from tag2mask.run.device import peak_device_memory, peak_memory
from tag2mask.run.folder import Run
from tag2mask.stages.machinery.work import Summary
from tag2mask.types import ClassSet, Dataset, Sample, UserError
from tag2mask.words import duration, many

__all__ = ["Estimate", "estimate"]

LOOKED_AT = 1000
"""Headers that are read to know the sizes; of more images, as many are taken at equal distances."""

_TRIES = 10


@dataclass(frozen=True)
class Estimate:
    """What a stage would take for all its images, measured on two of them: one of median size, and the largest.

    images: how many it would do. seconds: for all of them. per_image: seconds. memory: bytes, the most that the
    process had; device_memory: the GPU's, None on a processor. device: where. measured_on: the ids.
    """

    images: int
    seconds: float
    per_image: float
    memory: int | None
    device_memory: int | None
    device: str
    measured_on: tuple[str, ...]

    def text(self) -> str:
        """In one line, without the stage's name."""
        sizes = [
            f"{size / 2**30:.1f} GB of {what}"
            for size, what in ((self.memory, "memory"), (self.device_memory, "GPU memory"))
            if size is not None
        ]
        return (
            f"about {duration(self.seconds)} for {many(self.images, 'image')} ({self.per_image:.2g} s each), "
            f"{', '.join(sizes) or 'memory not known'} (measured on {many(len(self.measured_on), 'image')}, "
            f"{self.device})"
        )


def estimate(
    data: Dataset, todo: np.ndarray, make: Callable[[Dataset, Path], Summary], device: torch.device
) -> Estimate | None:
    """Measure a stage on two images of a data set; None where none of them can be read.

    Time is taken to grow evenly with the pixels, from the median image to the largest; a first call is not counted.

    Args:
        data: the images. todo: (M,) indices of those that the stage would do.
        make: the stage, of a data set and a run folder.
        device: where it computes.

    Raises:
        UserError: the stage cannot do the images either.
    """
    found = _two(data, todo)
    if found is None:
        return None
    mean, samples = found
    seconds: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory(prefix="tag2mask-") as folder:
        _made(make, data, samples[:1], Path(folder) / "warm-up")
        for name, (sample, pixels) in enumerate(samples):
            seconds.append((pixels, _made(make, data, [(sample, pixels)], Path(folder) / str(name))))
    each = _at(mean, seconds)
    return Estimate(
        images=len(todo),
        seconds=each * len(todo),
        per_image=each,
        memory=peak_memory(),
        device_memory=peak_device_memory(device),
        device=str(device),
        measured_on=tuple(sample.id for sample, _ in samples),
    )


def _two(data: Dataset, todo: np.ndarray) -> tuple[float, list[tuple[Sample, int]]] | None:
    """The mean number of pixels, and a readable image of median size and the largest one, each with its pixels."""
    few = todo[np.unique(np.linspace(0, len(todo) - 1, min(len(todo), LOOKED_AT)).astype(int))]
    sizes: list[tuple[int, int]] = []
    for index in few.tolist():
        with suppress(BadImage):
            height, width = image_size(data[index].image)
            sizes.append((height * width, index))
    if not sizes:
        return None
    mean = float(np.mean([pixels for pixels, _ in sizes]))
    sizes.sort()
    around = sorted(range(len(sizes)), key=lambda place: abs(place - (len(sizes) - 1) // 2))
    median = _readable(data, [sizes[place] for place in around])
    largest = _readable(data, sizes[::-1])
    if median is None or largest is None:
        return None
    return mean, [median] if median[0].id == largest[0].id else [median, largest]


def _readable(data: Dataset, sizes: list[tuple[int, int]]) -> tuple[Sample, int] | None:
    for pixels, index in sizes[:_TRIES]:
        with suppress(BadImage):
            read_image(data[index].image)
            return data[index], pixels
    return None


@dataclass(frozen=True)
class _Part:
    """Some samples of a data set."""

    classes: ClassSet
    root: Path
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> Sample:
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)


def _made(
    make: Callable[[Dataset, Path], Summary], data: Dataset, samples: list[tuple[Sample, int]], out: Path
) -> float:
    """Seconds that the stage took for its images, one after the other."""
    summary = make(_Part(data.classes, data.root, tuple(sample for sample, _ in samples)), out)
    if summary.failed:
        raise UserError("; ".join(f"{id}: {reason}" for id, reason in summary.errors))
    return sum(sum(record.seconds.values()) for record in Run.open(out).records().values())


def _at(pixels: float, seconds: list[tuple[int, float]]) -> float:
    """Seconds of an image of so many pixels, on the line between two that were measured."""
    (small, quick), (large, slow) = seconds[0], seconds[-1]
    if large <= small:
        return sum(took for _, took in seconds) / len(seconds)
    slope = max(0.0, (slow - quick) / (large - small))
    return max(quick + slope * (pixels - small), quick * min(1.0, pixels / small))
