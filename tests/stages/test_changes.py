"""A run that goes on after its data changed: what changed is made again, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from methods.toys import CLASSES, FittedOnTags, Refiner, TinyData, TrainingFree, make_data
from run_folders import artefacts
from tag2mask.data.png import encode_mask, read_mask
from tag2mask.methods.protocol import EarlierRun
from tag2mask.run.current import Current
from tag2mask.run.folder import Run
from tag2mask.run.inputs import Inputs, KnownInputs, Stamp
from tag2mask.run.manifest import Manifest
from tag2mask.run.scores import encode_scores
from tag2mask.run.shard import in_shard
from tag2mask.segment.targets import find_targets
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.export import export
from tag2mask.stages.label import label
from tag2mask.stages.report import report
from tag2mask.types import ClassSet, Scores, TextSet, UserError

FIRST = "part0/img.000"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path) -> TinyData:
    return make_data(tmp_path / "images", count=6)


def toy(kind=TrainingFree, classes=CLASSES, **options):
    return kind(classes, kind.Options(**options))


def quiet(data, out, method=None, **more):
    return label(data, method or toy(classes=data.classes), out, progress=False, **more)


def touched(before, folder):
    """The ids whose artefacts differ, or are there on one side alone."""
    after = artefacts(folder)
    paths = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
    return {path.partition("/")[2].rpartition(".")[0] for path in paths}


def repaint(path, seed=9):
    """Another picture of the same size under the same name."""
    with Image.open(path) as image:
        width, height = image.size
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def retag(data, position, tags):
    samples = [replace(each, tags=tags) if n == position else each for n, each in enumerate(data)]
    return replace(data, samples=samples)


# --- pictures ----------------------------------------------------------------------------------------------------


def test_a_replaced_photograph_is_labelled_again_and_no_other(data, tmp_path):
    quiet(data, tmp_path / "run")
    before = artefacts(tmp_path / "run")
    repaint(data[0].image)
    summary = quiet(data, tmp_path / "run")
    assert (summary.done, summary.skipped) == (1, 5)
    assert f"made again: 1 image whose picture was replaced ({FIRST})" in summary.text()
    assert touched(before, tmp_path / "run") == {FIRST}
    quiet(data, tmp_path / "fresh")
    assert artefacts(tmp_path / "run") == artefacts(tmp_path / "fresh")


def test_a_replaced_photograph_of_the_same_number_of_bytes_is_found_by_its_content(data, tmp_path):
    path, sizes = data[0].image, []
    for seed in (1, 2):
        pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, compress_level=0)
        sizes.append(path.stat().st_size)
        summary = quiet(data, tmp_path / "run")
        assert summary.done == (6 if seed == 1 else 1)
    assert sizes[0] == sizes[1]
    quiet(data, tmp_path / "fresh")
    assert artefacts(tmp_path / "run") == artefacts(tmp_path / "fresh")


def test_the_same_content_with_another_time_is_looked_at_once_and_not_labelled(data, tmp_path, monkeypatch):
    quiet(data, tmp_path / "run")
    before = artefacts(tmp_path / "run")
    for sample in data:
        os.utime(sample.image, ns=(10**18, 10**18))
    summary = quiet(data, tmp_path / "run")
    assert (summary.done, summary.skipped, summary.notes) == (0, 6, ())
    assert artefacts(tmp_path / "run") == before
    monkeypatch.setattr(Stamp, "of", lambda path: pytest.fail(f"{path} was read again"))
    assert quiet(data, tmp_path / "run").skipped == 6


def test_photographs_that_changed_names_are_found_out_though_size_and_time_are_equal(data, tmp_path):
    """As an archive leaves them: every file of one time, and pictures of one size without compression."""
    few = replace(data, samples=data.samples[:2])
    for n, sample in enumerate(few):
        pixels = np.random.default_rng(n).integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(sample.image, compress_level=0)
        os.utime(sample.image, ns=(10**18, 10**18))
    quiet(few, tmp_path / "run")
    first, second = (sample.image for sample in few)
    other = first.with_name("other")
    os.rename(first, other)
    os.rename(second, first)
    os.rename(other, second)
    assert quiet(few, tmp_path / "run").done == 2
    quiet(few, tmp_path / "fresh")
    assert artefacts(tmp_path / "run") == artefacts(tmp_path / "fresh")


def test_unchanged_files_are_not_read(data, tmp_path, monkeypatch):
    quiet(data, tmp_path / "run")
    monkeypatch.setattr(Stamp, "of", lambda path: pytest.fail(f"{path} was read"))
    assert quiet(data, tmp_path / "run").skipped == 6


def test_a_photograph_that_became_unreadable_leaves_no_mask_of_the_old_one(data, tmp_path):
    quiet(data, tmp_path / "run")
    data[0].image.write_bytes(b"not a picture at all")
    summary = quiet(data, tmp_path / "run")
    assert (summary.failed, summary.skipped) == (1, 5)
    run = Run.open(tmp_path / "run")
    assert not run.mask_path(FIRST).exists()
    assert not run.scores_path(FIRST).exists()


def test_a_photograph_that_cannot_be_looked_at_keeps_its_mask(data, tmp_path):
    """A disk that is not mounted today is no change of the data."""
    quiet(data, tmp_path / "run")
    before = artefacts(tmp_path / "run")
    data[0].image.unlink()
    assert quiet(data, tmp_path / "run").skipped == 6
    assert artefacts(tmp_path / "run") == before


# --- tags --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tags", [(1, 2, 3), (), (3,)])
def test_changed_tags_redo_their_image_alone(data, tmp_path, tags):
    quiet(data, tmp_path / "run")
    before = artefacts(tmp_path / "run")
    other = retag(data, 0, tags)
    summary = quiet(other, tmp_path / "run")
    assert summary.done == 1
    assert f"made again: 1 image whose tags changed ({FIRST})" in summary.text()
    assert touched(before, tmp_path / "run") == {FIRST}
    quiet(other, tmp_path / "fresh")
    assert artefacts(tmp_path / "run") == artefacts(tmp_path / "fresh")
    assert quiet(other, tmp_path / "run").skipped == 6


def test_tags_that_were_taken_away_leave_a_mask_that_is_named(data, tmp_path):
    quiet(data, tmp_path / "run")
    untagged = retag(data, 0, None)
    summary = quiet(untagged, tmp_path / "run")
    assert summary.done == 0
    assert "1 mask of images that are no longer in the data, or no longer tagged: kept" in summary.text()
    assert Run.open(tmp_path / "run").mask_path(FIRST).exists()
    dropped = quiet(untagged, tmp_path / "run", removed="drop")
    assert "removed" in dropped.notes[0]
    assert not Run.open(tmp_path / "run").mask_path(FIRST).exists()
    assert quiet(data, tmp_path / "run").done == 1


# --- images that come and go --------------------------------------------------------------------------------------


def test_new_photographs_are_labelled_and_the_others_stay(data, tmp_path):
    few = replace(data, samples=[each for n, each in enumerate(data) if n != 2])
    quiet(few, tmp_path / "run")
    before = artefacts(tmp_path / "run")
    summary = quiet(data, tmp_path / "run")
    assert (summary.done, summary.skipped, summary.notes) == (1, 5, ())
    assert touched(before, tmp_path / "run") == {data[2].id}
    assert Run.open(tmp_path / "run").images == 6
    quiet(data, tmp_path / "fresh")
    assert artefacts(tmp_path / "run") == artefacts(tmp_path / "fresh")


def test_removed_photographs_are_kept_or_dropped(data, tmp_path):
    quiet(data, tmp_path / "run")
    before = artefacts(tmp_path / "run")
    few = replace(data, samples=data.samples[1:])
    kept = quiet(few, tmp_path / "run")
    assert "1 mask of images that are no longer in the data, or no longer tagged: kept" in kept.text()
    assert FIRST in kept.text()
    assert artefacts(tmp_path / "run") == before
    dropped = quiet(few, tmp_path / "run", removed="drop")
    assert "removed" in dropped.notes[0]
    assert touched(before, tmp_path / "run") == {FIRST}
    assert quiet(few, tmp_path / "run").notes == ()


def test_most_masks_are_not_dropped_for_data_that_is_half_there(data, tmp_path):
    many = make_data(tmp_path / "many", count=24)
    quiet(many, tmp_path / "run")
    half = replace(many, samples=many.samples[:11])
    with pytest.raises(UserError, match="13 of 24 masks"):
        quiet(half, tmp_path / "run", removed="drop")
    assert len(Run.open(tmp_path / "run").ids()) == 24
    quiet(replace(many, samples=many.samples[:12]), tmp_path / "run", removed="drop")
    assert len(Run.open(tmp_path / "run").ids()) == 12


def test_each_shard_sees_to_its_own_images(data, tmp_path):
    for index in (0, 1):
        quiet(data, tmp_path / "run", shard=(index, 2))
    few = retag(replace(data, samples=data.samples[1:]), 0, (1, 2, 3))
    named = [quiet(replace(data, samples=[]), tmp_path / "run", shard=(index, 2)).notes for index in (0, 1)]
    own = [sum(in_shard(sample.id, (index, 2)) for sample in data) for index in (0, 1)]
    assert [note.partition(" ")[0] for notes in named for note in notes] == [str(count) for count in own if count]
    summaries = [quiet(few, tmp_path / "run", shard=(index, 2), removed="drop") for index in (0, 1)]
    assert sum(summary.done for summary in summaries) == 1
    assert sum(len(summary.notes) for summary in summaries) == 2
    quiet(few, tmp_path / "fresh")
    assert artefacts(tmp_path / "run") == artefacts(tmp_path / "fresh")
    assert quiet(few, tmp_path / "run").skipped == 5  # as a whole, too


# --- kills -------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As good as kill -9."""


