"""The commands that measure and show what a run holds; they stand among the others of ``tag2mask``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tag2mask.cli_data import as_flags, data_options
from tag2mask.cli_options import RunFolder, beside, images_if_there, next_steps
from tag2mask.types import UserError

results_app = typer.Typer()


@results_app.command(name="eval")
@data_options()
def evaluate(
    *,
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="A run folder that `label` or `predict` wrote, or several.")
    ],
    where: dict[str, Any],
    boundary: Annotated[bool, typer.Option(help="Also measure boundary IoU (slower).")] = True,
    thresholds: Annotated[
        bool, typer.Option(help="For one run: also try every background threshold and power on its score maps.")
    ] = True,
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence", help="For one run: also count pixels by confidence, with mIoU at mu 0.7, 0.8, 0.95."
        ),
    ] = False,
    json_: Annotated[
        Path | None, typer.Option("--json", help="For several runs: file to write the figures to, as JSON.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="For several runs: HTML file to write.")] = None,
) -> None:
    """Measure a run's masks and score maps against ground truth: mIoU, accuracy, precision, recall, boundary IoU.

    Several runs stand side by side, on the images of which all have a mask, with how far they agree:
    `tag2mask eval runs/a runs/b --out compare.html`
    """
    from tag2mask.run.folder import Run
    from tag2mask.stages.evaluate import evaluate as run_evaluate
    from tag2mask.stages.run_data import data_for

    opened = [Run.open(run) for run in runs]
    if len(opened) > 1:
        if confidence:
            raise UserError("--confidence works for one run; give it with a single run folder, or leave it out")
        _compare(opened, where, boundary, json_, out)
        return
    for flag, value, instead in (("--json", json_, f"{runs[0]}/metrics.json has"), ("--out", out, "report shows")):
        if value is not None:
            raise UserError(f"{flag} is for several runs; what eval finds of one, {instead}")
    dataset = data_for(opened[0], where)
    result = run_evaluate(opened[0], dataset, boundary=boundary, thresholds=thresholds, confidence=confidence)
    typer.echo(result.text())
    next_steps(["report", runs[0], *as_flags(where)])


def _compare(runs: list[Any], where: dict[str, Any], boundary: bool, json_: Path | None, out: Path | None) -> None:
    from tag2mask.stages.compare import compare, refuse_foreign, write_json, write_page
    from tag2mask.stages.run_data import data_for

    refuse_foreign(json_, out)
    data = [data_for(run, where) for run in runs]
    found = compare(runs, data, boundary=boundary)
    typer.echo(found.text())
    if json_ is not None:
        write_json(found, json_)
        typer.echo(f"written: {json_}")
    if out is not None:
        write_page(found, data[0].classes, out)
        typer.echo(f"written: {out}")


@results_app.command()
@data_options()
def report(
    *,
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; default: report.html in the run folder.")
    ] = None,
    where: dict[str, Any],
    worst: Annotated[
        int, typer.Option(min=0, help="How many images are shown large: the least sure, and with truth the worst.")
    ] = 24,
    gallery: Annotated[
        bool, typer.Option("--gallery/--no-gallery", help="Also pages of small pictures of all images, beside it.")
    ] = True,
) -> None:
    """Write one HTML file that shows a run: overlays, numbers, settings; with truth, classes and threshold curve."""
    from tag2mask.run.folder import Run
    from tag2mask.stages.report import report as run_report

    opened = Run.open(run)
    dataset = images_if_there(opened, where)
    typer.echo(f"report: {run_report(opened, dataset, out=out, worst=worst, gallery=gallery)}")
    next_steps(["export", run, "--to", "png", "-o", beside("masks", run), *as_flags(where)])
