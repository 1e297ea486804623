"""How the command line ends when something goes wrong: one line, and an exit code."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from tag2mask.types import UserError


class OneLineErrors(TyperGroup):
    """Runs the command; an error becomes one line on stderr and an exit code, with ``--debug`` a traceback."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the command that was asked for."""
        from tag2mask.run.processes import helping  # here, for what it loads: --help ends before

        debug = bool(ctx.params.get("debug"))
        with warnings.catch_warnings():
            if helping():
                warnings.simplefilter("ignore")  # the first process says the same
            elif not debug:
                warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            try:
                return super().invoke(ctx)
            except (typer.Exit, typer.Abort):
                raise
            except KeyboardInterrupt as stop:
                print(f"\n{stop}" if str(stop) else "\nstopped", file=sys.stderr)
                raise typer.Exit(130) from stop
            except UserError as error:
                if debug:
                    raise
                print(f"error: {error}", file=sys.stderr)
            except (OSError, ValueError, RuntimeError, KeyError, TypeError, MemoryError) as error:
                if debug or isinstance(error, BrokenPipeError):
                    raise
                said = " ".join(str(error).split())
                print(f"error: {type(error).__name__}: {said} (tag2mask --debug ... shows where)", file=sys.stderr)
            raise typer.Exit(1)
