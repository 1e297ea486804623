from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tag2mask.data import read_voc
from tag2mask.data.png import encode_mask
from tag2mask.data.voc import object_names
from tag2mask.types import UserError


def xml(*names):
    objects = "".join(
        f"<object><name>{name}</name><difficult>{n % 2}</difficult><part><name>head</name></part></object>"
        for n, name in enumerate(names)
    )
    return f"<annotation><filename>x.jpg</filename><owner><name>someone</name></owner>{objects}</annotation>"


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def devkit(tmp_path):
    """Three images: a dog with two persons, a train, and one without annotation; masks that contradict the tags."""
    root = tmp_path / "VOC2012"
    for name in ("one", "two", "three"):
        (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(root / f"JPEGImages/{name}.jpg")
    put(root / "Annotations/one.xml", xml("person", "dog", "person"))
    put(root / "Annotations/two.xml", xml("train"))
    put(root / "SegmentationClass/one.png", encode_mask(np.full((3, 4), 9, np.uint8), ((0, 0, 0),)))
    put(root / "SegmentationClassAug/two.png", encode_mask(np.full((3, 4), 8, np.uint8), ((0, 0, 0),)))
    put(root / "ImageSets/Segmentation/train.txt", "two\none\n\n")
    put(root / "ImageSets/Main/trainval.txt", "three -1\none  1\n")
    return root


def ids(dataset):
    return [sample.id for sample in dataset]


def test_tags_come_from_all_boxes(devkit):
    dataset = read_voc(devkit)
    assert {s.id: s.tags for s in dataset} == {"one": (12, 15), "two": (19,), "three": None}
    assert dataset.classes.id == "voc12"
    assert "tags from the boxes in Annotations" in dataset.notes
    assert any("without a file in Annotations, tags unknown: 1 (three)" in note for note in dataset.notes)
    assert [s.image for s in dataset] == [devkit / f"JPEGImages/{name}.jpg" for name in ids(dataset)]


def test_masks_are_ground_truth_and_nothing_else(devkit):
    dataset = read_voc(devkit)
    truth = {s.id: s.truth for s in dataset}
    assert truth["one"]()[0, 0] == 9
    assert truth["two"]()[0, 0] == 8
    assert truth["three"] is None
    for path in devkit.glob("SegmentationClass*/*.png"):
        path.write_bytes(b"not a mask at all")
    assert [s.tags for s in read_voc(devkit)] == [s.tags for s in dataset]


def test_splits(devkit, tmp_path):
    assert ids(read_voc(devkit, "train")) == ["two", "one"]
    assert ids(read_voc(devkit, "trainval")) == ["three", "one"]
    put(
        tmp_path / "list.txt",
        "\ufeff/JPEGImages/one.jpg /SegmentationClassAug/one.png\r\nJPEGImages/two.jpg x\r\none\r\ngone",
    )
    dataset = read_voc(devkit, tmp_path / "list.txt")
    assert ids(dataset) == ["one", "two"]
    assert any("images of list.txt that are not there: 1 (gone)" in note for note in dataset.notes)
    assert any("lines of list.txt that repeat an image: 1 (one)" in note for note in dataset.notes)
    with pytest.raises(UserError, match="there is train, trainval"):
        read_voc(devkit, "val")


def test_ids_with_spaces_in_a_list(devkit):
    Image.new("RGB", (4, 3)).save(devkit / "JPEGImages/my cat.jpg")
    put(devkit / "ImageSets/Segmentation/train.txt", "my cat\ntwo\n")
    assert ids(read_voc(devkit, "train")) == ["my cat", "two"]


def test_a_tags_file_instead(devkit, tmp_path):
    put(tmp_path / "t.csv", "image,labels\none,cat\nJPEGImages/two.jpg,dog\nthree.jpg,\n")
    dataset = read_voc(devkit, tags=tmp_path / "t.csv")
    assert {s.id: s.tags for s in dataset} == {"one": (8,), "two": (12,), "three": None}
    part = read_voc(devkit, "train", tags=tmp_path / "t.csv")
    assert [s.tags for s in part] == [(12,), (8,)]
    assert not any("not there" in note or "no row" in note for note in part.notes)


def test_without_annotations(devkit):
    for path in (devkit / "Annotations").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="no readable annotation"):
        read_voc(devkit)
    (devkit / "Annotations").rmdir()
    with pytest.raises(UserError, match="never read from masks: unpack the Annotations, or give a tags file"):
        read_voc(devkit)
    put(devkit / "tags.csv", "image,labels\none.jpg,cat\n")
    assert {s.id: s.tags for s in read_voc(devkit)} == {"one": (8,), "two": None, "three": None}


def test_other_classes(devkit):
    put(devkit / "Annotations/two.xml", xml("bicycle"))
    few = devkit.parent / "few.yaml"
    few.write_text("names: [aeroplane, dog, person]")
    with pytest.raises(UserError, match=r"no class of few: 'bicycle'"):
        read_voc(devkit, classes=few)
    (devkit / "classes.yaml").write_text("names: [bicycle, person, dog]")
    assert {s.id: s.tags for s in read_voc(devkit)} == {"one": (2, 3), "two": (1,), "three": None}
    skipped = read_voc(devkit, classes=few, unknown="skip")
    assert {s.id: s.tags for s in skipped} == {"one": (2, 3), "two": None, "three": None}


def test_it_is_found_from_above(devkit):
    assert len(read_voc(devkit.parent)) == 3
    with pytest.raises(UserError, match="no folder JPEGImages"):
        read_voc(devkit / "Annotations")


def test_names_of_parts_and_owners_are_no_objects():
    assert object_names(xml("dog", "cat").encode()) == ["dog", "cat"]
    assert object_names(b"<annotation></annotation>") == []


@pytest.mark.parametrize(
    "content",
    [
        '<!DOCTYPE a [<!ENTITY x "dog">]><annotation><object><name>&x;</name></object></annotation>',
        '<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>',
        "<annotation><object>",
        "",
    ],
)
def test_unsafe_and_broken_xml_leaves_tags_unknown(devkit, content):
    put(devkit / "Annotations/one.xml", content)
    dataset = read_voc(devkit)
    assert {s.id: s.tags for s in dataset} == {"one": None, "two": (19,), "three": None}
    assert any("unreadable files in Annotations, tags unknown: 1 (one.xml" in note for note in dataset.notes)


def test_real_photographs(photographs):
    dataset = read_voc(photographs / "voc12-mini", "val")
    assert len(dataset) == 100
    assert all(sample.tags for sample in dataset)
    sample = dataset[0]
    assert set(np.unique(sample.truth()).tolist()) - {0, 255} == set(sample.tags)
