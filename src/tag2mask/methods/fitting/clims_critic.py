"""CLIMS's critic: a frozen CLIP that says whether maps show what their tags say; and what a fit is made of.

Loads no Lightning; the trainings are in ``methods.fitting.clims``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from tag2mask.data.image import BadImage
from tag2mask.data.pixels import read_pixels
from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.models.clims import CLIMSNetwork, embed_images
from tag2mask.models.weights import CLIP
from tag2mask.ops.calibration import calibrate_threshold
from tag2mask.ops.clims import (
    CLIMSLoss,
    CLIMSTerms,
    background_phrases,
    class_emphasis,
    clims_loss,
    cosines,
    masked_views,
    positive_pairs,
    suppression_weights,
)
from tag2mask.ops.image import MEAN, STD, resize_bicubic, standardise
from tag2mask.run.files import write_atomic
from tag2mask.run.warn import warn
from tag2mask.types import ClassSet, Dataset, TextSet, UserError

_LOOKED_AT = 500
"""Images that a threshold is calibrated on."""


@dataclass(frozen=True)
class CLIMSRecipe:
    """Everything that decides a fit, nothing left open; see ``CLIMSOptions``.

    loss.threshold is 0 where it is ``calibrated``. finetune_decay: weight decay of CLIP's fine-tuning.
    """

    loss: CLIMSLoss
    calibrated: bool
    epochs: float
    baseline_epochs: float
    batch: int
    lr: float
    baseline_lr: float
    momentum: float
    decay_as_momentum: bool
    crop: int
    long_side: tuple[int, int]
    clip_size: int
    own_statistics: bool
    frozen_norm: bool
    finetune_decay: float

    @property
    def inner_crop(self) -> int:
        """Side of the crops of the camera-ready's classifier and of CLIP's fine-tuning: 448 of 512."""
        return round(self.crop * 7 / 8)


@dataclass(frozen=True)
class CLIMSFit:
    """What a fit of CLIMS is made of.

    start: makes the network before any training. settings: of CLIMS's own training; without steps, the recipe's
    epochs say how long. finetune_steps, finetune_lr: in which CLIP first learns the tags. allow_unknown: go on where
    a text has words that the tokenizer does not know.
    """

    classes: ClassSet
    texts: TextSet
    clip: CLIP
    recipe: CLIMSRecipe
    start: Callable[[], CLIMSNetwork]
    settings: FitSettings
    finetune_steps: int = 0
    finetune_lr: float = 5e-5
    allow_unknown: bool = False


class Critic:
    """A frozen CLIP with the texts of a class set: it turns pictures and maps into CLIMS's losses.

    settings: of the loss; with a calibrated threshold these are set again before training.
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


def find_threshold(critic: Critic, data: Dataset, path: Path) -> float:
    """The threshold for this CLIP, from the tags of images that lie evenly over the data; kept in ``path``.

    Raises:
        UserError: no image could be read, or CLIP tells the classes no better than chance.
    """
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
        here = torch.zeros(len(critic.class_texts), dtype=torch.bool)
        here[torch.tensor(sample.tags, dtype=torch.int64) - 1] = True
        present.append(here)
    if not rows:
        raise UserError(f"none of the images in {data.root} could be read; there is nothing to learn from")
    found = calibrate_threshold(torch.stack(rows), torch.stack(present))
    write_atomic(path, (json.dumps({**asdict(found), "images": len(rows)}, indent=1) + "\n").encode())
    return found.threshold
