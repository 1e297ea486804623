"""The training of POT: tags, and maps that are held to each other; from an earlier run's maps or from none.

Import this module only where training is done: it loads Lightning, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as lightning
import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.data.image import BadImage, read_image
from tag2mask.methods.fitting.affinity import PriorMaps, check_finished
from tag2mask.methods.fitting.pot_recipe import POTRecipe, finite_maps, maps_of
from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.methods.fitting.training import train_to_end
from tag2mask.models.pot import POTNetwork
from tag2mask.ops.image import MEAN, STD, resize_bicubic, standardise
from tag2mask.ops.pot import Activation, consistency_loss, fuse_in_training, max_scaled
from tag2mask.ops.pot_batch import Groups, classifier_maps, mean_prototype_maps, transported_maps, with_rest
from tag2mask.run.current import STALE, Current
from tag2mask.run.folder import Run
from tag2mask.run.sampling import Draw, sample_dice
from tag2mask.run.warn import warn
from tag2mask.segment.augment import IMAGENET_MEAN, Augment, Example, LongSide, augment
from tag2mask.types import Dataset, Sample, UserError

CELL = 16
"""Pixels of the picture a cell of the network's grid."""


class Batch(NamedTuple):
    """Pictures as they are learned from, with what is known of them.

    pictures: (B, 3, H, W) float32, 0-255. labels: (B, C) bool; an image that cannot be read has none. maps:
    (B, C, h, w) float32, of the earlier run, 0 for other classes and without such a run. valid: (B, 1, h, w) bool,
    False on padding. dice: (B,) int64, the seed of what is random about each image in this step.
    """

    pictures: Tensor
    labels: Tensor
    maps: Tensor
    valid: Tensor
    dice: Tensor


def train(
    network: POTNetwork, recipe: POTRecipe, settings: FitSettings, data: Dataset, folder: Path, earlier: Run | None
) -> POTNetwork:
    """A whole fit, from wherever an earlier call was stopped; returns the trained network.

    Raises:
        UserError: see ``POT.fit``.
        Stopped: Ctrl-C, or the minutes are over; the state is saved.
    """
    if earlier is not None:
        check_finished(earlier)
    examples = POTExamples.of(data, earlier, recipe, settings.seed)
    module = POTTraining(network, recipe, settings.lasting(recipe.epochs, len(examples)))
    train_to_end(module, examples, module.settings, folder, "fit pot")
    return module.network


