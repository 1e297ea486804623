from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tag2mask.classes import plain_classes
from tag2mask.data import read_dataset, read_voc
from tag2mask.data.boxes import object_names
from tag2mask.data.png import encode_mask
from tag2mask.data.voc_layout import find_devkit
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
    with pytest.raises(UserError, match=r"not in the class list in .*few.yaml .*: 'bicycle'"):
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


def said(dataset, what):
    return any(what in note for note in dataset.notes)


def tags(dataset):
    return {sample.id: sample.tags for sample in dataset}


# --- where things lie


@pytest.mark.parametrize("place", ["VOC2007", "VOCdevkit/VOC2007", "train_val/train_val", "a/VOCdevkit/mine"])
def test_a_kit_is_found_however_it_is_nested(devkit, tmp_path, place):
    (tmp_path / "up" / place).parent.mkdir(parents=True)
    devkit.rename(tmp_path / "up" / place)
    assert find_devkit(tmp_path / "up") == tmp_path / "up" / place
    dataset = read_dataset(tmp_path / "up")
    assert dataset.notes[0] == "read as voc (it has JPEGImages)"
    assert tags(dataset) == {"one": (12, 15), "two": (19,), "three": None}


def test_of_two_kits_none_is_taken_quietly(devkit, tmp_path):
    (tmp_path / "VOC2007/JPEGImages").mkdir(parents=True)
    with pytest.raises(UserError, match=r"2 VOC devkits, \S*VOC2007, \S*VOC2012: give one"):
        read_dataset(tmp_path)
    assert len(read_dataset(devkit)) == 3
    (tmp_path / "VOC2007/JPEGImages").rmdir()
    (tmp_path / "VOC2007").rmdir()
    (tmp_path / "linked").symlink_to(devkit)  # the same kit by two names is one
    assert len(read_dataset(tmp_path)) == 3


def test_a_folder_of_images_and_tags_stays_one_though_a_kit_lies_in_it(devkit, tmp_path):
    devkit.rename(tmp_path / "old")
    Image.new("RGB", (4, 3)).save(tmp_path / "x.jpg")
    put(tmp_path / "tags.csv", "image,labels\nx.jpg,cat\n")
    assert read_dataset(tmp_path).notes[0] == "read as folder (it is a folder)"


@pytest.mark.parametrize("folders", ["train", ""])
def test_xml_files_beside_the_images(tmp_path, folders):
    top = tmp_path / "export"
    for name, content in {"a.jpg": ("dog",), "b.JPG": ("oak", "pine"), "c.jpg": ()}.items():
        put(top / folders / name[:1] / "..keep", "")
        Image.new("RGB", (4, 3)).save(top / folders / name, format="JPEG")
        put(top / folders / f"{name[:1]}.xml", xml(*content))
    dataset = read_dataset(top)
    assert dataset.notes[0] == "read as voc (it has XML files beside its images)"
    start = f"{folders}/" if folders else ""
    assert tags(dataset) == {f"{start}a": (1,), f"{start}b": (2, 3), f"{start}c": ()}
    assert dataset.classes.foreground == ("dog", "oak", "pine")
    put(top / "tags.csv", f"image,labels\n{start}a.jpg,cat\n")
    assert read_dataset(top).notes[0] == "read as folder (it is a folder)"  # its own tags come first
    if folders:
        with pytest.raises(UserError, match="export/train is a folder: give it as the data"):
            read_dataset(top, kind="voc", split="train")


def test_images_and_annotations(devkit, tmp_path):
    top = tmp_path / "mine"
    top.mkdir()
    (devkit / "JPEGImages").rename(top / "images")
    (devkit / "Annotations").rename(top / "annotations")
    dataset = read_dataset(top)
    assert dataset.notes[0] == "read as voc (it has images/, and XML files in annotations/)"
    assert tags(dataset) == {"one": (12, 15), "two": (19,), "three": None}
    assert dataset[0].image == top / "images/one.jpg"


