"""The commands that say what there is: formats, methods, this installation. They stand among the others."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tag2mask.cli_options import show_options

info_app = typer.Typer()


@info_app.command(name="formats")
def list_formats(name: Annotated[str | None, typer.Argument(help="Show this format's options.")] = None) -> None:
    """List what data is read from (`--kind`) and what masks are written as (`export --to`), or options of one."""
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
def methods(name: Annotated[str | None, typer.Argument(help="Show this method's options.")] = None) -> None:
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
def doctor() -> None:
    """Look at this installation: versions, devices, precision, weights at hand, and known traps."""
    from tag2mask.stages.doctor import doctor as run_doctor

    lines, healthy = run_doctor()
    for line in lines:
        typer.echo(line)
    if not healthy:
        raise typer.Exit(1)
