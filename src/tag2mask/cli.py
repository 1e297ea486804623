"""The command line. Each command is one stage; every error is one line, ``--debug`` shows where it arose."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tag2mask import __version__
from tag2mask.cli_data import Data, data_options
from tag2mask.cli_errors import OneLineErrors
from tag2mask.cli_info import info_app
from tag2mask.cli_options import (
    SOME_FAILED,
    ActivationOption,
    ClipOption,
    DeviceOption,
    DinoOption,
    DryRunOption,
    LimitOption,
    OthersOption,
    RemovedOption,
    SetOption,
    ShardOption,
    TokenizerOption,
    images_if_there,
    label_config,
    named_value,
    next_steps,
    one_of,
)
from tag2mask.cli_results import results_app
from tag2mask.cli_segment import segment_app
from tag2mask.cli_storybook import storybook_app
from tag2mask.formats import EXPORTERS, IMPORTERS, READERS, said
from tag2mask.process import tune_process
from tag2mask.types import UserError

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""From image tags to pixel masks, with CLIP.

    A first look, offline: `tag2mask demo`. Your own photographs: put a `tags.csv` (`image,labels`, labels separated
    by `;`) beside them, then `tag2mask fetch openai/clip-vit-base-patch16`,
    `tag2mask label photos -o runs/photos` and `tag2mask report runs/photos`.

    Exit codes: 0 done, 1 an error that you can fix, 2 wrong usage, 3 some images failed (they are in the run's
    manifest) or none has a mask, 130 stopped by Ctrl-C, or by `label --minutes`
    while a method was being fitted (the same command resumes it).""",
)
app.add_typer(storybook_app, name="storybook")
app.add_typer(results_app)
app.add_typer(segment_app)  # without a name: its commands stand among the others
app.add_typer(info_app)


@app.callback(invoke_without_command=True)
def _root(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(f"tag2mask {__version__}")
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything that is written.")] = Path("demo"),
    n: Annotated[int, typer.Option("-n", min=4, help="Number of scenes.")] = 120,
    device: DeviceOption = "auto",
) -> None:
    """Draw picture-book scenes, label them from their tags, measure against exact masks, write a report.

    Everything is in the package: no download, no GPU, about a minute.
    """
    from tag2mask.lab.demo import demo as run_demo

    result = run_demo(out, n, device=device)
    typer.echo(result.text)
    typer.echo(f"report: {result.report}")
    if not shutil.which("tag2mask"):
        typer.echo("next: . .venv/bin/activate (Windows: .venv\\Scripts\\activate), then tag2mask --help")


@app.command()
@data_options("path")
def label(
    *,
    data: Annotated[Path | None, typer.Argument(help=f"Give {said(READERS)}; or name it in --config.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to create or resume.")] = Path("run"),
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="How masks are made; `tag2mask methods` lists all.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; flags given here override it.")] = None,
    set_: SetOption = None,
    where: dict[str, Any],
    clip: ClipOption = None,
    dino: DinoOption = None,
    tokenizer: TokenizerOption = None,
    activation: ActivationOption = None,
    refiner: Annotated[
        str | None,
        typer.Option(
            "--mask-refiner",
            "--crf",
            help="Makes masks follow the image's edges: a dense CRF preset (clip-es, irn, psa, ...), par, or none.",
        ),
    ] = None,
    refiner_on: Annotated[
        str | None,
        typer.Option(
            "--mask-refiner-on",
            help="What the mask refiner starts from: scores, or labels (the class that wins at each pixel).",
        ),
    ] = None,
    others: OthersOption = None,
    background: Annotated[
        str | None,
        typer.Option(
            help='How background is scored: "power:A" is (1 - highest class score)^A, "constant:T" is T everywhere, '
            '"own" is what the method gives.'
        ),
    ] = None,
    mu: Annotated[
        float | None, typer.Option(help="Confidence (0 to 1) below which a pixel becomes 255, ignored; 0 keeps all.")
    ] = None,
    confidence: Annotated[
        str | None,
        typer.Option(
            help="How confidence is computed: posterior (by the mask refiner) or cam (from the maps; Eq. 8 of "
            "CLIP-ES)."
        ),
    ] = None,
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
    devices: Annotated[int, typer.Option(min=1, help="Number of GPUs that share every batch of a fit (DDP).")] = 1,
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
            min=0, help="Number of processes that prepare images for a fit; default: up to 8 on a GPU, else 0."
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
    overwrite: Annotated[bool, typer.Option(help="Remove the run in the folder and start over.")] = False,
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
    from tag2mask.methods.protocol import Machine
    from tag2mask.run.corrected import CORRECTED, corrections_in
    from tag2mask.run.folder import Run
    from tag2mask.run.processes import helping
    from tag2mask.run.shard import WHOLE, find_shard
    from tag2mask.stages.label import LabelSettings
    from tag2mask.stages.label import label as run_label
    from tag2mask.stages.recipe import prepare
    from tag2mask.stages.refine import label_refined

    given = label_config(
        config,
        {
            "data.path": data,
            **{f"data.{key}": value for key, value in where.items()},
            "method": method,
            "clip": clip,
            "dino": dino,
            "tokenizer": tokenizer,
            "activation": activation,
            "masks.refiner": refiner,
            "masks.refiner_on": refiner_on,
            "masks.others": others,
            "masks.background": background,
            "masks.mu": mu,
            "masks.confidence": confidence,
            "precision": precision,
            "refine.method": refine,
        },
        set_ or [],
        refine_set,
    )
    shard_ = find_shard(shard)
    afresh = refit or (overwrite and shard_ == WHOLE)
    makes: Literal["maps", "network"] = one_of("--masks-of", masks_of, "maps", "network")
    recipe = prepare(given, device=device, out=None if afresh else out, masks_of=makes)
    for note in recipe.data.notes if not helping() else ():
        typer.echo(f"note: {note}", err=True)
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
    for summary in summaries:
        typer.echo(summary.text())
    if (out / CORRECTED).is_dir() and (corrected := corrections_in(Run.open(out))):
        typer.echo(corrected)
    if not summaries[-1].empty:
        measured = [["eval", out]] if recipe.data.has_truth.any() else []
        next_steps(*measured, ["report", out], ["train", out, "-o", Path("nets") / out.name])
    # of a shard alone, images without tags may be all there are
    if any(summary.failed or (summary.empty and shard_ == WHOLE) for summary in summaries):
        raise typer.Exit(SOME_FAILED)


