"""The commands that make masks from tags, and rank the words for it; they stand among the others of ``tag2mask``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tag2mask.cli_data import Data, data_options
from tag2mask.cli_options import (
    SOME_FAILED,
    DeviceOption,
    DevicesOption,
    DryRunOption,
    LimitOption,
    OthersOption,
    OutOption,
    OverwriteOption,
    RefinerOption,
    RemovedOption,
    SetOption,
    ShardOption,
    beside,
    data_flags,
    gather,
    label_config,
    model_options,
    next_steps,
    one_of,
)
from tag2mask.formats import READERS, said

label_app = typer.Typer()

_MASKS: dict[str, Any] = {
    "refiner": RefinerOption,
    "refiner_on": Annotated[
        str | None,
        typer.Option(
            "--mask-refiner-on",
            help="What the mask refiner starts from: scores, or labels (the class that wins at each pixel).",
        ),
    ],
    "others": OthersOption,
    "background": Annotated[
        str | None,
        typer.Option(
            help='How background is scored: "power:A" is (1 - highest class score)^A, "constant:T" is T everywhere, '
            '"own" is what the method gives.'
        ),
    ],
    "mu": Annotated[
        float | None, typer.Option(help="Confidence (0 to 1) below which a pixel becomes 255, ignored; 0 keeps all.")
    ],
    "confidence": Annotated[
        str | None,
        typer.Option(
            help="How confidence is computed: posterior (by the mask refiner) or cam (from the maps; Eq. 8 of "
            "CLIP-ES)."
        ),
    ],
}
"""How maps become masks, by the keys of ``config.MaskConfig``."""


@label_app.command()
@data_options("path")
@model_options()
@gather("masks", _MASKS)
def label(
    *,
    data: Annotated[Path | None, typer.Argument(help=f"Give {said(READERS)}; or name it in --config.")] = None,
    out: OutOption = Path("run"),
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="How masks are made; `tag2mask methods` lists all.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; flags given here override it.")] = None,
    set_: SetOption = None,
    where: dict[str, Any],
    models: dict[str, Any],
    masks: dict[str, Any],
    precision: Annotated[
        str | None,
        typer.Option(
            help="Number format while a method is fitted, and in CLIP before its last block: float32, bfloat16 or "
            "float16."
        ),
    ] = None,
    device: DeviceOption = "auto",
    batch: Annotated[
        int | None, typer.Option(help="Images processed at a time; default: 1 on a processor, 8 on a GPU.")
    ] = None,
    shard: ShardOption = None,
    prior: Annotated[Path | None, typer.Option(help="Earlier run to start from, for methods that need one.")] = None,
    fitted: Annotated[
        Path | None,
        typer.Option(help="Another run whose learned weights are used instead of fitting the method again."),
    ] = None,
    fit_only: Annotated[
        bool, typer.Option("--fit-only", help="Fit the method, and stop before any image is labelled.")
    ] = False,
    devices: DevicesOption = 1,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Stop a fit after this many minutes; the same command resumes it. Labelling has no such limit.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of processes that prepare images for a fit; default: up to 8 on a GPU, else 0. Also the "
            "number of images labelled at a time on a processor; default: one a core, up to 8.",
        ),
    ] = None,
    refine: Annotated[
        str | None,
        typer.Option(
            help="Fit a second method (irn, psa, pot) on the maps of the first, and label with it; the first run "
            "is kept in OUT/seeds."
        ),
    ] = None,
    refine_set: Annotated[
        list[str] | None,
        typer.Option(
            help="An option of the method that --refine names, as NAME=VALUE; masks.refiner=..., masks.mu=... and "
            "the like set how its masks are made."
        ),
    ] = None,
    masks_of: Annotated[
        str,
        typer.Option(
            help="What makes the masks: maps (the score maps), or network (the one that the method trains, if it "
            "does, as its paper tests it; only tagged classes win)."
        ),
    ] = "maps",
    scores: Annotated[
        bool, typer.Option(help="Keep the score maps (small files), which eval, report and --refine use.")
    ] = True,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit", help="Fit the method and label all images again, for example after tags have changed."
        ),
    ] = False,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    removed: RemovedOption = "keep",
    overwrite: OverwriteOption = False,
) -> None:
    """Make a pseudo mask, with its confidence, for every image that has tags.

    Stop it whenever you like: the same command resumes it, and the folder ends up the same. One bad image never stops
    it. Many processes share one folder with `--shard 0/4` ... `--shard 3/4`, or under torchrun or a SLURM array.
    Every method but clip-es is fitted before it labels (classifier-cam only with `--set epochs=5`): most learn from
    the tags, some from an earlier run too. Before shards, give the command once with `--fit-only`.

    Examples: `tag2mask label photos -o runs/photos` · `tag2mask label VOC2012 --split train --classes voc12
    -o runs/voc` · `tag2mask label photos --set affinity=mhsa --mask-refiner none -o runs/mhsa` ·
    `tag2mask label photos --refine irn -o runs/irn`, the same as `tag2mask label photos -m irn --prior runs/photos
    -o runs/irn` · one image: `tag2mask label dog.jpg --tags "dog;person" -o runs/dog`
    """
    from tag2mask.data.truth_doubt import doubt_of_truth
    from tag2mask.methods.protocol import Machine
    from tag2mask.run.processes import helping
    from tag2mask.run.shard import WHOLE, find_shard
    from tag2mask.stages.label import LabelSettings
    from tag2mask.stages.label import label as run_label
    from tag2mask.stages.recipe import prepare
    from tag2mask.stages.refine import label_refined

    flags = {
        **data_flags(data, where),
        "method": method,
        **models,
        **{f"masks.{key}": value for key, value in masks.items()},
        "precision": precision,
        "refine.method": refine,
    }
    given = label_config(config, flags, set_ or [], refine_set)
    shard_ = find_shard(shard)
    afresh = refit or (overwrite and shard_ == WHOLE)
    makes: Literal["maps", "network"] = one_of("--masks-of", masks_of, "maps", "network")
    recipe = prepare(given, device=device, out=None if afresh else out, masks_of=makes)
    doubt = None if helping() else doubt_of_truth(recipe.data)
    for note in recipe.data.notes if not helping() else ():
        typer.echo(f"note: {note}", err=True)
    if doubt is not None:
        typer.echo(f"note: as the first images have it, eval would refuse the truth: {doubt}", err=True)
    how = LabelSettings(
        rule=recipe.rule,
        prior=prior,
        fitted=fitted,
        keep_scores=scores,
        masks_of=makes,
        shard=shard_,
        limit=limit,
        batch_size=batch,
        overwrite=overwrite,
        refit=refit,
        fit_only=fit_only,
        machine=Machine(devices, workers, minutes),
        removed=one_of("--removed", removed, "keep", "drop"),
        noted=recipe.noted,
    )
    if dry_run:
        from tag2mask.stages.dry_run import dry_label, dry_refined

        alone = recipe.refine is None
        for plan in [dry_label(recipe.data, recipe.method, out, how)] if alone else dry_refined(recipe, out, how):
            typer.echo(plan.text())
        return
    if recipe.refine is None:
        summaries = [run_label(recipe.data, recipe.method, out, how)]
    else:
        summaries = label_refined(recipe, out, how)
    if fit_only:
        learned = given.method if given.refine is None else given.refine.method
        typer.echo(f"{out}: {learned} has learned; the same command without --fit-only labels")
        return
    _say(out, summaries, measured=bool(recipe.data.has_truth.any()) and doubt is None, few=limit is not None)
    # of a shard alone, images without tags may be all there are
    if any(summary.failed or (summary.empty and shard_ == WHOLE) for summary in summaries):
        raise typer.Exit(SOME_FAILED)


def _say(out: Path, summaries: Sequence[Any], *, measured: bool, few: bool) -> None:
    """Print what was done, and what comes next.

    measured: there are true masks to measure by, and nothing speaks against them. few: others are left for later; a
    network would learn from too few.
    """
    from tag2mask.run.corrected import CORRECTED, corrections_in
    from tag2mask.run.folder import Run

    for summary in summaries:
        typer.echo(summary.text())
    if (out / CORRECTED).is_dir() and (corrected := corrections_in(Run.open(out))):
        typer.echo(corrected)
    if not summaries[-1].empty:
        steps = [["eval", out]] if measured else []
        more = [] if few else [["train", out, "-o", beside("nets", out)]]
        next_steps(*steps, ["report", out], *more)


@label_app.command()
@data_options("path", "truth", "truth_values", "truth_turn")
@model_options("dino")
def prompts(
    *,
    data: Data,
    top: Annotated[int, typer.Option(min=0, help="Number of rows to show; 0 shows all.")] = 20,
    limit: Annotated[int, typer.Option(min=1, help="Number of tagged images to use, from the first on.")] = 500,
    template: Annotated[
        list[str] | None,
        typer.Option(help="A template to rank, with {} for the class; may be repeated. Default: all."),
    ] = None,
    where: dict[str, Any],
    models: dict[str, Any],
    device: DeviceOption = "auto",
    set_: SetOption = None,
) -> None:
    """Rank prompt templates for your data by sharpness (CLIP-ES, Eq. 5), from the tags alone: lower is better.

    Use the winner with `tag2mask label ... --set 'templates=["a clean origami {}."]'`.
    """
    from tag2mask.stages.prompts import rank_prompts
    from tag2mask.stages.recipe import prepare

    recipe = prepare(label_config(None, data_flags(data, where) | models, set_ or []), device=device)
    ranking = rank_prompts(recipe.data, recipe.method, template or None, limit=limit)  # type: ignore[arg-type]
    typer.echo(ranking.text(top))