def test_xml_files_that_are_no_annotations_change_nothing(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "a.jpg")
    put(tmp_path / "a.xml", "<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")
    dataset = read_dataset(tmp_path, classes="voc12")
    assert dataset.notes[0] == "read as folder (it is a folder)"
    with pytest.raises(UserError, match="no folder JPEGImages, no images/ with annotations"):
        read_dataset(tmp_path, kind="voc")


# --- what the classes are


def test_names_that_are_not_vocs_are_the_classes(devkit):
    put(devkit / "Annotations/one.xml", xml("pine", "oak"))
    put(devkit / "Annotations/two.xml", xml("Fern"))
    dataset = read_voc(devkit)
    assert dataset.classes.foreground == ("Fern", "oak", "pine")
    assert tags(dataset) == {"one": (2, 3), "two": (1,), "three": None}
    assert said(dataset, "the 3 classes are those named in Annotations: 'Fern', 'oak', 'pine'")
    # The mask values are the same whatever part is looked at.
    assert tags(read_voc(devkit, "train")) == {"two": (1,), "one": (2, 3)}
    put(devkit / "ImageSets/Segmentation/few.txt", "one")
    assert tags(read_voc(devkit, "few")) == {"one": (2, 3)}
    assert read_voc(devkit, "few").classes.names == dataset.classes.names


def test_vocs_classes_are_taken_where_they_fit_and_it_is_said(devkit):
    assert said(read_voc(devkit), "the classes are voc12's, which has every name in Annotations")


@pytest.mark.parametrize(
    "names", [("person", "dog", "persn"), ("person", "oak", "persn", "pine"), ("dog", "oak", "cat")]
)
def test_a_few_names_that_are_not_vocs_are_asked_about(devkit, names):
    (devkit / "Annotations/two.xml").unlink()
    put(devkit / "Annotations/one.xml", xml(*names))
    with pytest.raises(
        UserError,
        match=r"not in the built-in class list voc12 .*: '(persn|oak)' \(1x.*correct.*--unknown skip.*--classes file",
    ):
        read_voc(devkit)
    skipped = read_voc(devkit, unknown="skip")
    assert skipped.classes.id == "voc12"
    assert said(skipped, "left out")
    own = read_voc(devkit, classes="file")
    assert own.classes.foreground == tuple(sorted(names))
    assert len(tags(own)["one"]) == len(names)


def test_one_slip_in_many_files_is_no_class(devkit):
    """Also where it is in another split, and of one class only."""
    for number in range(30):
        Image.new("RGB", (4, 3)).save(devkit / f"JPEGImages/n{number}.jpg")
        put(devkit / f"Annotations/n{number}.xml", xml("person"))
    put(devkit / "Annotations/one.xml", xml("xyz"))
    put(devkit / "Annotations/two.xml", xml("person"))
    put(devkit / "ImageSets/Segmentation/some.txt", "two")
    with pytest.raises(UserError, match=r"'xyz' \(1x"):
        read_voc(devkit, "some")


def test_few_names_of_vocs_among_others_are_no_reason_to_ask(devkit):
    put(devkit / "Annotations/one.xml", xml("person", "helmet", "vest"))
    put(devkit / "Annotations/two.xml", xml("helmet"))
    assert read_voc(devkit).classes.foreground == ("helmet", "person", "vest")


def test_a_class_set_of_ones_own_wins(devkit):
    put(devkit / "Annotations/one.xml", xml("pine"))
    put(devkit / "Annotations/two.xml", xml("oak"))
    (devkit / "classes.yaml").write_text("names: [pine, oak]")
    assert tags(read_voc(devkit)) == {"one": (1,), "two": (2,), "three": None}
    assert read_voc(devkit, classes="file").classes.foreground == ("oak", "pine")


