"""The recipe of storybook-clip's training, and what is refused before it begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tag2mask.run.sampling import Training
from tag2mask.storybook.render import check_render
from tag2mask.storybook.scenes import CLASSES
from tag2mask.types import UserError

Size = tuple[int, int]


@dataclass(frozen=True)
class Pretrain:
    """The whole recipe. Equal recipes on one machine's processor give equal weights.

    width, layers, heads, patch, side, embed: the image tower; its positions are learned for side x side pixels.
    text_width, text_layers, text_heads: the text tower.
    scenes: pictures that are rendered once, at the largest size. sizes: (H, W) in pixels; each batch takes the next.
    crop: the least share of a side that a view keeps. colour: the most that light and colours are shifted.
    drop: share of the patches that a batch leaves out. class_weight, patch_weight, aligned_weight: weights of the
    losses of the three readings. sharpness: how much the aligned reading prefers the patches that fit best.
    loss: over all captions of the batch ("softmax"), or for each pair alone ("sigmoid").
    steps: optimiser steps; each takes the mean gradient of ``accumulate`` batches of ``batch`` pictures.
    precision: float32, bfloat16 or float16. seed: of fresh weights and of the order, views and captions; the scenes
    are the same ones for every seed.
    tag_weight: weight of the same loss with one text for each class, against the pictures that show it.
    dense_weight, value_weight: weights of the losses on what each patch shows, by pseudo masks that ``teacher`` makes
    from tags; read at the last block's end, and on its value path alone (MaskCLIP's reading, along which CLIP-ES's
    gradients run).
    attention_weight: weight of the loss on attention (mean of all blocks) that leaves the patches that show the same;
    CLIP-ES's CAA rests on it.
    teacher: a classifier, a folder or "storybook-resnet".
    lr, warmup, weight_decay: AdamW's; the rate rises over ``warmup`` steps, a tenth of ``steps`` at most, and falls
    as a cosine to 0.
    ema: decay of the averaged weights that are kept instead of the last; 0 keeps the last.
    init: an existing CLIP, a folder or "storybook-clip", from which all weights that match are taken.
    """

    width: int = 192
    layers: int = 8
    heads: int = 3
    patch: int = 8
    side: int = 192
    embed: int = 128
    text_width: int = 128
    text_layers: int = 3
    text_heads: int = 4
    scenes: int = 60_000
    sizes: tuple[Size, ...] = ((192, 256), (144, 192), (192, 192), (192, 160))
    crop: float = 0.9
    colour: float = 0.2
    drop: float = 0.75
    class_weight: float = 0.5
    patch_weight: float = 0.5
    aligned_weight: float = 0.25
    sharpness: float = 10.0
    tag_weight: float = 0.5
    dense_weight: float = 2.0
    value_weight: float = 2.0
    attention_weight: float = 3.0
    teacher: str = "storybook-resnet"
    loss: Literal["softmax", "sigmoid"] = "softmax"
    steps: int = 5000
    batch: int = 512
    accumulate: int = 1
    lr: float = 1e-3
    warmup: int = 300
    weight_decay: float = 0.1
    ema: float = 0.0
    precision: str = "float32"
    seed: int = 0
    init: str | None = None

    @property
    def largest(self) -> Size:
        """The size of the rendered scenes: (H, W)."""
        return max(height for height, _ in self.sizes), max(width for _, width in self.sizes)

    @property
    def dense(self) -> bool:
        """Whether pseudo masks are needed."""
        return bool(self.dense_weight or self.value_weight or self.attention_weight)

    def training(self, **how: Any) -> Training:
        """Steps, batch and seed of this recipe for the Trainer; ``how`` says the rest."""
        return Training(
            steps=self.steps,
            batch=self.batch,
            accumulate=self.accumulate,
            seed=self.seed,
            precision=self.precision,
            **how,
        )


def check(recipe: Pretrain) -> None:
    """Refuse a recipe that cannot be run, before anything is rendered.

    Raises:
        UserError: naming what does not fit.
    """
    small = [name for name in _COUNTS if getattr(recipe, name) < 1]
    if small:
        raise UserError(f"{_named(recipe, small)}: expected at least 1")
    odd = [name for name in _NOT_NEGATIVE if not 0 <= getattr(recipe, name) < math.inf]  # false for nan, too
    odd += [name for name in ("lr", "sharpness") if not 0 < getattr(recipe, name) < math.inf]
    odd += [name for name in ("seed", "warmup") if not 0 <= getattr(recipe, name) < 2**63]  # what torch takes
    if odd:
        least = "above 0" if set(odd) <= {"lr", "sharpness"} else "of at least 0 (lr and sharpness above 0)"
        raise UserError(f"{_named(recipe, odd)}: expected finite numbers {least}")
    wrong = [size for size in recipe.sizes if size[0] % recipe.patch or size[1] % recipe.patch or min(size) < 16]
    if wrong or not recipe.sizes:
        raise UserError(
            f"sizes {list(recipe.sizes)}: expected heights and widths of at least 16, in multiples of {recipe.patch}"
        )
    for whole, part in (("side", "patch"), ("width", "heads"), ("text_width", "text_heads")):
        if getattr(recipe, whole) % getattr(recipe, part):
            raise UserError(f"{_named(recipe, [whole, part])}: expected a multiple of {part} for {whole}")
    ranges = {
        "0 <= drop < 1": 0 <= recipe.drop < 1,
        "0 < crop <= 1": 0 < recipe.crop <= 1,
        "0 <= ema < 1": 0 <= recipe.ema < 1,
        "0 <= colour <= 1": recipe.colour <= 1,
    }
    for expected, kept in ranges.items():
        if not kept:
            raise UserError(f"{_named(recipe, [expected.split()[2]])}: expected {expected}")
    check_render(recipe.scenes, 0, "train", recipe.largest, CLASSES, None)
    if not any(getattr(recipe, name) for name in _WEIGHTS):
        raise UserError(f"{', '.join(_WEIGHTS)} are 0: expected one above")
    if recipe.loss not in ("softmax", "sigmoid"):
        raise UserError(f"loss {recipe.loss!r}: expected softmax or sigmoid")


_COUNTS = (
    *("width", "layers", "heads", "patch", "side", "embed", "text_width", "text_layers", "text_heads"),
    *("scenes", "steps", "batch", "accumulate"),
)
_WEIGHTS = (
    *("class_weight", "patch_weight", "aligned_weight"),
    *("tag_weight", "dense_weight", "value_weight", "attention_weight"),
)
_NOT_NEGATIVE = ("colour", "weight_decay", *_WEIGHTS)


def _named(recipe: Pretrain, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {getattr(recipe, name)}" for name in names)
