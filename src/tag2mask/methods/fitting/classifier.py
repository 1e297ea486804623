"""A network of class maps trained on tags: classifier CAM's fit, and the start of CLIMS.

The step itself is ``run.tag_training``, which storybook-resnet's training shares. Import this module only where
training is done: it loads Lightning, which takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import nn

from tag2mask.methods.fitting.tagged import Batch
from tag2mask.models.classifier import MEAN, STD, Classifier
from tag2mask.models.clims import CLIMSNetwork
from tag2mask.ops.image import standardise
from tag2mask.run.sampling import Training
from tag2mask.run.tag_training import TagBatch, TagTraining
from tag2mask.run.training import LAST, Stopped, fit, steps_done
from tag2mask.segment.schedule import conv_groups, poly, sgd

SAVE_STEPS = 200


@dataclass(frozen=True)
class Descent:
    """How a network of class maps learns: SGD under polynomial decay by the step, the head at 10 times the rate.

    steps: of the whole training. lr: of the backbone. weight_decay: of all convolutions.
    decay_as_momentum: see ``segment.schedule.sgd``.
    frozen_norm: norms of the backbone keep their statistics; their weights learn.
    frozen_parts: first parts of the backbone that do not learn: the stem, then each stage. Norms in them still count
    what they see.
    """

    steps: int
    lr: float
    weight_decay: float
    momentum: float = 0.0
    decay_as_momentum: bool = False
    frozen_norm: bool = False
    frozen_parts: int = 1

    def prepare(self, network: Classifier | CLIMSNetwork) -> None:
        """Put the parts of a network into training or not; Lightning leaves modes as they are."""
        network.train().requires_grad_(True)
        backbone = network.backbone
        if self.frozen_norm:
            for module in backbone.modules():  # a new head's norms have no statistics to keep
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        stages = [backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4]
        for part in [nn.ModuleList((backbone.conv1, backbone.bn1)), *stages][: self.frozen_parts]:
            part.requires_grad_(False)

    def optimizer(self, network: Classifier | CLIMSNetwork) -> dict[str, Any]:
        """The papers' groups and rates, as Lightning's ``configure_optimizers`` gives them."""
        optimizer = sgd(
            conv_groups(network.backbone, network.head, self.lr, self.weight_decay),
            self.lr,
            self.weight_decay,
            momentum=self.momentum,
            decay_as_momentum=self.decay_as_momentum,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: poly(step, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def tag_training(network: Classifier | CLIMSNetwork, classes: int, descent: Descent) -> TagTraining:
    """The training of a network with so many classes on batches of ``TaggedImages``."""

    def look(batch: Batch) -> TagBatch:
        pictures, tags = batch
        targets = pictures.new_zeros(len(tags), classes)
        for row, own in zip(targets, tags, strict=True):
            row[own - 1] = 1
        known = torch.tensor([bool(len(own)) for own in tags], device=pictures.device)
        return standardise(pictures, MEAN, STD), targets, known  # an image that cannot be read has no tags

    descent.prepare(network)
    return TagTraining(network, look, lambda: descent.optimizer(network))


def make_training(
    steps: int, batch: int, *, seed: int, device: torch.device, workers: int, minutes: float | None = None
) -> Training:
    """How the parts of these fits run; see ``run.sampling.Training``."""
    return Training(
        steps,
        batch,
        seed=seed,
        device=str(device),
        clip_norm=None,
        save_steps=SAVE_STEPS,
        minutes=minutes,
        log_steps=10,
        workers=workers,
    )


def steps_of(epochs: float, images: int, batch: int) -> int:
    """Optimiser steps of so many epochs, at least one."""
    return max(1, round(epochs * images / batch))


def part(module: lightning.LightningModule, images: Any, training: Training, folder: Path, label: str) -> None:
    """Train ``module`` to the end, or take up what an earlier call ended with.

    Raises:
        Stopped: Ctrl-C, or the training's minutes are over; the state is saved.
    """
    if steps_done(folder) < training.steps:
        done = fit(module, images, training, folder, label=label, unit="images").global_step
        if done < training.steps:
            raise Stopped(
                f"{label}: time is over at step {done} of {training.steps}; all of it is saved in {folder}: give the "
                "same command again to go on"
            )
    else:
        state = torch.load(folder / LAST, map_location="cpu", weights_only=True)["state_dict"]
        module.load_state_dict(state)
