"""MCTformer's training on tags: its losses, and AdamW under a cosine that changes with the epoch.

The step itself is ``run.tag_training``. Import this module only where training is done: it loads Lightning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.methods.fitting.tagged import PictureBatch, TaggedImages, tag_targets
from tag2mask.methods.fitting.training import train_to_end
from tag2mask.models.mctformer import MCTformer
from tag2mask.ops.image import standardise
from tag2mask.ops.mctformer import contrast_classes
from tag2mask.run.tag_training import TagBatch, TagTraining
from tag2mask.segment.schedule import cosine_epochs

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Losses:
    """Scalars of a batch: of class tokens, of PatchCAM (0 in V1), and of the contrast (0 but in MCTformer+)."""

    classes: Tensor
    patches: Tensor
    contrast: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum, a scalar."""
        return self.classes + self.patches + self.contrast


def losses(network: MCTformer, pixels: Tensor, tags: Tensor, known: Tensor | None, contrast: float = 0.0) -> Losses:
    """Multi-label soft margin losses of both logits, and MCTformer+'s contrast.

    Args:
        network: in training.
        pixels: (B, 3, H, W) standardised.
        tags: (B, C), 0 or 1.
        known: (B,) bool, which pictures teach; None: all.
        contrast: weight of the contrast.
    """
    logits = network.logits(pixels)

    def mean(values: Tensor) -> Tensor:  # (B,)
        return values.mean() if known is None else values[known].sum() / known.sum().clamp_min(1)

    def soft_margin(found: Tensor) -> Tensor:
        return mean(F.multilabel_soft_margin_loss(found.float(), tags, reduction="none"))

    none = logits.classes.new_zeros(())
    return Losses(
        soft_margin(logits.classes),
        none if logits.patches is None else soft_margin(logits.patches),
        contrast * mean(contrast_classes(logits.layers, tags)) if contrast else none,
    )


@dataclass(frozen=True)
class Course:
    """How MCTformer's weights move: AdamW, by ``settings``, whose rate the warm-up leads to.

    settings.weight_decay is of what has two dimensions or more, but class tokens and positions.
    epochs: the schedule changes so often, evenly. late: see ``cosine_epochs``.
    """

    settings: FitSettings
    epochs: int
    late: bool

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        steps = self.settings.steps
        return cosine_epochs(
            min(step, steps - 1) * self.epochs // steps, self.epochs, self.settings.lr, late=self.late
        )

    def optimizer(self, network: MCTformer) -> dict[str, Any]:
        """As Lightning's ``configure_optimizers`` gives it."""
        plain = {"class_embedding", "positional_embedding"}
        decays: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, parameter in network.named_parameters():
            decays[parameter.ndim >= 2 and name not in plain].append(parameter)
        groups = [
            {"params": decays[True], "weight_decay": self.settings.weight_decay},
            {"params": decays[False], "weight_decay": 0.0},
        ]
        lr = self.settings.lr
        optimizer = torch.optim.AdamW(groups, lr=lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.rate(step) / lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(
    network: MCTformer,
    images: TaggedImages,
    course: Course,
    folder: Path,
    *,
    statistics: Statistics,
    drop_path: float,
    contrast: float,
) -> None:
    """Train the network, from wherever that was stopped; it ends in evaluation mode, on the processor.

    statistics: mean and deviation of pixels. drop_path: of the last block. contrast: see ``losses``.

    Raises:
        Stopped: Ctrl-C, or the minutes are over; the state is saved.
    """
    network.train().requires_grad_(True)
    network.set_drop_path(drop_path)

    def look(batch: PictureBatch) -> TagBatch:
        pictures, tags = batch
        return standardise(pictures, *statistics), *tag_targets(tags, network.classes)

    def loss(network: MCTformer, pixels: Tensor, tags: Tensor, known: Tensor | None) -> Tensor:
        return losses(network, pixels, tags, known, contrast).total

    seed = course.settings.seed
    module = TagTraining(network, look, lambda: course.optimizer(network), loss=loss, seed=seed)
    train_to_end(module, images, course.settings, folder, "fit mctformer")
    network.eval().cpu()
