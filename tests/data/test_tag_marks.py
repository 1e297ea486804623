"""Columns of marks for each class: which words are marks, which columns are no class, and what zeros say."""

from __future__ import annotations

import pytest

from tag2mask.classes import plain_classes
from tag2mask.data import read_folder
from tag_folders import CLASSES, WANTED, folder, named, refusal

PAIRS = [("WAHR", "FALSCH"), ("VRAI", "FAUX"), ("oui", "non"), ("Sí", "no"), ("✓", "✗"), ("✅", "❌"), ("t", "f"),
         ("ja", "nein"), ("Y", "N"), ("1", "-1"), ("1.0", "0.0"), ("VERDADERO", "FALSO")]  # fmt: skip


@pytest.mark.parametrize(("yes", "no"), PAIRS)
@pytest.mark.parametrize("sign", [",", ";"])
@pytest.mark.parametrize("header", ["image", "Bild"])
def test_marks_of_any_language_are_marks(tmp_path, yes, no, sign, header):
    lines = [(header, "fox", "owl", "pine"), ("a.jpg", no, yes, yes), ("b.jpg", yes, yes, no)]
    dataset = read_folder(folder(tmp_path, "".join(sign.join(line) + "\n" for line in lines)))
    assert named(dataset) == WANTED
    note = next(note for note in dataset.notes if "were read as classes: 3" in note)
    assert yes in note
    assert no in note
    lines = [(header, "owl"), ("a.jpg", yes), ("b.jpg", no)]  # one column alone
    dataset = read_folder(folder(tmp_path, "".join(sign.join(line) + "\n" for line in lines)))
    assert named(dataset) == {"a": ("owl",), "b": None}
    note = next(note for note in dataset.notes if "with no class that is there" in note)
    assert "1 (b.jpg)" in note
    assert "'background'" in note


@pytest.mark.parametrize("yes", ["1", "x"])
@pytest.mark.parametrize(
    "name", ["is_train", "split", "Fold", "total", "count", "id", "checked", "width", "IMAGE HEIGHT", "geprüft"]
)
@pytest.mark.parametrize("header", ["image", "Bild"])
def test_columns_that_are_no_class_are_left_out_and_named(tmp_path, yes, name, header):
    no = "0" if yes == "1" else ""
    text = f"{header},fox,owl,pine,{name}\na.jpg,{no},{yes},{yes},{yes}\nb.jpg,{yes},{yes},{no},{no}\n"
    for how in ({}, {"classes": CLASSES}):
        dataset = read_folder(folder(tmp_path, text), **how)
        assert named(dataset) == WANTED
        assert dataset.classes.foreground == ("fox", "owl", "pine")
        assert any("not read" in note and repr(name) in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("+;-", "-;+", ("'fox' ('+')", "'owl' ('-')")),
        ("yes;no", "no;unsure", ("'owl' ('unsure')",)),
        ("1;NA", "0;1", ("'owl' ('na')",)),
        ("90%;10%", "2%;98%", ("'fox' (90%)", "probabilities", "threshold")),
        ("0,9;0,2", "0,1;0,2", ("'fox' (0,9)", "probabilities", "threshold")),
        ("y;t", "n;?", ("'owl' ('?')",)),
    ],
)
@pytest.mark.parametrize("header", ["image", "Bild"])
@pytest.mark.parametrize("how", [{}, {"classes": CLASSES}])
def test_what_is_nearly_a_mark_is_asked_with_advice_that_fits(tmp_path, first, second, said, header, how):
    message = refusal(folder(tmp_path, f"{header};fox;owl\na.jpg;{first}\nb.jpg;{second}\n"), **how)
    assert all(part in message for part in said), message
    assert "write 1 where an image holds the class and 0 where not" in message
    assert "labels" not in message


def test_tables_are_no_lists_of_numbers(tmp_path):
    folder(tmp_path, "Bild,fox,owl\na.jpg,1,0\nb.jpg,1,1\n")
    assert named(read_folder(tmp_path)) == {"a": ("fox",), "b": ("fox", "owl")}


def test_rows_of_zeros_are_counted_with_a_remedy_that_works(tmp_path):
    folder(tmp_path, "image,fox,owl\na.jpg,0,0\nb.jpg,1,0\nc.jpg,0,0\n", images=("a.jpg", "b.jpg", "c.jpg"))
    dataset = read_folder(tmp_path)
    note = next(note for note in dataset.notes if "with no class that is there" in note)
    assert "2 (a.jpg, c.jpg)" in note
    assert "a class 'background' with a 1" in note
    folder(tmp_path, "image,fox,owl,background\na.jpg,0,0,1\nb.jpg,1,0,0\n")
    dataset = read_folder(tmp_path)
    assert named(dataset) == {"a": (), "b": ("fox",), "c": None}
    assert not any("with no class" in note for note in dataset.notes)
    folder(tmp_path, "image,fox,owl\na.jpg,,\nb.jpg,x,\n")  # empty cells say nothing
    assert not any("with no class" in note for note in read_folder(tmp_path).notes)


@pytest.mark.parametrize("header", ["owl,owl", "owl,Owl", "snow owl,snow_owl"])
def test_columns_of_one_class_agree_or_stop(tmp_path, header):
    folder(tmp_path, f"image,{header},fox\na.jpg,1,0,1\nb.jpg,1,1,0\n")
    message = refusal(tmp_path)
    assert "differ in 1 of 2 rows" in message
    one, other = header.split(",")
    assert f"{one!r} and {other!r}" in message
    dataset = read_folder(folder(tmp_path, f"image,{header},fox\na.jpg,0,0,1\nb.jpg,1,1,0\n"))
    assert len(dataset.classes.foreground) == 2
    assert named(dataset)["a"] == ("fox",)
    assert any("several columns, which agree: 1" in note for note in dataset.notes)


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("x", "")])
def test_a_class_of_no_image_stays_a_class(tmp_path, yes, no):
    dataset = read_folder(folder(tmp_path, f"image,fox,owl\na.jpg,{yes},{no}\nb.jpg,{yes},{no}\n"))
    assert dataset.classes.foreground == ("fox", "owl")


@pytest.mark.parametrize(("first", "second"), [("x", "y"), ("n", "f"), ("t", "x")])
def test_words_that_would_all_mean_the_same_are_asked(tmp_path, first, second):
    folder(tmp_path, f"image,grade\na.jpg,{first}\nb.jpg,{second}\n")
    message = refusal(tmp_path)
    assert f"'grade' ({min(first, second)!r} and {max(first, second)!r})" in message
    own = plain_classes([first, second], "c")
    dataset = read_folder(folder(tmp_path, f"image,labels\na.jpg,{first}\nb.jpg,{second}\n"), classes=own)
    assert named(dataset) == {"a": (first,), "b": (second,)}  # as the message says