# --- what is learned from ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class POTExamples:
    """The images that have tags, and maps in the earlier run, made square by (seed, step, sample).

    An image that cannot be read, or whose maps cannot, teaches nothing, with a warning.
    """

    data: Dataset
    indices: Sequence[int]
    earlier: Run | None
    maps: PriorMaps | None
    recipe: POTRecipe
    seed: int
    warned: set[int]

    @classmethod
    def of(cls, data: Dataset, earlier: Run | None, recipe: POTRecipe, seed: int) -> POTExamples:
        """Those of ``data``.

        Raises:
            UserError: there is none.
        """
        indices, left_out = [], []
        current = None if earlier is None else Current(earlier)
        for index, sample in enumerate(data):
            if not sample.tags:
                continue
            reason = None if current is None else current.why_none(sample)
            if reason is None:
                indices.append(index)
            else:
                left_out.append(f"{sample.id} ({STALE.get(reason, 'which it does not have')})")
        where = "" if earlier is None else f" with maps in {earlier.path}"
        if not indices:
            raise UserError(
                f"pot learns from tags{' and maps' if where else ''}; none of the {len(data)} images in {data.root} "
                f"has any{where}"
            )
        if left_out:
            more = f" (and {len(left_out) - 3} more)" if len(left_out) > 3 else ""
            warn(f"{len(left_out)} images are not learned from{where}: {'; '.join(left_out[:3])}{more}")
        maps = None if earlier is None else maps_of(earlier)
        return cls(data, indices, earlier, maps, recipe, seed, set())

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """A sample as in ``Batch``, without the batch."""
        index = self.indices[draw.sample]
        sample, side, classes = self.data[index], self.recipe.size, len(self.data.classes) - 1
        cells = -(-side // CELL)
        dice = sample_dice(self.seed, draw)
        start = int(torch.randint(2**62, (), generator=dice))
        labels = torch.zeros(classes, dtype=torch.bool)
        maps = torch.zeros(classes, cells, cells)
        try:
            image = torch.from_numpy(read_image(sample.image)).permute(2, 0, 1)  # (3, H, W) uint8
            found = self._maps(sample, image)  # (K, H, W)
        except (BadImage, OSError, UserError, ValueError) as error:
            if index not in self.warned:
                self.warned.add(index)
                warn(f"{sample.id} cannot be learned from: {error}")
            plain = torch.tensor(IMAGENET_MEAN)[:, None, None].expand(3, side, side).clone()
            return plain, labels, maps, torch.zeros(1, cells, cells, dtype=torch.bool), start
        tags = torch.tensor(sample.tags, dtype=torch.int64)
        labels[tags - 1] = True
        picture, seen, valid = self._square(image, found, cells, dice)
        if found is not None:
            maps[tags - 1] = seen
        return picture, labels, maps, valid, start

    def _maps(self, sample: Sample, image: Tensor) -> Tensor | None:
        """The earlier maps of its tags at the image's size."""
        if self.earlier is None or self.maps is None:
            return None
        size, tags = (image.shape[1], image.shape[2]), torch.tensor(sample.tags, dtype=torch.int64)
        return finite_maps(self.maps, self.earlier.scores(sample.id), tags, size, size)

    def _square(
        self, image: Tensor, maps: Tensor | None, cells: int, dice: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Picture (3, side, side), maps (K, h, w) and validity (1, h, w) of a square of it."""
        recipe, size = self.recipe, (image.shape[1], image.shape[2])
        given = torch.zeros(0, *size) if maps is None else maps
        if recipe.long_side is None:
            picture = resize_bicubic(image, (recipe.size, recipe.size)).float()
            valid = torch.ones(1, cells, cells, dtype=torch.bool)
            small = _to_cells(given, cells)
            if torch.rand((), generator=dice) < recipe.mirror:
                picture, small = picture.flip(-1), small.flip(-1)
            return picture, small, valid
        shapes = Augment(
            recipe.size, LongSide(*recipe.long_side), recipe.mirror, place="anywhere", resample="bicubic"
        )
        seen = augment(Example(image, confidence=torch.cat([torch.ones(1, *size), given])), shapes, dice)
        assert seen.confidence is not None
        valid = F.interpolate(seen.confidence[None, :1], (cells, cells), mode="nearest")[0] > 0
        return seen.image, _to_cells(seen.confidence[1:], cells), valid

    @staticmethod
    def collate(samples: Sequence[tuple[Tensor, Tensor, Tensor, Tensor, int]]) -> Batch:
        """Several of these as a ``Batch``."""
        pictures, labels, maps, valid, dice = zip(*samples, strict=True)
        return Batch(
            torch.stack(pictures), torch.stack(labels), torch.stack(maps), torch.stack(valid), torch.tensor(dice)
        )


def _to_cells(maps: Tensor, cells: int) -> Tensor:
    """(K, H, W) -> (K, cells, cells), as the released code brings CLIP-ES's maps to its grid."""
    if not len(maps):
        return maps.new_zeros(0, cells, cells)
    return F.interpolate(maps[None], (cells, cells), mode="bilinear", align_corners=False)[0]


# --- the training --------------------------------------------------------------------------------------------


class POTLosses(NamedTuple):
    """Scalars. total: what is descended."""

    total: Tensor
    classes: Tensor
    consistency: Tensor


def pot_losses(network: POTNetwork, batch: Batch, recipe: POTRecipe) -> POTLosses:
    """The losses of a batch. What comes after the network is in float32, whatever the network is in.

    Raises:
        ValueError: the network gives features that are not finite.
    """
    logits, features = network(standardise(batch.pictures, MEAN, STD))
    with torch.autocast(logits.device.type, enabled=False):
        return _losses(logits.float(), features.float(), batch, recipe)


def _losses(logits: Tensor, features: Tensor, batch: Batch, recipe: POTRecipe) -> POTLosses:
    labels, known = batch.labels, batch.labels.any(1)  # (B, C), (B,)
    losses = F.multilabel_soft_margin_loss(logits.mean((2, 3)), labels.float(), reduction="none")  # (B,)
    classes = losses[known].sum() / known.sum().clamp_min(1)
    generators = [torch.Generator().manual_seed(seed) for seed in batch.dice.tolist()]
    there = torch.cat([torch.ones_like(labels[:, :1]), labels], 1)[:, :, None, None] & batch.valid  # (B, C + 1, h, w)
    own = classifier_maps(logits, labels, absent=recipe.absent) * there
    weight = None
    if recipe.released:
        maps = mean_prototype_maps(features, own, labels, generators, recipe.prototypes.clusters, batch.valid)
    else:
        seeds = batch.maps if recipe.earlier else own[:, 1:]
        found, how, groups = transported_maps(
            features, seeds, own[:, 1:], labels, generators, recipe.prototypes, batch.valid
        )
        maps = with_rest(found)
        weight = certainty(how, groups, found) if recipe.adaptive else None
    if recipe.consistency == "fused":
        first, second = (max_scaled(each * there) for each in fuse_in_training(maps, batch.maps, there.float()))
    else:
        first, second = maps * there, own
    consistency = recipe.consistency_weight * consistency_loss(first, second, weight)
    return POTLosses(recipe.class_weight * classes + consistency, classes, consistency)


def certainty(how: Activation, groups: Groups, maps: Tensor) -> Tensor:
    """How sure the plan is of the cluster of each pixel: the largest share, 1 for background; (B, C + 1, h, w)."""
    share = how.plan.amax(-1) / how.plan.sum(-1).clamp(min=torch.finfo(how.plan.dtype).tiny)  # (B, G, N)
    placed = groups.place(share.unflatten(2, maps.shape[2:]), maps.shape[1])  # (B, C, h, w)
    return torch.cat([torch.ones_like(placed[:, :1]), placed], 1)


class POTTraining(lightning.LightningModule):
    """Lightning's side of it: SGD under polynomial decay by the step, what is new at 10 times the rate."""

    def __init__(self, network: POTNetwork, recipe: POTRecipe, settings: FitSettings) -> None:
        super().__init__()
        self.network, self.recipe, self.settings = network.train(), recipe, settings

    def configure_optimizers(self) -> Any:
        """All that learns decays, norms too, as in the released code."""
        new = self.network.new_parameters()
        old = [value for value in self.network.backbone.parameters() if value.requires_grad]
        lr, decay = self.settings.lr, self.settings.weight_decay
        groups = [{"params": part, "lr": rate * lr, "weight_decay": decay} for part, rate in ((old, 1), (new, 10))]
        return self.settings.optimizer(groups)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted sum of both losses, a scalar.

        Raises:
            UserError: features that are no longer finite.
        """
        try:
            found = pot_losses(self.network, batch, self.recipe)
        except ValueError as error:
            raise UserError(
                f"at step {self.global_step} of pot's fit: {error}; fit again, into another folder, with a lower lr "
                f"than {self.settings.lr:g}"
            ) from error
        names = ("loss", "classes", "consistency")
        self.log_dict({name: value.detach() for name, value in zip(names, found, strict=True)})
        return found.total
