"""The command line. Each command is one stage; every error is one line, ``--debug`` shows where it arose."""

from __future__ import annotations

import atexit
import gc
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from tag2mask import __version__
from tag2mask.cli_data import as_flags, data_options
from tag2mask.cli_errors import OneLineErrors
from tag2mask.cli_info import info_app
from tag2mask.cli_label import label_app
from tag2mask.cli_options import SOME_FAILED, DeviceOption, beside, images_if_there, named_value, next_steps
from tag2mask.cli_results import results_app
from tag2mask.cli_segment import segment_app
from tag2mask.cli_storybook import storybook_app
from tag2mask.formats import EXPORTERS, IMPORTERS
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
app.add_typer(label_app)  # without a name: its commands stand among the others
app.add_typer(results_app)
app.add_typer(segment_app)
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
    written = run_export(opened, dataset, to, out, options)
    typer.echo(f"written: {written}")
    if corrected := corrections_in(opened):
        typer.echo(corrected)
    if to in IMPORTERS:
        typer.echo("when masks have been corrected there:")
        next_steps(["import", source, written, *as_flags({key: where[key] for key in where if key != "kind"})])


@app.command(name="import")
@data_options("kind")
def import_(
    *,
    run: Annotated[Path, typer.Argument(help="The run whose masks were exported.")],
    source: Annotated[Path, typer.Argument(help="The folder, zip archive or file that the tool wrote.")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--from",
            help=f"The format: {', '.join(IMPORTERS)}. Default: what its files show; where that could be two, it "
            "asks.",
        ),
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
    images = images_if_there(opened, where)
    found = import_masks(opened, source, kind, data=images)
    typer.echo(found.text())
    flags = as_flags(where)
    trains = [] if images is None else [["train", run, "-o", beside("nets", run), *flags]]
    next_steps(["export", run, "--to", "png", "-o", beside("corrected-masks", run), *flags], *trains)
    if not found.complete:
        raise typer.Exit(SOME_FAILED)


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
    atexit.register(gc.freeze)  # or Python looks for garbage in all of torch as it ends: a third of a second
    app()
