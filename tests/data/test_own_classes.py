"""Class files of a user: what is said of their mistakes."""

from __future__ import annotations

import json

import pytest

from tag2mask.classes import load_classes
from tag2mask.data.tag_cells import words_of
from tag2mask.types import UserError


def test_words_of_lists_never_run_together():
    assert words_of("['cat' 'dog']") == ("cat", "dog")
    assert words_of("[3 14]") == ("3", "14")
    assert words_of("(dog)") == ("(dog)",)
    assert words_of(json.loads('["a;b"]')) == ("a;b",)
    for odd in (True, 1.5, {"a": 1}, ["a", 0.5]):
        with pytest.raises(ValueError, match=r"True|1\.5|'a'"):
            words_of(odd)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("names: [1, 2]", "names.0 must be text, got 1: put it in quotes (1 more like it)"),
        ("names: [1, owl, 2.5, 3]", "names.0 must be text, got 1: put it in quotes (1 more like it); names.2 "),
        ("names: [owl]\ntexts: {clip-es: {templates: [1]}}", "texts.clip-es.templates.0 must be text, got 1"),
    ],
)
def test_class_files_complain_once(tmp_path, text, said):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_classes(tmp_path / "c.yaml")
    assert said in str(caught.value)
    assert "tuple" not in str(caught.value)


def test_class_files_say_what_yaml_made_of_words(tmp_path):
    for text, message in (
        ("[yes, owl]", "yes, no, on and off"),
        ("[__ignore__, owl]", "labelme"),
        ("[1, 2]", "quotes"),
    ):
        (tmp_path / "c.yaml").write_text(f"names: {text}")
        with pytest.raises(UserError, match=message):
            load_classes(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("names: [_background_, owl]")
    assert load_classes(tmp_path / "c.yaml").foreground == ("owl",)
