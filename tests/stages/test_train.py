"""A network from a run's masks: stopped anywhere it ends the same; what is written."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from stages.small_run import CLASSES
from stages.small_training import HOW, RECIPE, Killed, watch, weights
from tag2mask.cli import app
from tag2mask.config import read_recipe
from tag2mask.data import read_voc
from tag2mask.data.pixels import read_pixels
from tag2mask.models.backbone import Layout, ResNet
from tag2mask.ops.metrics import confusion_matrix, metrics
from tag2mask.run.checkpoint import steps_done
from tag2mask.run.lock import Lock
from tag2mask.run.sampling import sample_indices
from tag2mask.segment.network import load_network
from tag2mask.segment.recipe import TrainRecipe
from tag2mask.segment.saved import read_saved
from tag2mask.segment.test_time import TestTime, predict_labels
from tag2mask.stages import train as stage
from tag2mask.stages.machinery.watch import Validation
from tag2mask.stages.train import train
from tag2mask.storybook import render
from tag2mask.types import UserError

RECIPES = Path(__file__).parents[2] / "recipes"


# --- stopping and going on


def test_killed_in_the_middle_of_a_step_it_ends_in_the_same_bits(made, unbroken, tmp_path, monkeypatch):
    data, run = made
    whole, drawn, _ = unbroken
    out = tmp_path / "net"
    with monkeypatch.context() as patch:
        before = watch(patch, kill_at=8)  # step 2 of 4, its second batch of three; the epoch has five images
        with pytest.raises(Killed):
            train(run, out, RECIPE, data=data, **HOW)
    assert steps_done(out) == 2
    assert load_network(out, "cpu").config.names == CLASSES.names  # an unfinished one can be used
    with monkeypatch.context() as patch:
        after = watch(patch)
        result = train(run, out, RECIPE, data=data, **HOW)
    assert before[:6] + after == drawn
    assert len(drawn) == 12
    assert weights(out) == weights(whole)
    assert result.step == 4


def test_kill_9_and_again(made, unbroken, tmp_path):
    data, run = made
    out = tmp_path / "net"
    code = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import torch; torch.set_num_threads({torch.get_num_threads()})
from stages.small_run import toys
from tag2mask.segment.supervised import SupervisedTraining
from tag2mask.stages.train import train
from tag2mask.segment.recipe import CCT, TrainRecipe
step, count = SupervisedTraining.training_step, 0
def dies(self, batch, batch_idx):
    global count
    count += 1
    if count == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)
SupervisedTraining.training_step = dies
train({str(run.path)!r}, {str(out)!r}, {RECIPE!r}, data=toys(Path({str(data.root)!r})), **{HOW!r})
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert steps_done(out) == 2
    assert train(run, out, RECIPE, data=data, **HOW).step == 4
    assert weights(out) == weights(unbroken[0])


def test_two_processes_train_and_measure_together(made, tmp_path):
    data, run = made
    out, script = tmp_path / "net", tmp_path / "two.py"
    recipe = replace(RECIPE, steps=2, accumulate=1)
    how = {**HOW, "devices": 2, "minutes": 0}  # Lightning starts the second process with the same command line
    script.write_text(f"""
import sys
from pathlib import Path
import torch
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from stages.small_run import toys
from tag2mask.segment.recipe import CCT, TrainRecipe
from tag2mask.segment.supervised import SupervisedTraining
from tag2mask.stages.machinery.watch import Validation, Watch
from tag2mask.stages.train import train
step = SupervisedTraining.training_step
def spied(self, batch, batch_idx):
    told = Path({str(tmp_path)!r}) / f"drawn-{{self.global_rank}}"  # not on stdout, where two would write at once
    told.write_text(f"{{batch.step}} {{batch.samples.tolist()}}")
    return step(self, batch, batch_idx)
SupervisedTraining.training_step = spied
look = Watch._look
def looked(self, net, samples, found, device):
    look(self, net, samples, found, device)
    rank = torch.distributed.get_rank()
    (Path({str(tmp_path)!r}) / f"measured-{{rank}}").write_text(" ".join(sample.id for sample in samples))
