"""The recipe of storybook-dino's training, and what is refused before it begins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tag2mask.run.sampling import Training
from tag2mask.storybook.render import check_render
from tag2mask.storybook.scenes import CLASSES
from tag2mask.types import UserError


@dataclass(frozen=True)
class SelfDistil:
    """The whole recipe. Equal recipes on one machine's processor give equal weights.

    The defaults are what came furthest in trials of a few hundred pictures. What needs long trainings (small views,
    class tokens, hidden patches) is off: few=2, whole_weight=0.25 and hidden=0.3 turn it on.

    width, layers, heads, patch, side: the transformer; its positions are learned for side x side pixels, also the
    size of a large view. scenes: how many are drawn, at ``size`` (H, W).
    small: the side of small views, and few: how many of them a picture has beside its two large ones.
    place: share of the picture, from and to, that all views of it lie in, so that they show much of the same.
    large_share, small_share: of that place that a view shows. colour: the most that light and colours are shifted.
    hidden: share of a large view's patches that the student does not see.
    codes: K, how many there are. student_temperature, teacher_temperature: of the softmax over them.
    whole_weight, aligned_weight, hidden_weight: of the losses on class tokens of other views; on patches of other
    views that show the same place; on hidden patches of the same view. spread_weight: of what keeps features from
    crowding into few directions, where all prototypes would be alike.
    steps: of ``batch`` pictures. lr, warmup, weight_decay: AdamW's; the rate rises over ``warmup`` steps, a tenth of
    ``steps`` at most, and falls as a cosine to 0. ema: decay of the teacher's weights.
    precision: float32 or bfloat16. seed: of fresh weights, order and views; the scenes are the same for every seed.
    """

    width: int = 128
    layers: int = 2
    heads: int = 2
    patch: int = 4
    side: int = 48
    scenes: int = 3000
    size: tuple[int, int] = (144, 192)
    small: int = 24
    few: int = 0
    place: tuple[float, float] = (0.1, 0.5)
    large_share: tuple[float, float] = (0.4, 1.0)
    small_share: tuple[float, float] = (0.1, 0.4)
    colour: float = 0.1
    hidden: float = 0.0
    codes: int = 512
    student_temperature: float = 0.1
    teacher_temperature: float = 0.03
    whole_weight: float = 0.0
    aligned_weight: float = 1.0
    hidden_weight: float = 1.0
    spread_weight: float = 1.0
    steps: int = 3000
    batch: int = 16
    lr: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.05
    ema: float = 0.996
    precision: str = "float32"
    seed: int = 0

    def training(self, **how: Any) -> Training:
        """Steps, batch and seed of this recipe for the Trainer; ``how`` says the rest."""
        return Training(self.steps, self.batch, seed=self.seed, precision=self.precision, **how)


def check(recipe: SelfDistil) -> None:
    """Refuse a recipe that cannot be run, before anything is drawn.

    Raises:
        UserError: naming what does not fit.
    """
    check_render(recipe.scenes, 0, "train", recipe.size, CLASSES, None)
    counts = ("width", "layers", "heads", "patch", "steps", "batch", "codes")
    weights = ("whole_weight", "aligned_weight", "hidden_weight", "spread_weight")
    above = ("lr", "student_temperature", "teacher_temperature")
    fits = {
        f"{', '.join(counts)} of at least 1": all(getattr(recipe, name) >= 1 for name in counts),
        "a width in multiples of heads": recipe.heads >= 1 and recipe.width % recipe.heads == 0,
        "side and small in multiples of patch, above 0": recipe.patch >= 1
        and min(recipe.side, recipe.small) > 0
        and not (recipe.side % recipe.patch or recipe.small % recipe.patch),
        "few of at least 0": recipe.few >= 0,
        "shares from above 0 to 1, the lower end first": all(
            0 < low <= high <= 1 for low, high in (recipe.place, recipe.large_share, recipe.small_share)
        ),
        "0 <= colour <= 1": 0 <= recipe.colour <= 1,
        "0 <= hidden < 1": 0 <= recipe.hidden < 1,
        "0 <= ema < 1": 0 <= recipe.ema < 1,
        f"finite {', '.join(above)} above 0": all(0 < getattr(recipe, name) < math.inf for name in above),
        f"finite {', '.join(weights)} of at least 0, one of the first three above": (
            all(0 <= getattr(recipe, name) < math.inf for name in weights)
            and any(getattr(recipe, name) for name in weights[:3])
        ),
        "a finite weight_decay of at least 0": 0 <= recipe.weight_decay < math.inf,
        "a warmup of at least 0": recipe.warmup >= 0,
        "a seed of at least 0": 0 <= recipe.seed < 2**63,
    }
    wrong = [expected for expected, kept in fits.items() if not kept]
    if wrong:
        raise UserError(f"{recipe}: expected {'; '.join(wrong)}")
