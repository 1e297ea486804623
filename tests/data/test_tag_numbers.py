"""Tags that are numbers: what 0 is, and vectors of 0 and 1."""

from __future__ import annotations

import pytest

from tag2mask.data import TagReading, read_folder
from tag_folders import CLASSES, folder, named, refusal


def classes_file(root, *names):
    file = root / "mine.yaml"
    file.write_text(f"names: [{', '.join(names)}]\n")
    return file


@pytest.mark.parametrize("background", ["background", "_background_", "Background"])
@pytest.mark.parametrize("last", [1, 2, 3])
@pytest.mark.parametrize("form", ["image,label\na.jpg,0\nb.jpg,{}\n", "a 0\nb {}\n", "image,labels\na,0.0\nb,{}.0\n"])
def test_a_list_that_names_background_counts_from_it(tmp_path, background, last, form):
    folder(tmp_path, form.format(last), "tags.csv")
    own = classes_file(tmp_path, background, "owl", "fox", "elk")
    dataset = read_folder(tmp_path, classes=own)
    assert named(dataset) == {"a": (), "b": (("owl", "fox", "elk")[last - 1],)}
    assert any("0 = 'background'" in note for note in dataset.notes)


def test_numbers_that_a_list_with_background_does_not_have(tmp_path):
    folder(tmp_path, "a 0\nb 3\n", "tags.txt")
    message = refusal(tmp_path, classes=classes_file(tmp_path, "background", "owl", "fox"))
    assert "from 0 to 3, but mine has 2 classes, counted from 1" in message


def test_what_0_is_is_asked_and_each_answer_works(tmp_path):
    folder(tmp_path, "image,label\na.jpg,0\nb.jpg,1\n")
    assert "'image,cat'" in refusal(tmp_path)
    message = refusal(tmp_path, classes=classes_file(tmp_path, "owl"))
    assert "is 0 a class, or the background?" in message
    assert "the 1 class of" in message
    assert "--count-from 1" in message
    assert "--count-from 0" not in message  # there is no second class
    dataset = read_folder(tmp_path, classes=tmp_path / "mine.yaml", reading=TagReading(count_from=1))
    assert named(dataset) == {"a": (), "b": ("owl",)}
    message = refusal(tmp_path, classes=CLASSES)
    assert "--count-from 0: it is 'fox'" in message
    assert named(read_folder(tmp_path, classes=CLASSES, reading=TagReading(count_from=0)))["b"] == ("owl",)
    assert named(read_folder(tmp_path, classes=CLASSES, reading=TagReading(count_from=1)))["b"] == ("fox",)
    folder(tmp_path, "image,owl\na.jpg,0\nb.jpg,1\n")
    assert named(read_folder(tmp_path)) == {"a": None, "b": ("owl",)}
    folder(tmp_path, "image,label\na.jpg,0\nb.jpg,3\n")  # 0 to 3 for three classes: one of them is the background
    assert "--count-from 0" not in refusal(tmp_path, classes=CLASSES)
    assert named(read_folder(tmp_path, classes=CLASSES, reading=TagReading(count_from=1))) == {
        "a": (),
        "b": ("pine",),
    }
