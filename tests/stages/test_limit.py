"""The first images alone, and what would be done: a try leaves what the whole run would, and a dry run nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from methods.toys import CLASSES, FittedOnTags, Neighbourly, Refiner, TrainingFree, make_data
from run_folders import artefacts
from stages.networks import photographs, tiny_network
from stages.small_run import small_run, toys
from stages.toy_runs import quiet, toy
from tag2mask.classes import classes_json
from tag2mask.cli import app
from tag2mask.config import LabelConfig, RefineConfig
from tag2mask.data import read_dataset
from tag2mask.run.folder import Run
from tag2mask.run.shard import in_shard
from tag2mask.segment.recipe import TrainRecipe
from tag2mask.segment.test_time import TestTime
from tag2mask.stages.dry_run import dry_label, dry_predict, dry_refined, dry_train
from tag2mask.stages.export import export
from tag2mask.stages.label import LabelSettings
from tag2mask.stages.predict import PredictSettings, predict
from tag2mask.stages.recipe import Recipe, Refine
from tag2mask.stages.refine import label_refined
from tag2mask.stages.train import train
from tag2mask.types import Sample, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path):
    """Twelve images, of which the second has no tags."""
    found = make_data(tmp_path / "images")
    found.samples[1] = Sample(found[1].id, found[1].image, None)
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("kind", "batch"), [(TrainingFree, None), (Neighbourly, 3), (Neighbourly, 5)])
def test_a_limited_run_resumed_without_the_limit_is_the_whole_run(data, tmp_path, kind, batch):
    """Also where an image's result depends on its neighbours in a batch."""
    quiet(data, tmp_path / "whole", toy(kind), batch_size=batch)
    whole = artefacts(tmp_path / "whole")
    for limit in (2, 2, 4):
        summary = quiet(data, tmp_path / "run", toy(kind), batch_size=batch, limit=limit)
        assert (summary.total, summary.done + summary.skipped, summary.no_tags) == (limit + 1, limit, 1)
        done = artefacts(tmp_path / "run")
        assert len(done) == 3 * limit
        assert done.items() <= whole.items()
    assert "holds 4 masks now; the same command without --limit" in summary.text()
    assert Run.open(tmp_path / "run").images == 12
    last = quiet(data, tmp_path / "run", toy(kind), batch_size=batch)
    assert (last.skipped, last.done) == (4, 7)
    assert "--limit" not in last.text()
    assert artefacts(tmp_path / "run") == whole


def test_the_limit_counts_tagged_images_of_all_shards(data, tmp_path):
    made = []
    for shard in (0, 1, 2):
        summary = quiet(data, tmp_path / "run", shard=(shard, 3), limit=5)
        made.append(summary.done)
        first = [sample for sample in data.samples[:6] if in_shard(sample.id, (shard, 3))]
        assert summary.total == len(first)
    assert sum(made) == 5
    assert Run.open(tmp_path / "run").ids() == sorted(s.id for s in data.samples[:6] if s.tags is not None)


def test_a_limit_never_drops_masks_of_other_images(data, tmp_path):
    quiet(data, tmp_path / "run")
    quiet(data, tmp_path / "run", limit=2, removed="drop")
    assert len(Run.open(tmp_path / "run").ids()) == 11


def test_a_fit_is_of_all_images_whatever_the_limit(data, tmp_path):
    quiet(data, tmp_path / "run", toy(FittedOnTags), limit=2)
    assert len(Run.open(tmp_path / "run").ids()) == 2
    quiet(data, tmp_path / "run", toy(FittedOnTags))  # refused, were the fit of other images
    quiet(data, tmp_path / "whole", toy(FittedOnTags))
    assert artefacts(tmp_path / "run") == artefacts(tmp_path / "whole")


