"""The label stage: what a run leaves, what decides it, and settings that stop before any work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from methods.toys import CLASSES, Refiner, TinyData, TrainingFree, make_data
from run_folders import artefacts
from stages.toy_runs import quiet, toy
from tag2mask.data.png import read_confidence, read_mask
from tag2mask.methods import METHODS, known_methods, make_method, make_options
from tag2mask.run.device import resident_memory
from tag2mask.run.folder import Run
from tag2mask.run.settings import plain
from tag2mask.stages.label import label
from tag2mask.types import Item, MaskRule, Scores, TextSet, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path) -> TinyData:
    return make_data(tmp_path / "images")


# --- the stage ---------------------------------------------------------------------------------------------------


def test_what_a_run_leaves(data, tmp_path):
    summary = quiet(data, tmp_path / "run")
    assert (summary.total, summary.done, summary.complete) == (12, 12, True)
    assert set(summary.seconds) == {"decode", "method", "masks", "write"}
    assert min(summary.seconds.values()) > 0
    assert summary.images_per_second > 0
    assert summary.peak_memory > 10 << 20
    on_disk = json.loads((tmp_path / "run" / "summary.0-of-1.json").read_text())
    assert on_disk["done"] == 12
    run = Run.open(tmp_path / "run")
    assert run.ids() == sorted(sample.id for sample in data)
    assert run.settings["classes"]["names"] == list(CLASSES.names)
    assert run.settings["mask_rule"]["background"] == {"power": 1.0}
    assert run.settings["options"] == {"gain": 1.0}
    assert run.images == 12
    assert run.noted["threads"] == torch.get_num_threads()
    record = run.records()[data[0].id]
    assert record.status == "ok"
    assert set(record.seconds) == {"decode", "method", "masks", "write"}
    with Image.open(run.mask_path(data[0].id)) as image:
        assert image.getpalette()[:12] == [channel for color in CLASSES.palette for channel in color]


def test_masks_show_the_blocks(data, tmp_path):
    """Blocks are bright on dark, so the mask of a tag lies where its channel is high."""
    quiet(data, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    for sample in data:
        pixels = np.asarray(Image.open(sample.image)).astype(int)
        mask = read_mask(run.mask_path(sample.id))
        confidence = read_confidence(run.confidence_path(sample.id))
        assert confidence.min() >= 0.5 - 1 / 255  # Eq. 8 is never below a half
        for tag in sample.tags:
            inside = pixels[..., tag - 1][mask == tag]
            assert len(inside)
            assert inside.mean() > 150


def test_a_second_run_does_nothing_and_changes_nothing(data, tmp_path):
    quiet(data, tmp_path / "run")
    before = artefacts(tmp_path / "run")
    method = toy()
    method.scores = lambda items: pytest.fail("called again")
    summary = quiet(data, tmp_path / "run", method)
    assert (summary.done, summary.skipped) == (0, 12)
    assert artefacts(tmp_path / "run") == before


def test_a_missing_sibling_is_made_again(data, tmp_path):
    quiet(data, tmp_path / "run")
    before = artefacts(tmp_path / "run")
    Run.open(tmp_path / "run").confidence_path(data[3].id).unlink()
    assert quiet(data, tmp_path / "run").done == 1
    assert artefacts(tmp_path / "run") == before


def test_unknown_tags_are_skipped_and_no_tags_are_background(data, tmp_path):
    data.samples[1] = replace(data[1], tags=None)
    data.samples[2] = replace(data[2], tags=())
    seen = []
    method = toy()
    found = method.scores
    method.scores = lambda items: (seen.extend(item.id for item in items), found(items))[1]
    summary = quiet(data, tmp_path / "run", method, batch_size=4)
    assert (summary.done, summary.no_tags, summary.failed) == (11, 1, 0)
    run = Run.open(tmp_path / "run")
    assert data[1].id not in run.ids()
    assert (run.records()[data[1].id].status, run.records()[data[1].id].error) == ("skipped", "no tags")
    assert not read_mask(run.mask_path(data[2].id)).any()
    assert (read_confidence(run.confidence_path(data[2].id)) == 1).all()
    assert run.scores(data[2].id).tags.numel() == 0
    assert not {data[1].id, data[2].id} & set(seen)


def test_two_shards_are_one_run_whatever_the_batch_size(data, tmp_path):
    quiet(data, tmp_path / "one")
    shards = [quiet(data, tmp_path / "two", shard=(i, 2)) for i in (0, 1)]
    assert sum(shard.total for shard in shards) == 12
    assert all(0 < shard.done == shard.total for shard in shards)
    assert artefacts(tmp_path / "two") == artefacts(tmp_path / "one")
    assert len(Run.open(tmp_path / "two").records()) == 12
    for i in (0, 1):
        quiet(data, tmp_path / "batched", shard=(i, 2), batch_size=3)
    assert artefacts(tmp_path / "batched") == artefacts(tmp_path / "one")


def test_batches_hold_equal_grids_and_no_truth(data, tmp_path):
    method = toy()
    found, batches = method.scores, []

    def scores(items):
        batches.append(items)
        return found(items)

    method.scores = scores
    quiet(data, tmp_path / "run", method, batch_size=3)
    assert all(len({method.grid(tuple(item.image.shape[1:])) for item in items}) == 1 for items in batches)
    assert max(len(items) for items in batches) == 3
    for items in batches:
        for item in items:
            assert isinstance(item, Item)
            assert item.image.dtype == torch.uint8
            assert not any(callable(value) for value in vars(item).values())


def test_without_scores(data, tmp_path):
    quiet(data, tmp_path / "run", keep_scores=False)
    assert not (tmp_path / "run" / "scores").exists()
    assert quiet(data, tmp_path / "run", keep_scores=False).skipped == 12


def test_the_rule_decides_too(data, tmp_path):
    quiet(data, tmp_path / "run")
    with pytest.raises(UserError, match=r"mask_rule\.mu is None there and 0\.95 now"):
        quiet(data, tmp_path / "run", rule=MaskRule(mu=0.95))
    assert quiet(data, tmp_path / "run", rule=MaskRule(mu=0.95), overwrite=True).done == 12


def says(clip=None, **resolved):
    """A toy that has a CLIP, and options that took effect."""
    method = toy(
        type(
            "Says",
            (TrainingFree,),
            {"resolved": resolved, "__module__": TrainingFree.__module__, "__qualname__": "TrainingFree"},
        )
    )
    about = {"fingerprint": "f", **(clip or {})}
    method.towers = {"clip": SimpleNamespace(sha256="s", dtype=torch.float32, device="cpu", name="c", **about)}
    return method


def test_the_texts_decide_too(data, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "toy", f"{TrainingFree.__module__}:{TrainingFree.__qualname__}")
    texts = TextSet(("red", "green", "blue"), background=("sky",), per_class={"red": ("crimson",)})
    other = TextSet(("r", "g", "b"))

    def run(**sets):
        classes = replace(CLASSES, texts=sets)
        return quiet(replace(data, classes=classes), tmp_path / "run", says())

    run(toy=texts, another=other)
    kept = Run.open(tmp_path / "run").settings["classes"]["texts"]
    assert kept == {"toy": plain(texts)}
    assert run(toy=texts, another=texts).skipped == 12  # another method's
    for change, told in [
        ({"templates": ("a {}.",)}, "templates"),
        ({"background": ("sea",)}, "background"),
        ({"per_class": {"red": ("scarlet",)}}, r"per_class\.red"),
        ({"names": ("red", "green", "navy")}, "names"),
    ]:
        with pytest.raises(UserError, match=rf"classes\.texts\.toy\.{told} is"):
            run(toy=replace(texts, **change))
    with pytest.raises(UserError, match=r"classes\.texts\.toy-released\.names is absent"):
        run(**{"toy": texts, "toy-released": other})
    monkeypatch.delitem(METHODS, "toy")
    quiet(replace(data, classes=replace(CLASSES, texts={"another": other})), tmp_path / "unnamed", says())
    assert Run.open(tmp_path / "unnamed").settings["classes"]["texts"] == {"another": plain(other)}


def test_the_whole_clip_and_resolved_options_decide(data, tmp_path):
    quiet(data, tmp_path / "run", says(clip={"fingerprint": "f1"}, layers=2))
    assert Run.open(tmp_path / "run").settings["resolved"] == {"layers": 2}
    with pytest.raises(UserError, match=r"clip\.fingerprint is 'f1' there and 'f2' now"):
        quiet(data, tmp_path / "run", says(clip={"fingerprint": "f2"}, layers=2))
    with pytest.raises(UserError, match=r"resolved\.layers is 2 there and 3 now"):
        quiet(data, tmp_path / "run", says(clip={"fingerprint": "f1"}, layers=3))
    assert quiet(data, tmp_path / "run", says(clip={"fingerprint": "f1"}, layers=2)).skipped == 12


def test_what_is_only_noted_does_not_decide(data, tmp_path):
    quiet(data, tmp_path / "run", noted={"config": {"path": "/here"}})
    assert quiet(data, tmp_path / "run", noted={"config": {"path": "/there"}}).skipped == 12
    assert Run.open(tmp_path / "run").noted["config"] == {"path": "/there"}  # the data may have moved


def test_progress_goes_to_stderr(data, tmp_path, capsys):
    label(data, toy(), tmp_path / "run")
    out, err = capsys.readouterr()
    assert out == ""
    assert "label: 12/12" in err


# --- bad settings stop before any work ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"rule": MaskRule(refiner="clip-se")}, "clip-es"),
        ({"shard": (2, 2)}, "count from 0"),
        ({"method": "clip-se"}, "did you mean 'clip-es'"),
        ({"method": toy(Refiner)}, "give its folder as the prior"),
        ({"method": toy(Refiner), "prior": "nowhere"}, "no run of tag2mask"),
    ],
)
def test_bad_settings(data, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        quiet(data, tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"), [({"tags": (4,)}, "tags"), ({"tags": (0, 1)}, "tags"), ({"id": "../x"}, "image id")]
)
def test_bad_data(data, tmp_path, change, message):
    data.samples[5] = replace(data[5], **change)
    with pytest.raises(UserError, match=message):
        quiet(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_prior_must_fit(data, tmp_path):
    quiet(data, tmp_path / "first")
    with pytest.raises(UserError, match="cannot be both"):
        quiet(data, tmp_path / "first", toy(Refiner), prior=tmp_path / "first")
    other = TinyData(data.samples, data.root, replace(CLASSES, names=("background", "r", "g", "b")))
    with pytest.raises(UserError, match="other classes"):
        quiet(other, tmp_path / "second", toy(Refiner), prior=tmp_path / "first")
    Run.open(tmp_path / "first").mask_path(data[0].id).unlink()
    summary = quiet(data, tmp_path / "second", toy(Refiner), prior=tmp_path / "first")
    assert (summary.done, summary.failed) == (11, 1)
    assert "earlier run has no mask" in summary.errors[0][1]


def test_methods_by_name():
    assert known_methods()["clip-es"] == "tag2mask.methods.clip_es:ClipES"
    with pytest.raises(UserError, match=r"box_treshold\" is not known \(did you mean 'box_threshold'\?\)"):
        make_options("clip-es", {"box_treshold": 0.4})
    with pytest.raises(UserError, match="option steps = 0: input should be greater than or equal to 1"):
        make_options("clip-es", {"steps": 0})


def test_another_packages_method(monkeypatch, data, tmp_path):
    from importlib.metadata import EntryPoint

    points = [EntryPoint(name, value, "tag2mask.methods") for name, value in OTHERS.items()]
    monkeypatch.setattr("tag2mask.tables._points", lambda group: points if group == "tag2mask.methods" else [])
    assert known_methods()["clip-es"] == "tag2mask.methods.clip_es:ClipES"
    assert quiet(data, tmp_path / "run", make_method("toy", CLASSES, gain=0.5)).done == 12
    assert Run.open(tmp_path / "run").settings["method"] == "toy"
    assert Run.open(tmp_path / "run").settings["options"] == {"gain": 0.5}
    assert quiet(data, tmp_path / "run", toy(gain=0.5)).skipped == 12  # made by hand it is the same method
    with pytest.raises(UserError, match="does not import"):
        make_method("broken", CLASSES)


OTHERS = {
    "toy": "methods.toys:TrainingFree",
    "broken": "methods.toys:Missing",
    "clip-es": "methods.toys:TrainingFree",
}


# --- memory ------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    if resident_memory() is None:
        pytest.skip("this system does not tell")
    few = make_data(tmp_path / "images", count=3, sizes=((64, 64),))
    data = TinyData([replace(few[i % 3], id=f"{i:05}") for i in range(700)], few.root)
    method = toy()
    found, memory = method.scores, []

    def scores(items: Sequence[Item]) -> list[Scores]:
        memory.append(resident_memory())
        return found(items)

    method.scores = scores
    assert quiet(data, tmp_path / "run", method).done == 700
    assert max(memory[600:]) - max(memory[:200]) < 5 << 20
