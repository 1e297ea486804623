"""The commands of docs/pot.md run, on two small scenes and with fits of a step."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tag2mask.cli import app
from tag2mask.run.folder import Run
from tag2mask.storybook import render

PAGE = (Path(__file__).parents[1] / "docs" / "pot.md").read_text(encoding="utf-8")
SHORT = ("steps=1", "batch=2", "size=64", "scales=[1]")
BEFORE = [
    "label scenes -m classifier-cam --background constant:0.18 --refine irn --refine-set steps=1 --refine-set batch=2"
    " --set scales=[1] -o runs/irn",
    "label scenes -m clims --clip storybook-clip --set steps=1 --set batch=2 --set crop=64 --set scales=[1]"
    " -o runs/clims",
]


def commands():
    """Those of the page's shell blocks."""
    text = "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    return [line.removeprefix("tag2mask ") for line in text.splitlines() if line.startswith("tag2mask ")]


def shortened(command):
    words = shlex.split(command)
    refined = words[words.index("--refine") + 1] if "--refine" in words else None
    if "pot" in words[: words.index("-o")] and "-m" in words:
        words += [part for setting in SHORT for part in ("--set", setting)]
    if refined == "pot":
        words += [part for setting in SHORT for part in ("--refine-set", setting)]
    if refined == "irn":
        words += ["--refine-set", "steps=1", "--refine-set", "batch=2"]
    return words


@pytest.mark.filterwarnings("ignore")
def test_every_command_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    render("scenes", 2, split="val", size=(64, 96))
    made = [*BEFORE, *commands()]
    assert len(made) >= 10
    for command in made:
        words = shortened(command) if command in commands() else shlex.split(command)
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{command}\n{done.output}"
        assert len(Run.open(words[words.index("-o") + 1]).ids()) == 2
    on_labels = Run.open("runs/pot-crf").settings["mask_rule"]
    assert (on_labels["refiner"], on_labels["refiner_on"]) == ("pot", "labels")
