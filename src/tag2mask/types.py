"""The whole vocabulary of tag2mask: classes, samples, items, scores.

Nothing here touches the disk or imports torch, or any other part of the package; all of them speak in these terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

IGNORE = 255
"""The mask value that is never trained on and never scored."""

BACKGROUND = 0
"""The mask value of everything that is no class. Tags are 1..C; neither 0 nor IGNORE is ever a tag."""

MAX_CLASSES = 254
"""Masks are 8-bit: 0 is background and 255 is ignored, so 254 values are left."""

Color = tuple[int, int, int]


class UserError(Exception):
    """Something the user can fix: what was got, what was expected, and what to do, in one message.

    The command line shows the message alone, without a traceback.
    """


@dataclass(frozen=True)
class TextSet:
    """What one method says to CLIP about a class set.

    names: one phrase per foreground class, in class order. Several synonyms may share a phrase
        ("person with clothes,people,human"): that is CLIP-ES's sentence-level fusion.
    templates: sentences with one ``{}``; several are an ensemble.
    background: phrases of things that are no class ("ground", "sky", ...).
    per_class: further phrases by class name. CLIP-ES keeps the synonyms of a class here, one by one; CLIMS what
        occurs with it and is not it.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...] = ("a photo of a {}.",)
    background: tuple[str, ...] = ()
    per_class: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassSet:
    """Names and colours of the mask values, and the texts that describe them.

    ``names[0]`` is "background"; ``names[tag]`` is the name of mask value ``tag``.
    ``texts`` maps a method's name ("clip-es") to its TextSet; ``superclasses`` maps the name of a
    grouping to {superclass: class names} (CD-CLIP). ``lists_background``: the file that names the classes names
    "background" as the first of them, so that its numbers count from there.
    """

    id: str
    names: tuple[str, ...]
    palette: tuple[Color, ...]
    texts: Mapping[str, TextSet] = field(default_factory=dict)
    superclasses: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    lists_background: bool = field(default=False, compare=False)

    def __len__(self) -> int:
        """Number of mask values, background included."""
        return len(self.names)

    @property
    def foreground(self) -> tuple[str, ...]:
        """The class names without background; ``foreground[tag - 1]`` is the name of ``tag``."""
        return self.names[1:]


@dataclass(frozen=True)
class Sample:
    """One image of a data set and what is known of it.

    id: unique in its data set, a relative POSIX path without suffix: the name of every artefact.
    tags: the classes in the image, ascending, without repeats. None = not known, () = only background.
    truth: reads the ground-truth mask, (H, W) uint8. For evaluation only: no method ever sees it.
    """

    id: str
    image: Path
    tags: tuple[int, ...] | None
    truth: Callable[[], NDArray[np.uint8]] | None = None


@runtime_checkable
class Dataset(Protocol):
    """A sequence of samples with their class set.

    Readers keep columns, not objects (at most 200 bytes a sample), and make a Sample when asked for one.
    root: the folder of the images, for messages and for paths in exports.
    """

    @property
    def classes(self) -> ClassSet: ...  # noqa: D102

    @property
    def root(self) -> Path: ...  # noqa: D102

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def __iter__(self) -> Iterator[Sample]: ...


@dataclass(frozen=True)
class Others:
    """The best class that is not among an image's tags, at each cell of the grid of its score maps.

    score: (h, w) float32, of the kind that the tags' maps are. values: (h, w) uint8, which class it is.
    """

    score: Tensor
    values: Tensor


@dataclass(frozen=True)
class Scores:
    """How much each tagged class is present at each cell of a grid over one image.

    tags: (K,) int64. maps: (K, h, w) float32, 0 or more and at most 1 at the image's pixels; a cell between
    pixels may be higher (IRN). background: (h, w) float32, where a method scores background itself (POT's
    channel 0), else None.
    size: (H, W), the image in pixels. frame: (fh, fw), the pixels that the grid spans, starting at the
    top left; it is cropped, not stretched, to ``size``. A method that stretches the image to fit its
    grid (CLIP-ES) leaves it equal to ``size``, which is what None means.
    initial: (K, h, w) float32, the maps before refinement, kept to be looked at and to be refined again.
    boundary: (h, w) float32 in [0, 1], how likely a pixel lies on a boundary between classes (IRN).
    displacement: (2, h, w) float32, from every cell to the centre of its thing, (dy, dx) in cells (IRN).
    others: what the best untagged class scores against ``maps``; None where a method scores the tags alone.
    """

    tags: Tensor
    maps: Tensor
    size: tuple[int, int]
    background: Tensor | None = None
    frame: tuple[int, int] | None = None
    initial: Tensor | None = None
    boundary: Tensor | None = None
    displacement: Tensor | None = None
    others: Others | None = None


