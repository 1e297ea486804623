"""A run whose class set changes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from methods.toys import TinyData, make_data
from run_folders import artefacts
from stages.changed_data import classes, retag, touched
from stages.toy_runs import quiet, toy
from tag2mask.run.folder import Run
from tag2mask.types import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

FIRST = "part0/img.000"


@pytest.fixture
def data(tmp_path) -> TinyData:
    return make_data(tmp_path / "images", count=6)


def test_classes_are_added_at_the_end_and_masks_stay(data, tmp_path, recwarn):
    some = replace(data, classes=classes("red", "green", "blue"))
    quiet(some, tmp_path / "run")
    before = artefacts(tmp_path / "run")
    more = retag(replace(data, classes=classes("red", "green", "blue", "apple")), 0, (1, 2))
    quiet(more, tmp_path / "run")
    assert any("come after the others: 'apple'" in str(each.message) for each in recwarn)
    assert touched(before, tmp_path / "run") == {FIRST}
    run = Run.open(tmp_path / "run")
    assert run.settings["classes"]["names"] == ["background", "red", "green", "blue", "apple"]
    assert len(run.settings["classes"]["palette"]) == 5


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (classes("apple", "red", "green", "blue"), r"classes\.names"),
        (classes("red", "green"), r"classes\.names"),
        (classes("red", "green", "navy"), "'blue'.* there and .*'navy'.* now"),
    ],
)
def test_other_classes_are_another_run(data, tmp_path, other, match):
    quiet(replace(data, classes=classes("red", "green", "blue")), tmp_path / "run")
    clean = replace(data, classes=other, samples=[replace(each, tags=(1,)) for each in data])
    with pytest.raises(UserError, match=match):
        quiet(clean, tmp_path / "run")


def test_a_new_class_that_changes_what_is_said_to_clip_is_another_run(data, tmp_path):
    """A class "sky" is no background any more, so all maps would be others."""

    def says(data):
        method = toy(classes=data.classes)
        about = {"sha256": "s", "fingerprint": "f", "dtype": torch.float32, "device": "cpu", "name": "c"}
        method.towers = {"clip": SimpleNamespace(**about)}
        return method

    some = replace(data, classes=classes("red", "green", "blue"))
    quiet(some, tmp_path / "run", says(some))
    more = replace(data, classes=classes("red", "green", "blue", "sky", background=()))
    with pytest.raises(UserError, match=r"background is \['sky'\] there and \[\] now"):
        quiet(more, tmp_path / "run", says(more))
    fine = replace(data, classes=classes("red", "green", "blue", "apple"))
    assert quiet(fine, tmp_path / "run", says(fine)).skipped == 6
