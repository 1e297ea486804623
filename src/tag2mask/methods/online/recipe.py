"""What decides a training of ``methods.online``. Loads no Lightning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tag2mask.ops.affinity import Affinity

Padding = Literal["ignored", "labelled"]


@dataclass(frozen=True)
class OnlineRecipe:
    """Everything that decides a training but the towers.

    early, late: how maps are spread before and from step ``switch`` on.
    lr: of the decoder. warmup: steps. padding: whether what a crop has beyond its picture is labelled, as the
    released code does, or ignored.
    affinity_weight: of the decoder's affinity loss. dice_weight: of WeCLIP+'s Dice. mutual_weight: of the agreement
    of its two outputs.
    feedback: multiply the initial maps by the decoder's own probabilities (WeCLIP+).
    replace_at: from this step on, labels are the decoder's own where its probability is above ``sure`` (WeCLIP+);
        None: never.
    """

    steps: int
    batch: int
    crop: int
    scales: tuple[float, float]
    lr: float
    warmup: int
    early: Affinity
    late: Affinity
    switch: int
    padding: Padding
    affinity_weight: float
    dice_weight: float = 0.0
    mutual_weight: float = 0.0
    feedback: bool = False
    replace_at: int | None = None
    sure: float = 0.75


def recipe_of(options: Any, *, batch: int, patch: int, padding: Padding, **more: Any) -> OnlineRecipe:
    """The options of a method, and what is published where one was not given.

    options: ``OnlineOptions``. batch, padding: what is published. patch: of the CLIP, whose crops have 20 x 20.
    more: what options alone do not decide, and fields that one method alone has.
    """
    return OnlineRecipe(
        batch=options.batch or batch,
        crop=options.crop or 20 * patch,
        scales=options.scales,
        warmup=options.warmup,
        padding=options.padding or padding,
        affinity_weight=options.affinity_weight,
        **more,
    )
