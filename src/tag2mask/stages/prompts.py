"""Rank prompt templates for a data set by sharpness, from its tags alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tag2mask.data.image import BadImage
from tag2mask.data.pixels import read_pixels
from tag2mask.methods.clip_es import ClipES
from tag2mask.methods.prompts import Prompt, Sharpness, imagenet_templates
from tag2mask.run.progress import progress as show_progress
from tag2mask.types import Dataset, Item


@dataclass(frozen=True)
class PromptRanking:
    """prompts: least sharp (best) first. left_out: templates with words that the tokenizer does not know, with
    those words. images: how many images with tags were used. failed: how many could not be read."""

    prompts: tuple[Prompt, ...]
    left_out: tuple[tuple[str, tuple[str, ...]], ...]
    images: int
    failed: int

    def text(self, top: int = 0) -> str:
        """For people: the best ``top`` templates, or with 0 all, and what was left out."""
        lines = [f"{len(self.prompts)} templates over {self.images} images, best (least sharp) first"]
        lines += [f"  {prompt.sharpness:.5f}  {prompt.template}" for prompt in self.prompts[: top or None]]
        if self.failed:
            lines.append(f"could not be read: {self.failed} images")
        if self.left_out:
            words = sorted({word for _, unknown in self.left_out for word in unknown})
            shown = ", ".join(words[:8]) + (", ..." if len(words) > 8 else "")
            lines.append(
                f"left out: {len(self.left_out)} templates with words that this CLIP does not know ({shown})"
            )
        return "\n".join(lines)


def rank_prompts(
    data: Dataset,
    method: ClipES,
    templates: Sequence[str] | None = None,
    *,
    limit: int | None = None,
    progress: bool = True,
) -> PromptRanking:
    """Rank ``templates`` over the first ``limit`` tagged images; default are CLIP's ImageNet ones and CLIP-ES's own.

    Raises UserError where no template or no image is left.
    """
    sharpness = Sharpness(method, data.classes, templates or imagenet_templates())
    failed = 0
    total = min(len(data), limit or len(data))
    with show_progress(total, "prompts", enabled=progress) as bar:
        for sample in data:
            if sharpness.images >= total:
                break
            if not sample.tags:
                continue
            try:
                image = read_pixels(sample.image)  # (3, H, W)
            except BadImage:
                failed += 1
                continue
            sharpness.update([Item(sample.id, image, torch.tensor(sample.tags))])
            bar.advance()
    return PromptRanking(tuple(sharpness.ranking()), sharpness.left_out, sharpness.images, failed)
