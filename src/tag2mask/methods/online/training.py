"""The training of a decoder on labels that are made in the very step. Import this module only where training is done.

Of several devices each takes the losses of its share of a batch, and their gradients are averaged.

What is kept in checkpoints is the decoder; towers are frozen and loaded by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as lightning
import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.methods.fitting.tagged import PictureBatch
from tag2mask.methods.online.boundaries import boundary_loss
from tag2mask.methods.online.lesson import Lessons
from tag2mask.methods.online.recipe import OnlineRecipe
from tag2mask.models.weclip import WeCLIPNet, decode
from tag2mask.ops.decoder_affinity import affinity_loss, affinity_targets, decoder_affinity
from tag2mask.ops.superclasses import dice_loss
from tag2mask.run.sampling import step_dice
from tag2mask.segment.losses import balanced_cross_entropy
from tag2mask.segment.schedule import warm_poly
from tag2mask.types import IGNORE


class OnlineTraining(lightning.LightningModule):
    """One step: look, make maps and labels, and teach the decoder."""

    def __init__(
        self,
        net: WeCLIPNet,
        lessons: Lessons,
        recipe: OnlineRecipe,
        settings: FitSettings,
        boundary_weight: float = 0.0,
    ) -> None:
        """lessons: what the decoder is shown and taught; their towers are no modules of this, and in no checkpoint.

        boundary_weight: of the loss against the boundary labels in the lessons.
        """
        super().__init__()
        self.fuse, self.decoder, self.dino_fuse = net.decoder_fts_fuse, net.decoder, net.dino_decoder_fts_fuse
        self.train()
        self.lessons, self.recipe, self.settings, self.boundary_weight = lessons, recipe, settings, boundary_weight

    def configure_optimizers(self) -> Any:
        """AdamW; everything decays."""
        chosen, warmup = self.settings, self.recipe.warmup
        optimizer = torch.optim.AdamW(self.parameters(), lr=chosen.lr, weight_decay=chosen.weight_decay)
        rate: Callable[[int], float] = lambda step: warm_poly(step, chosen.steps, warmup=warmup)  # noqa: E731
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: PictureBatch, batch_idx: int) -> Tensor:
        """The weighted sum of the losses, a scalar.

        batch: pictures (B, 3, H, W), 0-255, whose padding is NaN, and the tags of each, (K,) int64.
        """
        pictures, tags = batch
        recipe = self.recipe
        known = ~pictures.isnan().any(1)  # (B, H, W)
        shown = known if recipe.padding == "ignored" else self._readable(known)
        lesson = self.lessons(pictures.nan_to_num(0.0), tags, shown)
        # dropout, the same whenever this batch is seen
        with step_dice(self.settings.seed, batch_idx, self.device, self.global_rank):
            found = decode(self.decoder, self.fuse, lesson.taps, lesson.grid, self.dino_fuse, lesson.structure)
        logits = found.logits  # (B, C + 1, h, w)
        affinity = decoder_affinity(found.features)
        settings = recipe.late if self.global_step >= recipe.switch else recipe.early
        probs = logits.detach().softmax(1) if recipe.feedback else None
        labels, edges = lesson.teach(settings, affinity.detach(), probs)
        large = _enlarged(logits, labels)
        terms = {"affinity": recipe.affinity_weight * affinity_loss(affinity, affinity_targets(labels, lesson.grid))}
        labels = self._replaced(labels, large)
        terms["segmentation"] = balanced_cross_entropy(large, labels)
        if recipe.mutual_weight:
            parts = [_enlarged(each, labels) for each in found.parts]
            terms["mutual"] = recipe.mutual_weight * mutual_loss(parts, labels)
        if recipe.dice_weight:
            terms["dice"] = recipe.dice_weight * dice_loss(large, labels)
        if self.boundary_weight:
            terms["boundary"] = self.boundary_weight * boundary_loss(large, edges)
        loss = torch.stack(list(terms.values())).sum()
        self.log_dict({"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}})
        return loss

    @staticmethod
    def _readable(known: Tensor) -> Tensor:
        """(B, H, W) bool: everywhere but in pictures that could not be read, which are padding altogether."""
        return known.flatten(1).any(1)[:, None, None].expand_as(known)

    @torch.no_grad()
    def _replaced(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Labels (B, H, W), from ``replace_at`` on with the decoder's own where it is sure."""
        if self.recipe.replace_at is None or self.global_step < self.recipe.replace_at:
            return labels
        confidence, own = logits.softmax(1).max(1)
        replaced = (confidence > self.recipe.sure) & (labels != IGNORE)
        return torch.where(replaced, own.to(labels.dtype), labels)


def _enlarged(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (B, K, h, w) on the pixels of labels (B, H, W)."""
    return F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)


def mutual_loss(parts: Sequence[Tensor], labels: Tensor) -> Tensor:
    """WeCLIP+'s agreement of its two outputs: each learns the other's classes, by the balanced cross entropy.

    Args:
        parts: two logits (B, K, H, W).
        labels: (B, H, W); pixels of IGNORE, a crop's padding, teach nothing here either.
    """
    first, second = (torch.where(labels == IGNORE, IGNORE, each.detach().argmax(1)) for each in parts)
    return balanced_cross_entropy(parts[0], second) + balanced_cross_entropy(parts[1], first)
