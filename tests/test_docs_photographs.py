"""The commands of the page on your photographs run, in order, from its first line to its last."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tag2mask.cli import app
from tag2mask.data.image import IMAGE_SUFFIXES
from tag2mask.storybook import render

PAGE = (Path(__file__).parent.parent / "docs" / "your-photographs.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.usefixtures("one_thread")
def test_the_commands_run_and_each_leaves_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    render("VOC2012", 4, split="train", size=(64, 80))
    shutil.copytree("VOC2012/JPEGImages", "photos")
    Path("photos/tags.csv").write_text(Path("VOC2012/tags.csv").read_text().replace("JPEGImages/", ""))
    shutil.copy(next(Path("photos").glob("*.jpg")), "dog.jpg")
    said = {}
    for words in COMMANDS:
        given = list(words)
        if words[0] == "label" or (words[0] == "check" and "--no-measure" not in words):
            given += ["--clip", "storybook-clip", "--set", "allow_unknown=true"][: None if words[0] == "label" else 2]
        if words[0] == "train":
            given += ["--set", "steps=2", "--set", "batch=2"]
        done = CliRunner().invoke(app, given)
        assert done.exit_code == 0, f"{shlex.join(given)}\n{done.output}"
        said[shlex.join(words)] = done.output
        if "--limit" in words:
            assert len(list(Path(words[words.index("-o") + 1]).glob("masks/**/*.png"))) == 3
        if words[:2] == ["label", "photos"] and "--dry-run" in words:
            assert not Path("runs").exists()
    assert len(list(Path("runs/photos/masks").rglob("*.png"))) == 4
    assert json.loads(said["check photos --json --no-measure"][said["check photos --json --no-measure"].index("{") :])
    assert "next: tag2mask label photos" in said["check photos"]
    assert "next: tag2mask train runs/photos -o nets/photos" in said["label photos -o runs/photos"]


def test_the_page_names_every_suffix_that_is_read():
    words = PAGE.lower()
    alike = {".tif": "tiff", ".hif": "heif"}
    assert all(alike.get(suffix, suffix[1:]) in words for suffix in IMAGE_SUFFIXES)
