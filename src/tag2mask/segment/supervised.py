"""Training a segmentation network on masks: Lightning's side of it, a batch of ``examples.Batch`` in, a loss out.

All that is random is a function of (seed, batch): the samples and their augmentation, and dropout. The learning rate
is a function of the step. So a training that was stopped ends in the same weights as one that was not.
"""

from __future__ import annotations

import copy
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning.pytorch as lightning
import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.models.average import follow
from tag2mask.run.sampling import step_generator
from tag2mask.segment.cct import bootstrap_threshold, bootstrapped_cross_entropy
from tag2mask.segment.examples import Batch
from tag2mask.segment.losses import (
    auxiliary_loss,
    balanced_cross_entropy,
    balanced_seed_loss,
    boundary_loss,
    confident_labels,
    corner_labels,
    cross_entropy,
    refine,
    resize_labels,
    shrink_to_corners,
)
from tag2mask.segment.network import SegmentationNet
from tag2mask.segment.recipe import TrainRecipe
from tag2mask.segment.schedule import cosine, poly, set_rate, sgd
from tag2mask.types import UserError

MOST_TOLD = 5
"""Images that cannot be read are named up to so many; all are counted."""

RECENT = 50
"""Batches over which the last loss is averaged."""


def rate(step: int, recipe: TrainRecipe) -> float:
    """The share of the learning rate that step ``step`` (from 0) takes."""
    return _rates(step, recipe)[0]


def _rates(step: int, recipe: TrainRecipe) -> tuple[float, float]:
    """The share of each group's learning rate, and what is added to all."""
    total = recipe.schedule_steps or recipe.steps
    if recipe.schedule == "cosine":
        share, floor = cosine(step, total, warmup=recipe.warmup)
        return share, floor * recipe.lr_floor
    return poly(step, total, power=recipe.power, hold=recipe.hold, warmup=recipe.warmup), 0.0


def make_optimizer(
    net: SegmentationNet, recipe: TrainRecipe, more: Sequence[dict[str, Any]] = ()
) -> torch.optim.Optimizer:
    """The recipe's optimiser, with the parameter groups of the network and ``more`` of them.

    Raises:
        UserError: nothing of the network learns.
    """
    groups = [*net.parameter_groups(recipe.lr, recipe.weight_decay), *more]
    if not any(group["params"] for group in groups):
        raise UserError(f"nothing of this {recipe.architecture} learns: its options freeze or leave out every part")
    if recipe.optimiser == "adamw":
        fused = recipe.precision != "float16"  # in one pass, which cannot be while gradients are scaled and clipped
        return torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)
    momentum, odd = recipe.momentum, recipe.decay_as_momentum
    return sgd(groups, recipe.lr, recipe.weight_decay, momentum=momentum, decay_as_momentum=odd)