@app.command()
@data_options()
def export(
    *,
    source: Annotated[
        Path, typer.Argument(help="A run folder, for its masks; or a folder of a network or a training.")
    ],
    to: Annotated[
        str,
        typer.Option(
            help=f"Format to write. For masks: {', '.join(EXPORTERS)}; for networks: onnx, safetensors. "
            "`tag2mask formats` says what each is."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where to write: a folder or a file, depending on the format.")
    ],
    where: dict[str, Any],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="An option of the format, as NAME=VALUE; see `tag2mask formats NAME`."),
    ] = None,
    competition: Annotated[
        str | None, typer.Option(help="comp5 or comp6: the same as --set competition=..., for voc-test.")
    ] = None,
) -> None:
    """Write a run's masks, or a trained network, in another format."""
    from tag2mask.run.corrected import corrections_in
    from tag2mask.run.folder import Run
    from tag2mask.stages.export import export as run_export
    from tag2mask.stages.export import find_exporter
    from tag2mask.stages.export_network import export_network, holds_network
    from tag2mask.stages.run_data import images_for

    options = dict(named_value("--set", option, "competition=comp5") for option in set_ or [])
    options |= {} if competition is None else {"competition": competition}
    if holds_network(source, to):
        if options:
            raise UserError(f"{to} has no options: leave out --set {', '.join(options)}")
        typer.echo(export_network(source, to, out).text())
        return
    opened = Run.open(source)
    dataset = (images_for if find_exporter(to).needs_images else images_if_there)(opened, where)
    typer.echo(f"written: {run_export(opened, dataset, to, out, options)}")
    if corrected := corrections_in(opened):
        typer.echo(corrected)


@app.command(name="import")
@data_options("kind")
def import_(
    *,
    run: Annotated[Path, typer.Argument(help="The run whose masks were exported.")],
    source: Annotated[Path, typer.Argument(help="The folder, zip archive or file that the tool wrote.")],
    kind: Annotated[
        str | None,
        typer.Option("--from", help=f"The format: {', '.join(IMPORTERS)}. Default: what its files show."),
    ] = None,
    where: dict[str, Any],
) -> None:
    """Take masks back that a person corrected in another tool.

    They stand beside the made ones in the run, never over them; eval, export, report and train use them instead.
    What cannot be read, and names that are no image of the run, are left out and named; then the exit code is 3.
    """
    from tag2mask.run.folder import Run
    from tag2mask.stages.import_masks import import_masks

    opened = Run.open(run)
    found = import_masks(opened, source, kind, data=images_if_there(opened, where))
    typer.echo(found.text())
    typer.echo(f"next: tag2mask export {run} --to png -o masks, or tag2mask train {run} -o network")
    if not found.complete:
        raise typer.Exit(SOME_FAILED)


@app.command()
@data_options("path", "truth", "truth_values", "truth_turn")
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
    clip: ClipOption = None,
    tokenizer: TokenizerOption = None,
    activation: ActivationOption = None,
    device: DeviceOption = "auto",
    set_: SetOption = None,
) -> None:
    """Rank prompt templates for your data by sharpness (CLIP-ES, Eq. 5), from the tags alone: lower is better.

    Use the winner with `tag2mask label ... --set 'templates=["a clean origami {}."]'`.
    """
    from tag2mask.stages.prompts import rank_prompts
    from tag2mask.stages.recipe import prepare

    flags = {
        "data.path": data,
        **{f"data.{key}": value for key, value in where.items()},
        "clip": clip,
        "tokenizer": tokenizer,
        "activation": activation,
    }
    recipe = prepare(label_config(None, flags, set_ or []), device=device)
    ranking = rank_prompts(recipe.data, recipe.method, template or None, limit=limit)  # type: ignore[arg-type]
    typer.echo(ranking.text(top))


@app.command()
def fetch(
    repo: Annotated[
        str, typer.Argument(help="A CLIP or DINOv2 on the Hugging Face hub, such as openai/clip-vit-base-patch16.")
    ],
) -> None:
    """Download weights (safetensors), and a CLIP's tokenizer, into the Hugging Face cache."""
    from tag2mask.models.weights import fetch as run_fetch

    typer.echo(f"fetched: {run_fetch(repo)}")


def main() -> None:
    """The console script."""
    tune_process()
    app()
