"""A training that goes on to more steps, starts over, and is measured while it runs, none of which may change it."""

from __future__ import annotations

import csv
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from stages.small_run import small_run, toys
from stages.test_train import HOW, RECIPE, weights
from tag2mask.cli import app
from tag2mask.data.pixels import read_pixels
from tag2mask.ops.metrics import confusion_matrix, metrics
from tag2mask.run.checkpoint import steps_done
from tag2mask.segment.network import load_network
from tag2mask.segment.saved import read_saved
from tag2mask.segment.test_time import TestTime, predict_labels
from tag2mask.stages.machinery import watch
from tag2mask.stages.machinery.watch import Validation, Watch
from tag2mask.stages.train import train
from tag2mask.storybook import render
from tag2mask.types import UserError

SHORT = replace(RECIPE, steps=2, accumulate=1)
FIXED = replace(SHORT, schedule_steps=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    data = toys(folder / "data")
    return data, small_run(folder / "run", data)


def warned(call):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        call()
    return " ".join(str(each.message) for each in told)


# --- more steps


def test_a_finished_training_goes_on_to_the_bits_of_one_asked_for_at_once(made, tmp_path):
    data, run = made
    train(run, tmp_path / "whole", replace(FIXED, steps=4), data=data, **HOW)
    train(run, tmp_path / "net", FIXED, data=data, **HOW)
    said = warned(lambda: train(run, tmp_path / "net", replace(FIXED, steps=4), data=data, **HOW))
    assert steps_done(tmp_path / "net") == 4
    assert weights(tmp_path / "net") == weights(tmp_path / "whole")
    assert "goes on" not in said
    assert "lengthened" not in (tmp_path / "net" / "recipe.json").read_text()


def test_where_the_rate_depends_on_the_steps_it_says_so(made, tmp_path):
    data, run = made
    train(run, tmp_path, SHORT, data=data, **HOW)
    more = replace(SHORT, steps=3)
    said = warned(lambda: train(run, tmp_path, more, data=data, **HOW))
    assert "its learning rate fell towards step 2" in said
    assert json.loads((tmp_path / "recipe.json").read_text())["lengthened"] == [2]
    assert read_saved(tmp_path).noted["lengthened"] == [2]
    assert warned(lambda: train(run, tmp_path, more, data=data, **HOW)).count("goes on") == 0
    train(run, tmp_path, replace(SHORT, steps=4), data=data, **HOW)
    assert read_saved(tmp_path).noted["lengthened"] == [2, 3]
    with pytest.raises(UserError, match="steps is 4 there and 3 now"):
        train(run, tmp_path, more, data=data, **HOW)


def test_what_else_differs_is_another_training(made, tmp_path):
    data, run = made
    train(run, tmp_path, SHORT, data=data, **HOW)
    before = weights(tmp_path)
    with pytest.raises(UserError, match=r"lr is 0\.0005 there and 0\.1 now"):
        train(run, tmp_path, replace(SHORT, steps=3, lr=0.1), data=data, **HOW)
    assert weights(tmp_path) == before
    assert json.loads((tmp_path / "recipe.json").read_text())["steps"] == 2


def test_overwrite_starts_over_and_touches_nothing_else(made, tmp_path):
    data, run = made
    train(run, tmp_path / "fresh", replace(SHORT, seed=9), data=data, **HOW)
    train(run, tmp_path / "net", SHORT, data=data, **HOW)
    (tmp_path / "net" / "notes.txt").write_text("mine")
    train(run, tmp_path / "net", replace(SHORT, seed=9), data=data, overwrite=True, **HOW)
    assert weights(tmp_path / "net") == weights(tmp_path / "fresh")
    assert (tmp_path / "net" / "notes.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "net" / "log").iterdir()] == ["version_0"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "recipe.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match="remove it by hand"):
        train(run, other, SHORT, data=data, overwrite=True, **HOW)
    assert (other / "recipe.json").exists()


# --- validation


def test_it_measures_what_it_says_and_changes_no_bit(made, tmp_path):
    data, run = made
    held = Validation(1, hold_out=2)
    with_it = train(run, tmp_path / "a", SHORT, data=data, validation=held, **HOW)
    without = train(run, tmp_path / "b", SHORT, data=data, validation=Validation(99, hold_out=2), **HOW)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert with_it.examples == without.examples == 3
    assert with_it.left_out == {"held out": 2}
    net, total = load_network(tmp_path / "a", "cpu"), 0
    trained = json.loads((tmp_path / "a" / "recipe.json").read_text())["examples"]["images"]
    assert trained == 3
    targets = watch.held_out(watch_targets(data, run), 2)
    kept = {targets.sample(position).id for position in range(len(targets))}
    for sample in data:
        if sample.id not in kept:
            labels, _ = predict_labels(net, read_pixels(sample.image), TestTime())
            total = total + confusion_matrix(torch.from_numpy(sample.truth()), labels, 4)
    wanted = metrics(total).miou
    rows = csv.DictReader((tmp_path / "a" / "log" / "version_0" / "metrics.csv").open())
    logged = [float(row["val_miou"]) for row in rows if row["val_miou"]]
    assert len(logged) == 2
    assert logged[-1] == pytest.approx(wanted, abs=1e-6)
    assert f"validation mIoU {100 * wanted:.1f} % of 2 images at step 2" in with_it.text()
    assert "measured alone" in with_it.text()


def watch_targets(data, run):
    from tag2mask.segment.targets import find_targets

    return find_targets(data, run)


def test_truth_is_read_by_the_measuring_alone(made, tmp_path, monkeypatch):
    data, run = made
    measuring = []
    measure = Watch.measure

    def spied(self, *arguments):
        measuring.append(1)
        measure(self, *arguments)
        measuring.pop()

    def guarded(read):
        def truth():
            assert measuring, "the training reads ground truth"
            return read()

        return truth

    monkeypatch.setattr(Watch, "measure", spied)
    samples = [replace(sample, truth=guarded(sample.truth)) for sample in data]
    guarded_data = replace(data, samples=samples)
    result = train(run, tmp_path, SHORT, data=guarded_data, validation=Validation(1, hold_out=1), **HOW)
    assert result.supervision == "tags"
    assert result.validation is not None


def test_measuring_leaves_each_part_in_its_mode():
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.Dropout())
    net[0].eval()
    net[1].train()
    with watch.testing(net):
        assert not net[1].training
    assert (net.training, net[0].training, net[1].training) == (True, False, True)