def output_loss(logits: Tensor, batch: Batch, recipe: TrainRecipe, *, align_corners: bool = False) -> Tensor:
    """The loss of one output of the network.

    Args:
        logits: (B, K, h, w).
        batch: images and labels at the size of the crop; its confidence is needed for ``recipe.mu``.
        recipe: which loss, and what is resized.
        align_corners: how logits are enlarged.

    Returns:
        a scalar; 0, with a gradient of 0, where no pixel counts.
    """
    labels = trusted_labels(batch, recipe.mu)
    if recipe.loss_stride is not None:
        cells = (labels.shape[1] // recipe.loss_stride, labels.shape[2] // recipe.loss_stride)
        logits = F.interpolate(logits.float(), cells, mode="bilinear", align_corners=align_corners)  # (B, K, h, w)
        labels = corner_labels(labels, cells)  # (B, h, w)
    elif recipe.resize == "logits":
        size = labels.shape[-2:]
        logits = F.interpolate(logits.float(), size, mode="bilinear", align_corners=align_corners)  # (B, K, H, W)
    else:
        labels = resize_labels(labels, (logits.shape[2], logits.shape[3]))  # (B, h, w)
    if recipe.loss == "balanced":
        return balanced_cross_entropy(logits, labels)
    if recipe.loss == "bootstrapped":
        threshold = bootstrap_threshold(batch.step // recipe.accumulate, recipe.steps, logits.shape[1])
        return bootstrapped_cross_entropy(logits, labels, threshold)
    if recipe.loss == "seed+boundary":
        images = shrink_to_corners(
            batch.images.round().clamp(0, 255).to(torch.uint8), (logits.shape[2], logits.shape[3])
        )
        return balanced_seed_loss(logits, labels) + boundary_loss(logits, refine(images, logits))
    return cross_entropy(logits, labels, divide=recipe.divide)


def trusted_labels(batch: Batch, mu: float | None) -> Tensor:
    """The labels (B, h, w) with IGNORE where they are less sure than ``mu``, if that is asked for."""
    if mu is None or batch.confidence is None:
        return batch.labels
    return confident_labels(batch.labels, batch.confidence, mu)


class SupervisedTraining(lightning.LightningModule):
    """A network in training.

    replaced: {id: why} of images that could not be read so far. losses: of the last batches of this call.
    """

    def __init__(self, recipe: TrainRecipe, net: SegmentationNet) -> None:
        super().__init__()
        self.recipe, self.net = recipe, net.train()
        self.average = copy.deepcopy(net).requires_grad_(False) if recipe.ema else None
        self.replaced: dict[str, str] = {}
        self.losses: deque[Tensor] = deque(maxlen=RECENT)

    @property
    def weights(self) -> SegmentationNet:
        """What is kept: the averaged network, where it is averaged."""
        return self.net if self.average is None else self.average

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The sum of the batch's losses, a scalar.

        Raises:
            UserError: a norm sees a single number of each channel.
        """
        self._tell(batch.replaced)
        with _Dice(self.recipe.seed, batch.step, self.global_rank, self.device):
            try:
                losses = self.batch_losses(batch)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise UserError(
                    f"batch {self.recipe.batch} of crops of {self.recipe.crop}: a norm of {self.recipe.architecture} "
                    "sees a single number of each channel; make the batch 2 or more (on each GPU), or the crop larger"
                ) from error
        loss = torch.stack([*losses.values()]).sum()
        self.losses.append(loss.detach())
        self.log("loss", loss.detach())
        if len(losses) > 1:
            self.log_dict({f"loss_{name}": value.detach() for name, value in losses.items()})
        return loss

    def batch_losses(self, batch: Any) -> dict[str, Tensor]:
        """The loss of each output of the network (the published DeepLabV2 has four) to a ``Batch``, by its number.

        Matching scores (WeakCLIP's) have the recipe's auxiliary loss, or none.
        """
        outputs = self.net(batch.images)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        align = self.net.align_corners
        scores = []
        if self.net.matches:
            outputs, scores = outputs[:1], outputs[1:]
        losses = [output_loss(logits, batch, self.recipe, align_corners=align) for logits in outputs]
        found = {str(index): loss for index, loss in enumerate(losses)}
        if self.recipe.auxiliary:
            found["auxiliary"] = self.recipe.auxiliary * auxiliary_loss(scores[0], batch.labels)
        return found

    def _tell(self, replaced: Iterable[tuple[str, str]]) -> None:
        for id, why in replaced:
            if id in self.replaced:
                continue
            self.replaced[id] = why
            if len(self.replaced) <= MOST_TOLD:
                more = "; further ones are only counted" if len(self.replaced) == MOST_TOLD else ""
                # not in Lightning's name, in which a warning by stack level would be: those are not shown
                message = f"{why}; another image stands in for {id}{more}"
                warnings.warn_explicit(message, UserWarning, __file__, 0, __name__)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """A step at its own learning rate; then the average takes its share."""
        share, added = _rates(self.trainer.global_step, self.recipe)
        set_rate(optimizer, share, added)
        self.log("lr", self.recipe.lr * share + added)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.average is not None:
            follow(self.average, self.net, self.recipe.ema, self.trainer.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Without a scheduler: a step's learning rate is set when it is taken."""
        return make_optimizer(self.net, self.recipe)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep which images could not be read, and leave out frozen towers."""
        checkpoint["replaced"] = dict(self.replaced)
        state = checkpoint["state_dict"]
        for name in [name for name in state if name.startswith(self._towers)]:
            del state[name]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take that up again."""
        self.replaced = dict(checkpoint.get("replaced", {}))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As ever; frozen towers are those at hand."""
        towers = {name: value for name, value in self.state_dict().items() if name.startswith(self._towers)}
        return super().load_state_dict({**state_dict, **towers}, strict, assign)

    @property
    def _towers(self) -> tuple[str, ...]:
        return tuple(f"{part}.{name}" for part in ("net", "average") for name in self.net.towers)

    def last_loss(self) -> float | None:
        """The mean over the last batches of this call; None before the first."""
        return float(torch.stack([*self.losses]).float().mean()) if self.losses else None


class _Dice:
    """While it lasts, dropout's dice are those of this batch, and the caller's are put back afterwards."""

    def __init__(self, seed: int, step: int, rank: int, device: torch.device) -> None:
        devices = [device] if device.type == "cuda" else []
        self.fork = torch.random.fork_rng(devices=devices)
        self.seed = int(torch.randint(2**62, (), generator=step_generator(seed, step))) + rank

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *problem: Any) -> None:
        self.fork.__exit__(*problem)
