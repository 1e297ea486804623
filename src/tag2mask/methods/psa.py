"""PSA: pixel affinities learned from any method's maps; classes and background spread along them by random walk.

J. Ahn and S. Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised
Semantic Segmentation" (CVPR 2018). On VOC 2012 train its code reports 61.0 mIoU from CAMs of about 48 (not measured
here).

Labels: classes that win in a CRF against a strong background (1 - max)^low, and background that wins even when weak,
(1 - max)^high. On them AffinityNet learns features that are alike within a class. Unlike IRN's, the background walks
too, as a map of its own.

The defaults are for Storybook on a processor; ``recipes/voc12_psa.yaml`` has the code's (8 epochs of 8 crops of 448
pixels, 256 steps of the walk). A Storybook picture has 32 x 24 cells, a quarter of a photograph's: 256 steps carry
everything everywhere there, and 16 were chosen with ground truth on 40 scenes of the test split. The alphas fit
classifier CAMs; other maps are brought to them first (option ``threshold``). MCTformer's use of it is ``--set low=1
--set high=12 --set background=constant:0.39 --set walk_steps=64 --set lr=0.01 --set threshold=null``
(``recipes/voc12_mctformer_psa.yaml``).

Where ``variant="released"`` differs from "paper":

- ``high``: 32; the paper says 24 (its section 5.1, quoted from memory).
- ``decay_as_momentum``: the weight decay, 5e-4, lands in the place of the momentum; "paper" has no momentum, which
  trains the same to the eye.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from tag2mask.methods.fitting.affinity import AffinityExamples, PriorMaps, make_labels
from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.methods.idle import refuse_idle
from tag2mask.methods.refiners import Refiner, RefinerOptions, frame_of, seeded, working
from tag2mask.models.psa import CELL, AffinityNet, load_affinity_net
from tag2mask.models.state import state_sha256
from tag2mask.ops.affinity_labels import psa_labels, psa_scores
from tag2mask.ops.cam_fusion import cell_means, strided_frame, strided_size
from tag2mask.ops.image import MEAN, STD, standardise, working_size
from tag2mask.ops.random_walk import refine_with_features
from tag2mask.run.folder import Run
from tag2mask.segment.augment import Augment, Colour, Example
from tag2mask.types import Background, ClassSet, Dataset, Item, MaskRule, Own, Scores


class PSAOptions(RefinerOptions):
    """How PSA learns and how far it spreads."""

    backbone: Literal["resnet", "resnet38"] = Field("resnet", description="what the weights are of (paper: resnet38)")
    low: float = Field(4, gt=0, description="exponent of the strong background, against which classes must win")
    high: float | None = Field(
        None, gt=0, description="exponent of the weak one, which must win; default: 24 (paper) or 32 (released)"
    )
    steps: int = Field(300, ge=1, description="training steps; the code's 8 epochs of VOC are 10582")
    batch: int = Field(8, ge=1, description="pictures a step")
    crop: int = Field(128, ge=8, multiple_of=8, description="side of the square they are cut to (code: 448)")
    jitter: bool = Field(True, description="move colours in training, as the code does")
    lr: float = Field(0.1, gt=0, description="learning rate of the backbone; that of the head is 10 times as high")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay of convolutions")
    radius: float = Field(5, gt=1, description="cells (of 8 pixels) that are compared, and that a step can reach")
    background: str = Field("power:16", description='the background that walks: "power:A" or "constant:T"')
    beta: float = Field(8, gt=0, description="exponent of affinities; higher, and weak links break")
    walk_steps: int = Field(
        16, ge=0, description="steps of the walk (PSA: 256, MCTformer: 64); fewer for smaller pictures"
    )

    @field_validator("background")
    @classmethod
    def _parses(cls, text: str) -> str:
        if isinstance(Background.parse(text), Own):
            raise ValueError('background is "own", expected "power:A" or "constant:T"')
        return text

    @model_validator(mode="after")
    def _fits(self) -> PSAOptions:
        self.check_crop(self.crop, self.radius, CELL)
        if self.low >= self.alpha_high:
            raise ValueError(f"low {self.low:g} is not below high {self.alpha_high:g}")
        if self.walk_steps == 0:
            refuse_idle("psa", self, ("beta",), "with walk_steps=0; leave it out, or let it walk")
        return self

    @property
    def alpha_high(self) -> float:
        """``high``, or that of the variant."""
        return self.high if self.high is not None else (32.0 if self.variant == "released" else 24.0)


class PSA(Refiner[PSAOptions, AffinityNet]):
    """PSA as a tag2mask method that is fitted on an earlier run's maps and refines them."""

    Options = PSAOptions
    name = "psa"
    published = (10582, "8 epochs of VOC 2012 in batches of 8 crops of 448 pixels (recipes/voc12_psa.yaml)")
    label_options = ("background", "beta", "walk_steps")
    mask_rule = MaskRule(background=Own())

    def __init__(self, classes: ClassSet, options: PSAOptions | None = None) -> None:
        super().__init__(classes, options or PSAOptions())
        self.sha256 = state_sha256(self.net.backbone)

    def untrained(self) -> AffinityNet:
        """The network over its backbone's weights, its head drawn from the seed."""
        with seeded(self.options.seed):
            return load_affinity_net(self.options.weights, self.options.backbone).eval()

    @property
    def resolved(self) -> dict[str, object]:
        """What decides the results beside the options."""
        return {
            "weights_sha256": self.sha256,
            "decay_as_momentum": self.released,
            "high": self.options.alpha_high,
        }

    def train(self, data: Dataset, earlier: Run, maps: PriorMaps, folder: Path) -> None:
        """Scores of classes and of background by a CRF, and the network on what wins in them."""
        from tag2mask.methods.fitting.affinity_training import PSATraining, train

        chosen = self.options
        settings = FitSettings.of(self, decay_as_momentum=self.released)
        labels, most, left = folder / "labels", chosen.max_pixels, settings.minutes_left
        indices = make_labels(data, earlier, maps, self._label, labels, max_pixels=most, minutes_left=left)
        colour = Colour(0.3, 0.3, 0.3, 0.1) if chosen.jitter else None
        seen = Augment(chosen.crop, colour=colour, place="anywhere")
        examples = AffinityExamples(data, indices, labels, seen, chosen.seed, most, _unpack, _on_grid, CELL)
        train(PSATraining(self.net, settings, chosen.radius), examples, folder, "fit psa")

    def _label(self, image: Tensor, maps: Tensor, tags: Tensor) -> Tensor:
        """CRF scores against both backgrounds, (2 (K + 1), H, W) uint8: in 255ths."""
        image, maps = image.to(self.device), maps.to(self.device)
        both = [psa_scores(image, maps, alpha) for alpha in (self.options.low, self.options.alpha_high)]
        return (torch.cat(both) * 255).round().to(torch.uint8)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) in pixels -> (h, w): a cell is eight pixels of the working size."""
        return strided_size(working_size(size, self.options.max_pixels), CELL)

    def refine(self, item: Item, maps: PriorMaps) -> Scores:
        """The maps and the background after the walk."""
        chosen = self.options
        image, full = working(item, maps, chosen.max_pixels)  # (3, H, W), (K, H, W)
        within = (image.shape[1], image.shape[2])
        high, wide = strided_frame(within, CELL)
        pixels = standardise(image[None].to(self.device), MEAN, STD)
        padded = F.pad(pixels, (0, wide - within[1], 0, high - within[0]))  # (1, 3, H', W') in whole cells
        walked = refine_with_features(
            full.to(self.device),
            self.net(padded)[0],
            cell=CELL,
            background=Background.parse(chosen.background),
            radius=chosen.radius,
            beta=chosen.beta,
            steps=chosen.walk_steps,
        ).cpu()  # (K + 1, h, w)
        size = (item.image.shape[1], item.image.shape[2])
        tags = item.tags.cpu() if item.tags is not None else torch.zeros(0, dtype=torch.int64)
        return Scores(
            tags,
            walked[1:],
            size,
            background=walked[0],
            frame=frame_of(size, (walked.shape[1], walked.shape[2]), CELL, chosen.max_pixels),
            initial=cell_means(full, CELL),
        )


def _unpack(image: Tensor, stored: Tensor) -> Example:
    """The scores of both backgrounds ride where an Example has its confidence: padding is 0 in both."""
    return Example(image, confidence=stored.float() / 255)


def _on_grid(example: Example) -> Tensor:
    """The labels on AffinityNet's grid, (h, w) uint8; classes are numbered within the picture."""
    stack: Any = example.confidence  # (2 (K + 1), H, W)
    low, high = stack.chunk(2)
    return psa_labels(low, high, torch.arange(1, len(low)), cell=CELL)
