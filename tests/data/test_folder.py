from __future__ import annotations

import json
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from tag2mask.classes import load_classes
from tag2mask.data import read_folder
from tag2mask.data.image import BadImage, read_image
from tag2mask.data.png import encode_mask
from tag2mask.run.artefacts import check_id
from tag2mask.types import UserError


def fill(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path, format="PNG")
    return root


def tags(root, text, name="tags.csv", encoding="utf-8"):
    (root / name).write_bytes(text.encode(encoding))
    return root / name


def tag_names(dataset):
    return {s.id: None if s.tags is None else tuple(dataset.classes.names[t] for t in s.tags) for s in dataset}


def test_nested_folders_suffixes_and_order(tmp_path):
    fill(
        tmp_path, "b.JPG", "a.jpeg", "deep/er/c.Png", "deep/d.webp", "e.bmp", "f.tif", "g.TIFF", "note.txt", ".h.jpg"
    )
    fill(tmp_path, ".hidden/i.jpg")
    tags(tmp_path, "image,labels\na.jpeg,cat\n")
    dataset = read_folder(tmp_path)
    assert [s.id for s in dataset] == ["a", "b", "e", "f", "g", "deep/d", "deep/er/c"]
    assert dataset[6].image == tmp_path / "deep/er/c.Png"
    assert all(s.image.is_file() for s in dataset)


def test_csv(tmp_path):
    fill(tmp_path, "a.jpg", "sub/b.jpg", "odd, name.jpg", "empty.jpg", "no row.jpg", "käse.jpg")
    text = '\ufeffImage , Labels\r\na.jpg, dog ; cat\r\nsub\\b.jpg,cat;\r\n"odd, name.jpg","dog"\r\n\r\n'
    tags(tmp_path, text + "empty.jpg,\r\nkäse.jpg,Cat\r\ngone.jpg,dog\r\n")
    dataset = read_folder(tmp_path)
    assert dataset.classes.names == ("background", "cat", "dog")
    assert dataset.classes.texts["clip-es"].names == ("cat", "dog")
    assert tag_names(dataset) == {
        "a": ("cat", "dog"),
        "sub/b": ("cat",),
        "odd, name": ("dog",),
        "empty": None,
        "no row": None,
        "käse": ("cat",),
    }
    notes = "\n".join(dataset.notes)
    assert "rows of tags.csv whose image is not there: 1 (gone.jpg)" in notes
    assert "images without a row in tags.csv, tags unknown: 1 (no row.jpg)" in notes
    assert "images that tags.csv leaves without labels, not tagged yet: 1 (empty.jpg)" in notes


