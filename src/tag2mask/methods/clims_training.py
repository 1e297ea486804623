"""The training of CLIMS, in up to three parts, each of which goes on where it was stopped.

checkpoints/clip        CLIP learns the data set's tags, where that is asked for
checkpoints/baseline    the classifier that CLIMS starts from, where the weights bring none
checkpoints             CLIMS itself; ``clims.safetensors`` is the network, ``threshold.json`` a calibrated threshold

Import this module only where training is done: it loads Lightning, which takes seconds.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.data.image import BadImage
from tag2mask.data.pixels import read_pixels
from tag2mask.methods.clims import CLIMS, WEIGHTS, CLIMSRecipe
from tag2mask.methods.fitting.classifier import Descent, make_training, part, steps_of, tag_training
from tag2mask.methods.fitting.tagged import Batch, TaggedImages
from tag2mask.models.classifier import MEAN, STD
from tag2mask.models.clims import CLIMSNetwork, activation, embed_images
from tag2mask.models.text import FeatureCache
from tag2mask.models.weights import CLIP
from tag2mask.ops.calibration import calibrate_threshold
from tag2mask.ops.clims import (
    CLIMSTerms,
    background_phrases,
    caption_loss,
    class_emphasis,
    clims_loss,
    cosines,
    masked_views,
    positive_pairs,
    suppression_weights,
    tag_caption,
)
from tag2mask.ops.image import resize_bicubic, standardise
from tag2mask.run.files import write_atomic
from tag2mask.run.sampling import Training
from tag2mask.run.training import steps_done
from tag2mask.run.warn import warn
from tag2mask.segment.augment import Augment, LongSide
from tag2mask.types import ClassSet, Dataset, TextSet, UserError

_LOOKED_AT = 500
"""Images that a threshold is calibrated on."""


def train(method: CLIMS, data: Dataset, folder: Path) -> None:
    """Everything of a fit, from wherever an earlier call was stopped; leaves ``WEIGHTS`` in the run's checkpoints.

    Raises:
        UserError: no image has a tag, or CLIP does not know the words, or tells the classes no better than chance.
        KeyboardInterrupt: Ctrl-C; the state is saved.
    """
    recipe, options = method.recipe, method.options
    shapes = Augment(recipe.crop, scale=LongSide(*recipe.long_side), place="anywhere", resample="bicubic")
    images = TaggedImages(data, shapes, options.seed)
    tagged = TaggedImages(data, shapes, options.seed, tagged_only=True)
    if not len(tagged):
        raise UserError(f"clims learns from tags, and none of the {len(data)} images in {data.root} has any")
    clip = method.clip
    if options.finetune_clip:
        clip = finetuned(method, tagged, folder / "clip")
    critic = Critic(method.classes, method.texts, clip, recipe, options.allow_unknown)
    if recipe.calibrated:
        critic.settings = replace(recipe.loss, threshold=_threshold(critic, method, data, folder / "threshold.json"))
    network, _ = method.start()
    if recipe.baseline_epochs and not steps_done(folder):
        steps = steps_of(recipe.baseline_epochs, len(tagged), recipe.batch)
        descent = descent_of(recipe, recipe.baseline_lr, options.weight_decay, steps)
        start = tag_training(network, len(method.classes.foreground), descent)
        if not recipe.decay_as_momentum:  # the camera-ready's crop; the current repository keeps the crop of CLIMS
            tagged = TaggedImages(data, replace(shapes, crop=recipe.inner_crop), options.seed, tagged_only=True)
        part(start, tagged, _training(method, steps), folder / "baseline", "clims start")
    steps = options.steps or steps_of(recipe.epochs, len(images), recipe.batch)
    module = CLIMSTraining(network, critic, descent_of(recipe, recipe.lr, options.weight_decay, steps))
    part(module, images, _training(method, steps), folder, "clims")
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_atomic(folder / WEIGHTS, safetensors.torch.save(state), sync=True)


def descent_of(recipe: CLIMSRecipe, lr: float, weight_decay: float, steps: int) -> Descent:
    """How CLIMS's network learns in both of its trainings; the stem learns nothing, as in both codes."""
    return Descent(steps, lr, weight_decay, recipe.momentum, recipe.decay_as_momentum, recipe.frozen_norm)


