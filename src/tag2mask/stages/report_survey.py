"""What a report says of a run's masks without ground truth: one pass, counted image by image."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tag2mask.data.image import BadImage
from tag2mask.data.png import read_confidence, read_mask
from tag2mask.run.ahead import ahead
from tag2mask.run.corrected import Counting
from tag2mask.run.folder import Run
from tag2mask.run.progress import progress as show_progress
from tag2mask.types import BACKGROUND, IGNORE, ClassSet, Dataset, Sample

_VALUES = 256


@dataclass(frozen=True)
class Images:
    """The images of a report, by id. places: of each in the data, where there are data."""

    ids: Sequence[str]
    data: Dataset | None = None
    places: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def sample(self, index: int) -> Sample | None:
        """What the data says of an image."""
        return None if self.data is None else self.data[self.places[index]]


@dataclass(frozen=True)
class MaskRow:
    """One class in the masks. value: the mask value. images: whose mask holds it. share: of all pixels.

    confidence: the mean of its pixels, a fraction; NaN where all of them are of corrected masks.
    """

    value: int
    name: str
    images: int
    pixels: int
    share: float
    confidence: float


@dataclass
class Survey:
    """What was counted. It grows by a number and a reference for each image.

    best: (id, mean confidence) of the surest images that hold a class, the surest first; doubtful: of the least sure.
    ids, confidences, present: of all that can be read, in one order; present are the values in a mask, as bytes. The
    confidence of a mask that a person corrected is NaN: how sure a person was is not known.
    unreadable: images whose mask or confidence is damaged, with the reason.
    """

    classes: ClassSet
    ids: list[str] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    present: list[bytes] = field(default_factory=list)
    best: list[tuple[str, float]] = field(default_factory=list)
    doubtful: list[tuple[str, float]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    images: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_VALUES, np.int64))
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_VALUES, np.int64))
    scored: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_VALUES, np.int64))
    sure: NDArray[np.float64] = field(default_factory=lambda: np.zeros(_VALUES))
    _same: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def confidence(self) -> float:
        """The mean of the images' mean confidences; NaN where there is none."""
        known = [each for each in self.confidences if each == each]
        return sum(known) / len(known) if known else float("nan")

    def add(self, id: str, mask: NDArray[np.uint8], confidence: NDArray[np.float32] | None) -> None:
        """Count one image: mask and confidence (H, W); None: a person corrected the mask.

        Raises:
            ValueError: the sizes differ.
        """
        if confidence is not None and mask.shape != confidence.shape:
            raise ValueError(f"the mask is {mask.shape}, the confidence {confidence.shape}")
        counts = np.bincount(mask.ravel(), minlength=_VALUES)
        self.pixels += counts
        self.images += counts > 0
        if confidence is not None:
            self.scored += counts
            self.sure += np.bincount(mask.ravel(), weights=confidence.ravel(), minlength=_VALUES)
        here = bytes(np.flatnonzero(counts).tolist())
        self.ids.append(id)
        self.confidences.append(float("nan") if confidence is None else float(confidence.mean()))
        self.present.append(self._same.setdefault(here, here))

    def rows(self) -> list[MaskRow]:
        """Those of the classes that a mask holds, background first, then 255 as "undecided", if there is any."""
        names = [*enumerate(self.classes.names), (IGNORE, "undecided")]
        total = max(int(self.pixels.sum()), 1)
        return [
            MaskRow(
                value,
                name,
                int(self.images[value]),
                int(self.pixels[value]),
                int(self.pixels[value]) / total,
                float(self.sure[value] / self.scored[value]) if self.scored[value] else float("nan"),
            )
            for value, name in names
            if self.pixels[value]
        ]

    def nowhere(self) -> list[str]:
        """The classes that no mask holds."""
        return [name for value, name in enumerate(self.classes.names) if not self.pixels[value]]

    def foreground(self, place: int) -> tuple[int, ...]:
        """The classes in the mask of an image, by its place in ``ids``."""
        return tuple(value for value in self.present[place] if value not in (BACKGROUND, IGNORE))


def survey(
    run: Run,
    images: Images,
    classes: ClassSet,
    best: int,
    doubtful: int,
    each: Callable[[int, NDArray[np.uint8]], None] | None = None,
    *,
    progress: bool = True,
) -> Survey:
    """Look at all masks and confidences once.

    Args:
        run: whose they are.
        images: which.
        classes: of the masks.
        best: how many of the surest are named.
        doubtful: how many of the least sure.
        each: called with the index and the mask (H, W) of every image that can be read.
        progress: show it on stderr.
    """
    found = Survey(classes)
    indices = show_progress(range(len(images)), "report", enabled=progress)
    for index, mask, confidence in ahead(_readable(run, images, indices, found.unreadable)):
        try:
            found.add(images.ids[index], mask, confidence)
        except ValueError as error:
            found.unreadable.append((images.ids[index], str(error)))
            continue
        if each is not None:
            each(index, mask)
    pairs = zip(found.confidences, found.ids, strict=True)
    scored = [(place, pair) for place, pair in enumerate(pairs) if pair[0] == pair[0]]
    holds = (pair for place, pair in scored if found.foreground(place))
    found.best = [(id, sure) for sure, id in heapq.nlargest(best, holds)]
    found.doubtful = [(id, sure) for sure, id in heapq.nsmallest(doubtful, (pair for _, pair in scored))]
    return found


def _readable(
    run: Run, images: Images, indices: Iterable[int], unreadable: list[tuple[str, str]]
) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.float32] | None]]:
    for index in indices:
        id = images.ids[index]
        try:
            yield index, read_mask(run.mask_path(id)), confidence_of(run, id)
        except BadImage as error:
            unreadable.append((id, str(error)))


def confidence_of(run: Run, id: str) -> NDArray[np.float32] | None:
    """How sure each pixel of a mask is, (H, W) float32; None where a person corrected it.

    Raises:
        BadImage: it cannot be read.
    """
    if isinstance(run, Counting) and run.corrected.path(id) is not None:
        return None
    return read_confidence(run.confidence_path(id))
