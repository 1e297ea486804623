"""Validation while a network is trained: ground truth is read here, to measure with, and by nothing that learns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from zlib import crc32

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import nn

from tag2mask.data.columns import Columns
from tag2mask.data.image import BadImage
from tag2mask.data.pixels import read_pixels
from tag2mask.data.truth import read_truth
from tag2mask.data.truth_turn import settle_turn
from tag2mask.ops.metrics import confusion_matrix, metrics
from tag2mask.segment.examples import Targets
from tag2mask.segment.supervised import SupervisedTraining
from tag2mask.segment.test_time import TestTime, predict_labels
from tag2mask.types import Dataset, Sample, UserError


@dataclass(frozen=True)
class Validation:
    """What a network is measured on while it is trained; nothing of it is learned from, and no weights are chosen.

    every: steps. data: images with truth; None: those of the training's data that are not trained on. hold_out: so
    many images, chosen by their ids alone, are not trained on.
    """

    every: int
    data: Dataset | None = None
    hold_out: int = 0


def held_out(targets: Targets, count: int) -> Targets:
    """Targets without ``count`` images: those whose ids have the smallest crc32.

    Raises:
        UserError: then none would be left to train on.
    """
    if not 0 <= count < len(targets):
        raise UserError(f"hold out {count} of {len(targets)} images: expected 0 or more, and some left to train on")
    ids = [targets.sample(position).id for position in range(len(targets))]
    out = set(sorted(range(len(ids)), key=lambda position: (crc32(ids[position].encode()), ids[position]))[:count])
    kept = np.array([position not in out for position in range(len(ids))])
    left = {**targets.left_out, **({"held out": count} if count else {})}
    return replace(targets.take(np.flatnonzero(kept)), left_out=left)


def validation_samples(validation: Validation, targets: Targets) -> list[Sample]:
    """The images that are measured.

    Raises:
        UserError: there is none, or they are of other classes.
    """
    if validation.every < 1:
        raise UserError(f"validation every {validation.every} steps: expected at least 1")
    data = targets.data if validation.data is None else validation.data
    if tuple(data.classes.names) != tuple(targets.data.classes.names):
        raise UserError(
            f"validation: {data.root} is read as {data.classes.id} with {len(data.classes)} mask values, the "
            f"training has {len(targets.data.classes)}, or other names; give images with true masks in its classes"
        )
    trained = set(targets.indices.tolist()) if validation.data is None else set()
    with_truth = [n for n in range(len(data)) if n not in trained and data[n].truth is not None]
    if not with_truth:
        raise UserError(
            "validation: no image with a true mask is left that is not trained on; leave some out by --hold-out N "
            "where the data has true masks (--truth), name others by --eval-data, or leave out --eval-every"
        )
    if isinstance(data, Columns):
        data = replace(data, truth_turn=settle_turn(data.subset(with_truth), lambda _: None).turn)
    return [data[n] for n in with_truth]


class Watch(lightning.Callback):
    """Measures the network that would be kept, every so many steps and at the end. The weights stay as they were.

    miou: the last one, a fraction; at: after which step. images: of how many.
    """

    def __init__(self, samples: list[Sample], every: int, accumulate: int, show: bool) -> None:
        self.samples, self.every, self.accumulate, self.show = samples, every, accumulate, show
        self.miou: float | None = None
        self.at = self.images = 0

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Measure, where it is time to."""
        step = trainer.global_step
        due = step % self.every == 0 or step == trainer.max_steps
        if (batch_idx + 1) % self.accumulate or not due or not trainer.is_global_zero:
            return
        if isinstance(pl_module, SupervisedTraining):
            self.measure(pl_module, step)
            for logger in trainer.loggers:
                logger.log_metrics({"val_miou": self.miou or 0.0}, step=step)

    def measure(self, module: SupervisedTraining, step: int) -> None:
        """The mIoU over all images that can be read.

        Raises:
            UserError: none can be.
        """
        net, total, count, why = module.weights, None, 0, ""
        classes = len(net.config.names)
        with testing(net), torch.random.fork_rng(devices=[]):
            for sample in self.samples:
                try:
                    truth = torch.from_numpy(read_truth(sample).mask)
                    labels, _ = predict_labels(net, read_pixels(sample.image).to(module.device), TestTime())
                    counts = confusion_matrix(truth, labels.cpu(), classes)
                except (BadImage, OSError, ValueError) as error:
                    why = f"{sample.id}: {error}"
                    continue
                total = counts if total is None else total + counts
                count += 1
        if total is None:
            raise UserError(f"validation: none of {len(self.samples)} images can be measured ({why})")
        self.miou, self.at, self.images = metrics(total).miou, step, count
        if self.show:
            print(f"step {step}: {self.text()}", file=sys.stderr, flush=True)

    def text(self) -> str:
        """For people."""
        left = len(self.samples) - self.images
        odd = f", {left} could not be measured" if left else ""
        return f"validation mIoU {100 * (self.miou or 0):.1f} % of {self.images} images{odd}"


@contextmanager
def testing(net: nn.Module) -> Iterator[None]:
    """While it lasts the network is in eval mode and builds no graph; afterwards each part is as it was."""
    before = [(part, part.training) for part in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in before:
            part.training = training
