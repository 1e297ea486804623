"""Training with pixel labels of a few images and none, or pseudo masks, of the rest: CCT (Ouali et al. 2020).

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import lightning.pytorch as lightning
import torch
from torch import Tensor

from tag2mask.models.decoders import CCTNet
from tag2mask.run.training import GROUP_SEEDS, Draw, step_generator
from tag2mask.segment.augment import Augment
from tag2mask.segment.cct import (
    PUBLISHED,
    Kind,
    Weights,
    bootstrap_threshold,
    bootstrapped_cross_entropy,
    kinds,
    unlabelled_losses,
)
from tag2mask.segment.examples import Batch, Drawn, Examples, Targets
from tag2mask.segment.losses import cross_entropy
from tag2mask.segment.network import SegmentationNet
from tag2mask.types import UserError


@dataclass(frozen=True)
class CCT:
    """How the unlabelled images are learned from; the defaults are the published settings.

    decoders: how many auxiliary decoders of each kind (``segment.cct.PUBLISHED``).
    weak: "masks": the auxiliary decoders also learn the pseudo masks ("CCT + masks"); "none": plain CCT.
    agreement: "mse", "kl" or "js", between auxiliary and main decoder. sure: the least probability of the main
        decoder's first class at pixels that count for it; None counts all.
    consistency_weight, weak_weight: of the two losses after their ramp, which is ``ramp`` of all steps long.
    pairwise_weight: of the variance among the auxiliary decoders (the paper's supplement).
    supervised: loss of the labelled images, "cross-entropy", or "bootstrapped" for few of them (ab-CE).
    """

    decoders: Mapping[Kind, int] = field(default_factory=lambda: dict(PUBLISHED))
    weak: Literal["masks", "none"] = "masks"
    agreement: Literal["mse", "kl", "js"] = "mse"
    sure: float | None = None
    consistency_weight: float = 30.0
    weak_weight: float = 0.4
    ramp: float = 0.1
    pairwise_weight: float = 0.0
    supervised: Literal["cross-entropy", "bootstrapped"] = "cross-entropy"


def check_cct(settings: CCT) -> None:
    """Refuse impossible settings.

    Raises:
        UserError: naming the first of them.
    """
    unknown = [kind for kind in settings.decoders if kind not in PUBLISHED]
    if unknown:
        raise UserError(f"CCT: got a perturbation {unknown[0]!r}, expected one of {', '.join(PUBLISHED)}")
    if not kinds(settings.decoders) or min(settings.decoders.values()) < 0:
        raise UserError(
            f"CCT: got decoders {dict(settings.decoders)}, expected whole numbers and at least one decoder"
        )
    weights = (settings.consistency_weight, settings.weak_weight, settings.pairwise_weight, settings.ramp)
    if min(weights) < 0 or settings.ramp > 1:
        raise UserError(
            f"CCT: got weights {', '.join(map(str, weights[:3]))} and ramp {settings.ramp}, expected weights of 0 or "
            "more and a ramp within 0..1, as a share of all steps"
        )


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
            lacking, rest = ("labelled", "name some with --pixel-labels")
            if counts[0]:
                lacking, rest = ("unlabelled", "name fewer with --pixel-labels, or train without --semi")
            raise UserError(
                f"--semi cct: got {counts[0]} images with true masks and {counts[1]} without, expected some of each; "
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
    def collate(drawn: Sequence[Drawn]) -> tuple[Batch, Batch]:
        """Labelled and unlabelled examples as a batch of each."""
        labelled, unlabelled = ([each for each in drawn if each.pixels == pixels] for pixels in (True, False))
        return Examples.collate(labelled), Examples.collate(unlabelled)


class CrossConsistency(lightning.LightningModule):
    """Lightning's side of CCT: a batch of ``Mixed`` in, the weighted sum of the losses out.

    net: its network is a CCTNet. settings: see ``CCT``. steps: of the whole training. seed: of all perturbations.

    Raises:
        UserError: impossible settings, or another network.
    """

    def __init__(self, net: SegmentationNet, settings: CCT, *, steps: int, seed: int, accumulate: int = 1) -> None:
        super().__init__()
        check_cct(settings)
        if not isinstance(net.network, CCTNet):
            raise UserError(
                f"--semi cct: got the architecture {net.config.architecture}, expected cct-resnet50 or cct-small"
            )
        self.net, self.settings, self.steps, self.seed = net, settings, steps, seed
        self.accumulate = accumulate
        self.kinds = kinds(settings.decoders)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(
                seed + 1
            )  # not the main decoder's: from its own weights an auxiliary one has nothing to learn
            self.auxiliary = net.network.auxiliary_decoders(len(self.kinds))
        self.rise = Weights(round(settings.ramp * steps), settings.consistency_weight, settings.weak_weight)

    def losses(self, batch: tuple[Batch, Batch]) -> dict[str, Tensor]:
        """The losses of labelled and unlabelled images by name, weighted: their sum is what is minimised."""
        labelled, unlabelled = batch
        settings, step = self.settings, labelled.step // self.accumulate
        logits = self.net(labelled.images)  # (B, K, h, w)
        if settings.supervised == "bootstrapped":
            threshold = bootstrap_threshold(step, self.steps, logits.shape[1])
            losses = {"labelled": bootstrapped_cross_entropy(logits, labelled.labels, threshold)}
        else:
            losses = {"labelled": cross_entropy(logits, labelled.labels)}
        taught = unlabelled_losses(
            cast(CCTNet, self.net.network),
            self.auxiliary,
            self.net.standardise(unlabelled.images),
            self.kinds,
            # other dice on each device, whose images are others
            step_generator(self.seed + GROUP_SEEDS * self.global_rank, labelled.step),
            weak=unlabelled.labels if settings.weak == "masks" else None,
            kind=settings.agreement,
            threshold=settings.sure,
            with_pairwise=settings.pairwise_weight > 0,
        )
        consistency, weak = self.rise.at(step)
        losses["consistency"] = consistency * taught.consistency
        if taught.weak is not None:
            losses["weak"] = weak * taught.weak
        if taught.pairwise is not None:
            losses["pairwise"] = settings.pairwise_weight * taught.pairwise
        return losses

    def training_step(self, batch: tuple[Batch, Batch], batch_idx: int) -> Tensor:
        """Labelled images through encoder and main decoder; unlabelled ones through the encoder and all decoders."""
        losses = self.losses(batch)
        loss = torch.stack([*losses.values()]).sum()
        self.log_dict({f"loss_{name}": value.detach() for name, value in losses.items()})
        self.log("loss", loss.detach())
        return loss
