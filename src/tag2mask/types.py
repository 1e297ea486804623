"""The whole vocabulary of tag2mask: classes, samples, items, scores, and what a method is.

Nothing here touches the disk or imports torch; every other room speaks in these terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from tag2mask.run.folder import Run

IGNORE = 255
"""The mask value that is never trained on and never scored."""

BACKGROUND = 0
"""The mask value of everything that is no class. Tags are 1..C; neither 0 nor IGNORE is ever a tag."""

MAX_CLASSES = 254
"""Masks are 8-bit: 0 is background and 255 is ignored, so 254 values are left."""

Color = tuple[int, int, int]


class UserError(Exception):
    """Something the user can mend: what was got, what was expected, and what to do, in one message.

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
    grouping to {superclass: class names} (CD-CLIP).
    """

    id: str
    names: tuple[str, ...]
    palette: tuple[Color, ...]
    texts: Mapping[str, TextSet] = field(default_factory=dict)
    superclasses: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

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
    """

    @property
    def classes(self) -> ClassSet: ...  # noqa: D102

    @property
    def root(self) -> Path: ...  # noqa: D102

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def __iter__(self) -> Iterator[Sample]: ...


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
    """

    tags: Tensor
    maps: Tensor
    size: tuple[int, int]
    background: Tensor | None = None
    frame: tuple[int, int] | None = None
    initial: Tensor | None = None
    boundary: Tensor | None = None
    displacement: Tensor | None = None


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
class Power:
    """Background score ``(1 - max_c maps) ** exponent``."""

    exponent: float = 1.0


@dataclass(frozen=True)
class Constant:
    """The same background score at every pixel."""

    value: float


@dataclass(frozen=True)
class Own:
    """The method scores background itself: ``Scores.background``."""


Background = Power | Constant | Own


@dataclass(frozen=True)
class MaskRule:
    """How a method's maps become a mask.

    normalise: min-max every map by itself ("class"), all maps of the image together ("image"), or not.
    crf: name of a preset in ``ops.crf.PRESETS``, or None.
    mu: pixels of lower confidence become IGNORE (CLIP-ES, section 3.4, mu = 0.95); None keeps every pixel.
    confidence: "posterior" is the largest CRF posterior (what CLIP-ES's code does);
        "cam" is Eq. 8, max(1 - max_c X, max_c X), on the maps.
    crf_image: what the CRF sees. "wrapped-bgr" is a fault of CLIP-ES's released code (mean-subtracted values
        below zero wrap around), kept for variant="released" alone.
    """

    background: Background = Power(1.0)
    normalise: Literal["class", "image", "none"] = "none"
    crf: str | None = None
    mu: float | None = None
    confidence: Literal["posterior", "cam"] = "posterior"
    crf_image: Literal["rgb", "wrapped-bgr"] = "rgb"


@runtime_checkable
class Method(Protocol):
    """Turns images with tags into score maps. A training-free method is nothing more than this."""

    needs_prior: bool
    mask_rule: MaskRule

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The map size (h, w) that an image of ``size`` (H, W) gets; stages batch images of equal grid."""
        ...

    def scores(self, items: Sequence[Item]) -> list[Scores]:
        """One Scores per item, in order. Items may differ in size; those of equal grid are computed together."""
        ...


@runtime_checkable
class Trainable(Method, Protocol):
    """A method that learns first: from tags (CLIMS), or from an earlier run's maps (WeakCLIP, POT, IRN).

    It may name options that do not touch what is learned, in a tuple ``label_options``; one that may label without
    having learned says in ``learns`` whether it is to learn.
    """

    def fit(self, data: Dataset, run: Run, prior: Run | None = None) -> None:
        """Learn from scratch, or go on after an interrupt, whatever this object has learned before.

        Everything is kept in ``run.checkpoints``. What ``load`` needs lies directly in that folder; ``last.ckpt`` and
        what is in folders is the training's own. ``data`` has no ground truth; its images may be damaged.
        """
        ...

    def load(self, run: Run) -> None:
        """Take up what ``fit`` left in ``run``."""
        ...


@runtime_checkable
class Online(Trainable, Protocol):
    """A single-stage method (WeCLIP, CD-CLIP): its pseudo labels arise inside the training loop."""

    def network(self, run: Run) -> nn.Module:
        """The trained segmentation network: (B, 3, H, W) float32 -> (B, C + 1, h, w) logits."""
        ...
