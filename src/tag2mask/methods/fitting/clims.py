"""The training of CLIMS, in up to three parts, each of which resumes where it was stopped.

checkpoints/clip        CLIP learns the data set's tags, where that is asked for
checkpoints/baseline    the classifier that CLIMS starts from, where the weights bring none
checkpoints             CLIMS itself; ``clims.safetensors`` is the network, ``threshold.json`` a calibrated threshold

Import this module only where training is done: it loads Lightning, which takes seconds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.methods.fitting.classifier import Descent, tag_training
from tag2mask.methods.fitting.clims_critic import CLIMSFit, CLIMSRecipe, Critic, find_threshold
from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.methods.fitting.tagged import PictureBatch, TaggedImages
from tag2mask.methods.fitting.training import train_to_end
from tag2mask.models.clims import CLIMSNetwork, activation, embed_images
from tag2mask.models.text import FeatureCache
from tag2mask.models.weights import CLIP
from tag2mask.ops.clims import caption_loss, tag_caption
from tag2mask.ops.image import MEAN, STD, standardise
from tag2mask.run.checkpoint import steps_done
from tag2mask.segment.augment import Augment, LongSide
from tag2mask.types import Dataset, UserError


def train(fit: CLIMSFit, data: Dataset, folder: Path) -> CLIMSNetwork:
    """Everything of a fit, from wherever an earlier call was stopped, with its states in ``folder``.

    Returns:
        the network, in training mode.

    Raises:
        UserError: no image has a tag, or CLIP does not know the words, or tells the classes no better than chance.
        Stopped: Ctrl-C, or the minutes are over; the state is saved.
    """
    recipe, settings = fit.recipe, fit.settings
    shapes = Augment(recipe.crop, scale=LongSide(*recipe.long_side), place="anywhere", resample="bicubic")
    images = TaggedImages(data, shapes, settings.seed)
    tagged = TaggedImages(data, shapes, settings.seed, tagged_only=True)
    if not len(tagged):
        raise UserError(f"clims learns from tags, and none of the {len(data)} images in {data.root} has any")
    clip = finetuned(fit, tagged, folder / "clip") if fit.finetune_steps else fit.clip
    critic = Critic(fit.classes, fit.texts, clip, recipe, fit.allow_unknown)
    if recipe.calibrated:
        critic.settings = replace(recipe.loss, threshold=find_threshold(critic, data, folder / "threshold.json"))
    network = fit.start()
    if recipe.baseline_epochs and not steps_done(folder):
        start = replace(settings, steps=0, lr=recipe.baseline_lr).lasting(recipe.baseline_epochs, len(tagged))
        module = tag_training(network, len(fit.classes.foreground), descent_of(recipe, start))
        if not recipe.decay_as_momentum:  # the camera-ready's crop; the current repository keeps the crop of CLIMS
            tagged = TaggedImages(data, replace(shapes, crop=recipe.inner_crop), settings.seed, tagged_only=True)
        train_to_end(module, tagged, start, folder / "baseline", "clims start")
    settings = settings.lasting(recipe.epochs, len(images))
    train_to_end(CLIMSTraining(network, critic, descent_of(recipe, settings)), images, settings, folder, "clims")
    return network


def descent_of(recipe: CLIMSRecipe, settings: FitSettings) -> Descent:
    """How CLIMS's network learns in both of its trainings; the stem learns nothing, as in both codes."""
    return Descent(settings, recipe.frozen_norm)


# --- the trainings -------------------------------------------------------------------------------------