def test_the_names_of_a_tags_file_are_treated_alike(devkit, tmp_path):
    put(tmp_path / "t.csv", "image,labels\none,oak;pine\ntwo,oak\n")
    assert read_voc(devkit, tags=tmp_path / "t.csv").classes.foreground == ("oak", "pine")
    put(tmp_path / "t.csv", "image,labels\none,dog;persn;cat\ntwo,dog\n")
    with pytest.raises(UserError, match=r"'persn'.*--classes file"):
        read_voc(devkit, tags=tmp_path / "t.csv")


def test_a_networks_classes_are_taken_where_vocs_do_not_fit(devkit):
    network = plain_classes(["pine", "fern", "oak"], "trees")
    put(devkit / "Annotations/one.xml", xml("oak"))
    put(devkit / "Annotations/two.xml", xml("pine"))
    dataset = read_dataset(devkit, network=network)
    assert dataset.classes.names == network.names
    assert tags(dataset) == {"one": (3,), "two": (1,), "three": None}
    put(devkit / "Annotations/one.xml", xml("dog"))
    put(devkit / "Annotations/two.xml", xml("cat"))
    assert read_dataset(devkit, network=plain_classes(["dog", "cat"], "pets")).classes.id == "voc12"


# --- objects


def test_objects_that_say_nothing_or_too_little(devkit):
    for name in ("four", "five"):
        Image.new("RGB", (4, 3)).save(devkit / f"JPEGImages/{name}.jpg")
    put(devkit / "Annotations/one.xml", xml("dog", ""))
    put(devkit / "Annotations/two.xml", xml())
    put(devkit / "Annotations/four.xml", xml("Background", "cat"))
    put(devkit / "Annotations/five.xml", xml("background"))
    dataset = read_voc(devkit)
    assert tags(dataset) == {"one": None, "two": (), "three": None, "four": (8,), "five": ()}
    assert said(dataset, "images with an object without a name in Annotations, tags unknown: 1 (one)")
    assert said(dataset, "images without objects, taken as background only: 2 (five, two)")
    assert said(dataset, "'background' as an object, left out: 2 (five, four)")
    part = read_voc(devkit, "train")
    assert said(part, "taken as background only: 1 (two)")
    assert not said(part, "'background'")


def test_a_tags_file_beside_the_annotations(devkit):
    table = devkit / "tags.csv"
    put(table, "image,labels\none.jpg,Person;dog\n")
    dataset = read_voc(devkit)
    assert tags(dataset) == {"one": (12, 15), "two": (19,), "three": None}
    assert said(dataset, "tags.csv says the same")
    put(table, "image,labels\none.jpg,cat\nthree.jpg,dog\ntwo.jpg,train\n")
    with pytest.raises(UserError, match=r"disagree on the tags of 2 of 3 images .*one\.jpg.*--tags \S+tags.csv or"):
        read_voc(devkit)
    assert tags(read_voc(devkit, tags=table)) == {"one": (8,), "two": (19,), "three": (12,)}
    assert tags(read_voc(devkit, tags=devkit / "Annotations")) == tags(dataset)
    predicted = read_voc(devkit, network=dataset.classes)  # which needs no tags, so nothing is asked
    assert tags(predicted) == tags(dataset)
    assert said(predicted, "disagree on the tags of 2 of 3 images, and the latter are taken")
    put(table, "nonsense")
    assert said(read_voc(devkit), "tags.csv is not used")


def test_lists_of_one_class_are_said_to_list_all(devkit):
    put(devkit / "ImageSets/Main/dog_train.txt", "one  1\ntwo -1\n")
    dataset = read_voc(devkit, "dog_train")
    assert ids(dataset) == ["one", "two"]
    assert said(dataset, "all images that dog_train.txt lists are taken, whatever number follows them (1: 1, -1: 1)")
    put(devkit / "ImageSets/Main/other.txt", "a|b\nc|d")
    with pytest.raises(UserError, match=r"none of its 2 entries.*a\|b.*look like 'one'"):
        read_voc(devkit, "other")
    assert ids(read_voc(devkit, "train.txt")) == ["two", "one"]
