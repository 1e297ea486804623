"""What a report says of a run's masks without ground truth: one pass, counted image by image."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from tag2mask.data.image import BadImage
from tag2mask.data.png import read_confidence
from tag2mask.run.ahead import ahead
from tag2mask.run.corrected import Counting
from tag2mask.run.folder import Run
from tag2mask.run.progress import progress as show_progress
from tag2mask.segment.counting_masks import read_counting
from tag2mask.types import BACKGROUND, IGNORE, ClassSet, Dataset, Sample
from tag2mask.words import listing

_VALUES = 256


@dataclass(frozen=True)
class Images:
    """The images of a report. places: of each in the data, where there are data; else ids: theirs."""

    data: Dataset | None = None
    places: Sequence[int] = ()
    ids: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.ids) if self.data is None else len(self.places)

    def id(self, index: int) -> str:
        """The id of an image."""
        return self.ids[index] if self.data is None else self.data[self.places[index]].id

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
    """What was counted. It grows by 20 bytes an image.

    best: (id, mean confidence) of the surest images that hold a class, the surest first; doubtful: of the least sure.
    named: mean confidence by id, of those that were asked for. indices, confidences: of all that can be read, in one
    order: which image it is, and its mean confidence; that of a mask which a person corrected is NaN: how sure a
    person was is not known. unreadable: images whose mask or confidence is damaged, with the reason.
    """

    classes: ClassSet
    wanted: Collection[str] = ()
    named: dict[str, float] = field(default_factory=dict)
    indices: array[int] = field(default_factory=lambda: array("Q"))
    confidences: array[float] = field(default_factory=lambda: array("d"))
    best: list[tuple[str, float]] = field(default_factory=list)
    doubtful: list[tuple[str, float]] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    images: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_VALUES, np.int64))
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_VALUES, np.int64))
    scored: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_VALUES, np.int64))
    sure: NDArray[np.float64] = field(default_factory=lambda: np.zeros(_VALUES))
    _kinds: dict[bytes, int] = field(default_factory=dict)  # the values in a mask, as bytes, and their number
    _kind: array[int] = field(default_factory=lambda: array("I"))

    def __len__(self) -> int:
        """How many can be read."""
        return len(self.indices)

    @property
    def confidence(self) -> float:
        """The mean of the images' mean confidences; NaN where there is none."""
        known = [each for each in self.confidences if each == each]
        return sum(known) / len(known) if known else float("nan")

    def add(self, index: int, id: str, mask: NDArray[np.uint8], confidence: NDArray[np.float32] | None) -> None:
        """Count one image: mask and confidence (H, W); None: a person corrected the mask.

        Raises:
            ValueError: the sizes differ, or a value of the mask is no class.
        """
        if confidence is not None and mask.shape != confidence.shape:
            raise ValueError(f"the mask is {mask.shape}, the confidence {confidence.shape}")
        counts = np.bincount(mask.ravel(), minlength=_VALUES)
        last = len(self.classes) - 1
        if odd := [value for value in np.flatnonzero(counts).tolist() if last < value != IGNORE]:
            raise ValueError(
                f"the mask holds {listing(odd, 3)}, expected 0 to {last} ({self.classes.id}), or {IGNORE}: it is of "
                "other classes"
            )
        self.pixels += counts
        self.images += counts > 0
        if confidence is not None:
            self.scored += counts
            self.sure += np.bincount(mask.ravel(), weights=confidence.ravel(), minlength=_VALUES)
        self.indices.append(index)
        self.confidences.append(float("nan") if confidence is None else float(confidence.mean()))
        self._kind.append(self._kinds.setdefault(bytes(np.flatnonzero(counts).tolist()), len(self._kinds)))
        if id in self.wanted:
            self.named[id] = self.confidences[-1]

    def finish(self, images: Images, best: int, doubtful: int) -> None:
        """Name the surest and the least sure; images: those that the indices are of."""
        order = self.order()[: int(np.isfinite(np.asarray(self.confidences)).sum())]
        surest = (place for place in order[::-1].tolist() if self.foreground(place))
        self.best, self.doubtful = (
            [(images.id(self.indices[place]), self.confidences[place]) for place in places]
            for places in (islice(surest, best), order[:doubtful].tolist())
        )
        self.named |= dict([*self.best, *self.doubtful])

    def order(self) -> NDArray[np.int64]:
        """The places of all images in ``indices``, the least sure first; those without a confidence last."""
        return np.argsort(np.asarray(self.confidences), kind="stable")

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
        """The classes in the mask of an image, by its place in ``indices``."""
        return self._foreground[self._kind[place]]

    @cached_property
    def _foreground(self) -> list[tuple[int, ...]]:
        """By kind; first asked for when all is counted."""
        return [tuple(value for value in kind if value not in (BACKGROUND, IGNORE)) for kind in self._kinds]


def survey(
    run: Run,
    images: Images,
    classes: ClassSet,
    best: int,
    doubtful: int,
    each: Callable[[int, NDArray[np.uint8]], None] | None = None,
    *,
    wanted: Collection[str] = (),
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
        wanted: ids whose mean confidence is asked for.
        progress: show it on stderr.
    """
    found = Survey(classes, wanted)
    indices = show_progress(range(len(images)), "report", enabled=progress)
    for index, id, mask, confidence in ahead(_readable(run, images, indices, found.unreadable)):
        try:
            found.add(index, id, mask, confidence)
        except ValueError as error:
            found.unreadable.append((id, str(error)))
            continue
        if each is not None:
            each(index, mask)
    found.finish(images, best, doubtful)
    return found


def _readable(
    run: Run, images: Images, indices: Iterable[int], unreadable: list[tuple[str, str]]
) -> Iterator[tuple[int, str, NDArray[np.uint8], NDArray[np.float32] | None]]:
    for index in indices:
        id = images.id(index)
        try:
            yield index, id, read_counting(run, id), confidence_of(run, id)
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
