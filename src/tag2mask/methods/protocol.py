"""What a method is: everything that a stage asks of one.

A method turns images with tags into score maps. Derive from ``Method`` one that is training-free, from ``Trainable``
one that learns first, give it ``Options``, and add a line to ``methods.METHODS`` (or an entry point to your own
package). Stages ask nothing of it that does not stand here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict

from tag2mask.run.folder import Run
from tag2mask.segment.test_time import PRESETS, Preset
from tag2mask.types import ClassSet, Dataset, Item, MaskRule, Scores

__all__ = ["EarlierRun", "Machine", "Method", "MethodOptions", "NamedTower", "Trainable"]


class MethodOptions(BaseModel):
    """Options of a method: a field each, with its default and, as ``Field(description=...)``, what it does."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NamedTower(Protocol):
    """A frozen network that methods compute with and that is loaded by name: a CLIP, a DINO.

    name: what it was asked for by. sha256: of its weights. fingerprint: of all else that decides its outputs, but
    for the numbers (dtype) in which it computes, and where (device).
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def sha256(self) -> str: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102


Found = Literal["maps", "masks"]
"""What a method can take from an earlier run: its score maps (and masks), or its masks alone."""


@dataclass(frozen=True)
class EarlierRun:
    """What a method takes from an earlier run on the same images, while it learns and while it labels; None: nothing.

    Where masks are enough, a folder of label maps will do as well as a run.
    """

    fit: Found | None = None
    label: Found | None = None

    @property
    def needed(self) -> bool:
        """Whether it is needed at all."""
        return self.fit is not None or self.label is not None


@dataclass(frozen=True)
class Machine:
    """What a fit may use of the machine. It says nothing of what is learned, so it is no option of a method.

    devices: of one kind, which share every batch. workers: processes that prepare images; None: some where there is
    a GPU, else none. Where ``label`` computes on a processor, also how many batches it works off at once. minutes:
    stop after so long, saved; called again, the fit resumes.
    """

    devices: int = 1
    workers: int | None = None
    minutes: float | None = None


class Method(ABC):
    """Turns images with tags into score maps. A training-free method is nothing more than this.

    Options: its options. needs: towers by name ("clip", "dino"), which its constructor takes by these names; those
    that not all options need are in ``towers_of`` alone. mask_rule: how its maps become masks; an instance may have
    its own. scores_others: whether its ``Scores`` say what untagged classes score (``Scores.others``, see
    ``ops.masks.best_others``), so that a mask rule may let these win. side_by_side: whether ``scores`` may be called
    from several threads at once, as ``label`` does on a processor, and gives the same then.

    Args:
        classes: what there is to be found.
        options: None: all at their defaults.
        towers: those that it needs.
    """

    Options: ClassVar[type[BaseModel]] = MethodOptions
    needs: ClassVar[tuple[str, ...]] = ()
    scores_others: bool = False
    side_by_side: ClassVar[bool] = False
    mask_rule: MaskRule
    options: Any

    def __init__(self, classes: ClassSet, options: Any = None, **towers: NamedTower) -> None:
        self.classes = classes
        self.options = self.Options() if options is None else options
        self.towers: Mapping[str, NamedTower] = towers
        self.device = next((tower.device for tower in towers.values()), torch.device("cpu"))

    @classmethod
    def towers_of(cls, options: Any) -> tuple[str, ...]:
        """The towers that it needs under these options."""
        return cls.needs

    @classmethod
    def earlier_run(cls, options: Any) -> EarlierRun:
        """What it takes from an earlier run under these options."""
        return EarlierRun()

    @property
    def learns(self) -> bool:
        """Whether it is fitted before it labels; of one that may, its options can say."""
        return False

    @property
    def resolved(self) -> Mapping[str, Any]:
        """Options as they took effect, and what else decides the results, as run.yaml keeps it."""
        return {}

    @property
    def weights(self) -> str | None:
        """The file, folder or name of the weights that it starts from, whose supervision is part of its own."""
        return None

    def to(self, device: torch.device) -> None:
        """Compute on that device. A method with towers computes where these are, and this does nothing."""
        return

    @abstractmethod
    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The map size (h, w) that an image of ``size`` (H, W) gets; images of equal grid share a batch."""

    @abstractmethod
    def scores(self, items: Sequence[Item]) -> list[Scores]:
        """One Scores per item, in order. Items may differ in size; those of equal grid are computed together."""


class Trainable(Method):
    """A method that learns first: from tags (CLIMS), or from an earlier run's maps (WeakCLIP, POT, IRN).

    One whose masks arise while it trains a segmentation network (WeCLIP, CD-CLIP) leaves that network, too:
    ``segment.network.save_network`` into ``folder / INSIDE``. ``predict`` and ``export`` then find it in the run, and
    ``label`` can make the masks by it.

    network_test: how that network is tested: its views, and the refiner of its masks. ``label`` makes masks by it so,
    and ``predict``, unless somebody says otherwise, where it is saved with ``noted={"test": self.network_test}``.
    label_options: options that do not touch what is learned. fit_uses: which of "devices", "workers", "minutes"
    (of ``machine``) and "precision" its fit uses; where another one is given, ``label`` refuses it.
    precision: the numbers that the fit computes in, where these are not the weights' float32. machine, precision:
    set before ``fit`` is called.
    """

    label_options: ClassVar[tuple[str, ...]] = ()
    fit_uses: ClassVar[tuple[str, ...]] = ()
    machine: Machine = Machine()
    precision: str = "float32"
    network_test: Preset = PRESETS["plain"]

    @property
    def learns(self) -> bool:
        """Whether it is fitted before it labels."""
        return True

    @abstractmethod
    def fit(self, data: Dataset, folder: Path, earlier: Run | None = None) -> None:
        """Learn from scratch, or resume after an interrupt, whatever this object has learned before.

        Args:
            data: images and tags; it has no ground truth, and its images may be damaged.
            folder: where all of it is kept. What ``load`` needs lies directly in it; ``last.ckpt`` and what is in
                folders is the training's own.
            earlier: the earlier run, if the method learns from one.
        """

    @abstractmethod
    def load(self, folder: Path, earlier: Run | None = None) -> None:
        """Load what ``fit`` left in ``folder``.

        earlier: the run that it is to label from, if it does; it need not be the one that it learned from.
        """
