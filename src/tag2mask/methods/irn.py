"""IRN: class boundaries learned from any method's maps, which then spread within them by random walk.

J. Ahn, S. Cho and S. Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations" (CVPR
2019). On VOC 2012 train they report 48.3 mIoU for classifier CAMs and 66.5 after IRN (not measured here).

Labels: pixels where a CRF finds the same thing under a high and under a low background threshold. On them two heads
over a frozen ResNet learn: where classes end, and which way a thing's centre lies. At the end the boundary of a
picture and of its mirror image stops the walk of the earlier run's maps; background is a constant.

The defaults are for Storybook on a processor; ``recipes/voc12_irn.yaml`` has the paper's (990 steps of 32 crops of
512 pixels, an hour on a GPU). IRN's thresholds fit classifier CAMs; other maps are brought to them first (option
``threshold``, see ``methods.fitting.affinity.PriorMaps``). That starts from the background rule of the earlier run,
so give that run one under which its masks are right (``--background``): it decides more than any option here.

Where ``variant="released"`` differs from "paper":

- ``decay_as_momentum``: the weight decay, 1e-4, lands in the place of the momentum; "paper" has no momentum, which
  trains the same to the eye (0.9 with these learning rates would not).
- ``pad``: pictures are padded to 512 x 512 before the network. The released code also *cuts* what is larger, so that
  boundary and maps no longer fit; that is not repeated.

The displacements are not needed for class masks, but are kept with the scores for instances; so is the boundary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from tag2mask.methods.fitting.affinity import AffinityExamples, PriorMaps, make_labels
from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.methods.idle import refuse_idle
from tag2mask.methods.refiners import Refiner, RefinerOptions, frame_of, seeded, working
from tag2mask.models.classifier import load_backbone
from tag2mask.models.irn import GRID, IRNHeads, boundary_map
from tag2mask.models.state import state_sha256
from tag2mask.ops.affinity_labels import irn_labels, shrink_labels
from tag2mask.ops.cam_fusion import cell_means, strided_size
from tag2mask.ops.image import MEAN, STD, standardise, working_size
from tag2mask.ops.masks import upsample
from tag2mask.ops.random_walk import refine_with_boundary
from tag2mask.run.folder import Run
from tag2mask.segment.augment import Augment, Example, Uniform
from tag2mask.types import ClassSet, Constant, Dataset, Item, MaskRule, Scores

_RELEASED_SIDE = 512
_TINY = 1e-30


class IRNOptions(RefinerOptions):
    """How IRN learns and how far it spreads."""

    foreground: float = Field(0.30, gt=0, lt=1, description="background threshold of labels for classes")
    background: float = Field(
        0.05, gt=0, lt=1, description="background threshold of labels for background (CLIMS: 0.10)"
    )
    steps: int = Field(300, ge=1, description="training steps; the paper's 3 epochs of VOC are 990")
    batch: int = Field(8, ge=1, description="pictures a step (paper: 32)")
    crop: int = Field(128, ge=4, multiple_of=4, description="side of the square they are cut to (paper: 512)")
    scale: tuple[float, float] = Field((0.5, 1.5), description="sizes of training pictures, relative to their own")
    lr: float = Field(0.1, gt=0, description="learning rate of the boundary head")
    displacement_lr: float = Field(1.0, gt=0, description="learning rate of the displacement head")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay of both heads")
    radius: float = Field(
        5, gt=1, description="cells (of 4 pixels) within which pixels are compared in training (paper: 10)"
    )
    displacement_width: int = Field(
        64, ge=32, multiple_of=32, description="channels of the displacement head (paper: 256)"
    )
    walk_radius: float = Field(5, gt=1, description="cells that one step of the walk can reach")
    beta: float = Field(10, gt=0, description="exponent of affinities; higher, and weak links break")
    walk_steps: int = Field(256, ge=0, description="steps of the walk")

    @model_validator(mode="after")
    def _fits(self) -> IRNOptions:
        self.check_crop(self.crop, self.radius, GRID)
        low, high = self.scale
        if not 0.05 <= low <= high <= 20:
            raise ValueError(f"scale is {self.scale}, expected two numbers from 0.05 to 20, the lower first")
        if self.background >= self.foreground:
            raise ValueError(f"background {self.background} is not below foreground {self.foreground}")
        if self.walk_steps == 0:
            refuse_idle("irn", self, ("walk_radius", "beta"), "with walk_steps=0; leave it out, or let it walk")
        return self


class IRN(Refiner[IRNOptions, IRNHeads]):
    """IRN as a tag2mask method that is fitted on an earlier run's maps and refines them."""

    Options = IRNOptions
    name = "irn"
    published = (990, "3 epochs of VOC 2012 in batches of 32 crops of 512 pixels (recipes/voc12_irn.yaml)")
    label_options = ("walk_radius", "beta", "walk_steps")
    mask_rule = MaskRule(background=Constant(0.25))

    def __init__(self, classes: ClassSet, options: IRNOptions | None = None) -> None:
        options = options or IRNOptions()
        self.backbone = load_backbone(options.weights, strides=(1, 2, 2, 1), frozen_norm=True).requires_grad_(False)
        self.sha256 = state_sha256(self.backbone)
        super().__init__(classes, options)

    def untrained(self) -> IRNHeads:
        """The two heads, drawn from the seed."""
        with seeded(self.options.seed):
            return IRNHeads(self.backbone.layout.channels, displacement_width=self.options.displacement_width).eval()

    @property
    def resolved(self) -> dict[str, object]:
        """What decides the results beside the options."""
        return {"weights_sha256": self.sha256, "decay_as_momentum": self.released, "pad": self.released}

    def to(self, device: torch.device) -> None:
        """Compute on that device."""
        self.backbone.to(device)
        super().to(device)

    def train(self, data: Dataset, earlier: Run, maps: PriorMaps, folder: Path) -> None:
        """Labels where a CRF is sure, and both heads on them."""
        from tag2mask.methods.fitting.affinity_training import IRNTraining, measure_displacement, train

        chosen = self.options
        settings = FitSettings.of(self, decay_as_momentum=self.released)
        labels, most, left = folder / "labels", chosen.max_pixels, settings.minutes_left
        indices = make_labels(data, earlier, maps, self._label, labels, max_pixels=most, minutes_left=left)
        seen = Augment(chosen.crop, scale=Uniform(*chosen.scale), place="anywhere", resample="bicubic")
        examples = AffinityExamples(data, indices, labels, seen, chosen.seed, most, Example, _on_grid, GRID)
        module = IRNTraining(self.net, self.backbone, settings, chosen.radius, chosen.displacement_lr)
        train(module, examples, folder, "fit irn")
        measure_displacement(module, examples, chosen.crop)

    def _label(self, image: Tensor, maps: Tensor, tags: Tensor) -> Tensor:
        image, maps = image.to(self.device), maps.to(self.device)
        return irn_labels(image, maps, tags, foreground=self.options.foreground, background=self.options.background)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) in pixels -> (h, w): a cell is four pixels of the working size."""
        return strided_size(working_size(size, self.options.max_pixels), GRID)

    def refine(self, item: Item, maps: PriorMaps) -> Scores:
        """The maps after the walk, divided by the largest value that any of them has at the image's pixels."""
        chosen = self.options
        image, full = working(item, maps, chosen.max_pixels)  # (3, H, W), (K, H, W)
        edge, displacement = self._seen(image)  # (h, w), (2, h, w)
        before = cell_means(full.to(self.device), GRID)  # (K, h, w)
        walked = refine_with_boundary(
            before, edge, radius=chosen.walk_radius, beta=chosen.beta, steps=chosen.walk_steps
        )
        size = (item.image.shape[1], item.image.shape[2])
        frame = frame_of(size, (walked.shape[1], walked.shape[2]), GRID, chosen.max_pixels)
        # the constant background is compared with maps at the image's size: their maximum is what counts. A peak of
        # one cell is higher than all pixels around it and stays so, else the pixels between would be lowered
        highest = upsample(walked, size, frame).amax()
        tags = item.tags.cpu() if item.tags is not None else torch.zeros(0, dtype=torch.int64)
        return Scores(
            tags,
            (walked / highest.clamp_min(_TINY)).cpu(),
            size,
            frame=frame,
            initial=before.cpu(),
            boundary=edge.cpu(),
            displacement=displacement.cpu(),
        )

    def _seen(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Boundary of the picture and its mirror image, (h, w), and displacements of the picture alone, (2, h, w)."""
        size = (image.shape[1], image.shape[2])
        height, width = strided_size(size, GRID)
        pixels = standardise(image[None].to(self.device), MEAN, STD)
        views = torch.cat([pixels, pixels.flip(-1)])  # (2, 3, H, W)
        if self.released:
            below, beside = (max(0, _RELEASED_SIDE - side) for side in size)
            views = F.pad(views, (0, beside, 0, below))
        edge, displacement = self.net(self.backbone.features(views))
        edge, displacement = edge[..., :height, :width], displacement[0, :, :height, :width]
        return boundary_map(edge, size), displacement


def _on_grid(example: Example) -> Tensor:
    """The labels on the heads' grid, (h, w) uint8."""
    labels: Any = example.labels
    return shrink_labels(labels, GRID)
