"""The commands that say what there is: your data, formats, methods, this installation, tags that may fit.

They stand among the others.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tag2mask.cli_data import Data, as_flags, data_options
from tag2mask.cli_options import (
    SOME_FAILED,
    DeviceOption,
    data_flags,
    label_config,
    model_options,
    show_options,
)
from tag2mask.types import UserError

info_app = typer.Typer()


@info_app.command()
@data_options("path")
@model_options("dino")
def check(
    *,
    data: Data,
    where: dict[str, Any],
    models: dict[str, Any],
    device: DeviceOption = "auto",
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Label two images, to tell how long all would take.")
    ] = True,
    json_: Annotated[bool, typer.Option("--json", help="All of it as JSON, with more names.")] = False,
) -> None:
    """Look through a data set before labelling it; nothing is written.

    It says what `label` would find: images, classes, files that cannot be used and why, the same picture under two
    names, sizes, true masks against tags; how long `label` takes on this machine (two images are labelled by
    clip-es); and the command to give next. It takes the same data and the same options of data as `label`.
    Where `label` would stop, say at a tag of two meanings, it looks through all the rest first, then says what stops.
    Exit code 1: `label` would stop. 3: some images cannot be used.

    Examples: `tag2mask check photos` · `tag2mask check VOC2012 --split train --no-measure`
    """
    from tag2mask.stages.check import check as run_check
    from tag2mask.stages.check_reading import read_as_far_as_possible
    from tag2mask.stages.run_data import absolute

    config = absolute(label_config(None, data_flags(data, where) | models, []))
    images, stops = read_as_far_as_possible(config.data)
    out = str(Path("runs") / data.resolve().stem)
    result = run_check(
        images,
        **models,
        device=device,
        measure=measure,
        command=shlex.join(["tag2mask", "label", str(data), *as_flags(where | models), "-o", out]),
        stops=stops,
    )
    typer.echo(result.as_json() if json_ else result.text())
    if result.stops:
        raise typer.Exit(1)
    if result.failed:
        raise typer.Exit(SOME_FAILED)


@info_app.command(name="formats")
def list_formats(name: Annotated[str | None, typer.Argument(help="A format, to show its options.")] = None) -> None:
    """List the formats of data (`--kind`), exported masks (`export --to`) and corrected ones (`import --from`).

    With a name, list the options of that format of export.
    """
    from tag2mask.formats import IMPORTERS, exporters, readers

    if name is not None:
        from tag2mask.stages.export import find_exporter

        show_options(find_exporter(name).Options)
        return
    tables = {
        "Data, by --kind:": readers(),
        "Masks, by export --to:": exporters(),
        "Corrected masks, by import --from:": IMPORTERS,
    }
    for head, table in tables.items():
        typer.echo(head)
        for known, entry in table.items():
            typer.echo(f"  {known:12} {entry.what}")


@info_app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="A method, to show its options.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="A recipe of the method: its values stand beside the defaults.")
    ] = None,
) -> None:
    """List the methods, or the options of one; with `--config recipes/voc12_pot.yaml` beside the published values."""
    from tag2mask.config import LabelConfig, RefineConfig, read_config
    from tag2mask.methods import known_methods, method_class

    if name is None:
        for known in known_methods():
            line = (sys.modules[method_class(known).__module__].__doc__ or "").strip().splitlines()[0]
            typer.echo(f"{known:10} {line}")
        typer.echo("\nOptions of one: tag2mask methods clip-es")
        return
    published = None
    if config is not None:
        given = read_config(config)
        steps: list[LabelConfig | RefineConfig] = [given]
        steps += [] if given.refine is None else [given.refine]
        published = next((step.options for step in steps if step.method == name), None)
        if published is None:
            raise UserError(f"{config} is a recipe of {' and '.join(step.method for step in steps)}, not of {name}")
    show_options(method_class(name).Options, published)


@info_app.command()
def doctor(json_: Annotated[bool, typer.Option("--json", help="As JSON, for other programs.")] = False) -> None:
    """Check this installation: versions, devices, precision, weights on this machine, and known problems."""
    from tag2mask.stages.doctor import doctor as run_doctor

    found = run_doctor()
    typer.echo(json.dumps(found.as_dict(), indent=2) if json_ else "\n".join(found.lines()))
    if not found.healthy:
        raise typer.Exit(1)


@info_app.command()
@data_options("path", classes="What may be in the images: voc12, coco14, or a YAML file (names: [cat, dog]).")
@model_options("dino")
def suggest(
    *,
    data: Data,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The table; default: tags.suggested.csv beside the data.")
    ] = None,
    where: dict[str, Any],
    least: Annotated[float, typer.Option(min=0, max=1, help="Score from which a class is suggested.")] = 0.1,
    top: Annotated[int, typer.Option(min=1, help="Number of scores to show for each image.")] = 5,
    template: Annotated[
        list[str] | None, typer.Option(help="A sentence with {}; may be repeated: the mean over all counts.")
    ] = None,
    models: dict[str, Any],
    device: DeviceOption = "auto",
    batch: Annotated[int | None, typer.Option(min=1, help="Images at a time; default 1, on a GPU 8.")] = None,
    allow_unknown: Annotated[
        bool, typer.Option("--allow-unknown", help="Continue even if the CLIP does not know a class's words.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a table that was edited, and scores from other settings.")
    ] = False,
) -> None:
    """Suggest tags for images that have none: the classes ranked by CLIP's score, for you to look over.

    The score of a class is how likely CLIP takes it to be what is shown, among all classes and what CLIP-ES calls
    background: the geometric mean of that in the whole image and in the crop that shows it best. It is no probability
    that the class is there. Nothing is labelled by the table, and `label` refuses to read it, until you have looked
    it over and called its column `suggested` `labels`; saved as tags.csv, it is then a tag file like any other.
    Stop it whenever you like: the same command resumes it. Where tags or true masks are there, it says how good the
    scores are (mAP).

    Example: `tag2mask suggest photos --classes voc12`
    """
    from tag2mask.data.tag_columns import DRAFT
    from tag2mask.methods.zero_shot import ZeroShot
    from tag2mask.models.weights import load_clip
    from tag2mask.stages.run_data import open_data
    from tag2mask.stages.suggest import suggest as run_suggest

    given = label_config(None, data_flags(data, where) | models, [])
    images = open_data(given.data)
    for note in images.notes:
        typer.echo(f"note: {note}", err=True)
    model = load_clip(given.clip, device=device, tokenizer=given.tokenizer, activation=given.activation)
    scorer = ZeroShot(images.classes, model, template, allow_unknown=allow_unknown)
    place = (data if data.is_dir() else data.parent) / DRAFT if out is None else out
    size = batch or (1 if model.device.type == "cpu" else 8)
    done = run_suggest(images, scorer, place, least=least, top=top, batch_size=size, overwrite=overwrite)
    typer.echo(done.text())
    if done.failed or not done.images:
        raise typer.Exit(SOME_FAILED)
