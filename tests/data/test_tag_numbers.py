"""Tags that are numbers: what 0 is, and vectors of 0 and 1."""

from __future__ import annotations

import json

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


def vectors(root, first, second, form):
    pairs = (("a.jpg", first), ("b.jpg", second))
    if form == "dict":
        return folder(root, json.dumps(dict(pairs)), "tags.json")
    lines = [json.dumps({"image": name, "labels": one}) for name, one in pairs]
    if form == "lines":
        return folder(root, "\n".join(lines), "tags.jsonl")
    if form == "rows":
        return folder(root, f"[{','.join(lines)}]", "tags.json")
    sign = {"cells": ", ", "semicolons": ";", "list": " "}[form]
    texts = [sign.join(map(str, one)) for one in (first, second)]
    if form == "list":
        return folder(root, f"a {texts[0]}\nb {texts[1]}\n", "tags.txt")
    one, two = (f"[{text}]" if form == "cells" else text for text in texts)
    return folder(root, f'image,labels\na.jpg,"{one}"\nb.jpg,"{two}"\n')


FORMS = ("dict", "lines", "rows", "cells", "semicolons", "list")


@pytest.mark.parametrize("form", FORMS)
def test_lists_of_0_and_1_with_repeats_are_vectors(tmp_path, form):
    vectors(tmp_path, [0, 1, 1], [0, 0, 0], form)
    assert "vectors of 0 and 1 for 3 classes" in refusal(tmp_path)
    for reading in (None, TagReading(count_from=1)):
        dataset = read_folder(tmp_path, classes=CLASSES, reading=reading)
        assert named(dataset) == {"a": ("owl", "pine"), "b": None}
        assert any("0 = 'fox', 2 = 'pine'" in note for note in dataset.notes)
        assert any("hold only 0" in note and ": 1 (" in note and "'background'" in note for note in dataset.notes)
    own = classes_file(tmp_path, "background", "owl", "elk")
    assert named(read_folder(tmp_path, classes=own))["a"] == ("owl", "elk")
    vectors(tmp_path, [0, 1, 1], [1, 0, 0], form)
    assert named(read_folder(tmp_path, classes=own)) == {"a": ("owl", "elk"), "b": ()}
    message = refusal(tmp_path, classes=classes_file(tmp_path, "owl", "elk"))
    assert "vectors of 3 classes, but mine has 2" in message
    assert "put 'background' first" in message


@pytest.mark.parametrize("form", FORMS)
def test_lists_of_0_and_1_that_may_be_either_are_asked(tmp_path, form):
    own = classes_file(vectors(tmp_path, [0, 1], [1, 0], form), "owl", "elk")
    message = refusal(tmp_path, classes=own)
    assert "numbers of two classes" in message
    assert "vectors" in message
    assert "--count-from 0" in message
    assert named(read_folder(tmp_path, classes=own, reading=TagReading(count_from=0)))["a"] == ("owl", "elk")
    assert named(read_folder(tmp_path, classes=own, reading=TagReading(count_from=1)))["a"] == ("owl",)
    vectors(tmp_path, [0, 1], [1, 1], form)
    assert named(read_folder(tmp_path, classes=own)) == {"a": ("elk",), "b": ("owl", "elk")}


@pytest.mark.parametrize("form", ["dict", "lines", "rows", "cells"])
def test_lists_of_true_and_false_are_vectors(tmp_path, form):
    """Also where each stands once, as in the second: nobody calls a class true."""
    own = classes_file(vectors(tmp_path, [False, True, True], [False, False, False], form), "fox", "owl", "pine")
    dataset = read_folder(tmp_path, classes=own)
    assert named(dataset) == {"a": ("owl", "pine"), "b": None}
    assert any("lists of true and false" in note and "vectors of 1 and 0" in note for note in dataset.notes)
    own = classes_file(vectors(tmp_path, [False, True], [True, False], form), "owl", "elk")
    assert named(read_folder(tmp_path, classes=own)) == {"a": ("elk",), "b": ("owl",)}
    assert "vectors of 0 and 1 for 2 classes" in refusal(tmp_path)
    for second, said in (([True], "of 1, 2 places"), (["owl"], "beside other labels (owl)"), ([1, 0], "(0, 1)")):
        vectors(tmp_path, [False, True], second, form)
        assert said in refusal(tmp_path, classes=own)


@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_classes_are_no_vectors(tmp_path, form):
    own = classes_file(vectors(tmp_path, [0, 2], [2, 1], form), "owl", "elk", "fox")
    assert named(read_folder(tmp_path, classes=own)) == {"a": ("owl", "fox"), "b": ("elk", "fox")}
    vectors(tmp_path, [0], [0, 1], form)
    own = classes_file(tmp_path, "owl", "elk")
    assert named(read_folder(tmp_path, classes=own, reading=TagReading(count_from=0)))["b"] == ("owl", "elk")
    own = classes_file(vectors(tmp_path, [0, 0, 1], [0, 1], form), "owl", "elk")  # of objects: of any length
    assert named(read_folder(tmp_path, classes=own, reading=TagReading(count_from=0)))["a"] == ("owl", "elk")