def _training(method: CLIMS, steps: int) -> Training:
    options = method.options
    return make_training(steps, method.recipe.batch, seed=options.seed, device=method.device, workers=options.workers)


# --- the critic ----------------------------------------------------------------------------------------


class Critic:
    """A frozen CLIP with the texts of a class set: it turns pictures and maps into CLIMS's losses.

    settings: of the loss; with a calibrated threshold these are set anew before training.
    """

    def __init__(
        self, classes: ClassSet, texts: TextSet, clip: CLIP, recipe: CLIMSRecipe, allow_unknown: bool = False
    ) -> None:
        self.clip, self.recipe, self.settings = clip, recipe, recipe.loss
        self.mean, self.std = (clip.mean, clip.std) if recipe.own_statistics else (MEAN, STD)
        self.class_texts = clip.ensemble(texts.names, texts.templates, allow_unknown=allow_unknown)  # (C, E)
        phrases, relevant = background_phrases(classes, texts, self.settings)
        if not allow_unknown:
            phrases, relevant = self._understood(phrases, relevant, texts.templates)
        if phrases:
            self.phrases = clip.ensemble(phrases, texts.templates, allow_unknown=allow_unknown)  # (L, E)
        else:
            self.phrases = self.class_texts[:0]
            if self.settings.suppression:
                warn(
                    f"{classes.id} has no texts of what occurs with its classes, so L_CBS does nothing; the key "
                    "texts of a class set's YAML gives them"
                )
        self.relevant = relevant.to(clip.device)
        self.emphasis = class_emphasis(classes, self.settings).to(clip.device)

    def _understood(
        self, phrases: tuple[str, ...], relevant: Tensor, templates: Sequence[str]
    ) -> tuple[tuple[str, ...], Tensor]:
        """The phrases whose words CLIP knows; L_CBS does without the others, which the user may not have chosen."""
        lost = [p for p in phrases if any(self.clip.unknown(t.replace("{}", p)) for t in templates)]
        if not lost:
            return phrases, relevant
        warn(
            f"{self.clip.name} does not know the words of {', '.join(lost)}: L_CBS goes without these texts of what "
            "occurs with classes; --set allow_unknown=true keeps them"
        )
        kept = [i for i, phrase in enumerate(phrases) if phrase not in lost]
        return tuple(phrases[i] for i in kept), relevant[:, kept]

    @property
    def size(self) -> tuple[int, int]:
        """Of what CLIP sees."""
        return self.recipe.clip_size, self.recipe.clip_size

    def __call__(self, pictures: Tensor, maps: Tensor, tags: Sequence[Tensor]) -> CLIMSTerms:
        """Losses of pictures (B, 3, H, W), 0-255, with maps (B, C, h, w) in [0, 1] and each picture's tags (K,)."""
        images, classes = positive_pairs(tags, pictures.device)
        pixels = standardise(pictures, self.mean, self.std)
        inside, outside = masked_views(pixels, maps, images, classes, self.size)  # (M, 3, s, s) each
        if not len(images):
            nothing = maps.new_zeros(0)
            empty = maps.new_zeros(0, len(self.phrases))
            return clims_loss(nothing, nothing, empty, empty, maps, self.settings)
        seen = embed_images(self.clip.model, torch.cat([inside, outside]))  # (2M, E)
        own = cosines(seen, self.class_texts).gather(1, classes.repeat(2)[:, None])[:, 0]  # (2M,)
        pairs = len(images)
        others = cosines(seen[:pairs], self.phrases)  # (M, L)
        weights = suppression_weights(others, classes, self.relevant, self.settings)
        return clims_loss(own[:pairs], own[pairs:], others, weights, maps, self.settings, self.emphasis[classes])

    @torch.no_grad()
    def look(self, image: Tensor) -> Tensor:
        """Cosines of a whole image (3, H, W) uint8 with the class texts: (C,), on the processor."""
        pixels = standardise(resize_bicubic(image, self.size)[None].to(self.clip.device), self.mean, self.std)
        return cosines(embed_images(self.clip.model, pixels), self.class_texts)[0].cpu()