def test_what_cannot_be_measured_is_named(made, tmp_path):
    data, run = made
    with pytest.raises(UserError, match="--hold-out N"):
        train(run, tmp_path, SHORT, data=data, validation=Validation(1), **HOW)
    with pytest.raises(UserError, match="hold out 5 of 5"):
        train(run, tmp_path, SHORT, data=data, validation=Validation(1, hold_out=5), **HOW)
    names = ("background", "cat", "dog", "cap")
    other = replace(data, classes=replace(data.classes, names=names))
    with pytest.raises(UserError, match="other names"):
        train(run, tmp_path, SHORT, data=data, validation=Validation(1, data=other), **HOW)

    def wrong():
        return np.zeros((3, 3), np.uint8)

    odd = replace(data, samples=[replace(sample, truth=wrong) for sample in data])
    with pytest.raises(UserError, match="none of 5 images can be measured"):
        train(run, tmp_path, SHORT, data=data, validation=Validation(1, data=odd), **HOW)


def test_the_command_measures_another_split(tmp_path):
    scenes = render(tmp_path / "s", 3, split="train", size=(48, 64))
    render(scenes, 2, split="val", size=(48, 64))
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join((scenes / "ImageSets" / "Segmentation" / "train.txt").read_text().split()))
    words = ["train", "--data", str(scenes), "--split", "train", "--pixel-labels", str(listed), "--device", "cpu"]
    words += ["-o", str(tmp_path / "net"), "--set", "steps=1", "--set", "batch=2", "--set", "crop=32", "--set"]
    words += ["init=random", "--set", "options={width: 4, blocks: [1, 1, 1, 1], channels: 8}"]
    lone = CliRunner().invoke(app, [*words, "--hold-out", "1"])
    assert (lone.exit_code, "--eval-every STEPS" in lone.output) == (1, True)
    done = CliRunner().invoke(app, [*words, "--eval-every", "1", "--eval-split", "val"])
    assert done.exit_code == 0, done.output
    assert "of 2 images at step 1" in done.output
    assert "tensorboard --logdir" in done.output or "tag2mask[logs]" in done.output