def test_jsonl(tmp_path):
    fill(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    rows = [
        {"image": "a.jpg", "labels": ["dog", " cat"]},
        {"image": "b.jpg", "labels": "dog;cat"},
        {"image": "c.jpg", "labels": []},
        {"image": "d.jpg", "labels": None},
    ]
    tags(tmp_path, "\ufeff" + "\r\n".join(json.dumps(row) for row in rows) + "\r\n\r\n", "tags.jsonl")
    dataset = read_folder(tmp_path)
    assert tag_names(dataset) == {"a": ("cat", "dog"), "b": ("cat", "dog"), "c": None, "d": None}
    assert any("tags.jsonl leaves without labels, not tagged yet: 2 (c.jpg, d.jpg)" in note for note in dataset.notes)


def test_more_columns_and_a_row_a_label(tmp_path):
    fill(tmp_path, "a.jpg")
    tags(tmp_path, "split,labels,image\ntrain,cat,a.jpg\ntrain,dog,a.jpg\n")
    assert tag_names(read_folder(tmp_path)) == {"a": ("cat", "dog")}


def test_a_given_class_set_and_its_aliases(tmp_path):
    fill(tmp_path, "a.jpg")
    source = tags(tmp_path, "image,labels\na,TV monitor;airplane;dining_table\n", "other.csv")
    dataset = read_folder(tmp_path, source, "voc12")
    assert dataset[0].tags == (1, 11, 20)
    assert read_folder(tmp_path, source, load_classes("voc12"))[0].tags == (1, 11, 20)


def test_a_class_set_that_the_data_brings_along(tmp_path):
    fill(tmp_path, "a.jpg")
    tags(tmp_path, "image,labels\na,dog\n")
    (tmp_path / "classes.yaml").write_text("names: [dog, cat]")
    assert read_folder(tmp_path).classes.names == ("background", "dog", "cat")
    assert read_folder(tmp_path, classes="voc12")[0].tags == (12,)


def test_all_unknown_names_are_listed_at_once(tmp_path):
    fill(tmp_path, "a.jpg", "b.jpg")
    tags(tmp_path, "image,labels\na.jpg,hrse;cat;unicorn\nb.jpg,hrse\n")
    with pytest.raises(UserError) as caught:
        read_folder(tmp_path, classes="voc12")
    message = str(caught.value)
    assert "tags.csv has names that are not in the built-in class list voc12 ('aeroplane', " in message
    assert ": 'hrse'" in message
    assert "'hrse' (2x, nearest: 'horse')" in message
    assert "'unicorn' (1x" in message
    dataset = read_folder(tmp_path, classes="voc12", unknown="skip")
    assert [s.tags for s in dataset] == [(8,), None]
    assert any("left out: " in note and "unicorn" in note for note in dataset.notes)
    assert "images whose labels were all left out, not tagged: 1" in dataset.notes


def test_without_tags_a_class_set_is_needed(tmp_path):
    fill(tmp_path, "a.jpg")
    with pytest.raises(UserError, match=r"write tags\.csv \(image,labels\), or name the classes"):
        read_folder(tmp_path)
    dataset = read_folder(tmp_path, classes="voc12")
    assert dataset[0].tags is None
    assert "unknown" in dataset.notes[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'image,labels'"),
        ("name of it;what\nq.txt;cat\n", "the columns 'name of it', 'what'"),
        ("a,cat\n", "its first line, 'a,cat', is a row of an image"),
        ("image,labels\na.jpg,cat,dog\n", "line 2: 3 columns instead of 2"),
        ("image,labels\na.jpg\n", "line 2: 1 column instead"),
        ("image,labels\n,cat\n", "line 2: no image"),
        ("image,labels\n/etc/a.jpg,cat\nC:\\a.jpg,cow\n", "mean one image"),
        ("image,labels\n../b.jpg,cat\n", "the only row of"),
        ("image,labels\nb.jpg,cat\n", "the only row of"),
        ("image,labels\na.jpg,\n", "names no class at all"),
    ],
)
def test_faults_of_a_csv(tmp_path, text, message):
    fill(tmp_path, "a.jpg")
    tags(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_folder(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"image": "a.jpg"}', '{"image": 3, "labels": []}', '{"image": "a.jpg", "labels": [1]}']
)
def test_faults_of_jsonl(tmp_path, line):
    fill(tmp_path, "a.jpg")
    tags(tmp_path, '{"image": "a.jpg", "labels": "cat"}\n' + line, "tags.jsonl")
    with pytest.raises(UserError, match=r"line 2.*expected"):
        read_folder(tmp_path)


def test_paths_in_rows(tmp_path):
    fill(tmp_path, "images/x/a.jpg", "images/y/a.jpg", "images/y/b.JPG", "images/z/c.jpg", "images/z/d.jpg")
    rows = f"image,labels\nx/a.jpg,cat\n./y/a,dog\nb.jpg,cow\nimages/z/c.jpg,sheep\n{tmp_path}/images/z/d.jpg,bird\n"
    source = tags(tmp_path, rows)
    expected = {"x/a": ("cat",), "y/a": ("dog",), "y/b": ("cow",), "z/c": ("sheep",), "z/d": ("bird",)}
    assert tag_names(read_folder(tmp_path / "images", source, "voc12")) == expected
    # The same by the folder above: `images` beside the tags is what is meant.
    above = read_folder(tmp_path, classes="voc12")
    assert tag_names(above) == expected
    assert "the images are those in images/" in above.notes
    assert all(s.image.is_file() for s in above)


def test_a_row_never_speaks_for_another_image(tmp_path):
    fill(tmp_path, "a.png", "x/b.jpg")
    tags(tmp_path, "image,labels\na.jpg,dog\na.png,cat\ny/b.jpg,cow\n")
    dataset = read_folder(tmp_path)
    assert tag_names(dataset) == {"a": ("cat",), "x/b": None}
    assert any("2 (a.jpg, y/b.jpg)" in note for note in dataset.notes)


def test_a_row_that_could_mean_several_images(tmp_path):
    fill(tmp_path, "x/a.jpg", "y/a.jpg")
    tags(tmp_path, "image,labels\na.jpg,dog\n")
    with pytest.raises(UserError, match=r"could mean several images: a\.jpg"):
        read_folder(tmp_path)


def test_unicode_forms_are_one_name(tmp_path):
    fill(tmp_path, unicodedata.normalize("NFD", "é.jpg"))
    tags(tmp_path, unicodedata.normalize("NFC", "image,labels\né.jpg,cat\n"))
    assert read_folder(tmp_path)[0].tags == (1,)


def test_same_stems_keep_their_suffix(tmp_path):
    fill(tmp_path, "a.jpg", "a.png", "a.jpg.png", "B.jpg", "b.png", "c.jpg", "x/c.jpg")
    dataset = read_folder(tmp_path, classes="voc12")
    assert {s.image.name: s.id for s in dataset.subset(range(6))} == {
        "a.jpg": "a.jpg",
        "a.png": "a.png",
        "a.jpg.png": "a.jpg.png",
        "B.jpg": "B.jpg",
        "b.png": "b.png",
        "c.jpg": "c",
    }
    assert dataset[6].id == "x/c"
    assert any("share a name" in note and ": 5 (" in note for note in dataset.notes)


