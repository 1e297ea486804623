"""Which image a row of a tag file is of."""

from __future__ import annotations

import pytest

from tag2mask.data import TagReading, read_folder
from tag_folders import folder, named, refusal


@pytest.mark.parametrize(
    "place",
    ["https://x.org/d/{}?v=2", "/data/upload/1/12ab34cd-{}", "C:\\Users\\u\\{}", "../photos/{}", "/mnt/x/y/{}"],
)
def test_places_elsewhere_are_found_by_name_where_it_is_unique(tmp_path, place):
    rows = f"image,labels\n{place.format('a.jpg')},owl\n{place.format('b.jpg')},fox\n"
    dataset = read_folder(folder(tmp_path, rows))
    assert named(dataset) == {"a": ("owl",), "b": ("fox",)}
    assert any("found by the file's name: 2" in note for note in dataset.notes)


def test_places_elsewhere_that_are_not_unique(tmp_path):
    folder(tmp_path, "image,labels\n/d/q/a.jpg,owl\n", images=("x/a.jpg", "a.jpg"))
    assert "could mean several images" in refusal(tmp_path)
    folder(tmp_path, "image,labels\n/d/x/a.jpg,owl\n")
    assert named(read_folder(tmp_path))["x/a"] == ("owl",)
    (tmp_path / "x/a.jpg").unlink()
    folder(tmp_path, "image,labels\n/cats/a.jpg,owl\n/dogs/a.jpg,fox\n")
    assert "mean one image" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("row", "image"),
    [
        ("A.JPG", "a.jpg"),
        ("img_1.jpg", "IMG_1.JPG"),
        ("Cats/a.jpg", "cats/a.jpg"),
        ("ÄPFEL", "äpfel.png"),
        ("A.jpg", "deep/a.jpg"),
        ("/mnt/x/CATS/A.jpg", "cats/a.jpg"),
        ("https://x.org/A.JPG?v=1", "a.jpg"),
        ("/data/upload/1/12ab34cd-A.jpg", "a.jpg"),
    ],
)
def test_letter_case_is_forgiven_where_one_image_is_meant_and_said(tmp_path, row, image):
    folder(tmp_path, f"image,labels\n{row},owl\nz.jpg,fox\n", images=(image, "z.jpg"))
    dataset = read_folder(tmp_path)
    assert named(dataset) == {image.rpartition(".")[0]: ("owl",), "z": ("fox",)}
    note = next(note for note in dataset.notes if "other letter case" in note)
    assert f": 1 ({row} for {image})" in note


def test_letter_case_never_takes_an_image_from_its_own_row(tmp_path):
    folder(tmp_path, "image,labels\na.jpg,owl\nA.jpg,fox\n", images=("a.jpg",))
    dataset = read_folder(tmp_path)
    assert named(dataset) == {"a": ("owl",)}
    assert any("image is not there: 1 (A.jpg)" in note for note in dataset.notes)
    folder(tmp_path, "image,labels\nA.JPG,owl\n", images=("x/a.jpg", "y/a.jpg"))
    (tmp_path / "a.jpg").unlink()
    assert "could mean several images" in refusal(tmp_path)
    folder(tmp_path, "image,labels\nX/A.jpg,owl\nx/A.JPG,fox\n", images=("x/a.jpg",))
    message = refusal(tmp_path)
    assert "letter case does not count" in message
    assert "X/A.jpg and x/A.JPG" in message
    folder(tmp_path, "image,labels\nZ/A.jpg,owl\nx/a.jpg,fox\n")  # another folder is another image
    assert named(read_folder(tmp_path)) == {"x/a": ("fox",), "y/a": None, "a": None, "b": None}


def test_several_rows_of_one_image_are_said(tmp_path):
    folder(tmp_path, "image,labels\na.jpg,owl\na.jpg,pine\na.jpg,\nb.jpg,fox\n")
    dataset = read_folder(tmp_path)
    assert named(dataset) == {"a": ("owl", "pine"), "b": ("fox",)}
    assert any("several rows" in note and ": 1 ('a.jpg': 3 rows)" in note for note in dataset.notes)
    folder(tmp_path, "image,labels\n./a.jpg,owl\na.jpg,pine\nb.jpg,fox\n")
    dataset = read_folder(tmp_path)
    assert named(dataset) == {"a": ("owl", "pine"), "b": ("fox",)}
    assert any("put together: 1 (./a.jpg and a.jpg)" in note for note in dataset.notes)
    folder(tmp_path, "image,labels\na.jpg,owl;pine\nb.jpg,fox\n")
    assert not any("put together" in note for note in read_folder(tmp_path).notes)


def test_counts_are_of_images_that_are_there(tmp_path):
    folder(tmp_path, "image,labels\na.jpg,owl\ngone.jpg,owl;elk\nA.jpg,fox\nb.jpg,pine\n./b.jpg,pine\n")
    dataset = read_folder(tmp_path)
    assert any("'elk' (0), 'fox' (0), 'owl' (1), 'pine' (1)" in note for note in dataset.notes)
    folder(tmp_path, "image,labels\na.jpg,tree\ngone.jpg,trees\ngone2.jpg,trees\nb.jpg,tree.;trees\n")
    assert "'tree' (1) and 'tree.' (1) and 'trees' (1)" in refusal(tmp_path)
    merged = read_folder(tmp_path, reading=TagReading(twins="merge"))
    assert any("'tree' (2)" in note for note in merged.notes)


def test_numbers_without_their_zeros(tmp_path):
    folder(tmp_path, "image_id,label\n9,owl\n12,fox\n", images=("000000000009.jpg", "000000000012.jpg"))
    dataset = read_folder(tmp_path)
    assert named(dataset) == {"000000000009": ("owl",), "000000000012": ("fox",)}
    assert any("found by the number" in note for note in dataset.notes)