def kill_between_files(monkeypatch):
    """The maps of the new picture stand beside the mask of the old one only where the mask is gone first."""
    keep = Run.write

    def write(self, id, *, mask, confidence, scores):
        monkeypatch.setattr(Run, "confidence_path", lambda self, id: (_ for _ in ()).throw(Killed()))
        keep(self, id, mask=mask, confidence=confidence, scores=scores)

    monkeypatch.setattr(Run, "write", write)


def kill_before_the_line(monkeypatch):
    """The mask there is the new picture's, and no line says so."""
    keep = Manifest.append

    def append(self, record):
        if record.status == "ok":
            raise Killed
        keep(self, record)

    monkeypatch.setattr(Manifest, "append", append)


@pytest.mark.parametrize("kill", [kill_between_files, kill_before_the_line])
def test_a_picture_that_is_killed_over_and_then_changed_back_leaves_no_mixture(data, tmp_path, monkeypatch, kill):
    """A, then B killed on the way, then A again."""
    quiet(data, tmp_path / "run")
    original, times = data[0].image.read_bytes(), data[0].image.stat()
    repaint(data[0].image)
    kill(monkeypatch)
    with pytest.raises(Killed):
        quiet(data, tmp_path / "run")
    monkeypatch.undo()
    torch.set_num_threads(1)
    data[0].image.write_bytes(original)
    os.utime(data[0].image, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert quiet(data, tmp_path / "run").done == 1
    quiet(data, tmp_path / "fresh")
    assert artefacts(tmp_path / "run") == artefacts(tmp_path / "fresh")


def test_a_mask_without_its_line_is_made_again(data, tmp_path, monkeypatch):
    keep, lines = Manifest.append, []

    def append(self, record):
        lines.append(record)
        if len(lines) < 3:
            keep(self, record)

    monkeypatch.setattr(Manifest, "append", append)
    quiet(data, tmp_path / "run")
    monkeypatch.undo()
    torch.set_num_threads(1)
    before = artefacts(tmp_path / "run")
    summary = quiet(data, tmp_path / "run")
    assert summary.done == 4
    assert "4 images without a manifest entry" in summary.text()
    assert artefacts(tmp_path / "run") == before


# --- classes -----------------------------------------------------------------------------------------------------


def classes(*names, background=("sky",)):
    colours = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)]
    texts = {"toy": TextSet(names, background=background)}
    return ClassSet("mine", ("background", *names), tuple(colours[: len(names) + 1]), texts)


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
    with pytest.warns(UserWarning, match=r"as it was \(6 images then, 5 now\)"):
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


