"""Rare names that may be slips for common ones: named, never put together."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tag2mask.classes import load_classes
from tag2mask.data import read_coco, read_folder
from tag2mask.data.slips import notes_on_slips
from tag2mask.data.tags import TagReading


@pytest.mark.parametrize(
    ("rare", "common"),
    [
        ("dgo", "dog"),  # swapped
        ("dogg", "dog"),
        ("motorbke", "motorbike"),
        ("Motor-Bke", "motorbike"),
        ("mototbkie", "motorbike"),  # two slips in a long name
        ("potted plnat", "potted_plant"),
        ("hrose", "horse"),
        ("zebbra", "zebra"),
        ("person", "perzon"),
        ("giraff", "giraffe"),
    ],
)
def test_slips_of_the_pen_are_named(rare, common):
    said = notes_on_slips({rare: 1, common: 300, "umbrella": 2}, "tags.csv")
    assert len(said) == 1
    assert f"{rare!r} (1) like {common!r} (300)" in said[0]
    assert "tags.csv" in said[0]
    assert "umbrella" not in said[0]


@pytest.mark.parametrize(
    "counts",
    [
        {"cat": 100, "car": 40},  # both are common
        {"room 1": 1, "room 2": 300},
        {"h11": 1, "h1": 300},
        {"bread": 1, "board": 300},
        {"unripe": 1, "ripe": 300},
        {"uninfected": 1, "infected": 300},
        {"exterior": 1, "interior": 300},
        {"hypertension": 1, "hypotension": 300},
        {"ectoderm": 1, "endoderm": 300},
        {"class a": 1, "class b": 300},
        {"room_a": 1, "room_b": 300},
        {"type i": 1, "type ii": 300},
        {"stage iv": 1, "stage vi": 300},
        {"消防车": 1, "消防员": 300},  # no letters that have two cases: each is a third of the word
        {"hat": 1, "cat": 300},
        {"house": 1, "horse": 300},
        {"chair": 1, "hair": 300},
        {"dg": 1, "dog": 300},  # too short to tell
        {"dog": 300, "dgo": 0},  # named, on no image
    ],
)
def test_names_that_are_no_slips(counts):
    assert notes_on_slips(counts, "tags.csv") == []


def test_the_names_of_public_class_sets_are_no_slips_of_each_other_where_they_are_common():
    for called in ("voc12", "coco14"):
        names = load_classes(called).foreground
        assert notes_on_slips({name: 30 + 2 * place for place, name in enumerate(names)}, called) == []


def photographs(root, tags):
    root.mkdir()
    for name in tags:
        Image.new("RGB", (8, 6)).save(root / f"{name}.png")
    (root / "tags.csv").write_text("image,labels\n" + "".join(f"{name}.png,{said}\n" for name, said in tags.items()))
    return root


def test_a_folder_names_slips_and_keeps_them(tmp_path):
    root = photographs(tmp_path / "photos", {**{f"a{n}": "dog" for n in range(6)}, "b": "dgo", "c": "dogs"})
    data = read_folder(root, reading=TagReading(twins="keep"))
    assert data.classes.foreground == ("dgo", "dog", "dogs")
    slips = [note for note in data.notes if "a slip?" in note]
    assert len(slips) == 1
    assert "1 ('dgo' (1) like 'dog' (6))" in slips[0]  # that "dogs" looks like "dog" is said once, elsewhere
    assert not any("a slip?" in note for note in read_folder(root, classes=write(tmp_path / "own.yaml")).notes)


def write(path):
    path.write_text("names: [dog, dgo, dogs]\n")  # these names were chosen
    return path


def test_coco_names_slips_among_its_categories(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    rows, objects = [], []
    for number in range(7):
        Image.new("RGB", (8, 6)).save(images / f"{number}.png")
        rows.append({"id": number, "file_name": f"{number}.png", "width": 8, "height": 6})
        box = {"bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0, "segmentation": [[0, 0, 4, 0, 4, 4]]}
        objects.append({"id": number + 1, "image_id": number, "category_id": 2 if number else 1, **box})
    named = [{"id": 1, "name": "hrose"}, {"id": 2, "name": "horse"}]
    (tmp_path / "mine.json").write_text(json.dumps({"images": rows, "annotations": objects, "categories": named}))
    data = read_coco(tmp_path / "mine.json", images)
    assert any("'hrose' (1) like 'horse' (6)" in note for note in data.notes)
