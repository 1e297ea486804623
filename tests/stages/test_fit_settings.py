"""What a fit may use of the machine, its time and its numbers: every fit goes by them, or says that it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from typer.testing import CliRunner

from methods.cases import FITS, KNOWN, build, random_classifier
from methods.toys import CLASSES, FittedOnTags, Refiner, TrainingFree, make_data
from tag2mask.cli import app
from tag2mask.methods import make_method, make_options, method_class
from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.methods.protocol import Machine
from tag2mask.run.checkpoint import steps_done
from tag2mask.run.folder import Run
from tag2mask.run.training import Stopped
from tag2mask.stages.label import label
from tag2mask.stages.machinery.fit import FITTED
from tag2mask.types import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data, and an earlier run on it."""
    folder = tmp_path_factory.mktemp("world")
    data = make_data(folder / "images", count=4)
    data.classes = KNOWN
    label(data, TrainingFree(CLASSES, TrainingFree.Options()), folder / "prior", progress=False)
    return data, Run.open(folder / "prior")


def fit(name, world, out, machine=Machine(), **how):  # noqa: B008  # frozen
    data, prior = world
    method = build(name, data.classes, **how)
    given = prior if method.earlier_run(method.options).needed else None
    label(data, method, out, prior=given, fit_only=True, machine=machine, progress=False)
    return Run.open(out)


def learned(run: Run) -> dict[str, str]:
    return json.loads((run.checkpoints / FITTED).read_text())


@pytest.mark.parametrize("name", FITS)
def test_the_machine_decides_nothing_and_minutes_stop_every_fit(name, world, tmp_path):
    whole = fit(name, world, tmp_path / "whole")
    settings = yaml.safe_load((whole.path / "run.yaml").read_text())["settings"]
    assert not {"workers", "minutes", "devices", "precision"} & {*settings, *settings["options"]}
    stops = []
    for _ in range(9):  # labels of an image, then a step, each time
        try:
            fit(name, world, tmp_path / "parts", Machine(minutes=0, workers=len(stops) % 2))
        except Stopped as stop:
            stops.append(str(stop))
            continue
        break
    assert learned(Run.open(tmp_path / "parts")) == learned(whole)
    of_steps = [each for each in stops if "at step 1 of 2; all of it is saved" in each]
    assert len(of_steps) == 1
    assert all("give the same command again" in each for each in stops)
    if name in ("irn", "psa"):
        assert [each for each in stops if "labels to learn from: time is over at 2 of 4 images" in each]


@pytest.mark.parametrize("name", [name for name in FITS if "precision" in method_class(name).fit_uses])
def test_precision_reaches_every_fit_and_is_on_record(name, world, tmp_path):
    half = fit(name, world, tmp_path / "half", precision="bfloat16")
    assert half.settings["fit_precision"] == "bfloat16"
    assert learned(half) != learned(fit(name, world, tmp_path / "full"))
    state = torch.load(half.checkpoints / "last.ckpt", weights_only=True)["state_dict"]
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in state.values() if value.ndim)
    with pytest.raises(UserError, match="fit_precision is 'bfloat16' there and absent now"):
        fit(name, world, tmp_path / "half")


def test_what_has_no_meaning_is_refused(world, tmp_path):
    data, _ = world
    free, toy = TrainingFree(CLASSES, TrainingFree.Options()), FittedOnTags(CLASSES)
    for machine, flag in (
        (Machine(minutes=1), "minutes"),
        (Machine(devices=2), "devices"),
        (Machine(workers=1), "wor"),
    ):
        with pytest.raises(UserError, match=f"--{flag}.* fits nothing here; leave it out"):
            label(data, free, tmp_path / "x", machine=machine, progress=False)
        with pytest.raises(UserError, match=f"--{flag}.*: the fit of .*FittedOnTags does not use it"):
            label(data, toy, tmp_path / "x", machine=machine, progress=False)
    given = make_method(
        "classifier-cam", CLASSES, weights=random_classifier().name, precision="bfloat16", device="cpu"
    )
    with pytest.raises(UserError, match="--precision: classifier-cam fits nothing here"):
        label(data, given, tmp_path / "x", progress=False)
    assert not (tmp_path / "x").exists()
    for name in ("workers", "minutes"):
        with pytest.raises(
            UserError, match=f'"{name}" is a setting of the machine, not of the method: give --{name} 3'
        ):
            make_options("clims", {name: 3})


def test_runs_of_earlier_versions_go_on(world, tmp_path):
    """They have workers and minutes among their options."""
    run = fit("classifier-cam", world, tmp_path / "run")
    document = yaml.safe_load((run.path / "run.yaml").read_text())
    document["settings"]["options"] |= {"workers": 2, "minutes": None}
    (run.path / "run.yaml").write_text(yaml.safe_dump(document))
    before = learned(run)
    assert learned(fit("classifier-cam", world, tmp_path / "run")) == before
    method = make_method(
        "classifier-cam", CLASSES, weights=random_classifier().name, device="cpu", **FITS["classifier-cam"]
    )
    assert label(world[0], method, tmp_path / "took", fitted=run.path, progress=False).done == 4