# --- folders of earlier versions -----------------------------------------------------------------------------------


def test_a_run_of_the_first_layout_can_be_read_but_not_gone_on_with(data, tmp_path):
    quiet(data, tmp_path / "run")
    path = tmp_path / "run/run.yaml"
    document = yaml.safe_load(path.read_text())
    del document["layout"], document["images"]
    document["settings"]["data"] = {"images": 6, "fingerprint": "f"}
    path.write_text(yaml.safe_dump(document))
    assert Run.open(tmp_path / "run").images == 6
    assert len(Run.open(tmp_path / "run").ids()) == 6
    with pytest.raises(UserError, match=r"earlier version of tag2mask, which did not note.*--overwrite"):
        quiet(data, tmp_path / "run")
    assert quiet(data, tmp_path / "run", overwrite=True).done == 6
    document["layout"] = 99
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(UserError, match="newer version"):
        quiet(data, tmp_path / "run")


# --- what is kept of many -------------------------------------------------------------------------------------------


def test_the_last_word_counts_whatever_the_order_of_the_lines(data):
    old, new = (replace(Stamp.of(data[0].image), size=size) for size in (1, 2))
    for rows in (
        [("a", 1.0, Inputs(old)), ("a", 2.0, Inputs(new))],
        [("a", 2.0, Inputs(new)), ("a", 1.0, Inputs(old))],
    ):
        known = KnownInputs([*rows, ("b", 1.0, Inputs(old)), ("b", 2.0, None)])
        assert len(known) == 1
        assert known.find("a")._row["image"]["size"] == 2
        assert known.find("b") is None
        assert known.find("c") is None
    assert KnownInputs([]).find("a") is None


