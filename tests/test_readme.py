"""What README and the pages of docs/ say to type runs: commands, Python and YAML."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tag2mask.cli import app
from tag2mask.models.classifier import load_backbone
from tag2mask.storybook import render

ROOT = Path(__file__).parents[1]
CLIP = ["--clip", "storybook-clip"]
PAGES = (
    "README.md",
    *(f"docs/{name}.md" for name in ("index", "formats", "many-processes", "training")),
    *(f"docs/methods/{name}.md" for name in ("clip-es", "classifier-cam", "clims", "irn", "pot")),
    "docs/storybook.md",
)
"""Pages whose commands run one after the other, in one folder: the later ones take up what the earlier ones made."""


def blocks(language, pages=PAGES):
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in pages)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(pages=PAGES):
    """Every ``tag2mask`` line of the shell blocks, continuation lines joined, comments cut, each once."""
    text = "\n".join(blocks("sh", pages)).replace("\\\n", " ")
    lines = [
        shlex.join(shlex.split(line, comments=True)) for line in text.splitlines() if line.startswith("tag2mask ")
    ]
    return list(dict.fromkeys(lines))


def test_the_readme_has_commands():
    assert len(commands(["README.md"])) >= 5
    assert len(commands()) >= 30
    assert any("make demo" in block and "make test" in block for block in blocks("sh", ["README.md"]))


def test_every_target_of_make_that_is_named_exists():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for named in re.findall(r"(?:`|^)make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert named in targets, f"{page}: make {named}"


def test_the_commands_of_every_page_are_run_by_a_test():
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for path in sorted((ROOT / "docs").rglob("*.md")):
        page = path.relative_to(ROOT).as_posix()
        if commands([page]):
            assert page in PAGES or f'"{path.name}"' in tests, f"no test runs the commands of {page}"


def shortened(words):
    """A command as it is run here: small fits, and storybook-clip where the page has OpenAI's."""
    if words[0] == "label" and not {"--clip", "--config", "-m"} & set(words):
        words += [*CLIP, "--set", "allow_unknown=true"]
    if words[0] == "train":
        words += ["--set", "steps=2", "--set", "batch=2"]
    if "epochs=5" in words:
        words[words.index("epochs=5")] = "steps=1"
        words += ["--set", "batch=2", "--set", "crop=64"]
    if "clims" in words:
        words += CLIP if "--clip" not in words else []
        words += ["--set", "steps=1", "--set", "batch=2", "--set", "allow_unknown=true"]
    if "irn" in words and "--refine" not in words:
        words += ["--set", "steps=2", "--set", "batch=2"]
    if "--refine" in words:
        words += ["--refine-set", "steps=2", "--refine-set", "batch=2"]
    if "pot" in words:
        words += ["--refine-set", "scales=[1]"]
    if words[:2] == ["storybook", "render"]:
        words += ["--width", "128", "--height", "96"]
    if words[0] == "storybook" and "-n" in words:
        words[words.index("-n") + 1] = "4"
    return words


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that holds what the pages name, with small scenes."""
    monkeypatch.chdir(tmp_path)
    render("VOC2012", 6, split="val", size=(96, 128))
    shutil.copytree("VOC2012/JPEGImages", "photos/holiday")
    tags = Path("VOC2012/tags.csv").read_text().replace("JPEGImages/", "holiday/")
    Path("photos/tags.csv").write_text(tags)
    shutil.copytree("VOC2012/SegmentationClass", "photos-masks/holiday")
    shutil.copytree("VOC2012/JPEGImages", "train2014")
    os.rename("VOC2012/ImageSets/Segmentation/val.txt", "VOC2012/ImageSets/Segmentation/train.txt")
    shutil.copytree(ROOT / "recipes", "recipes")
    torch.save(load_backbone("storybook-resnet").state_dict(), "resnet50-19c8e357.pth")
    outline = {
        "category_id": 17,
        "segmentation": [[0, 0, 9, 0, 9, 9]],
        "area": 40,
        "bbox": [0, 0, 9, 9],
        "iscrowd": 0,
    }
    images = [
        {"id": i, "file_name": path.name, "width": 128, "height": 96}
        for i, path in enumerate(sorted(Path("train2014").iterdir()))
    ]
    instances = {
        "images": images,
        "annotations": [{"id": i, "image_id": i, **outline} for i in range(6)],
        "categories": [{"id": 17, "name": "cat"}],
    }
    Path("instances_train2014.json").write_text(json.dumps(instances))
    return tmp_path


def test_every_command_of_the_pages_runs(folder):
    """In order; a network is not for tests, so `fetch` only has to be known."""
    for command in commands():
        words = shlex.split(command)[1:]
        words = ["fetch", "--help"] if words[0] == "fetch" else shortened(words)
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{command}\n{done.output}"


def test_the_python_of_the_pages_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    render("scenes", 3, split="val", size=(96, 128))
    (code,) = blocks("python")
    exec(compile(code, "docs/index.md", "exec"), {})
    assert Path("runs/python/report.html").exists()


def test_the_yaml_of_the_pages_is_a_class_set(tmp_path):
    from tag2mask.classes import load_classes

    (text,) = blocks("yaml")
    (tmp_path / "plants.yaml").write_text(text)
    classes = load_classes(tmp_path / "plants.yaml")
    assert classes.texts["clip-es"].names == ("oak tree", "pine tree", "fern")
