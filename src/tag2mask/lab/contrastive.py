"""Training of a small CLIP on pictures, captions and tags of Storybook; exact masks are not among what it gets.

Contrastive, as Radford et al. 2021, on our own towers. Three readings of a picture may be held against the captions:
the class token, the mean of the patch tokens (what CLIP-ES differentiates), and the patches that fit a text (PACL's
idea). A small network learns *where* from so few pictures only if it is shown: ``teacher`` makes pseudo masks from
tags, and ``lessons`` holds patches against them.
"""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn

from tag2mask.lab.lessons import attention_loss, class_texts, dense_loss, shares
from tag2mask.lab.losses import aligned_similarity, alike, contrastive, cosine, pairwise
from tag2mask.lab.pretrain_recipe import Pretrain
from tag2mask.lab.towers import Readings, encode_image, kept_patches, readings
from tag2mask.lab.views import look
from tag2mask.lab.vocabulary import encode
from tag2mask.models.average import follow
from tag2mask.models.clip import CLIPModel, VisionTransformer
from tag2mask.models.weights import MEAN, STD
from tag2mask.run.schedule import adamw
from tag2mask.storybook.scenes import CLASSES

MOST_SCALE = math.log(100)


class ContrastiveCLIP(lightning.LightningModule):
    """Lightning's side of it: a batch of ``views.Pairs`` in, a loss out."""

    def __init__(self, recipe: Pretrain, model: CLIPModel, *, compiled: bool = False) -> None:
        super().__init__()
        self.recipe = recipe
        self.model = model.train().requires_grad_(True)
        self.bias = nn.Parameter(torch.tensor(-10.0), requires_grad=recipe.loss == "sigmoid")
        self.average = copy.deepcopy(model).requires_grad_(False) if recipe.ema else None
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        # a compiled function is no module: it leaves the names in the checkpoint as they are
        self.encode = torch.compile(encode_image) if compiled else encode_image

    @property
    def weights(self) -> CLIPModel:
        """What is measured and kept: the averaged weights, where they are averaged."""
        return self.model if self.average is None else self.average

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The weighted sum of the losses."""
        recipe, step = self.recipe, int(batch["step"])
        size = recipe.sizes[step % len(recipe.sizes)]
        pixels = (look(batch["image"], batch["view"], size) - self.mean) / self.std  # (B, 3, h, w)
        vision = cast(VisionTransformer, self.model.vision)
        patches = size[0] * size[1] // recipe.patch**2
        keep = kept_patches(step, recipe.seed, len(pixels), patches, recipe.drop)
        keep = None if keep is None else keep.to(pixels.device)
        encoded = self.encode(vision, pixels, keep, attention=bool(recipe.attention_weight))
        read = readings(vision, encoded)
        losses = self._captions(batch, read)
        if recipe.dense or recipe.tag_weight:
            words, background = class_texts(CLASSES, recipe.seed, step)
            ids, ends = (torch.from_numpy(each).to(pixels.device) for each in encode(words))
            texts = self.model.text(ids, ends)  # (T, E), background first
            if recipe.tag_weight:
                losses |= self._tags(batch["tags"], read, texts[background:])
            if recipe.dense:
                target = shares(batch["labels"], batch["view"], size, recipe.patch, len(CLASSES))  # (B, N, 1 + C)
                if keep is not None:
                    target = target.gather(1, keep[..., None].expand(-1, -1, target.shape[-1]))
                losses |= self._lessons(target, read, encoded.attention, texts, background)
        loss = torch.stack([*losses.values()]).sum()
        self.log_dict({f"loss_{name}": value.detach() for name, value in losses.items()})
        self.log_dict({"loss": loss.detach(), "scale": self.model.logit_scale.detach().exp()})
        return loss

    def _captions(self, batch: dict[str, Any], read: Readings) -> dict[str, Tensor]:
        """Pictures against the batch's captions, by three readings."""
        recipe, losses = self.recipe, {}
        if not recipe.class_weight + recipe.patch_weight + recipe.aligned_weight:
            return {}
        texts = self.model.text(batch["ids"], batch["end"])  # (B, E)
        positive = alike(batch["meaning"])
        if recipe.class_weight:
            losses["class"] = recipe.class_weight * self._loss(cosine(read.whole, texts), positive)
        if recipe.patch_weight:
            losses["patch"] = recipe.patch_weight * self._loss(cosine(read.mean, texts), positive)
        if recipe.aligned_weight:
            similarity = aligned_similarity(read.each, texts, recipe.sharpness)
            losses["aligned"] = recipe.aligned_weight * self._loss(similarity, positive)
        return losses

    def _tags(self, tags: Tensor, read: Readings, texts: Tensor) -> dict[str, Tensor]:
        """Pictures against one text a class (C, E), by their tags (B, C)."""
        weight, scale = self.recipe.tag_weight / 2, self.model.logit_scale.exp()
        return {
            f"tags_{name}": weight * contrastive(cosine(reading, texts), tags, scale)
            for name, reading in (("class", read.whole), ("patch", read.mean))
        }

    def _lessons(
        self, target: Tensor, read: Readings, attention: Tensor | None, texts: Tensor, background: int
    ) -> dict[str, Tensor]:
        """Patches against the texts (T, E), and against each other, by what they show: target (B, n, 1 + C)."""
        recipe, scale, losses = self.recipe, self.model.logit_scale.exp(), {}
        if recipe.dense_weight:
            losses["dense"] = recipe.dense_weight * dense_loss(read.each, texts, target, background, scale)
        if recipe.value_weight:
            losses["value"] = recipe.value_weight * dense_loss(read.values, texts, target, background, scale)
        if attention is not None:
            losses["attention"] = recipe.attention_weight * attention_loss(attention[:, 1:, 1:], target)
        return losses

    def _loss(self, similarity: Tensor, positive: Tensor) -> Tensor:
        scale = self.model.logit_scale.exp()
        if self.recipe.loss == "sigmoid":
            return pairwise(similarity, positive, scale, self.bias)
        return contrastive(similarity, positive, scale)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """A step; then the temperature is kept within CLIP's bound, and the average takes its share."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=MOST_SCALE)
            if self.average is not None:
                follow(self.average, self.model, self.recipe.ema, self.trainer.global_step)

    def configure_optimizers(self) -> Any:
        """AdamW with CLIP's moments (Radford et al. 2021, table 18), warm-up, then a cosine to nothing."""
        return adamw(self.recipe, self.parameters(), betas=(0.9, 0.98), eps=1e-6)