def test_no_mask_at_all_is_no_success(data, tmp_path):
    untagged = replace(data, samples=[replace(each, tags=None) for each in data])
    summary = quiet(untagged, tmp_path / "run")
    assert summary.empty
    assert "no image has a mask: none has tags" in summary.text()
    assert not quiet(data, tmp_path / "run").empty
    assert not quiet(data, tmp_path / "run").empty  # finished before
    nothing = replace(data, samples=[])
    assert not quiet(nothing, tmp_path / "none").empty
    assert json.loads((tmp_path / "run/summary.0-of-1.json").read_text())["skipped"] == 6


# --- what a reviewer found ------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_does_not_bring_old_words_back(data, tmp_path, monkeypatch):
    now = time.time
    monkeypatch.setattr("tag2mask.run.manifest.time.time", lambda: now() + 3600)
    for index in (0, 1):
        quiet(data, tmp_path / "run", shard=(index, 2))
    monkeypatch.undo()
    torch.set_num_threads(1)
    repaint(data[0].image)
    assert quiet(data, tmp_path / "run").done == 1
    assert quiet(data, tmp_path / "run").done == 0


def test_a_refined_run_keeps_its_masks_where_the_earlier_run_cannot_be_looked_at(data, tmp_path):
    quiet(data, tmp_path / "seeds")
    quiet(data, tmp_path / "run", toy(Refiner), prior=tmp_path / "seeds")
    before = artefacts(tmp_path / "run")
    shutil.move(tmp_path / "seeds/scores", tmp_path / "away")
    assert quiet(data, tmp_path / "run", toy(Refiner), prior=tmp_path / "seeds").skipped == 6
    assert artefacts(tmp_path / "run") == before


def test_what_is_noted_of_a_touched_file_is_what_was_compared(data, tmp_path, monkeypatch):
    """A file that is replaced right after it was compared is found by the next call."""
    quiet(data, tmp_path / "run")
    path = data[0].image
    with Image.open(path) as image:
        image.save(path)  # the same picture, perhaps other bytes
    quiet(data, tmp_path / "run")
    os.utime(path, ns=(7, 7))
    keep = Stamp.of

    def of(file):
        stamp = keep(file)
        if file == path:
            monkeypatch.setattr(Stamp, "of", keep)
            repaint(path, seed=11)
        return stamp

    monkeypatch.setattr(Stamp, "of", of)
    assert quiet(data, tmp_path / "run").done == 0
    monkeypatch.undo()
    torch.set_num_threads(1)
    assert quiet(data, tmp_path / "run").done == 1


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


def test_figures_of_masks_that_are_made_again_are_removed(data, tmp_path):
    quiet(data, tmp_path / "run")
    for name in ("metrics.json", "report.html"):
        (tmp_path / "run" / name).write_text("of then")
    assert quiet(data, tmp_path / "run").skipped == 6
    assert (tmp_path / "run/metrics.json").exists()
    repaint(data[0].image)
    quiet(data, tmp_path / "run")
    assert not (tmp_path / "run/metrics.json").exists()
    assert not (tmp_path / "run/report.html").exists()


# --- what reads a run after its data changed ----------------------------------------------------------------------


def replaced(data):
    repaint(data[0].image)
    return data, "whose picture was replaced"


def tagged_otherwise(data):
    return retag(data, 0, (1, 2, 3)), "whose tags changed"


def untagged(data):
    return retag(data, 0, None), "without tags now"


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


def test_made_again_counts_what_was_made(data, tmp_path):
    quiet(data, tmp_path / "run")
    repaint(data[0].image)
    data[1].image.write_bytes(b"not a picture at all")
    assert "made again: 1 image whose picture was replaced" in quiet(data, tmp_path / "run").text()


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