@dataclass(frozen=True)
class Prior:
    """What an earlier run found for the same image, read when asked for.

    scores: that run's Scores; labels: its mask, (H, W) uint8.
    """

    scores: Callable[[], Scores]
    labels: Callable[[], Tensor]


@dataclass(frozen=True)
class Item:
    """One decoded image as a method sees it: no path, no truth.

    image: (3, H, W) uint8, RGB, upright. tags: (K,) int64, or None where they are not known.
    """

    id: str
    image: Tensor
    tags: Tensor | None
    prior: Prior | None = None


@dataclass(frozen=True)
class Background:
    """How background is scored at each pixel: ``Power``, ``Constant`` or ``Own``.

    kind: "power", "constant" or "own". number: the exponent or the value; NaN for ``Own``.
    """

    kind: ClassVar[str]

    @property
    def number(self) -> float:  # noqa: D102
        return math.nan

    def __str__(self) -> str:
        """As ``parse`` takes it: "power:1.5", "constant:0.3", "own"."""
        return self.kind if math.isnan(self.number) else f"{self.kind}:{self.number:g}"

    def plain(self) -> Any:
        """As run.yaml keeps it: {"power": 1.5}, {"constant": 0.3}, "own"."""
        return self.kind if math.isnan(self.number) else {self.kind: self.number}

    @staticmethod
    def parse(text: str) -> Background:
        """From "power:A" with A > 0, "constant:T" with T in [0, 1], or "own".

        Raises:
            ValueError: it is none of these.
        """
        kind, _, number = text.partition(":")
        try:
            if kind == "own" and not number:
                return Own()
            if kind == "power" and 0 < float(number) < math.inf:
                return Power(float(number))
            if kind == "constant" and 0 <= float(number) <= 1:
                return Constant(float(number))
        except ValueError:
            pass
        raise ValueError(
            f'background is {text!r}, expected "power:A" with A > 0, "constant:T" with T in [0, 1], or "own"'
        )

    @staticmethod
    def from_plain(kept: Any) -> Background:
        """What ``plain`` gave. Raises KeyError, TypeError or ValueError for anything else."""
        if kept == "own":
            return Own()
        return Power(float(kept["power"])) if "power" in kept else Constant(float(kept["constant"]))


@dataclass(frozen=True)
class Power(Background):
    """Background score ``(1 - max_c maps) ** exponent``."""

    exponent: float = 1.0
    kind = "power"

    @property
    def number(self) -> float:  # noqa: D102
        return self.exponent


@dataclass(frozen=True)
class Constant(Background):
    """The same background score at every pixel."""

    value: float
    kind = "constant"

    @property
    def number(self) -> float:  # noqa: D102
        return self.value


@dataclass(frozen=True)
class Own(Background):
    """The method scores background itself: ``Scores.background``."""

    kind = "own"


@dataclass(frozen=True)
class MaskRule:
    """How a method's maps become a mask.

    normalise: min-max every map by itself ("class"), all maps of the image together ("image"), or not.
    refiner: of the mask, by the picture: a name in ``ops.refiners.REFINERS`` (a dense CRF preset, ...), or None.
    refiner_on: what it starts from: the "scores", or the hard "labels" that win (POT on COCO, IRN's own labels).
    others: what becomes of pixels where a class wins that is not among the image's tags. "never": none can, the tags
        compete alone; "ignore": IGNORE (WeakCLIP's Eq. 14); "keep": that class. All but "never" need
        ``Scores.others``. An image whose tags are known to be none is background under all three.
    mu: pixels of lower confidence become IGNORE (CLIP-ES, section 3.4, mu = 0.95); None keeps every pixel.
    confidence: "posterior" is the refiner's largest posterior (what CLIP-ES's code does);
        "cam" is Eq. 8, max(1 - max_c X, max_c X), on the maps; under ``Own`` X / (X + b) stands for X, where b is the
        method's own background. Without a refiner it is "cam" in any case.
    refiner_image: what the refiner sees. "wrapped-bgr" is a fault of CLIP-ES's released code (mean-subtracted values
        below zero wrap around), kept for variant="released" alone.
    """

    background: Background = Power(1.0)
    normalise: Literal["class", "image", "none"] = "none"
    refiner: str | None = None
    refiner_on: Literal["scores", "labels"] = "scores"
    others: Literal["never", "ignore", "keep"] = "never"
    mu: float | None = None
    confidence: Literal["posterior", "cam"] = "posterior"
    refiner_image: Literal["rgb", "wrapped-bgr"] = "rgb"

    @classmethod
    def from_plain(cls, kept: Mapping[str, Any]) -> MaskRule:
        """From what run.yaml keeps of it. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(**{**kept, "background": Background.from_plain(kept["background"])})
