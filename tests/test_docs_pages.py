"""The commands of docs/suggest.md and docs/watch-training.md run; the YAML of docs/classes.md is what it says."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tag2mask.classes import load_classes
from tag2mask.cli import app
from tag2mask.storybook import render

ROOT = Path(__file__).parents[1]
SMALLER = {"steps=200": "steps=2", "steps=300": "steps=3", "100": "1", "30": "2"}


def blocks(page, language):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(page):
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("tag2mask ")]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The working folder of somebody with three photographs, a run on them, and some true masks."""
    monkeypatch.chdir(tmp_path)
    scenes = render(tmp_path / "drawn", 3, split="val", size=(48, 64))
    shutil.copytree(scenes / "JPEGImages", "photos")
    shutil.copytree(scenes / "SegmentationClass", "photos-masks")
    Path("photos/tags.csv").write_text((scenes / "tags.csv").read_text().replace("JPEGImages/", ""))
    shutil.copytree(ROOT / "recipes", "recipes")


def run(words):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"{shlex.join(words)}\n{done.output}"
    return done.output


def test_the_commands_on_suggestions_run(photos):
    Path("photos/tags.csv").unlink()
    listed = commands("suggest.md")
    assert len(listed) == 3
    for command in listed:
        words = [SMALLER.get(word, word) for word in shlex.split(command)[1:]]
        if words[0] == "suggest":
            words += ["--template", "a photo of a {}."] + ([] if "--clip" in words else ["--clip", "storybook-clip"])
        else:
            words += ["--width", "64", "--height", "48"]
        said = run(words)
    assert "mAP" in said
    table = Path("photos/tags.suggested.csv").read_text()
    assert table.startswith(blocks("suggest.md", "csv")[0].splitlines()[0])
    Path("photos/tags.csv").write_text(table.replace("suggested", "labels", 1))
    from tag2mask.data import read_folder

    assert len(read_folder("photos", classes="voc12")) == 3


def test_the_commands_on_training_run(photos):
    run(["label", "photos", "--classes", "voc12", "--clip", "storybook-clip", "--mu", "0", "-o", "runs/photos"])
    narrow = ["--set", "init=random", "--set", "batch=2", "--set", "crop=32", "--device", "cpu"]
    narrow += ["--set", "options={width: 4, blocks: [1, 1, 1, 1], channels: 8}"]
    listed = commands("watch-training.md")
    assert len(listed) == 6
    for command in listed:
        words = [SMALLER.get(word, word) for word in shlex.split(command)[1:]]
        if words[0] == "train" and "--list" not in words:
            words += narrow
        if "--hold-out" in words:
            words[words.index("--hold-out") + 1] = "1"
        run(words)


def test_the_class_sets_of_the_page_say_what_it_says(tmp_path):
    short, whole = blocks("classes.md", "yaml")
    (tmp_path / "plants.yaml").write_text(whole)
    (tmp_path / "short.yaml").write_text(short)
    classes = load_classes(tmp_path / "plants.yaml")
    texts = classes.texts["clip-es"]
    assert load_classes(tmp_path / "short.yaml").foreground == classes.foreground == ("oak", "pine", "fern")
    assert classes.palette[1] == (120, 80, 20)
    assert classes.aliases == {"quercus": "oak", "fir": "pine"}
    assert texts.names == ("oak tree", "pine tree,conifer", "fern")
    assert texts.background == ("ground", "sky", "building")
    assert texts.per_class["oak"] == ("oak", "oak tree", "acorn")
    assert classes.superclasses["kind"]["tree"] == ("oak", "pine")
    from tag2mask.classes import _File, _Texts

    for key in (*_File.model_fields, *_Texts.model_fields):
        assert re.search(rf"^ *{key}:", whole, re.MULTILINE), f"{key} is not in the example"
