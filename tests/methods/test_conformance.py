"""What every method must do, whatever it is: one set of tests over METHODS and over a toy of each kind."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from methods.cases import FITS, GIVEN, KNOWN, Case, build, random_clip, random_weights
from methods.toys import CLASSES, ONLINE, TOYS, TinyData, TrainingFree, make_data
from run_folders import artefacts
from tag2mask.data.image import read_image
from tag2mask.data.png import read_confidence, read_mask
from tag2mask.methods import METHODS, make_method, method_class
from tag2mask.methods.protocol import Machine, Method, Trainable
from tag2mask.ops.masks import upsample
from tag2mask.run.checkpoint import steps_done
from tag2mask.run.folder import Run
from tag2mask.run.settings import plain
from tag2mask.segment.architectures import ARCHITECTURES
from tag2mask.segment.network import load_network
from tag2mask.segment.saved import find_network, read_saved
from tag2mask.segment.test_time import PRESETS, TestTime
from tag2mask.stages.export_network import export_network
from tag2mask.stages.label import label
from tag2mask.stages.machinery.fit import FITTED, fitted_digest
from tag2mask.stages.machinery.fit_data import FIT_DATA
from tag2mask.stages.predict import predict
from tag2mask.types import IGNORE, Constant, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True, scope="module")
def the_toys_architecture():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "toy-online", ONLINE)
        yield


@pytest.fixture(scope="module", params=[*METHODS, GIVEN, *TOYS])
def case(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    data = make_data(folder / "images", count=7)
    data.classes = KNOWN
    method = build(request.param, data.classes)
    prior = fitted = None
    if method.earlier_run(method.options).needed:
        label(data, TrainingFree(CLASSES, TrainingFree.Options()), folder / "prior", progress=False)
        prior = Run.open(folder / "prior")
    if method.learns:
        label(data, method, folder / "fit", prior=prior, fit_only=True, progress=False)
        fitted = Run.open(folder / "fit")
        method = build(request.param, data.classes)
        method.load(fitted.checkpoints, prior)
    return Case(request.param, method, data, prior, fitted, folder)


def test_is_a_method(case):
    assert isinstance(case.method, Method)
    for size in [(1, 1), (24, 32), (17, 23)]:
        height, width = case.method.grid(size)
        assert height >= 1
        assert width >= 1


def test_shapes_and_values(case):
    items = case.items()
    for item, scores in zip(items, case.method.scores(items), strict=True):
        size = tuple(item.image.shape[1:])
        grid = case.method.grid(size)
        assert scores.tags.dtype == torch.int64
        assert scores.tags.tolist() == item.tags.tolist()
        assert scores.maps.dtype == torch.float32
        assert tuple(scores.maps.shape) == (len(item.tags), *grid)
        assert tuple(scores.size) == size
        for maps in (scores.maps, scores.background, scores.initial):
            if maps is not None:
                assert torch.isfinite(maps).all()
                assert maps.min() >= 0
                at_pixels = maps if maps.ndim == 3 else maps[None]
                # a cell between pixels may be higher
                assert upsample(at_pixels, size, scores.frame).max() <= 1 + 1e-6
        if scores.background is not None:
            assert tuple(scores.background.shape) == grid
        if scores.initial is not None:
            assert scores.initial.shape == scores.maps.shape
        assert (scores.others is not None) == case.method.scores_others
        if scores.others is not None:
            assert scores.others.score.shape == scores.others.values.shape == grid
            assert not torch.isin(scores.others.values, item.tags).any()
        if scores.frame is not None:
            assert scores.frame[0] >= size[0]
            assert scores.frame[1] >= size[1]


def test_the_same_again(case):
    first, second = (case.method.scores(case.items()) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.maps, b.maps)


def test_mixed_sizes_at_once_are_as_one_by_one(case):
    items = case.items()
    together = case.method.scores(items)
    for item, scores in zip(items, together, strict=True):
        alone = case.method.scores([item])[0]
        torch.testing.assert_close(scores.maps, alone.maps, rtol=1e-3, atol=1e-4)


def test_leaves_its_input_alone(case):
    items, before = case.items(), case.items()
    case.method.scores(items)
    for a, b in zip(items, before, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.tags, b.tags)


def test_label_writes_what_only_the_tags_allow(case):
    summary = case.label("run")  # the data's truth raises when it is read
    assert (summary.done, summary.failed, summary.complete) == (len(case.data), 0, True), summary.errors
    run = Run.open(case.folder / "run")
    assert run.ids() == sorted(sample.id for sample in case.data)
    for sample in case.data:
        mask = read_mask(run.mask_path(sample.id))
        assert mask.shape == read_image(sample.image).shape[:2]
        assert set(mask.ravel().tolist()) <= {0, IGNORE, *sample.tags}
        assert read_confidence(run.confidence_path(sample.id)).shape == mask.shape
        assert run.scores(sample.id).tags.tolist() == list(sample.tags)


def test_stopped_and_gone_on_is_as_never_stopped(case, monkeypatch):
    case.label("whole", batch_size=2)
    found, calls = case.method.scores, []

    def interrupted(items):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return found(items)

    monkeypatch.setattr(case.method, "scores", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt, match="saved"):
        case.label("stopped", batch_size=2)
    assert case.label("stopped", batch_size=2).skipped > 0
    assert artefacts(case.folder / "stopped") == artefacts(case.folder / "whole")


def test_two_shards_are_one_run(case):
    case.label("one")
    assert sum(case.label("two", shard=(i, 2)).total for i in (0, 1)) == len(case.data)
    assert artefacts(case.folder / "two") == artefacts(case.folder / "one")


def test_side_by_side_is_as_one_by_one(case):
    """A method that says so labels several images at once, with the same bytes; another one refuses."""
    if not case.method.side_by_side:
        with pytest.raises(UserError, match="--workers"):
            case.label("several", machine=Machine(workers=3))
        return
    for workers in (1, 3):
        case.label(f"by-{workers}", machine=Machine(workers=workers))
    found = artefacts(case.folder / "by-1")
    assert len(found) >= len(case.data)
    assert artefacts(case.folder / "by-3") == found


class Killed(BaseException):
    """As good as kill -9: nothing of this package cleans up after it."""


def test_fit_goes_on_where_it_stopped(case, monkeypatch):
    """A fit that is killed after every file or two that it writes leaves what an uninterrupted one leaves."""
    if case.fitted is None:
        pytest.skip("nothing to fit")
    monkeypatch.setattr("tag2mask.methods.fitting.settings.SAVE_STEPS", 1)
    folder, replace_file, written, left = case.folder / "fit-again", os.replace, [], []

    def breaking(source, target, **more):
        if folder / "checkpoints" in Path(target).parents and Path(target).name != FIT_DATA:
            if len(written) == 1 + len(left) % 2:
                left.append(steps_done(folder / "checkpoints"))
                raise Killed
            written.append(target)
        return replace_file(source, target, **more)

    monkeypatch.setattr(os, "replace", breaking)
    for _ in range(30):
        written.clear()
        try:
            case.label("fit-again", fitted=None, fit_only=True)
        except Killed:
            case.method = build(case.name, case.data.classes)  # another process knows nothing
            case.method.load(case.fitted.checkpoints, case.prior)
            continue
        break
    assert learned(Run.open(folder)) == learned(case.fitted)
    if case.name in FITS:  # killed between its two steps, too
        assert 1 in left


def test_a_fit_forgets_what_the_object_learned_before(case):
    if case.fitted is None:
        pytest.skip("nothing to fit")
    case.label("fit-once-more", fitted=None, fit_only=True)  # this object has loaded a fit
    assert learned(Run.open(case.folder / "fit-once-more")) == learned(case.fitted)


def test_label_fits_first_and_another_run_may_take_the_fit(case):
    if case.fitted is None:
        pytest.skip("nothing to fit")
    method = build(case.name, case.data.classes)
    summary = label(case.data, method, case.folder / "here", prior=case.prior, progress=False)
    assert summary.done == len(case.data)
    assert learned(Run.open(case.folder / "here")) == learned(case.fitted)
    case.label("taken")
    taken = Run.open(case.folder / "taken")
    assert not taken.checkpoints.exists()
    assert taken.settings["fitted"] == {"sha256": fitted_digest(case.fitted)}
    assert artefacts(case.folder / "here") == artefacts(case.folder / "taken")


def learned(run: Run) -> dict[str, bytes]:
    """What a fit left, and its own list of it."""
    names = json.loads((run.checkpoints / FITTED).read_text())
    return {name: (run.checkpoints / name).read_bytes() for name in [*names, FITTED]}


def has_network(case) -> bool:
    return case.fitted is not None and find_network(case.fitted.path) is not None


def test_a_network_is_found_in_the_run(case):
    """By predict and export, whole: with its frozen towers, which are not saved beside it."""
    if not has_network(case):
        pytest.skip("trains no network")
    saved = read_saved(case.fitted.path)
    assert (saved.config.names, saved.supervision) == (case.data.classes.names, "tags")
    kept = load_file(saved.path / "model.safetensors")
    net = load_network(case.fitted.path, "cpu")
    assert set(kept) == {name for name in net.state_dict() if not name.startswith(net.towers)} < set(net.state_dict())
    alone = {"test": TestTime(), "refiner": "none", "device": "cpu", "progress": False}
    predict(case.fitted.path, case.data, case.folder / "predicted", **alone)
    export_network(case.fitted.path, "onnx", case.folder / "network.onnx")
    out = case.folder / "run-of-network"
    alone = replace(case.method.mask_rule, refiner=None, others="never")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(case.method, "network_test", PRESETS["plain"], raising=False)
        summary = case.label(out.name, masks_of="network", rule=alone)
    assert (summary.done, summary.failed) == (len(case.data), 0)
    session = onnxruntime.InferenceSession(case.folder / "network.onnx")
    for sample in case.data:
        pixels = read_image(sample.image).transpose(2, 0, 1)[None].astype(np.float32)
        logits = session.run(None, {"images": pixels})[0][0]
        there = read_mask(Run.open(case.folder / "predicted").mask_path(sample.id))
        assert (logits.argmax(0) == there).mean() > 0.999
        allowed = np.isin(np.arange(len(logits)), [0, *sample.tags])
        masked = np.where(allowed[:, None, None], logits, -np.inf).argmax(0)
        assert (masked == read_mask(Run.open(out).mask_path(sample.id))).mean() > 0.999
    assert not (out / "scores").exists()


def test_its_network_is_tested_as_the_method_says(case):
    """By ``label`` and by ``predict`` alike: views and refiner are the method's, and on record."""
    if not has_network(case):
        pytest.skip("trains no network")
    wanted = case.method.network_test
    assert read_saved(case.fitted.path).test == wanted
    one = TinyData(case.data.samples[:1], case.data.root, case.data.classes)  # the views are of 512 pixels and more
    label(one, case.method, case.folder / "as-tested", fitted=case.fitted, masks_of="network", progress=False)
    predict(case.fitted.path, one, case.folder / "as-predicted", use_tags=True, device="cpu", progress=False)
    mine, theirs = (Run.open(case.folder / name) for name in ("as-tested", "as-predicted"))
    views = {key: value for key, value in plain(wanted.test).items() if key != "batch"}
    assert mine.settings["test"] == theirs.settings["test"] == views
    assert mine.settings["mask_rule"]["refiner"] == theirs.settings["refiner"] == wanted.refiner
    if case.method.mask_rule.others == "never":
        for sample in one:
            assert np.array_equal(read_mask(mine.mask_path(sample.id)), read_mask(theirs.mask_path(sample.id)))
    for said in ({"mu": 0.9}, {"background": Constant(0.3)}):
        with pytest.raises(UserError, match=f"masks.{next(iter(said))}: of masks that are made of maps"):
            case.label("idle", masks_of="network", rule=replace(case.method.mask_rule, **said))