Watch._look = looked
data = toys(Path({str(data.root)!r}))
train({str(run.path)!r}, {str(out)!r}, {recipe!r}, data=data, validation=Validation(1, hold_out=2), **{how!r})
""")
    done = subprocess.run([sys.executable, str(script)], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert steps_done(out) == 1
    first = sample_indices(recipe.seed, 0, 2, 3).tolist()
    for rank, sample in enumerate(first):
        assert (tmp_path / f"drawn-{rank}").read_text() == f"0 [{sample}]"
    told = json.loads((out / "train.json").read_text())
    assert told["step"] == 1
    # each measured one of the two images that were held out; together it is the figure of the network that is kept
    measured = [(tmp_path / f"measured-{rank}").read_text() for rank in (0, 1)]
    net, total = load_network(out, "cpu"), torch.zeros(4, 5, dtype=torch.int64)
    for sample in data:
        if sample.id in measured:
            labels, _ = predict_labels(net, read_pixels(sample.image), TestTime())
            total += confusion_matrix(torch.from_numpy(sample.truth()), labels, 4)
    assert len({*measured}) == 2
    wanted = f"validation mIoU {100 * metrics(total).miou:.1f} % of 2 images at step 1"
    assert told["validation"] == wanted
    # alone it goes on where the two were
    assert train(run, out, recipe, data=data, validation=Validation(9, hold_out=2), **HOW).step == 2


def test_the_clock_ends_a_leg_and_a_finished_training_is_left_alone(made, unbroken, tmp_path):
    data, run = made
    legs = [train(run, tmp_path, RECIPE, data=data, minutes=0, **HOW).step for _ in range(4)]
    assert legs == [1, 2, 3, 4]
    assert weights(tmp_path) == weights(unbroken[0])
    (tmp_path / "network" / "model.safetensors").unlink()
    (tmp_path / "network" / "config.json").unlink()
    (tmp_path / "network").rmdir()
    said = (tmp_path / "train.json").read_bytes()
    again = train(run, tmp_path, RECIPE, data=data, **HOW)
    assert (again.step, again.loss) == (4, None)
    assert weights(tmp_path) == weights(unbroken[0])
    assert (tmp_path / "train.json").read_bytes() == said


def test_batches_from_other_processes_are_the_same(made, unbroken, tmp_path):
    data, run = made
    train(run, tmp_path, RECIPE, data=data, workers=1, **HOW)
    assert weights(tmp_path) == weights(unbroken[0])


def test_another_training_or_process_in_the_folder_is_refused(made, unbroken, tmp_path):
    data, run = made
    out = unbroken[0]
    with pytest.raises(UserError, match=r"holds another training: lr is 0\.0005 there and 0\.1 now"):
        train(run, out, replace(RECIPE, lr=0.1), data=data, **HOW)
    fewer = replace(data, samples=data.samples[:4])
    with pytest.raises(UserError, match="trained on 5 images, and now 4 have a mask"):
        train(run, out, RECIPE, data=fewer, **HOW)
    lock = Lock(out / ".lock", "x")
    try:
        with pytest.raises(UserError, match=r"The training in .* is being written by process"):
            train(run, out, RECIPE, data=data, **HOW)
    finally:
        lock.release()


def test_a_mended_command_may_begin_where_nothing_was_learned(made, tmp_path):
    data, run = made
    with pytest.raises(UserError, match="batch"):
        train(run, tmp_path / "net", replace(RECIPE, batch=1, crop=16), data=data, **HOW)
    assert train(run, tmp_path / "net", RECIPE, data=data, **HOW).step == RECIPE.steps


def test_another_kind_of_training_keeps_its_folder(made, tmp_path):
    data, run = made
    (tmp_path / "recipe.json").write_text('{"scenes": 60000}')  # as pretraining leaves it before its first step
    with pytest.raises(UserError, match="holds another training"):
        train(run, tmp_path, RECIPE, data=data, **HOW)
    assert json.loads((tmp_path / "recipe.json").read_text()) == {"scenes": 60000}


def test_a_network_does_not_go_into_a_run(own):
    data, run = own
    with pytest.raises(UserError, match="is a run of masks"):
        train(run, Path(getattr(run, "path", run)), RECIPE, data=data, **HOW)


# --- what is written


def test_the_schedule_is_followed_step_by_step(made, tmp_path):
    data, run = made
    recipe = replace(RECIPE, steps=23, batch=1, accumulate=1, hold=10, warmup=0, ema=0.0)
    train(run, tmp_path, recipe, data=data, **HOW)
    rows = list(csv.DictReader((tmp_path / "log" / "version_0" / "metrics.csv").open()))
    found = {int(row["step"]): float(row["lr"]) for row in rows if row["lr"]}
    expected = {step: RECIPE.lr * (1 - step // 10 * 10 / 23) ** 0.9 for step in range(23)}
    assert found == pytest.approx(expected)


def test_the_summary_and_the_network_say_what_they_learnt_from(made, tmp_path):
    data, run = made
    listed = tmp_path / "ids.txt"
    listed.write_text("toy/0\ntoy/2\n")
    out = tmp_path / "net"
    start = tmp_path / "start-of-mine"
    train(run, start, replace(RECIPE, steps=1), data=data, pixel_labels=listed, **HOW)
    assert read_saved(start).supervision == "tags+pixels(2)"
    recipe = replace(RECIPE, steps=1, init=str(start), init_pixels="coco")
    result = train(run, out, recipe, data=data, **HOW)
    said = json.loads((out / "train.json").read_text())
    assert said["supervision"] == result.supervision == "tags+pixels(coco)+pixels(2)"
    assert read_saved(out).supervision == said["supervision"]
    assert read_saved(out).noted["step"] == 1
    assert (said["step"], said["steps"], said["examples"]) == (1, 1, 5)
    assert said["images_per_second"] > 0
    assert "supervision: tags+pixels(coco)+pixels(2)" in result.text()


def test_first_weights_with_a_decoder_are_pixel_supervision(made, tmp_path):
    data, run = made
    layout = Layout(blocks=(1, 1, 1, 1), width=4)
    public = {f"backbone.{name}": value for name, value in ResNet(layout).state_dict().items()}
    deeplab = {"classifier.0.convs.0.0.weight": torch.zeros(3, 128, 3, 3)}
    files = {"resnet50.pth": public, "deeplabv3.pth": public | deeplab}
    for name, state in files.items():
        torch.save({"model": state}, tmp_path / name)
    recipe = replace(RECIPE, steps=1, init=str(tmp_path / "resnet50.pth"))
    assert train(run, tmp_path / "a", recipe, data=data, **HOW).supervision == "tags"
    recipe = replace(recipe, init=str(tmp_path / "deeplabv3.pth"))
    with pytest.warns(UserWarning, match=r"deeplabv3\.pth: these weights hold a decoder.*init_pixels=NAME"):
        result = train(run, tmp_path / "b", recipe, data=data, **HOW)
    assert result.supervision == "tags+pixels(weights: deeplabv3.pth)"
    assert read_saved(tmp_path / "b").supervision == result.supervision
    assert json.loads((tmp_path / "b" / "recipe.json").read_text())["supervision"] == result.supervision
    for said, expected in (("coco", "tags+pixels(coco)"), ("", "tags")):
        out = tmp_path / f"said-{said}"
        assert train(run, out, replace(recipe, init_pixels=said), data=data, **HOW).supervision == expected
    # carried on: by the folder, and by its file alone
    again = replace(recipe, init=str(tmp_path / "b"))
    assert train(run, tmp_path / "c", again, data=data, **HOW).supervision == result.supervision
    again = replace(recipe, init=str(tmp_path / "b" / "network" / "model.safetensors"))
    assert train(run, tmp_path / "d", again, data=data, **HOW).supervision == result.supervision


@pytest.mark.parametrize("name", sorted(path.name for path in RECIPES.glob("train_*_coco.yaml")))
def test_published_recipes_from_coco_s_weights_say_so(name):
    recipe = read_recipe(TrainRecipe, [], RECIPES / name)
    targets = SimpleNamespace(supervision="tags")
    assert stage._supervision(targets, recipe)[0] == "tags+pixels(coco)"


def test_the_average_is_what_is_kept(made, unbroken, tmp_path):
    data, run = made
    train(run, tmp_path, replace(RECIPE, ema=0.0), data=data, **HOW)
    state = torch.load(unbroken[0] / "last.ckpt", weights_only=True)["state_dict"]
    kept = load_network(unbroken[0], "cpu").state_dict()
    plain = load_network(tmp_path, "cpu").state_dict()
    for name, value in kept.items():
        assert torch.equal(value, state[f"average.{name}"])
        assert torch.equal(plain[name], state[f"net.{name}"])
    assert any(not torch.equal(kept[name], plain[name]) for name in kept)


# --- the command line, on scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return render(tmp_path_factory.mktemp("scenes") / "s", 6, split="train", size=(48, 64))


def test_the_loss_falls_on_a_few_scenes(scenes, tmp_path):
    data = read_voc(scenes)
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(sample.id for sample in data))
    small = {"width": 8, "blocks": (1, 1, 1, 1), "channels": 16}
    recipe = replace(RECIPE, options=small, steps=30, batch=3, accumulate=1, crop=48, lr=1e-2, ema=0.0)
    result = train(None, tmp_path / "net", recipe, data=data, pixel_labels=listed, **HOW)
    rows = csv.DictReader((tmp_path / "net" / "log" / "version_0" / "metrics.csv").open())
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert result.supervision == "pixels(6)"


def test_the_command(scenes, tmp_path):
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(sample.id for sample in read_voc(scenes)))
    config = tmp_path / "r.yaml"
    config.write_text("options: {width: 4, blocks: [1, 1, 1, 1], channels: 8}\ninit: random\ncrop: 32\nbatch: 2\n")
    out = str(tmp_path / "net")
    words = ["train", "--data", str(scenes), "--pixel-labels", str(listed), "-o", out, "--config", str(config)]
    words += ["--device", "cpu"]
    runner = CliRunner()
    done = runner.invoke(app, [*words, "--set", "steps=2"])
    assert done.exit_code == 0, done.output
    assert "step 2 of 2" in done.output
    assert "supervision: pixels(6)" in done.output
    wrong = runner.invoke(app, [*words, "--set", "step=2"])
    assert (wrong.exit_code, "did you mean 'steps'?" in wrong.output) == (1, True)
    nothing = runner.invoke(app, ["train"])
    assert (nothing.exit_code, "give a run folder" in nothing.output) == (1, True)
    listed = runner.invoke(app, ["train", "--config", str(config), "--list"])
    assert "crop=32" in listed.output
