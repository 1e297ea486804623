"""Methods that learn or refine, after their data or the earlier run changed."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from methods.toys import CLASSES, FittedOnTags, Refiner, TinyData, TrainingFree, make_data
from run_folders import artefacts
from stages.changed_data import classes, repaint, retag, touched
from stages.toy_runs import quiet, toy
from tag2mask.data.png import encode_mask, read_mask
from tag2mask.methods.protocol import EarlierRun
from tag2mask.run.folder import Run
from tag2mask.run.scores import encode_scores
from tag2mask.types import Scores, UserError

pytestmark = pytest.mark.usefixtures("one_thread")

FIRST = "part0/img.000"


@pytest.fixture
def data(tmp_path) -> TinyData:
    return make_data(tmp_path / "images", count=6)


# --- methods that learn or refine ---------------------------------------------------------------------------------


def test_a_fit_stays_as_it_is_and_says_so_until_it_is_made_anew(data, tmp_path, recwarn):
    quiet(data, tmp_path / "run", toy(FittedOnTags))
    learned = (tmp_path / "run/checkpoints/fitted.json").read_text()
    assert not [each for each in recwarn if "was learned" in str(each.message)]
    other = retag(data, 0, (1, 2, 3))
    summary = quiet(other, tmp_path / "run", toy(FittedOnTags))
    assert summary.done == 1
    assert any("--refit learns and labels everything again" in str(each.message) for each in recwarn)
    assert (tmp_path / "run/checkpoints/fitted.json").read_text() == learned
    assert quiet(other, tmp_path / "run", toy(FittedOnTags), refit=True).done == 6
    with pytest.raises(UserError, match="nothing to fit here; leave out refit"):
        quiet(other, tmp_path / "plain", refit=True)
    quiet(other, tmp_path / "fresh", toy(FittedOnTags))
    assert artefacts(tmp_path / "run") == artefacts(tmp_path / "fresh")
    assert (tmp_path / "run/checkpoints/fitted.json").read_text() == (
        tmp_path / "fresh/checkpoints/fitted.json"
    ).read_text()


def test_the_word_on_an_old_fit_names_what_changed(data, tmp_path):
    quiet(data, tmp_path / "run", toy(FittedOnTags), fit_only=True)
    repaint(data[1].image, seed=40)
    other = retag(data, 0, (1, 2, 3))
    gone = replace(other, samples=[*other.samples[:4], replace(other.samples[5], id="toy/new")])
    first, second = "1 image whose tags changed (part0/img.000)", "picture or earlier maps changed (part1/img.001)"
    for now, said in (
        (other, f"{first}; 1 image whose {second})"),
        (gone, f"{second}; 1 image not there before (toy/new); 2 images no longer there)"),
        (replace(other, samples=other.samples[::-1]), first),
    ):
        with pytest.warns(UserWarning, match=re.escape(said)):
            quiet(now, tmp_path / "run", toy(FittedOnTags), fit_only=True)
    stored = json.loads((tmp_path / "run/checkpoints/fit_data.json").read_text())
    del stored["rows"]  # as an earlier version wrote it
    (tmp_path / "run/checkpoints/fit_data.json").write_text(json.dumps(stored))
    with pytest.warns(UserWarning, match=r"earlier data \(6 images then, 5 now\)"):
        quiet(gone, tmp_path / "run", toy(FittedOnTags), fit_only=True)


def test_classes_that_a_fit_does_not_know_need_another_one(data, tmp_path):
    some = replace(data, classes=classes("red", "green", "blue"))
    quiet(some, tmp_path / "run", toy(FittedOnTags, some.classes))
    more = replace(data, classes=classes("red", "green", "blue", "apple"))
    before = (tmp_path / "run/run.yaml").read_bytes()
    with pytest.raises(UserError, match=r"fitted for other classes: .apple. is new\. Pass --refit"):
        quiet(more, tmp_path / "run", toy(FittedOnTags, more.classes))
    assert (tmp_path / "run/run.yaml").read_bytes() == before
    assert quiet(more, tmp_path / "run", toy(FittedOnTags, more.classes), refit=True).done == 6


def test_an_unfinished_fit_of_other_tags_begins_anew(data, tmp_path, recwarn):
    quiet(data, tmp_path / "run", toy(FittedOnTags), fit_only=True)
    (tmp_path / "run/checkpoints/fitted.json").unlink()
    other = retag(data, 0, (1, 2, 3))
    quiet(other, tmp_path / "run", toy(FittedOnTags), fit_only=True)
    assert any("it starts over" in str(each.message) for each in recwarn)
    quiet(other, tmp_path / "fresh", toy(FittedOnTags), fit_only=True)
    expected = (tmp_path / "fresh/checkpoints/fitted.json").read_text()
    assert (tmp_path / "run/checkpoints/fitted.json").read_text() == expected


def test_refined_are_those_again_whose_earlier_maps_changed(data, tmp_path):
    quiet(data, tmp_path / "seeds")
    quiet(data, tmp_path / "run", toy(Refiner), prior=tmp_path / "seeds")
    before = artefacts(tmp_path / "run")
    repaint(data[0].image)
    os.utime(data[0].image, ns=(5, 5))
    quiet(data, tmp_path / "seeds")
    summary = quiet(data, tmp_path / "run", toy(Refiner), prior=tmp_path / "seeds")
    assert summary.done == 1
    assert touched(before, tmp_path / "run") == {FIRST}
    # the same picture, of which the earlier run says something else now
    seeds = Run.open(tmp_path / "seeds")
    maps = seeds.scores(data[1].id)
    seeds.scores_path(data[1].id).write_bytes(encode_scores(replace(maps, maps=maps.maps / 2)))
    changed = quiet(data, tmp_path / "run", toy(Refiner), prior=tmp_path / "seeds")
    assert changed.done == 1
    assert f"1 image whose maps or masks in the earlier run changed ({data[1].id})" in changed.text()


def test_a_refined_run_keeps_its_masks_where_the_earlier_run_cannot_be_looked_at(data, tmp_path):
    quiet(data, tmp_path / "seeds")
    quiet(data, tmp_path / "run", toy(Refiner), prior=tmp_path / "seeds")
    before = artefacts(tmp_path / "run")
    shutil.move(tmp_path / "seeds/scores", tmp_path / "away")
    assert quiet(data, tmp_path / "run", toy(Refiner), prior=tmp_path / "seeds").skipped == 6
    assert artefacts(tmp_path / "run") == before


def test_an_unfinished_fit_of_other_pictures_begins_anew(data, tmp_path, recwarn):
    quiet(data, tmp_path / "run", toy(FittedOnTags), fit_only=True)
    (tmp_path / "run/checkpoints/fitted.json").unlink()
    for n, sample in enumerate(data):
        repaint(sample.image, seed=n + 20)
    quiet(data, tmp_path / "run", toy(FittedOnTags), fit_only=True)
    assert any("it starts over" in str(each.message) for each in recwarn)
    quiet(data, tmp_path / "fresh", toy(FittedOnTags), fit_only=True)
    expected = (tmp_path / "fresh/checkpoints/fitted.json").read_text()
    assert (tmp_path / "run/checkpoints/fitted.json").read_text() == expected


@pytest.mark.parametrize("done", [True, False])
def test_a_fit_knows_its_pictures_by_content(data, tmp_path, recwarn, done):
    sizes = []
    for seed in (1, 2):
        pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data[0].image, compress_level=0)
        os.utime(data[0].image, ns=(5, 5))  # not even its time tells
        sizes.append(data[0].image.stat().st_size)
        quiet(data, tmp_path / "run", toy(FittedOnTags), fit_only=True)
        if not done:
            (tmp_path / "run/checkpoints/fitted.json").unlink()
        os.utime(data[1].image)  # the same content at another time is the same
    assert sizes[0] == sizes[1]
    said = "--refit learns and labels everything again" if done else "it starts over"
    assert sum(said in str(each.message) for each in recwarn) == 1


def test_classes_that_the_earlier_run_gained_are_named_by_the_refined_one(data, tmp_path):
    some = replace(data, classes=classes("red", "green", "blue"))
    more = replace(data, classes=classes("red", "green", "blue", "apple"))
    quiet(some, tmp_path / "seeds")
    quiet(some, tmp_path / "run", toy(Refiner, some.classes), prior=tmp_path / "seeds")
    quiet(more, tmp_path / "seeds")
    with pytest.raises(UserError, match=r"'apple' is new\. Pass --refit"):
        quiet(more, tmp_path / "run", toy(Refiner, more.classes), prior=tmp_path / "seeds")
    assert quiet(more, tmp_path / "run", toy(Refiner, more.classes), prior=tmp_path / "seeds", refit=True).done == 6


class FromMasks(TrainingFree):
    """Takes the masks of an earlier run as they are."""

    @classmethod
    def earlier_run(cls, options):
        return EarlierRun(label="masks")

    def scores(self, items):
        masks = [item.prior.labels() for item in items]
        maps = [(mask[None] == item.tags[:, None, None]).float() for mask, item in zip(masks, items, strict=True)]
        return [Scores(item.tags, each, tuple(each.shape[1:])) for item, each in zip(items, maps, strict=True)]

    def grid(self, size):
        return size


def test_masks_that_an_earlier_run_changed_are_taken_again_and_its_maps_are_not(data, tmp_path):
    quiet(data, tmp_path / "first", keep_scores=True)
    quiet(data, tmp_path / "run", toy(FromMasks), prior=tmp_path / "first")
    (tmp_path / "first/scores" / f"{data[1].id}.npz").write_bytes(b"not looked at")
    path = tmp_path / "first/masks" / f"{FIRST}.png"
    path.write_bytes(encode_mask(np.ones_like(read_mask(path)), CLASSES.palette))
    again = quiet(data, tmp_path / "run", toy(FromMasks), prior=tmp_path / "first")
    assert (again.done, again.skipped) == (1, 5)
    assert f"whose maps or masks in the earlier run changed ({FIRST})" in again.text()


def test_a_folder_of_label_maps_serves_where_masks_are_enough(data, tmp_path):
    quiet(data, tmp_path / "first")
    seeds = tmp_path / "seeds"
    shutil.copytree(tmp_path / "first/masks", seeds)
    summary = quiet(data, tmp_path / "run", toy(FromMasks), prior=seeds)
    assert (summary.done, summary.failed) == (6, 0)
    quiet(data, tmp_path / "same", toy(FromMasks), prior=tmp_path / "first")
    assert artefacts(tmp_path / "run") == artefacts(tmp_path / "same")
    run = Run.open(tmp_path / "run")
    assert run.settings["supervision"] == "tags+masks(seeds)"
    path = seeds / f"{FIRST}.png"
    path.write_bytes(encode_mask(np.full_like(read_mask(path), 9), CLASSES.palette))
    (seeds / f"{data[1].id}.png").unlink()
    again = quiet(data, tmp_path / "run", toy(FromMasks), prior=seeds)
    assert (again.failed, again.skipped) == (1, 5)  # one that is gone is no reason to lose what was made of it
    new = quiet(data, tmp_path / "new", toy(FromMasks), prior=seeds)
    assert (new.failed, new.done) == (2, 4)
    assert "9" in new.text()
    assert "has no mask of it" in new.text()
    (tmp_path / "empty").mkdir()
    for prior, match in ((tmp_path / "empty", "it has no PNG"), (tmp_path / "nowhere", "it has no PNG")):
        with pytest.raises(UserError, match=match):
            quiet(data, tmp_path / "other", toy(FromMasks), prior=prior)
    with pytest.raises(UserError, match="no run of tag2mask"):
        quiet(data, tmp_path / "other", toy(Refiner), prior=seeds)
