"""CLIP-ES under many options on the same images, held in memory: what ablations and weights are measured with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.classes import load_classes
from tag2mask.data.pixels import read_pixels
from tag2mask.methods.clip_es import ClipES, ClipESOptions
from tag2mask.methods.prompts import Sharpness
from tag2mask.models.weights import CLIP
from tag2mask.ops.masks import pseudo_mask, upsample
from tag2mask.ops.metrics import BackgroundSweep, Metrics, average_precision, confusion_matrix, metrics
from tag2mask.stages.tally import CONSTANTS, POWERS
from tag2mask.storybook import draw_scene, scene_seed
from tag2mask.types import Background, ClassSet, Constant, Dataset, Item, Power, Scores

RULES: list[Power | Constant] = [*map(Power, POWERS), *map(Constant, CONSTANTS)]

WATCH_SEED = 1
"""Of the scenes that weights are chosen by; those of seed 0 are for figures, and no choice is made on them."""


class Figures(NamedTuple):
    """mIoU in %; "best" is the best background rule of ``RULES``, "own" CLIP-ES's, background 1 - max.

    maps, by_class: at the best rule, and IoU (%) by class there; maps_own: at the own one.
    initial: of the maps before refinement, at their own best rule; NaN where nothing refines them.
    masks, masks_own: after the dense CRF; NaN without. "best" is here the rule that was best for the maps before it.
    """

    maps: float
    maps_own: float
    by_class: dict[str, float]
    initial: float
    masks: float
    masks_own: float


@dataclass(frozen=True)
class Bench:
    """Images with exact masks, and a CLIP; figures by options.

    The best background rule is chosen with ground truth, on the maps, as the papers do.
    """

    classes: ClassSet
    items: Sequence[Item]
    truths: Sequence[Tensor]
    clip: CLIP

    @classmethod
    def read(cls, data: Dataset, clip: CLIP) -> Bench:
        """Of a data set's images with tags and truth."""
        items, truths = [], []
        for sample in data:
            if sample.tags and sample.truth:
                image = read_pixels(sample.image).contiguous()  # (3, H, W)
                items.append(Item(sample.id, image, torch.tensor(sample.tags)))
                truths.append(torch.from_numpy(sample.truth()))
        return cls(data.classes, items, truths, clip)

    @classmethod
    def draw(
        cls,
        clip: CLIP,
        n: int,
        *,
        size: tuple[int, int] = (192, 256),
        seed: int = 0,
    ) -> Bench:
        """Of ``n`` scenes of Storybook's val split, drawn here; those that show no class are left out."""
        names = load_classes("voc12")
        items, truths = [], []
        for index in range(n):
            scene = draw_scene(scene_seed("val", seed, index), size, names.foreground)
            if scene.tags:
                image = torch.from_numpy(scene.image).permute(2, 0, 1).contiguous()  # (3, H, W)
                items.append(Item(f"val_{seed:03d}_{index:06d}", image, torch.tensor(scene.tags)))
                truths.append(torch.from_numpy(scene.mask))
        return cls(names, items, truths, clip)

    def measure(self, *, crf: bool = False, clip: CLIP | None = None, **options: object) -> Figures:
        """The maps and, where asked for, the masks after the dense CRF (NaN if not)."""
        method = ClipES(self.classes, ClipESOptions.model_validate(options), clip=clip or self.clip)
        sweep, before = (BackgroundSweep(RULES, len(self.classes)) for _ in range(2))
        kept: list[Scores] = []
        for item, truth in zip(self.items, self.truths, strict=True):
            (scores,) = method.scores([item])
            sweep.update(truth, upsample(scores.maps, scores.size), scores.tags)
            if scores.initial is not None:
                before.update(truth, upsample(scores.initial, scores.size), scores.tags)
            kept.append(scores)
        by_rule: dict[Background, Metrics] = dict(zip(RULES, map(metrics, sweep.confusion()), strict=True))
        best = max(by_rule, key=lambda rule: by_rule[rule].miou)
        own = method.mask_rule.background
        masks = {rule: self._refined(kept, method, rule) for rule in {best, own}} if crf else {}
        return Figures(
            maps=100 * by_rule[best].miou,
            maps_own=100 * by_rule[own].miou,
            by_class={name: 100 * float(v) for name, v in zip(self.classes.names, by_rule[best].iou, strict=True)},
            initial=100 * max(metrics(confusion).miou for confusion in before.confusion()),
            masks=masks.get(best, float("nan")),
            masks_own=masks.get(own, float("nan")),
        )

    def _refined(self, kept: Sequence[Scores], method: ClipES, background: Background) -> float:
        rule = replace(method.mask_rule, background=background, mu=None)  # every pixel gets a label
        total = torch.zeros(len(self.classes), len(self.classes) + 1, dtype=torch.int64)
        for item, truth, scores in zip(self.items, self.truths, kept, strict=True):
            mask, _ = pseudo_mask(scores, item.image, rule)
            total += confusion_matrix(truth, mask, len(self.classes))
        return 100 * metrics(total).miou

    def tag_map(self, *, clip: CLIP | None = None, readout: str = "class") -> float:
        """Zero-shot mean average precision (%) of the classes: is each in the picture?

        readout: "class", as CLIP itself reads a picture, or "patches", as CLIP-ES does.
        """
        options = ClipESOptions.model_validate({"readout": readout})
        method = ClipES(self.classes, options, clip=clip or self.clip)
        scores = torch.cat([F.normalize(method.embeddings([item]), dim=-1) for item in self.items])  # (n, E)
        scores = scores @ method.class_features[0].T  # (n, C)
        present = torch.zeros(scores.shape, dtype=torch.bool)
        for row, item in zip(present, self.items, strict=True):
            if item.tags is not None:
                row[item.tags - 1] = True
        return 100 * float(average_precision(scores.cpu(), present).nanmean())

    def sharpness(self, templates: Iterable[str], **options: object) -> Sharpness:
        """Eq. 5 for every template whose words the CLIP knows."""
        method = ClipES(self.classes, ClipESOptions.model_validate(options), clip=self.clip)
        seen = Sharpness(method, self.classes, list(templates))
        for item in self.items:
            seen.update([item])
        return seen

    def everything_foreground(self) -> float:
        """mIoU (%) when every pixel gets the image's first tag."""
        total = torch.zeros(len(self.classes), len(self.classes) + 1, dtype=torch.int64)
        for item, truth in zip(self.items, self.truths, strict=True):
            if item.tags is not None:
                total += confusion_matrix(truth, torch.full_like(truth, int(item.tags[0])), len(self.classes))
        return 100 * metrics(total).miou