def test_an_explicit_none_is_said_to_be_none_or_leaves_the_option_out(case):
    name = case.name.removesuffix(" given")
    if name in TOYS:
        return
    small = {**FITS.get(case.name, {}), **({} if case.method.learns else {"weights": random_weights(name)})}
    values = {"view", "window", "stride", "resolution", "threshold"}  # of which none is one
    for option, field in method_class(name).Options.model_fields.items():
        without = {key: value for key, value in small.items() if key != option}
        try:
            given = bare(name, case, {**without, option: None})
        except UserError as error:
            where = str(error)
            assert option in where or "no effect" in where or "learn" in where
            continue
        assert field.default is None or option in values, option
        if option not in values:
            assert given == bare(name, case, without), option


def bare(name: str, case: Case, options: dict) -> object:
    """What decides the results of a method with these options alone."""
    made = method_class(name)
    if "weights" in made.Options.model_fields:
        options = {"weights": random_weights(name), **options}
    clip = random_clip() if "clip" in made.needs else None
    return plain(make_method(name, case.data.classes, clip=clip, device="cpu", **options).resolved)


def test_without_a_network_no_masks_of_it(case):
    if has_network(case):
        pytest.skip("trains a network")
    with pytest.raises(UserError, match="trains no network"):
        case.label("no-network", masks_of="network")


def test_the_toys_are_of_the_kinds_they_say():
    kinds = {name: TOYS[name](CLASSES, TOYS[name].Options()) for name in TOYS}
    assert {name for name, method in kinds.items() if isinstance(method, Trainable)} == set(TOYS) - {
        "toy-training-free"
    }
    assert {name for name, method in kinds.items() if method.earlier_run(method.options).needed} == {"toy-refiner"}