def _threshold(critic: Critic, method: CLIMS, data: Dataset, path: Path) -> float:
    """The threshold for this CLIP, from the tags of images that lie evenly over the data; kept in ``path``."""
    if path.exists():
        return float(json.loads(path.read_text())["threshold"])
    rows, present = [], []
    known = [i for i in range(len(data)) if data[i].tags is not None]
    for i in known[:: max(1, len(known) // _LOOKED_AT)]:
        sample = data[i]
        try:
            image = read_pixels(sample.image)  # (3, H, W)
        except (BadImage, OSError):
            continue  # the training warns of it
        rows.append(critic.look(image))
        here = torch.zeros(len(method.classes.foreground), dtype=torch.bool)
        here[torch.tensor(sample.tags, dtype=torch.int64) - 1] = True
        present.append(here)
    if not rows:
        raise UserError(f"none of the images in {data.root} could be read; there is nothing to learn from")
    found = calibrate_threshold(torch.stack(rows), torch.stack(present))
    write_atomic(path, (json.dumps({**asdict(found), "images": len(rows)}, indent=1) + "\n").encode())
    return found.threshold


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

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted sum of the four losses."""
        pictures, tags = batch
        maps = activation(self.network.maps(standardise(pictures, MEAN, STD)), training=True)  # (B, C, h, w)
        terms = self.critic(pictures, maps, tags)
        for name, value in vars(terms).items():
            self.log("loss" if name == "total" else name, value.detach())
        return terms.total


class TagCaptions(lightning.LightningModule):
    """CLIP on images with a caption of their tags (``ops.clims.tag_caption``), both towers."""

    def __init__(self, method: CLIMS) -> None:
        super().__init__()
        self.model = copy.deepcopy(method.clip.model).float().train().requires_grad_(True)
        self.clip, self.names = method.clip, method.classes.foreground
        self.recipe, self.options = method.recipe, method.options

    def captions(self, tags: Sequence[Tensor]) -> list[str]:
        """One for each image."""
        return [tag_caption([self.names[tag - 1] for tag in own.tolist()]) for own in tags]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """CLIP's contrastive loss, both directions."""
        pictures, tags = batch
        size = (self.recipe.clip_size, self.recipe.clip_size)
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
            lr=self.options.finetune_lr,
            momentum=0.9,
            weight_decay=self.recipe.finetune_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: (1 + math.cos(math.pi * step / self.options.finetune_clip)) / 2
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def finetuned(method: CLIMS, images: TaggedImages, folder: Path) -> CLIP:
    """The method's CLIP after so many steps on the data set's tags; the method's own stays as it was.

    Raises:
        UserError: CLIP does not know the names of the classes.
    """
    clip = method.clip
    names = method.classes.foreground
    most = max((images.data[i].tags or () for i in images.indices), key=len)
    # "and" is in the last but one; the last may be longer than what CLIP reads
    words = [
        *(tag_caption([name]) for name in names),
        tag_caption(names[:2]),
        tag_caption([names[t - 1] for t in most]),
    ]
    clip.text_features(words, allow_unknown=method.options.allow_unknown)  # unknown words are refused now
    module = TagCaptions(method)
    shape = replace(images.settings, crop=method.recipe.inner_crop)
    part(
        module,
        TaggedImages(images.data, shape, method.options.seed, tagged_only=True),
        _training(method, method.options.finetune_clip),
        folder,
        "clip",
    )
    model = module.model.eval().requires_grad_(False).to(clip.device)
    return replace(clip, model=model, name=f"{clip.name}, fine-tuned", dtype=torch.float32, cache=FeatureCache(None))
