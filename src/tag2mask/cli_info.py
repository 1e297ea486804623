"""The commands that say what there is: your data, formats, methods, this installation; among the others."""

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
    ActivationOption,
    ClipOption,
    DeviceOption,
    TokenizerOption,
    label_config,
    show_options,
)

info_app = typer.Typer()


@info_app.command()
@data_options("path")
def check(
    *,
    data: Data,
    where: dict[str, Any],
    clip: ClipOption = None,
    tokenizer: TokenizerOption = None,
    activation: ActivationOption = None,
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
    Exit code 3: some images cannot be used.

    Examples: `tag2mask check photos` · `tag2mask check VOC2012 --split train --no-measure`
    """
    from tag2mask.stages.check import check as run_check
    from tag2mask.stages.run_data import absolute, open_data

    flags = {"data.path": data, **{f"data.{key}": value for key, value in where.items()}, "activation": activation}
    config = absolute(label_config(None, flags, []))
    clips = {"--clip": clip, "--tokenizer": tokenizer, "--activation": activation}
    words = [word for flag, value in clips.items() if value is not None for word in (flag, value)]
    out = str(Path("runs") / data.resolve().stem)
    result = run_check(
        open_data(config.data),
        clip=clip,
        tokenizer=tokenizer,
        activation=activation,
        device=device,
        measure=measure,
        command=shlex.join(["tag2mask", "label", str(data), *as_flags(where), *words, "-o", out]),
    )
    typer.echo(result.as_json() if json_ else result.text())
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
def methods(name: Annotated[str | None, typer.Argument(help="A method, to show its options.")] = None) -> None:
    """List the methods, or the options of one."""
    from tag2mask.methods import known_methods, method_class

    if name is None:
        for known in known_methods():
            line = (sys.modules[method_class(known).__module__].__doc__ or "").strip().splitlines()[0]
            typer.echo(f"{known:10} {line}")
        typer.echo("\nOptions of one: tag2mask methods clip-es")
        return
    show_options(method_class(name).Options)


@info_app.command()
def doctor(json_: Annotated[bool, typer.Option("--json", help="As JSON, for other programs.")] = False) -> None:
    """Check this installation: versions, devices, precision, weights on this machine, and known problems."""
    from tag2mask.stages.doctor import doctor as run_doctor

    found = run_doctor()
    typer.echo(json.dumps(found.as_dict(), indent=2) if json_ else "\n".join(found.lines()))
    if not found.healthy:
        raise typer.Exit(1)
