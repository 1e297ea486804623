"""The command line, called in this process."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner

from tag2mask.cli import app


def call(*arguments: object) -> Result:
    """A command by its words after ``tag2mask``."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
