"""The page on adding a method is true: its code runs, and is a method like the others."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from methods.toys import make_data
from pages import import_modules_of
from tag2mask.cli import app
from tag2mask.methods import METHODS, make_method
from tag2mask.stages.label import label

PAGE = (Path(__file__).parent.parent / "docs" / "add-a-method.md").read_text(encoding="utf-8")


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The page's modules, importable, and its entry point."""
    import_modules_of(PAGE, tmp_path, monkeypatch)
    for name, where in re.findall(r'^([\w-]+) = "(\w+:\w+)"$', PAGE, re.MULTILINE):
        monkeypatch.setitem(METHODS, name, where)


def test_the_method_of_the_page_labels(page, tmp_path):
    data = make_data(tmp_path / "images", count=3)
    summary = label(data, make_method("stand-out", data.classes, cell=2), tmp_path / "run", progress=False)
    assert (summary.done, summary.failed) == (3, 0)
    shown = CliRunner().invoke(app, ["methods", "stand-out"])
    assert "cell 4 int" in " ".join(shown.output.split())


def test_the_method_with_a_clip_has_texts(page):
    import with_clip

    from methods.cases import WORDS, random_clip
    from methods.toys import CLASSES

    classes = replace(CLASSES, names=("background", *WORDS.names))
    made = with_clip.WithCLIP(classes, clip=random_clip())
    assert len(made.texts) == len(WORDS.names)
    assert made.device == random_clip().device