def test_folders_named_like_images(tmp_path):
    fill(tmp_path, "a.jpg", "x.jpg/inner.jpg")
    (tmp_path / "y.jpg").mkdir()
    dataset = read_folder(tmp_path, classes="voc12")
    assert [s.id for s in dataset] == ["a", "x.jpg/inner"]
    assert any("folders named like images, read as folders: 2 (x.jpg, y.jpg)" in note for note in dataset.notes)


def test_bad_files_stay_in_the_set_and_fail_when_read(tmp_path):
    fill(tmp_path, "a.jpg")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "itself.jpg").symlink_to(tmp_path / "itself.jpg")
    dataset = read_folder(tmp_path, classes="voc12")
    assert [s.id for s in dataset] == ["a", "empty", "itself", "nowhere"]
    for sample in dataset.subset([1, 2, 3]):
        with pytest.raises(BadImage):
            read_image(sample.image)


def test_links_are_followed_but_loops_end(tmp_path):
    fill(tmp_path, "set/z/a.jpg", "elsewhere/b.jpg")
    root = tmp_path / "set"
    (root / "up").symlink_to(root, target_is_directory=True)
    (root / "a_link").symlink_to(root / "z", target_is_directory=True)
    (root / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    dataset = read_folder(root, classes="voc12")
    assert [s.id for s in dataset] == ["z/a", "linked/b"]
    assert any("linked folders" in note and "2 (a_link, up)" in note for note in dataset.notes)


def test_masks_are_no_images(tmp_path):
    fill(tmp_path, "a.jpg", "b.jpg")
    for folder in ("truth", "out/masks"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.png").write_bytes(encode_mask(np.full((3, 4), 5, np.uint8), ((0, 0, 0),)))
    (tmp_path / "out/run.yaml").write_text("{}")
    dataset = read_folder(tmp_path, classes="voc12", truth=tmp_path / "truth")
    assert [s.id for s in dataset] == ["a", "b"]
    assert dataset[0].truth()[0, 0] == 5
    assert dataset[1].truth is None
    assert any("run folders, left out: 1 (out)" in note for note in dataset.notes)


def test_ground_truth_that_fits_nothing(tmp_path):
    fill(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "truth").mkdir()
    with pytest.raises(UserError, match=r"it is empty.*expected for the 2 images: 'a\.png', 'b\.png'"):
        read_folder(tmp_path, classes="voc12", truth=tmp_path / "truth")
    with pytest.raises(UserError, match="no folder of ground-truth"):
        read_folder(tmp_path, classes="voc12", truth=tmp_path / "nowhere")
    with pytest.raises(UserError, match="is the folder of the images"):
        read_folder(tmp_path, classes="voc12", truth=tmp_path / "truth" / "..")


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        read_folder(tmp_path / "x", classes="voc12")
    with pytest.raises(UserError, match="no image in"):
        read_folder(tmp_path, classes="voc12")
    fill(tmp_path, "a.jpg")
    with pytest.raises(UserError, match=r"no tags file .*'dog;person', are for one image"):
        read_folder(tmp_path, tags=tmp_path / "x.csv")


def test_spellings_in_the_tags_become_one_class(tmp_path):
    fill(tmp_path, "a.jpg", "b.jpg")
    tags(tmp_path, "image,labels\na.jpg,hot dog\nb.jpg,Hot_Dog\n")
    dataset = read_folder(tmp_path)
    assert dataset.classes.names == ("background", "Hot_Dog")
    assert [s.tags for s in dataset] == [(1,), (1,)]


def test_real_photographs(photographs):
    coco = photographs / "coco128"
    dataset = read_folder(coco, classes="coco14", truth=coco / "masks")
    assert len(dataset) == 128
    assert sum(s.tags is None for s in dataset) == 2
    for sample in dataset.subset(range(20)):
        mask = sample.truth()
        assert mask.shape == read_image(sample.image).shape[:2]
        assert set(np.unique(mask).tolist()) - {0} <= set(sample.tags)


@pytest.mark.skipif(os.name == "nt", reason="there a backslash parts folders")
def test_a_backslash_in_a_name_is_a_sign_like_others(tmp_path):
    fill(tmp_path, "a\\b.jpg", "sub/c.jpg")
    tags(tmp_path, "image,labels\na\\b.jpg,cat\nsub\\c.jpg,dog\n")
    dataset = read_folder(tmp_path)
    assert tag_names(dataset) == {"a%5Cb": ("cat",), "sub/c": ("dog",)}
    assert dataset[0].image.name == "a\\b.jpg"
    for sample in dataset:
        check_id(sample.id)  # it names files
