"""A run that goes on after its data changed: what changed is made again, and nothing else."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from methods.toys import TinyData, make_data
from run_folders import artefacts
from stages.changed_data import repaint, retag, touched
from stages.toy_runs import quiet
from tag2mask.run.folder import Run
from tag2mask.run.inputs import Inputs, KnownInputs, Stamp
from tag2mask.run.manifest import Manifest
from tag2mask.run.shard import in_shard
from tag2mask.types import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

FIRST = "part0/img.000"


@pytest.fixture
def data(tmp_path) -> TinyData:
    return make_data(tmp_path / "images", count=6)


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


def test_made_again_counts_what_was_made(data, tmp_path):
    quiet(data, tmp_path / "run")
    repaint(data[0].image)
    data[1].image.write_bytes(b"not a picture at all")
    assert "made again: 1 image whose picture was replaced" in quiet(data, tmp_path / "run").text()