class CLIMSTraining(lightning.LightningModule):
    """CLIMS itself."""

    def __init__(self, network: CLIMSNetwork, critic: Critic, descent: Descent) -> None:
        super().__init__()
        descent.prepare(network)
        self.network, self.descent = network, descent
        self.critic = critic  # no module: its CLIP is neither trained nor kept in the checkpoints

    def configure_optimizers(self) -> Any:
        """The papers' groups and rates, by the step."""
        return self.descent.optimizer(self.network)

    def training_step(self, batch: PictureBatch, batch_idx: int) -> Tensor:
        """The weighted sum of the four losses, a scalar."""
        pictures, tags = batch
        maps = activation(self.network.maps(standardise(pictures, MEAN, STD)), training=True)  # (B, C, h, w)
        terms = self.critic(pictures, maps, tags)
        for name, value in vars(terms).items():
            self.log("loss" if name == "total" else name, value.detach())
        return terms.total


class TagCaptions(lightning.LightningModule):
    """CLIP on images with a caption of their tags (``ops.clims.tag_caption``), both towers."""

    def __init__(self, fit: CLIMSFit) -> None:
        super().__init__()
        self.model = copy.deepcopy(fit.clip.model).float().train().requires_grad_(True)
        self.of, self.clip, self.names = fit, fit.clip, fit.classes.foreground

    def captions(self, tags: Sequence[Tensor]) -> list[str]:
        """One for each image. tags: (K,) int64 of each."""
        return [tag_caption([self.names[tag - 1] for tag in own.tolist()]) for own in tags]

    def training_step(self, batch: PictureBatch, batch_idx: int) -> Tensor:
        """CLIP's contrastive loss, both directions, a scalar."""
        pictures, tags = batch
        size = (self.of.recipe.clip_size, self.of.recipe.clip_size)
        pixels = F.interpolate(
            standardise(pictures, self.clip.mean, self.clip.std), size, mode="bilinear", align_corners=True
        )  # (B, 3, s, s)
        captions = self.captions(tags)
        tokens = [self.clip.tokenizer.encode(caption) for caption in captions]
        ids = torch.zeros(len(tokens), max(len(one.ids) for one in tokens), dtype=torch.int64, device=pixels.device)
        for row, one in zip(ids, tokens, strict=True):
            row[: len(one.ids)] = torch.tensor(one.ids)
        ends = torch.tensor([one.end for one in tokens], device=pixels.device)
        texts = F.normalize(self.model.text(ids, ends), dim=-1)  # (B, E)
        logits = self.model.logit_scale.exp() * F.normalize(embed_images(self.model, pixels), dim=-1) @ texts.T
        loss = caption_loss(logits, captions)
        self.log("loss", loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        """SGD under a cosine, by the step."""
        optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=self.of.finetune_lr,
            momentum=0.9,
            weight_decay=self.of.recipe.finetune_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: (1 + math.cos(math.pi * step / self.of.finetune_steps)) / 2
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def finetuned(fit: CLIMSFit, images: TaggedImages, folder: Path) -> CLIP:
    """The CLIP of a fit after so many steps on the data set's tags; the given one stays as it was.

    Raises:
        UserError: CLIP does not know the names of the classes.
        Stopped: Ctrl-C, or the minutes are over; the state is saved.
    """
    clip, names = fit.clip, fit.classes.foreground
    most = max((images.data[i].tags or () for i in images.indices), key=len)
    # "and" is in the last but one; the last may be longer than what CLIP reads
    words = [
        *(tag_caption([name]) for name in names),
        tag_caption(names[:2]),
        tag_caption([names[t - 1] for t in most]),
    ]
    clip.text_features(words, allow_unknown=fit.allow_unknown)  # unknown words are refused now
    module, settings = TagCaptions(fit), replace(fit.settings, steps=fit.finetune_steps)
    shape = replace(images.settings, crop=fit.recipe.inner_crop)
    inner = TaggedImages(images.data, shape, settings.seed, tagged_only=True)
    train_to_end(module, inner, settings, folder, "clip")
    model = module.model.eval().requires_grad_(False).to(clip.device)
    return replace(clip, model=model, name=f"{clip.name}, fine-tuned", dtype=torch.float32, cache=FeatureCache(None))
