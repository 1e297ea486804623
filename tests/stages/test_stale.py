"""What reads a run after its data changed."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from methods.toys import Refiner, TinyData, make_data
from stages.changed_data import repaint, retag, untagged
from stages.toy_runs import quiet, toy
from tag2mask.run.current import Current
from tag2mask.run.folder import Run
from tag2mask.segment.targets import find_targets
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.export import export
from tag2mask.stages.report import report

pytestmark = pytest.mark.usefixtures("one_thread")

FIRST = "part0/img.000"


@pytest.fixture
def data(tmp_path) -> TinyData:
    return make_data(tmp_path / "images", count=6)


# --- what reads a run after its data changed ----------------------------------------------------------------------


def replaced(data):
    repaint(data[0].image)
    return data, "whose picture was replaced"


def tagged_otherwise(data):
    return retag(data, 0, (1, 2, 3)), "whose tags changed"


CHANGED = pytest.mark.parametrize("change", [replaced, tagged_otherwise, untagged])


@CHANGED
def test_stale_masks_are_not_exported(data, tmp_path, change):
    quiet(data, tmp_path / "run")
    now, words = change(data)
    with pytest.warns(UserWarning, match=f"left out.*1 image {words} \\({FIRST}\\)"):
        export(tmp_path / "run", now, "png", tmp_path / "out", progress=False)
    assert {path.stem for path in (tmp_path / "out").rglob("*.png")} == {Path(each.id).name for each in data[1:]}


@CHANGED
def test_stale_masks_are_not_trained_on(data, tmp_path, change):
    quiet(data, tmp_path / "run")
    now, words = change(data)
    targets = find_targets(now, Run.open(tmp_path / "run"))
    assert (len(targets), targets.left_out) == (5, {words: 1})
    assert FIRST not in {targets.sample(position).id for position in range(5)}


@CHANGED
def test_stale_masks_are_not_in_the_report(data, tmp_path, change):
    quiet(data, tmp_path / "run")
    few = [replace(sample, truth=None) for sample in data.samples[:5]]
    now, words = change(replace(data, samples=few))
    page = report(tmp_path / "run", now, progress=False).read_text("utf-8")
    assert "masks of images that are not in" in page
    assert "(1)" in page
    assert f"1 image {words} ({FIRST})" in page
    assert re.search(r"<b[^>]*>4</b>\s*<span[^>]*>images labelled", page)


@pytest.mark.parametrize("change", [replaced, tagged_otherwise])
def test_stale_maps_are_not_refined(data, tmp_path, change):
    quiet(data, tmp_path / "first")
    now, words = change(data)
    summary = quiet(now, tmp_path / "run", toy(Refiner), prior=tmp_path / "first")
    assert (summary.done, summary.failed) == (5, 1)
    assert f"one of the images {words} since" in summary.text()
    quiet(now, tmp_path / "first")
    assert quiet(now, tmp_path / "run", toy(Refiner), prior=tmp_path / "first").done == 1


def test_masks_of_current_data_are_not_stale(data, tmp_path):
    quiet(data, tmp_path / "run")
    for sample in data:
        os.utime(sample.image, ns=(10**18, 10**18))
    assert {Current(Run.open(tmp_path / "run")).why_none(sample) for sample in data} == {None}


def test_an_image_that_lost_its_tags_is_counted_as_one_without(data, tmp_path):
    quiet(data, tmp_path / "run")
    summary = quiet(retag(data, 0, None), tmp_path / "run")
    assert (summary.done, summary.skipped, summary.no_tags) == (0, 5, 1)
    assert quiet(data, tmp_path / "run").skipped == 6  # its mask was still there, and is of these tags


def scored(data):
    return replace(data, samples=[replace(each, truth=lambda p=each.image: zeros(p)) for each in data])


def zeros(path):
    with Image.open(path) as image:
        mask = np.zeros((image.height, image.width), np.uint8)
    mask[0, 0] = 1
    return mask


@pytest.mark.parametrize(
    ("change", "images", "words"),
    [
        (replaced, 5, "NOT COUNTED: 1 image whose picture was replaced"),
        (tagged_otherwise, 6, "counted, though their masks are older: 1 image whose tags changed"),
        (untagged, 6, "counted, though their masks are older: 1 image without tags now"),
    ],
)
def test_masks_of_other_pictures_are_not_scored(data, tmp_path, change, images, words):
    quiet(data, tmp_path / "run")
    now, _ = change(data)
    result = evaluate(tmp_path / "run", scored(now), boundary=False, check_truth=False, progress=False)
    assert result.images == images
    assert [line.partition(" (")[0] for line in result.stale] == [words]
    assert words in result.text()


def test_data_without_any_tags_says_nothing_of_them(data, tmp_path):
    quiet(data, tmp_path / "run")
    bare = scored(replace(data, samples=[replace(each, tags=None) for each in data]))
    assert evaluate(tmp_path / "run", bare, boundary=False, progress=False).stale == ()