@pytest.mark.parametrize(
    ("settings", "words"), [({"limit": 0}, "limit 0"), ({"limit": 2, "fit_only": True}, "fit-only")]
)
def test_limits_that_make_no_sense(data, tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        quiet(data, tmp_path / "run", toy(FittedOnTags), **settings)


# --- predict -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    return tiny_network(tmp_path_factory.mktemp("net"), CLASSES)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return photographs(tmp_path_factory.mktemp("photos"), [(24, 32)] * 4)


def test_predict_the_first_and_then_the_rest(network, photos, tmp_path):
    images = read_dataset(photos, network=CLASSES)
    summary = predict(network, images, tmp_path / "run", device="cpu", progress=False, limit=3)
    assert (summary.done, summary.total) == (3, 3)
    assert "holds 3 masks" in summary.text()
    summary = predict(network, images, tmp_path / "run", device="cpu", progress=False)
    assert (summary.skipped, summary.done) == (3, 1)
    predict(network, images, tmp_path / "whole", device="cpu", progress=False)
    assert artefacts(tmp_path / "run") == artefacts(tmp_path / "whole")


def test_predict_one_image_says_what_comes_next(network, photos, tmp_path):
    out = tmp_path / "run"
    done = CliRunner().invoke(app, ["predict", str(network), str(photos / "2.png"), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert Run.open(out).ids() == ["2"]
    assert done.output.rstrip().endswith(f"next: tag2mask report {out}")


# --- dry runs ----------------------------------------------------------------------------------------------------


def test_a_dry_run_counts_and_measures_and_writes_nothing(data, tmp_path, capsys):
    out = tmp_path / "run"
    found = dry_label(data, toy(), out, LabelSettings())
    assert "measuring on up to two images" in capsys.readouterr().err
    assert (found.begun, found.images, found.todo, found.finished, found.skipped) == (False, 12, 11, 0, 1)
    assert "about" in found.time
    assert "11 images" in found.time
    assert found.settings["options"] == {"gain": 1.0}
    assert not out.exists()
    quiet(data, out, limit=3)
    before = files(out)
    found = dry_label(data, toy(), out, LabelSettings(limit=7))
    assert (found.begun, found.images, found.todo, found.finished) == (True, 8, 4, 3)
    assert dry_label(data, toy(), out, LabelSettings(overwrite=True)).todo == 11
    data[0].image.write_bytes(data[2].image.read_bytes())
    assert dry_label(data, toy(), out, LabelSettings()).finished == 2  # one was replaced
    assert files(out) == before
    assert f"would resume {out}" in found.text()


def test_a_dry_run_is_a_summary_that_names_what_is_not_as_usual(data, tmp_path):
    usual = dry_label(data, toy(), tmp_path / "run", LabelSettings()).text().splitlines()
    assert usual[0] == f"dry run, nothing is written: label would create {tmp_path / 'run'}"
    assert usual[1] == "  images: 12: 11 to label, 0 finished before, 1 without tags, which are skipped"
    assert usual[2] == f"  classes: {len(CLASSES) - 1}: {', '.join(CLASSES.foreground)}"
    assert usual[3].startswith("  method: ")
    assert usual[3].endswith("TrainingFree, on cpu")
    assert usual[4] == "  settings: the defaults"
    assert usual[5].startswith("  time: about ")
    assert len(usual) == 6

    how = LabelSettings(rule=replace(toy().mask_rule, mu=0.5), keep_scores=False)
    found = dry_label(data, toy(gain=2.0), tmp_path / "run", how)
    assert found.changed == {"gain": (2.0, 1.0), "masks.mu": (0.5, None), "keep_scores": (False, True)}
    said = [line.split() for line in found.text().splitlines()[4:8]]
    assert [line[0] for line in said] == ["settings", "gain", "masks.mu", "keep_scores"]
    assert " ".join(said[1]) == "gain 2.0 (default 1.0)"
    assert " ".join(said[2]) == "masks.mu 0.5 (not set by default)"
    assert " ".join(said[3]) == "keep_scores no (default yes)"
    assert not any(sign in found.text() for sign in '{}"[]')  # for people, no JSON


def test_a_dry_run_refuses_what_the_run_would(data, tmp_path):
    quiet(data, tmp_path / "run", limit=1)
    with pytest.raises(UserError) as real:
        quiet(data, tmp_path / "run", toy(gain=2.0))
    with pytest.raises(UserError) as dry:
        dry_label(data, toy(gain=2.0), tmp_path / "run", LabelSettings())
    assert str(dry.value) == str(real.value)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="no run of ours"):
        dry_label(data, toy(), tmp_path / "other", LabelSettings())


def test_a_dry_run_of_a_method_that_learns_does_not_learn(data, tmp_path):
    found = dry_label(data, toy(FittedOnTags), tmp_path / "run", LabelSettings())
    assert "learns first" in found.time
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_two_methods_and_their_limit(data, tmp_path):
    config = LabelConfig(refine=RefineConfig(method="irn"))
    recipe = Recipe(data, toy(), toy().mask_rule, config, Refine(toy(Refiner), toy(Refiner).mask_rule))
    data.known = np.array([sample.tags is not None for sample in data])
    first, second = dry_refined(recipe, tmp_path / "run", LabelSettings())
    assert (first.out, first.todo) == (str(tmp_path / "run" / "seeds"), 11)
    assert (second.out, second.todo, second.settings["method"]) == (str(tmp_path / "run"), 11, "irn")
    assert not (tmp_path / "run").exists()
    for made in (dry_refined, label_refined):
        with pytest.raises(UserError, match="--limit would leave it with too few"):
            made(recipe, tmp_path / "run", LabelSettings(limit=2))


def test_a_dry_run_of_predict(network, photos, tmp_path):
    images = read_dataset(photos, network=CLASSES)
    how = PredictSettings(device="cpu", progress=False)
    predict(network, images, tmp_path / "run", how, limit=1)
    before = files(tmp_path / "run")
    found = dry_predict(network, images, tmp_path / "run", how)
    assert (found.todo, found.finished, found.skipped) == (3, 1, 0)
    assert found.changed == {}
    assert f"network: small in {network}, on cpu" in found.text()
    said = dry_predict(network, images, tmp_path / "other", replace(how, refiner="deeplab", test=TestTime(flip=True)))
    assert said.changed == {"flip": (True, False), "refiner": ("deeplab", None)}
    assert files(tmp_path / "run") == before


def test_a_dry_run_of_a_training(tmp_path):
    pictures = toys(tmp_path / "images")
    run = small_run(tmp_path / "run", pictures)
    recipe = TrainRecipe(init="random", steps=2, batch=2, options={"width": 4, "blocks": [1, 1, 1, 1], "channels": 8})
    out = tmp_path / "net"
    found = dry_train(run, out, recipe, data=pictures)
    assert not out.exists()
    train(run, out, recipe, data=pictures, device="cpu", progress=False)
    before = files(out)
    assert found.images == json.loads((out / "train.json").read_text())["examples"]
    assert "would create" in found.text()
    assert found.changed.keys() == {"init", "steps", "batch", "options"}
    said = found.text().splitlines()
    assert said[2:4] == [
        "  classes: 3: cat, dog, hat",
        "  network: small, from random, on cpu",
    ]
    assert "  steps    2 (default 600)" in "\n".join(said)
    assert "at step 2" in dry_train(run, out, recipe, data=pictures).text()
    with pytest.raises(UserError, match="holds another training: seed"):
        dry_train(run, out, replace(recipe, seed=9), data=pictures)
    assert files(out) == before


# --- classes.json ------------------------------------------------------------------------------------------------


def test_classes_stand_beside_the_masks_of_a_run_and_of_every_export(data, tmp_path):
    run = tmp_path / "run"
    quiet(data, run)
    found = json.loads((run / "classes.json").read_text())
    assert found["ignore"] == 255
    assert found["classes"][:2] == [
        {"index": 0, "name": "background", "color": [0, 0, 0]},
        {"index": 1, "name": "red", "color": [255, 0, 0]},
    ]
    written = (run / "classes.json").read_bytes()
    assert written == classes_json(CLASSES.names, CLASSES.palette)
    export(run, data, "png", tmp_path / "png", progress=False)
    export(run, data, "coco", tmp_path / "masks.json", progress=False)
    assert (tmp_path / "png" / "classes.json").read_bytes() == written
    assert (tmp_path / "masks.classes.json").read_bytes() == written
    export(run, data, "coco", tmp_path / "masks.json", progress=False)  # its own may be replaced
    (tmp_path / "masks.classes.json").write_text('{"cat": 1}')
    with pytest.raises(UserError, match=r"masks\.classes\.json exists and is no list of classes"):
        export(run, data, "coco", tmp_path / "masks.json", progress=False)
    assert (tmp_path / "masks.classes.json").read_text() == '{"cat": 1}'


def test_a_run_of_before_gets_its_classes_when_it_is_resumed(data, tmp_path):
    quiet(data, tmp_path / "run", limit=1)
    (tmp_path / "run" / "classes.json").unlink()
    quiet(data, tmp_path / "run", limit=1)
    assert (tmp_path / "run" / "classes.json").is_file()
