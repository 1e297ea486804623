"""MCTformer's training on tags: its losses, and AdamW under a cosine that changes with the epoch.

The step itself is ``run.tag_training``. Import this module only where training is done: it loads Lightning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.methods.fitting.classifier import make_training, part, steps_of
from tag2mask.methods.fitting.tagged import Batch, TaggedImages
from tag2mask.models.mctformer import MCTformer
from tag2mask.ops.image import standardise
from tag2mask.ops.mctformer import contrast_classes
from tag2mask.run.tag_training import TagBatch, TagTraining
from tag2mask.segment.deit_augment import DeiTAugment
from tag2mask.segment.schedule import cosine_epochs
from tag2mask.types import Dataset, UserError

if TYPE_CHECKING:
    from tag2mask.methods.mctformer import MCTformerMethod


@dataclass(frozen=True)
class Losses:
    """Scalars of a batch: of class tokens, of PatchCAM (0 in V1), and of the contrast (0 but in MCTformer+)."""

    classes: Tensor
    patches: Tensor
    contrast: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum."""
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
        return mean(F.multilabel_soft_margin_loss(found, tags, reduction="none"))

    none = logits.classes.new_zeros(())
    return Losses(
        soft_margin(logits.classes),
        none if logits.patches is None else soft_margin(logits.patches),
        contrast * mean(contrast_classes(logits.layers, tags)) if contrast else none,
    )


@dataclass(frozen=True)
class Course:
    """How MCTformer's weights move.

    steps: of the whole training. epochs: the schedule changes so often, evenly. lr: see ``cosine_epochs``. late: see
    there. weight_decay: of what has two dimensions or more, but class tokens and positions.
    """

    steps: int
    epochs: int
    lr: float
    late: bool
    weight_decay: float

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        epoch = min(step, self.steps - 1) * self.epochs // self.steps
        return cosine_epochs(epoch, self.epochs, self.lr, late=self.late)

    def optimizer(self, network: MCTformer) -> dict[str, Any]:
        """As Lightning's ``configure_optimizers`` gives it."""
        plain = {"class_embedding", "positional_embedding"}
        decays: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, parameter in network.named_parameters():
            decays[parameter.ndim >= 2 and name not in plain].append(parameter)
        groups = [
            {"params": decays[True], "weight_decay": self.weight_decay},
            {"params": decays[False], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.rate(step) / self.lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(method: MCTformerMethod, network: MCTformer, data: Dataset, folder: Path) -> None:
    """Train the network, from wherever that was stopped; it ends in evaluation mode, on the processor.

    Raises:
        UserError: no image has a tag.
        Stopped: Ctrl-C, or the minutes are over; the state is saved.
    """
    options, chosen, (mean, std) = method.options, method.options.chosen, method.statistics
    grey, spread = (tuple(255 * value for value in values) for values in (mean, std))
    shapes = DeiTAugment(
        chosen("crop"),
        area=chosen("area"),
        rand_augment=chosen("rand_augment"),
        erase=chosen("erase"),
        mean=cast(Any, grey),
        std=cast(Any, spread),
    )
    images = TaggedImages(data, shapes, options.seed, tagged_only=True)
    if not len(images):
        raise UserError(f"mctformer learns from tags; none of the {len(data)} images in {data.root} has any")
    batch = chosen("batch")
    steps = options.steps or steps_of(chosen("epochs"), len(images), batch)
    course = Course(steps, options.notches, options.rate, chosen("late"), options.weight_decay)
    network.train().requires_grad_(True)
    network.set_drop_path(chosen("drop_path"))

    def look(drawn: Batch) -> TagBatch:
        pictures, tags = drawn
        targets = pictures.new_zeros(len(tags), network.classes)
        for row, own in zip(targets, tags, strict=True):
            row[own - 1] = 1
        known = torch.tensor([bool(len(own)) for own in tags], device=pictures.device)
        return standardise(pictures, mean, std), targets, known  # an image that cannot be read has no tags

    def loss(network: MCTformer, pixels: Tensor, tags: Tensor, known: Tensor | None) -> Tensor:
        return losses(network, pixels, tags, known, chosen("contrast")).total

    module = TagTraining(network, look, lambda: course.optimizer(network), loss=loss, seed=options.seed)
    training = make_training(
        steps,
        batch,
        seed=options.seed,
        device=method.device,
        workers=options.workers,
        minutes=options.minutes,
    )
    part(module, images, training, folder, "fit mctformer")
    network.eval().cpu()
