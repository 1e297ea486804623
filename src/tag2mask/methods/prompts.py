"""Sharpness-based prompt selection (CLIP-ES, section 3.2.1): which template to use, from tags alone.

A template whose scores are far apart among the classes of one image lets the strongest class suppress the others.
Sharpness (Eq. 5) measures that; the paper finds it roughly negatively correlated with mIoU, so lower is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.methods.clip_es import ClipES, class_texts
from tag2mask.types import ClassSet, Item, UserError

CLIP_ES_TEMPLATE = "a clean origami {}."


def imagenet_templates() -> tuple[str, ...]:
    """The 80 templates that CLIP's authors used on ImageNet, and the one that CLIP-ES chose."""
    text = resources.files("tag2mask.classes").joinpath("imagenet_templates.txt").read_text(encoding="utf-8")
    return (*text.splitlines(), CLIP_ES_TEMPLATE)


@dataclass(frozen=True)
class Prompt:
    """One template and its sharpness over the images seen; lower is better."""

    template: str
    sharpness: float


class Sharpness:
    """Sums Eq. 5 over images for many templates at once; each image goes through CLIP once, memory stays flat."""

    def __init__(self, method: ClipES, classes: ClassSet, templates: Sequence[str]) -> None:
        self.method = method
        self.classes = classes
        texts = class_texts(classes, method.options)
        unknown, allow = method.clip.unknown, method.options.allow_unknown
        self.left_out = tuple((t, tuple(words)) for t in templates if (words := unknown(t.replace("{}", " "))))
        skipped = {template for template, _ in self.left_out}
        self.templates = tuple(t for t in templates if t not in skipped)
        if not self.templates:
            raise UserError(
                f"each of the {len(templates)} templates has words that {method.clip.name} does not "
                f"know; unknown in the first: {', '.join(self.left_out[0][1])}"
            )
        ensemble = partial(method.clip.ensemble, allow_unknown=allow)
        self.features = torch.stack([ensemble(texts.names, [t]) for t in self.templates])  # (P, C, E)
        self.background = None
        if method.options.background:
            self.background = torch.stack([ensemble(texts.background, [t]) for t in self.templates])  # (P, M, E)
        self.variance = torch.zeros(len(self.templates), dtype=torch.float64)
        self.mean = torch.zeros(len(self.templates), dtype=torch.float64)
        self.images = 0

    def update(self, items: Sequence[Item]) -> None:
        """Add images with at least one tag."""
        with torch.inference_mode():
            for item, embedding in zip(items, self.method.embeddings(items), strict=True):
                if item.tags is None or not len(item.tags):
                    continue
                scores = self._scores(F.normalize(embedding, dim=0), item.tags.to(embedding.device) - 1)  # (P, K)
                self.variance += scores.var(1, correction=0).cpu()
                self.mean += scores.mean(1).cpu()
                self.images += 1

    def _scores(self, unit: Tensor, tags: Tensor) -> Tensor:
        """Softmax scores of the image's own classes under every template: (P, K) float64."""
        if self.background is None:
            logits = self.features @ unit  # (P, C)
            return (self.method.scale * logits).double().softmax(1)[:, tags]
        texts = torch.cat([self.features[:, tags], self.background], 1)  # (P, K + M, E)
        return (self.method.scale * texts @ unit).double().softmax(1)[:, : len(tags)]

    def ranking(self) -> list[Prompt]:
        """All templates, least sharp first. Raises UserError where no image had tags."""
        if not self.images:
            raise UserError("no image with tags was seen, so no template can be ranked; give a data set with tags")
        values = (self.variance / self.mean).tolist()
        return sorted((Prompt(t, v) for t, v in zip(self.templates, values, strict=True)), key=lambda p: p.sharpness)
