"""The commands of docs/export-and-import.md run, and its table names every format."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from tag2mask.cli import app
from tag2mask.formats import EXPORTERS, IMPORTERS
from tag2mask.storybook import render

PAGE = (Path(__file__).parents[1] / "docs" / "export-and-import.md").read_text(encoding="utf-8")


def run(command: str) -> str:
    done = CliRunner().invoke(app, shlex.split(command))
    assert done.exit_code == 0, done.output
    return done.output


def test_the_commands_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    render(tmp_path / "scenes", 2)
    run("label scenes --method classifier-cam --crf none -o runs/scenes")
    text = "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    said = [run(line.removeprefix("tag2mask ")) for line in text.splitlines() if line.startswith("tag2mask ")]
    assert "labelme: 0 masks corrected, 2 as they were" in said[-1]
    assert "polygons | masks" in run("formats labelme")


def test_every_format_is_in_the_table():
    named = re.findall(r"^\| ([\w-]+) \|", PAGE, re.MULTILINE)
    assert set(named) - {"format", "---"} == set(EXPORTERS)
    assert set(IMPORTERS) <= set(EXPORTERS)
