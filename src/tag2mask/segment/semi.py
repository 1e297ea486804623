"""Training with pixel labels of a few images and none, or pseudo masks, of the rest: CCT (Ouali et al. 2020).

Pixel labels are true masks and those that a person corrected.

Published: "CCT" is 1,464 images of VOC with true masks and 9,118 without; "CCT + CLIMS" (CLIMS, supplement, Table 1)
gives the 9,118 pseudo masks, on which the auxiliary decoders learn. The main decoder learns from true masks alone.

Every batch holds as many labelled as unlabelled images, each kind in epochs of its own; which ones, how they are
augmented and how their features are perturbed are functions of (seed, batch). What is kept in the end is the encoder
and the main decoder.

Faults of the released code that are not repeated (see ``segment.cct`` for those of the perturbations):

- the labelled crops of the first pass were cached and repeated within an epoch; here each is drawn afresh;
- the pair-wise loss was added to a sum that was no longer used; here ``pairwise_weight`` counts;
- the setting that switches weak masks on was misspelt and documented otherwise; here an unknown setting is refused;
- true masks of unlabelled images were read, to print a figure; here they are never opened;
- a batch of one image failed within a norm; here the message says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tag2mask.models.decoders import CCTNet
from tag2mask.run.sampling import GROUP_SEEDS, Draw, step_generator
from tag2mask.segment.augment import Augment
from tag2mask.segment.cct import Weights, kinds, unlabelled_losses
from tag2mask.segment.examples import Batch, Drawn, Examples
from tag2mask.segment.network import SegmentationNet
from tag2mask.segment.recipe import TrainRecipe
from tag2mask.segment.supervised import SupervisedTraining, make_optimizer, output_loss, trusted_labels
from tag2mask.segment.targets import Targets
from tag2mask.types import UserError

HEAD_RATE = 10
"""The learning rate of all that is not the backbone, in units of the backbone's."""


class Halves(NamedTuple):
    """A batch of each kind. step, replaced: of both, as in ``Batch``."""

    labelled: Batch
    unlabelled: Batch

    @property
    def step(self) -> int:  # noqa: D102
        return self.labelled.step

    @property
    def replaced(self) -> tuple[tuple[str, str], ...]:  # noqa: D102
        return self.labelled.replaced + self.unlabelled.replaced


class Mixed:
    """Labelled and unlabelled examples for ``run.training.fit``: each batch has as many of the one as of the other.

    targets: with both kinds. settings, seed, confidence: of ``Examples``.

    Raises:
        UserError: there are none of one kind.
    """

    def __init__(self, targets: Targets, settings: Augment, seed: int, confidence: bool = False) -> None:
        parts = [targets.part(pixels=pixels) for pixels in (True, False)]
        counts = tuple(len(part) for part in parts)
        if not all(counts):
            lacking, rest = ("labelled", "name some with --pixel-labels, or correct some masks")
            if counts[0]:
                fewer = "name fewer with --pixel-labels, or " if not targets.corrected.all() else ""
                lacking, rest = ("unlabelled", f"{fewer}train without --semi, which learns from all of these masks")
            raise UserError(
                f"--semi cct: got {counts[0]} images with true or corrected masks and {counts[1]} without, expected "
                "some of each; "
                f"no {lacking} images are left: {rest}"
            )
        self.groups = counts
        # other dice for the second part: sample 3 of one is not augmented like sample 3 of the other
        self.parts = [Examples(part, settings, seed + GROUP_SEEDS * i, confidence) for i, part in enumerate(parts)]

    def __len__(self) -> int:
        return sum(self.groups)

    def __getitem__(self, draw: Draw) -> Drawn:
        """One augmented example; the labelled ones come first."""
        other = draw.sample >= self.groups[0]
        return self.parts[other][Draw(draw.step, draw.sample - self.groups[0] * other)]

    @staticmethod
    def collate(drawn: Sequence[Drawn]) -> Halves:
        """Labelled and unlabelled examples as a batch of each."""
        labelled, unlabelled = ([each for each in drawn if each.pixels == pixels] for pixels in (True, False))
        return Halves(Examples.collate(labelled), Examples.collate(unlabelled))


class CrossConsistency(SupervisedTraining):
    """A network in training with batches of ``Mixed``; the auxiliary decoders are of the training alone.

    Raises:
        UserError: the network is not one of CCT's.
    """

    def __init__(self, recipe: TrainRecipe, net: SegmentationNet) -> None:
        super().__init__(recipe, net)
        self.kinds = kinds(recipe.cct.decoders)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed + 1)  # weights of their own: copies of the main decoder would agree with it
            self.auxiliary = cct_network(net).auxiliary_decoders(len(self.kinds))
        ramp_steps = round(recipe.cct.ramp * recipe.steps)
        self.rise = Weights(ramp_steps, recipe.cct.consistency_weight, recipe.cct.weak_weight)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The network's parameters, and those of the auxiliary decoders at the rate of the main one."""
        lr, decay = self.recipe.lr * HEAD_RATE, self.recipe.weight_decay
        group = {"params": [*self.auxiliary.parameters()], "lr": lr, "initial_lr": lr, "weight_decay": decay}
        return make_optimizer(self.net, self.recipe, [group])

    def batch_losses(self, batch: Any) -> dict[str, Tensor]:
        """Labelled images go through encoder and main decoder; unlabelled ones through the encoder and all decoders.

        Args:
            batch: ``Halves``.

        Returns:
            the losses by name, weighted, scalars.
        """
        labelled, unlabelled = batch
        recipe, settings = self.recipe, self.recipe.cct
        losses = {"labelled": output_loss(self.net(labelled.images), labelled, recipe)}
        taught = unlabelled_losses(
            cct_network(self.net),
            self.auxiliary,
            self.net.standardise(unlabelled.images),
            self.kinds,
            # other dice on each device, whose images are others
            step_generator(recipe.seed + GROUP_SEEDS * self.global_rank, batch.step),
            weak=trusted_labels(unlabelled, recipe.mu) if settings.weak == "masks" else None,
            kind=settings.agreement,
            threshold=settings.sure,
            with_pairwise=settings.pairwise_weight > 0,
        )
        consistency, weak = self.rise.at(batch.step // recipe.accumulate)
        losses["consistency"] = consistency * taught.consistency
        if taught.weak is not None:
            losses["weak"] = weak * taught.weak
        if taught.pairwise is not None:
            losses["pairwise"] = settings.pairwise_weight * taught.pairwise
        return losses


def cct_network(net: SegmentationNet) -> CCTNet:
    """The bare network.

    Raises:
        UserError: it has no decoder that could be perturbed.
    """
    if not isinstance(net.network, CCTNet):
        raise UserError(
            f"--semi cct: got the architecture {net.config.architecture}, expected cct-resnet50 or cct-small"
        )
    return net.network
