"""``label`` twice: seeds in OUT/seeds by any method, then a refiner, fitted on the seeds' maps, in OUT.

Both runs resume where they were stopped. A finished seeds run may just as well be given as the prior of the refiner.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tag2mask.methods.protocol import Machine
from tag2mask.run.artefacts import SEEDS
from tag2mask.run.progress import minutes_left
from tag2mask.stages.label import LabelSettings, label
from tag2mask.stages.machinery.work import Summary
from tag2mask.stages.recipe import Recipe
from tag2mask.types import UserError


def label_refined(
    recipe: Recipe, out: Path | str, settings: LabelSettings | None = None, **changes: Any
) -> list[Summary]:
    """Make seeds as the recipe says and refine their maps.

    Args:
        recipe: with a refiner; it has the rules of both runs.
        out: the folder of the refined run; the seeds' is inside.
        settings, changes: as ``label`` has them. ``machine`` is of every fit, its minutes of all together.
            ``prior`` is what the seeds' own method starts from, if it does;
            ``fit_only`` makes the seeds and stops when the refiner has learned; ``overwrite`` and ``refit`` are of
            both runs.

    Returns:
        Summaries of the seeds and of the refined run.

    Raises:
        UserError: the recipe has no refiner; a fit of another run, or no maps, were asked for; and as ``label``.
    """
    began = time.monotonic()
    settings = replace(settings or LabelSettings(), **changes)
    check_refined(recipe, settings)
    seeds = Path(out) / SEEDS
    made = label(recipe.data, recipe.method, seeds, first_of(recipe, settings))
    machine = replace(settings.machine, minutes=minutes_left(settings.machine.minutes, began))
    assert recipe.refine is not None
    second = replace(settings, rule=recipe.refine.rule, prior=seeds, machine=machine)
    return [made, label(recipe.data, recipe.refine.method, out, second)]


def check_refined(recipe: Recipe, settings: LabelSettings) -> None:
    """Raises UserError where the two runs cannot both be made."""
    if recipe.refine is None:
        raise UserError("nothing to refine with; name a refiner, such as --refine irn")
    if settings.limit is not None:
        raise UserError(
            "--refine fits a second method on the maps of all images, so --limit would leave it with too few: try "
            "the first method alone (without --refine), or give --refine without --limit"
        )
    if settings.fitted is not None or not settings.keep_scores:
        raise UserError("--refine makes its own seeds, with maps; for --fitted or --no-scores label in two commands")


def first_of(recipe: Recipe, settings: LabelSettings) -> LabelSettings:
    """The settings of the first run, which makes the seeds."""
    learns = recipe.method.learns
    return replace(
        settings,
        rule=recipe.rule,
        fit_only=False,
        machine=settings.machine if learns else Machine(),
        overwrite=settings.overwrite or (settings.refit and not learns),
        refit=settings.refit and learns,
    )
