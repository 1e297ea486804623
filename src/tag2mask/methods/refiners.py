"""What IRN and PSA share: options, the earlier run that they start from, and what their fit leaves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from tag2mask.methods.fitting.affinity import PAPER_THRESHOLD, PriorMaps, check_finished
from tag2mask.methods.fitting.settings import ALL, FitOptions
from tag2mask.methods.fitting.weights import keep_weights
from tag2mask.methods.protocol import EarlierRun, Trainable
from tag2mask.models.classifier import warn_of_weights
from tag2mask.models.embedded import STORYBOOK_RESNET
from tag2mask.models.state import fit_state, read_state
from tag2mask.ops.image import resize_bicubic, working_size
from tag2mask.ops.pairs import reach
from tag2mask.run.folder import Run
from tag2mask.run.warn import warn
from tag2mask.types import ClassSet, Dataset, Item, Scores, UserError

REFINER_FILE = "refiner.safetensors"
"""In a run's checkpoints: what the fit ended in."""


class RefinerOptions(FitOptions):
    """What IRN and PSA have in common."""

    steps: int = Field(300, ge=1, description="training steps")
    batch: int = Field(8, ge=1, description="images a step")
    lr: float = Field(0.1, gt=0, description="learning rate")
    variant: Literal["paper", "released"] = Field("paper", description="as the paper says, or as its code does")
    weights: str = Field(
        STORYBOOK_RESNET,
        description="start of the backbone: storybook-resnet, a run of classifier-cam that learned, a folder, a file",
    )
    threshold: float | None = Field(
        PAPER_THRESHOLD,
        gt=0,
        lt=1,
        description="a power of the earlier maps moves the value at which they overtake the background to this; "
        "none: maps as they are",
    )
    max_pixels: int = Field(2_000_000, ge=1, description="an image with more is worked on at this size")

    @staticmethod
    def check_crop(crop: int, radius: float, cell: int) -> None:
        """Refuse crops in which no cell, of ``cell`` pixels, has all its neighbours within ``radius`` cells.

        Raises:
            ValueError: with the least crop.
        """
        needed = cell * (2 * reach(radius) + 1)
        if crop < needed:
            raise ValueError(
                f"crop {crop} is too small to compare pixels within radius {radius:g}; expected {needed} or more"
            )


Options = TypeVar("Options", bound=RefinerOptions)
Network = TypeVar("Network", bound=nn.Module)


class Refiner(Trainable, Generic[Options, Network]):
    """A method that is fitted on an earlier run's maps and refines them."""

    name: ClassVar[str]
    published: ClassVar[tuple[int, str]]
    """Steps of the published training, and what they were."""
    fit_uses = ALL
    side_by_side = True
    options: Options

    def __init__(self, classes: ClassSet, options: Options) -> None:
        super().__init__(classes, options)
        warn_of_weights(options.weights)
        self.net = self.untrained()
        self.maps: PriorMaps | None = None

    @abstractmethod
    def untrained(self) -> Network:
        """What the fit trains, before its first step."""

    @abstractmethod
    def train(self, data: Dataset, earlier: Run, maps: PriorMaps, folder: Path) -> None:
        """Make labels of the earlier run's maps and train on them, from wherever that was stopped."""

    @abstractmethod
    def refine(self, item: Item, maps: PriorMaps) -> Scores:
        """The maps of one image after the walk."""

    @property
    def released(self) -> bool:
        """Whether the released code's faults are repeated."""
        return self.options.variant == "released"

    @classmethod
    def earlier_run(cls, options: Options) -> EarlierRun:
        """Maps, to learn from and to refine."""
        return EarlierRun(fit="maps", label="maps")

    @property
    def weights(self) -> str:
        """The backbone's."""
        return self.options.weights

    def to(self, device: torch.device) -> None:
        """Compute on that device."""
        self.net.to(device)
        self.device = device

    def fit(self, data: Dataset, folder: Path, earlier: Run | None = None) -> None:
        """Make labels of the earlier run's maps and train on them; called again after an interrupt, it resumes.

        Raises:
            UserError: no earlier run, one that is unfinished or without maps, or no image to learn from.
            Stopped: Ctrl-C, or the minutes are over; the state is saved.
        """
        if earlier is None:
            raise UserError(f"{self.name} learns from an earlier run's maps; give its folder as the prior")
        maps = PriorMaps.of(earlier, self.options.threshold)
        check_finished(earlier)
        if not (folder / REFINER_FILE).exists():
            steps, what = self.published
            if self.options.steps < steps:
                warn(f"{self.name} learns for {self.options.steps} steps; published: {steps:,}, {what}")
            self.net = self.untrained().to(self.device)
            self.train(data, earlier, maps, folder)
            keep_weights(folder / REFINER_FILE, self.net.state_dict())
        self.load(folder, earlier)

    def load(self, folder: Path, earlier: Run | None = None) -> None:
        """Load what ``fit`` left, and read the earlier run's maps as that run makes masks of them.

        Raises:
            UserError: nothing was fitted, or by other options; or the earlier run has no maps.
        """
        path = folder / REFINER_FILE
        if not path.exists():
            raise UserError(f"{folder}: nothing is fitted there yet; give the command that fits it again to resume")
        fit_state(self.net, read_state(path), path)
        self.net.eval()
        self.maps = None if earlier is None else PriorMaps.of(earlier, self.options.threshold)

    @torch.no_grad()
    def scores(self, items: Sequence[Item]) -> list[Scores]:
        """The prior's maps after the walk, one image at a time.

        Raises:
            UserError: nothing was fitted or loaded, or an item has no prior, or no tags.
        """
        return [self.refine(item, check_prior(item, self.maps, len(self.classes) - 1)) for item in items]


def check_prior(item: Item, maps: PriorMaps | None, channels: int) -> PriorMaps:
    """The reader of the earlier run's maps, once everything is there that the refinement of an image needs.

    Raises:
        UserError: nothing was fitted or loaded, no earlier run, or no tags of 1 .. ``channels``.
    """
    if maps is None:
        raise UserError("this refiner is not ready; call fit, or load what was fitted, with the run that it refines")
    if item.prior is None:
        raise UserError(f"{item.id} comes without an earlier run's maps; give that run as the prior")
    tags = [] if item.tags is None else item.tags.tolist()
    if not tags or not all(1 <= tag <= channels for tag in tags):
        raise UserError(f"{item.id} has tags {tags}; a refiner needs at least one of 1..{channels}")
    return maps


def working(item: Item, maps: PriorMaps, max_pixels: int) -> tuple[Tensor, Tensor]:
    """The image and the earlier maps of its tags at their working size: (3, H, W) uint8 and (K, H, W).

    Raises:
        UserError: the earlier run saw the image at another size.
    """
    if item.prior is None or item.tags is None:
        raise UserError(f"{item.id} comes without an earlier run's maps or without tags")
    size = (item.image.shape[1], item.image.shape[2])
    within = working_size(size, max_pixels)
    found = maps.of_image(item.prior.scores(), item.tags.cpu(), size, within, item.id)
    return resize_bicubic(item.image.cpu(), within), found


def frame_of(size: tuple[int, int], grid: tuple[int, int], cell: int, max_pixels: int) -> tuple[int, int]:
    """The pixels of an image of ``size`` that a grid over its working size spans."""
    within = working_size(size, max_pixels)
    return round(grid[0] * cell * size[0] / within[0]), round(grid[1] * cell * size[1] / within[1])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A block in which torch's dice on the processor start from ``seed``; outside they are as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