def test_what_was_refined_from_a_run_of_an_earlier_version_is_accepted_after_that_run_was_resumed(world, tmp_path):
    """Resuming it writes run.yaml anew where the data grew: the options of the machine must stay in the digest."""
    data, _ = world
    toy, first, refined = FittedOnTags(CLASSES), tmp_path / "first", tmp_path / "refined"
    label(data, toy, first, progress=False)
    document = yaml.safe_load((first / "run.yaml").read_text())
    document["settings"]["options"] |= {"workers": 2}
    document["images"] -= 1
    (first / "run.yaml").write_text(yaml.safe_dump(document))
    old = Run.open(first).digest
    label(data, Refiner(CLASSES), refined, prior=first, progress=False)
    assert label(data, FittedOnTags(CLASSES), first, progress=False).skipped == len(data)
    assert yaml.safe_load((first / "run.yaml").read_text())["images"] == len(data)
    assert Run.open(first).digest == old
    assert label(data, Refiner(CLASSES), refined, prior=first, progress=False).skipped == len(data)


def test_devices_that_cannot_share_a_batch(world, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--devices 3 for batches of 2: expected a number that divides"):
        fit("irn", world, tmp_path / "run", Machine(devices=3))
    assert not (tmp_path / "run/checkpoints/labels").exists()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="--devices under torchrun"):
        fit("irn", world, tmp_path / "run", Machine(devices=2))


def test_two_processes_fit_together_and_one_labels(world, tmp_path):
    """Both parts of CLIMS, each with processes of its own; a single process takes the run up."""
    data, _ = world
    script = tmp_path / "two.py"
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    script.write_text(f"""
import sys
sys.path.insert(0, {tests!r})
from dataclasses import replace
from pathlib import Path
from methods.cases import FITS, WORDS, random_clip
from methods.toys import CLASSES, make_data
from tag2mask.methods import make_method
from tag2mask.methods.fitting import clims
from tag2mask.methods.protocol import Machine
from tag2mask.run.tag_training import TagTraining
from tag2mask.stages.label import label
for kind in (TagTraining, clims.CLIMSTraining):
    def spied(self, batch, index, step=kind.training_step, name=kind.__name__):
        path = Path({str(tmp_path)!r}) / f"{{name}}-{{self.global_rank}}-{{self.global_step}}"
        path.write_text(str(len(batch[1])))
        return step(self, batch, index)
    kind.training_step = spied
data = make_data(Path({str(data.root)!r}), count=4)
data.classes = replace(CLASSES, texts={{"clims": WORDS}})
options = {{**FITS["clims"], "baseline_epochs": 1}}
options |= {{"clip": random_clip(), "device": "cpu", "weights": {random_classifier().name!r}}}
method = make_method("clims", data.classes, **options)
print(label(data, method, {str(tmp_path / "run")!r}, machine=Machine(devices=2), progress=False).done)
""")
    done = subprocess.run([sys.executable, str(script)], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4\n"  # the other processes end with their part
    for rank in (0, 1):
        for step in (0, 1):
            for part in ("TagTraining", "CLIMSTraining"):
                assert (tmp_path / f"{part}-{rank}-{step}").read_text() == "1", (part, rank, step)
    run = Run.open(tmp_path / "run")
    assert (steps_done(run.checkpoints), steps_done(run.checkpoints / "baseline")) == (2, 2)
    assert learned(fit("clims", world, run.path, baseline_epochs=1)) == learned(run)


def test_the_command_line_has_them(tmp_path, monkeypatch):
    given = []

    def taken(data, method, out, how):
        given.append((how.machine, method.precision))
        raise UserError("enough")

    monkeypatch.setattr("tag2mask.stages.label.label", taken)
    images = tmp_path / "images"
    make_data(images, count=2)
    (images / "tags.csv").write_text("image,labels\npart0/img.000.png,cat\npart1/img.001.png,dog\n")
    words = ["label", str(images), "-o", str(tmp_path / "run"), "-m", "classifier-cam", "--classes", "voc12"]
    words += ["--set", "steps=3", "--device", "cpu"]
    more = ["--devices", "2", "--minutes", "0.5", "--workers", "3", "--precision", "bfloat16"]
    CliRunner().invoke(app, [*words, *more])
    assert given == [(Machine(2, 3, 0.5), "bfloat16")]
    result = CliRunner().invoke(app, [*words[:-4], "--device", "cpu", "--precision", "bfloat16"])
    assert result.exit_code == 1
    assert "precision bfloat16: classifier-cam has no CLIP and learns nothing here" in result.output


def test_one_set_of_settings_for_a_fit():
    settings = FitSettings(steps=0, batch=4, lr=0.1, weight_decay=0.0, machine=Machine(workers=3, devices=2))
    assert settings.lasting(2, 7).steps == 4
    assert settings.lasting(0.001, 7).steps == 1
    assert replace(settings, steps=9).lasting(2, 7).steps == 9
    training = settings.training()
    assert (training.workers, training.devices, training.minutes) == (3, 2, None)
    assert replace(settings, machine=Machine(minutes=5), began=-1e9).training().minutes == 0
