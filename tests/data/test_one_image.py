from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tag2mask.classes import plain_classes
from tag2mask.cli import app
from tag2mask.config import parse_config
from tag2mask.data import read_dataset
from tag2mask.run.folder import Run
from tag2mask.stages.run_data import absolute, data_for
from tag2mask.types import UserError

CLASSES = plain_classes(["cat", "dog"], "pets")


@pytest.fixture
def dog(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("dog.jpg", "other.jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(folder / name)
    return folder / "dog.jpg"


@pytest.mark.parametrize(
    ("said", "names", "tags"),
    [("dog", ["dog"], (1,)), ("person; dog", ["dog", "person"], (1, 2)), ("background", [], ())],
)
def test_labels_of_one_image(dog, said, names, tags):
    classes = CLASSES if not names else None
    data = read_dataset(dog, tags=said, classes=classes)
    assert data.notes[0] == "read as image (it is one image)"
    assert [(sample.id, sample.image, sample.tags) for sample in data] == [("dog", dog, tags)]
    assert list(data.classes.foreground) == (names or ["cat", "dog"])


@pytest.mark.parametrize("said", ["dog,person", "none", "0.9"])
def test_labels_of_two_meanings_stop_as_in_a_tag_file(dog, said):
    with pytest.raises(UserError):
        read_dataset(dog, tags=said)


def test_labels_that_are_no_class(dog):
    with pytest.raises(UserError, match=r"--tags has names .*'dgo' \(1x, nearest: 'dog'\)"):
        read_dataset(dog, tags="dgo", classes=CLASSES)
    assert read_dataset(dog, tags="dgo;cat", classes=CLASSES, unknown="skip")[0].tags == (1,)


def test_it_needs_its_tags_but_not_for_a_network(dog):
    with pytest.raises(UserError, match="say what is in it, as --tags 'dog;person'"):
        read_dataset(dog)
    data = read_dataset(dog, network=CLASSES)
    assert (data[0].tags, data.classes) == (None, CLASSES)


def test_a_file_called_like_the_labels_is_asked_about(dog, monkeypatch):
    monkeypatch.chdir(dog.parent)
    (dog.parent / "dog").write_text("image,labels\n")
    with pytest.raises(UserError, match=r"--tags dog is a file.*give the folder of dog\.jpg"):
        read_dataset(dog, tags="dog")


def test_its_truth(dog, tmp_path):
    (tmp_path / "masks").mkdir()
    with pytest.raises(UserError, match="no mask of any image"):
        read_dataset(dog, tags="dog", truth=tmp_path / "masks")
    Image.fromarray(np.ones((40, 60), np.uint8)).save(tmp_path / "masks/dog.png")
    assert read_dataset(dog, tags="dog", truth=tmp_path / "masks")[0].truth().max() == 1


def test_labels_do_not_become_a_path(dog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"path": "photos/dog.jpg", "tags": "dog;person"}
    config = absolute(parse_config({"data": given}))
    assert (config.data.path, config.data.tags) == (str(dog), "dog;person")
    noted = {"config": {"data": {"path": str(dog), "tags": "dog;person"}}}
    classes = plain_classes(["dog", "person"], "tags")
    run = Run(
        tmp_path,
        {"stage": "label", "classes": {"id": "tags", "names": classes.names, "palette": classes.palette}},
        noted,
    )
    assert data_for(run)[0].tags == (1, 2)
    moved = tmp_path / "elsewhere"
    dog.parent.rename(moved)
    assert data_for(run, {"path": moved / "dog.jpg"})[0].tags == (1, 2)
    with pytest.raises(UserError, match=r"say where it is now: --data PATH$"):
        data_for(run)


def test_one_command_labels_it_and_another_goes_on_with_the_next(dog, tmp_path):
    out = tmp_path / "run"
    same = ["-o", str(out), "--clip", "storybook-clip", "--mask-refiner", "none"]
    done = CliRunner().invoke(app, ["label", str(dog), "--tags", "dog;person", *same])
    assert done.exit_code == 0, done.output
    assert Run.open(out).ids() == ["dog"]
    classes = json.loads((out / "classes.json").read_text())["classes"]
    assert [each["name"] for each in classes] == ["background", "dog", "person"]
    assert f"next: tag2mask report {out}" in done.output
    done = CliRunner().invoke(app, ["label", str(dog.with_name("other.jpg")), "--tags", "dog;cat", *same])
    assert done.exit_code == 0, done.output
    assert Run.open(out).ids() == ["dog", "other"]
    assert [each["name"] for each in json.loads((out / "classes.json").read_text())["classes"]] == [
        "background",
        "dog",
        "person",
        "cat",
    ]
