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
from torch import Tensor, nn

from tag2mask.data.columns import Columns
from tag2mask.data.image import BadImage
from tag2mask.data.pixels import read_pixels
from tag2mask.data.truth import read_truth
from tag2mask.data.truth_turn import settle_turn
from tag2mask.ops.metrics import confusion_matrix, metrics
from tag2mask.segment.network import SegmentationNet
from tag2mask.segment.supervised import SupervisedTraining
from tag2mask.segment.targets import Targets
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

    Several processes share the images, and all know the figure.

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
        if (batch_idx + 1) % self.accumulate or not due:
            return
        if isinstance(pl_module, SupervisedTraining):
            self.measure(pl_module, step, trainer.global_rank, trainer.world_size)
            for logger in trainer.loggers:
                logger.log_metrics({"val_miou": self.miou or 0.0}, step=step)

    def measure(self, module: SupervisedTraining, step: int, rank: int = 0, processes: int = 1) -> None:
        """The mIoU over all images that can be read; this process looks at every ``processes``-th of them.

        Raises:
            UserError: none can be, or a true mask stands for nothing known.
        """
        net = module.weights
        classes = len(net.config.names)
        found = _Found(torch.zeros(classes, classes + 1, dtype=torch.int64))
        with testing(net), _as_in_the_first(net, processes), torch.random.fork_rng(devices=[]):
            try:
                self._look(net, self.samples[rank::processes], found, module.device)
            except UserError as error:  # raised when the others know, who would wait for this one
                found.error = error
        total, count = found.of_all(module.device, processes)
        if not count:
            why = f" ({found.why})" if found.why else ""
            raise UserError(f"validation: none of {len(self.samples)} images can be measured{why}")
        self.miou, self.at, self.images = metrics(total).miou, step, count
        if self.show and not rank:
            print(f"step {step}: {self.text()}", file=sys.stderr, flush=True)

    def _look(self, net: SegmentationNet, samples: list[Sample], found: _Found, device: torch.device) -> None:
        for sample in samples:
            try:
                truth = torch.from_numpy(read_truth(sample).mask)
                labels, _ = predict_labels(net, read_pixels(sample.image).to(device), TestTime())
                counts = confusion_matrix(truth, labels.cpu(), len(net.config.names))
            except (BadImage, OSError, ValueError) as error:
                found.why = f"{sample.id}: {error}"
                continue
            found.total += counts
            found.count += 1

    def text(self) -> str:
        """For people."""
        left = len(self.samples) - self.images
        odd = f", {left} could not be measured" if left else ""
        return f"validation mIoU {100 * (self.miou or 0):.1f} % of {self.images} images{odd}"


@dataclass
class _Found:
    """What one process counted: the confusion matrix of so many images, and why others are not in it."""

    total: Tensor
    count: int = 0
    why: str = ""
    error: UserError | None = None

    def of_all(self, device: torch.device, processes: int) -> tuple[Tensor, int]:
        """The sums over all processes. Raises the UserError of this one, or says that another one had one."""
        numbers = torch.tensor([self.count, self.error is not None])
        sums = torch.cat([self.total.flatten(), numbers]).to(device)  # (C (C + 1) + 2,)
        if processes > 1:
            torch.distributed.all_reduce(sums)
        *_, count, errors = sums.tolist()
        if self.error is not None:
            raise self.error
        if errors:
            raise UserError("validation: another process could not read a true mask, and says which")
        return sums[:-2].view_as(self.total).cpu(), count


@contextmanager
def _as_in_the_first(net: nn.Module, processes: int) -> Iterator[None]:
    """While it lasts the statistics of norms, of which each process has its own, are those that are kept."""
    own = [(buffer, buffer.clone()) for buffer in net.buffers()] if processes > 1 else []
    try:
        for buffer, _ in own:
            torch.distributed.broadcast(buffer, 0)
        yield
    finally:
        for buffer, before in own:
            buffer.copy_(before)


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
