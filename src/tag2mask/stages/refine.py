"""``label`` twice: seeds in OUT/seeds by any method, then a refiner, fitted on the seeds' maps, in OUT.

Both runs go on where they were stopped. A finished seeds run may just as well be given as the prior of the refiner.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tag2mask.run.folder import SEEDS
from tag2mask.stages.fit import learns
from tag2mask.stages.label import label
from tag2mask.stages.recipe import Recipe
from tag2mask.stages.work import Summary
from tag2mask.types import UserError


def label_refined(
    recipe: Recipe,
    out: Path | str,
    *,
    prior: Path | str | None = None,
    fit_only: bool = False,
    overwrite: bool = False,
    refit: bool = False,
    **how: Any,
) -> list[Summary]:
    """Make seeds as the recipe says and refine their maps.

    Args:
        recipe: with a refiner.
        out: the folder of the refined run; the seeds' is inside.
        prior: what the seeds' own method starts from, if it does.
        fit_only: make the seeds and stop when the refiner has learned.
        overwrite: remove both runs and begin afresh.
        refit: as ``overwrite``, and what was learned goes, too.
        how: of both, as ``label`` has it: shard, batch_size, removed, progress, crf_max_pixels.

    Returns:
        Summaries of the seeds and of the refined run.

    Raises:
        UserError: the recipe has no refiner; and as ``label``.
    """
    if recipe.refine is None:
        raise UserError("nothing to refine with; name a refiner, such as --refine irn")
    seeds = Path(out) / SEEDS
    own_fit = learns(recipe.method)
    first = label(
        recipe.data,
        recipe.method,
        seeds,
        rule=recipe.rule,
        noted=recipe.noted,
        prior=prior,
        overwrite=overwrite or (refit and not own_fit),
        refit=refit and own_fit,
        **how,
    )
    second = label(
        recipe.data,
        recipe.refine.method,
        out,
        rule=recipe.refine.rule,
        noted=recipe.noted,
        prior=seeds,
        fit_only=fit_only,
        overwrite=overwrite,
        refit=refit,
        **how,
    )
    return [first, second]
