"""The pretraining as a command: its folder, its stops, what it refuses."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import signal
import time
from dataclasses import replace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from small_pretraining import TAUGHT, TINY, few_scenes, small_classifier
from tag2mask.cli import app
from tag2mask.config import read_recipe
from tag2mask.lab import pretrain as stage
from tag2mask.lab import vocabulary as vocabulary_of
from tag2mask.lab.contrastive import ContrastiveCLIP
from tag2mask.lab.pretrain import pretrain
from tag2mask.lab.pretrain_recipe import Pretrain
from tag2mask.lab.running import Running
from tag2mask.lab.towers import build_clip
from tag2mask.lab.vocabulary import vocabulary, words_version
from tag2mask.models.classifier import save_classifier
from tag2mask.models.weights import load_clip
from tag2mask.run.lock import locked
from tag2mask.storybook import CLASSES
from tag2mask.types import UserError

QUIET = Running(device="cpu", progress=False)
ONE_STEP = replace(QUIET, minutes=0.0)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return few_scenes(tmp_path_factory.mktemp("cache"))


def test_what_others_keep_in_the_folder_is_left_alone(tmp_path):
    (tmp_path / "clip").mkdir()
    with pytest.raises(UserError, match=r"holds other things \(clip\)"):
        pretrain(tmp_path, TINY, QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


def test_where_nothing_was_learned_a_mended_command_begins(tmp_path, monkeypatch):
    def full(*_, **__):
        raise UserError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(stage, "render_cache", full)
        with pytest.raises(UserError, match="no room"):
            pretrain(tmp_path, replace(TINY, scenes=32), QUIET)
    found = pretrain(tmp_path, replace(TINY, accumulate=1), ONE_STEP, watch=0)
    assert found.step == 1
    assert json.loads((tmp_path / "recipe.json").read_text())["scenes"] == TINY.scenes


def test_weights_that_were_watched_but_not_saved_keep_their_folder(tmp_path, monkeypatch):
    """A mended command would report the best weights of another recipe as its own."""
    recipe, step = replace(TINY, accumulate=1), ContrastiveCLIP.training_step

    def broken(module, batch, batch_idx):
        if batch["step"] == 2:
            raise UserError("no such luck")
        return step(module, batch, batch_idx)

    how = {"running": QUIET, "watch": 1, "watch_scenes": 2}
    with monkeypatch.context() as patch:
        patch.setattr(ContrastiveCLIP, "training_step", broken)
        with pytest.raises(UserError, match="no such luck"):
            pretrain(tmp_path, recipe, **how)
    assert not (tmp_path / "last.ckpt").exists()
    kept = (tmp_path / "best" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"holds another training: lr is 0.001 there and 0.0005 now"):
        pretrain(tmp_path, replace(recipe, lr=5e-4), **how)
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == kept
    assert pretrain(tmp_path, recipe, **how).step == 4


def test_a_stop_leaves_the_weights_of_its_step(tmp_path, monkeypatch):
    """As far as it came, not those of an earlier leg."""
    recipe, step = replace(TINY, accumulate=1), ContrastiveCLIP.training_step

    def interrupted(module, batch, batch_idx):
        if batch["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(module, batch, batch_idx)

    pretrain(tmp_path, recipe, ONE_STEP, watch=0)
    before = (tmp_path / "clip" / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(ContrastiveCLIP, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt, match="stopped at step 3 of 4"):
            pretrain(tmp_path, recipe, QUIET, watch=0)
    assert (tmp_path / "clip" / "model.safetensors").read_bytes() != before
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    kept = load_clip(tmp_path / "clip", cache=None).model.vision.proj
    torch.testing.assert_close(kept, state["average.vision.proj"].half().float(), rtol=0, atol=0)


def test_watched_are_other_scenes_than_those_of_the_card(monkeypatch):
    drawn = []
    monkeypatch.setattr(stage.Bench, "draw", lambda clip, n, *, seed=0: drawn.append(seed) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stage._Measure(TINY, 3, "cpu")(build_clip(TINY))
    assert drawn == [stage.WATCH_SEED]
    assert stage.WATCH_SEED != 0


def test_stage_renders_trains_watches_and_goes_on(tmp_path, capsys):
    recipe = replace(TINY, accumulate=1)
    first = pretrain(tmp_path / "run", recipe, ONE_STEP, watch=2, watch_scenes=3)
    assert (first.step, first.best) == (1, None)
    assert "the same command resumes it" in first.text()
    while first.step < 4:
        first = pretrain(tmp_path / "run", recipe, ONE_STEP, watch=2, watch_scenes=3)
    whole = pretrain(tmp_path / "whole", recipe, QUIET, watch=2, watch_scenes=3)
    for folder in ("clip", "best"):
        same = [(tmp_path / run / folder / "model.safetensors").read_bytes() for run in ("run", "whole")]
        assert same[0] == same[1]
    assert [row["step"] for row in whole.watched] == [2, 4]
    assert first.watched == whole.watched
    assert {"map_class", "initial", "caa", "floor_initial", "floor_everything"} <= set(whole.watched[0])
    assert "floors: initial" in whole.text()
    assert whole.top in whole.watched
    assert json.loads((tmp_path / "whole" / "best" / "watch.json").read_text()) == whole.top
    assert whole.top["scenes"] == 3
    with pytest.raises(UserError, match=r"lr is 0.001 there and 0.01 now"):
        pretrain(tmp_path / "run", replace(recipe, lr=0.01), QUIET)
    assert capsys.readouterr().err == ""


def test_stage_makes_lessons_by_the_teacher_that_is_named(tmp_path):
    recipe = replace(TAUGHT, accumulate=1, teacher=str(tmp_path / "teacher"))
    save_classifier(small_classifier(CLASSES[1:]), tmp_path / "teacher", "")
    with pytest.raises(UserError, match="does not know aeroplane"):
        pretrain(tmp_path / "run", recipe, QUIET)
    assert not (tmp_path / "run").exists()
    save_classifier(small_classifier(), tmp_path / "teacher", "")
    assert pretrain(tmp_path / "run", recipe, ONE_STEP, watch=0).step == 1
    assert len(list((tmp_path / "run").glob("cache/*/pseudo-*/labels.npy"))) == 1
    digest = hashlib.sha256((tmp_path / "teacher" / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["teacher_sha256"] == digest
    other = small_classifier()
    nn.init.normal_(other.head.weight)
    save_classifier(other, tmp_path / "teacher", "")
    with pytest.raises(UserError, match="teacher_sha256 is"):
        pretrain(tmp_path / "run", recipe, QUIET)


@pytest.mark.parametrize(("what", "at"), [("drawing", "EDITION"), ("words", "words_version")])
def test_other_drawings_and_other_words_are_another_training(tmp_path, monkeypatch, what, at):
    recipe = replace(TINY, accumulate=1)
    pretrain(tmp_path, recipe, ONE_STEP, watch=0)
    before = json.loads((tmp_path / "recipe.json").read_text())[what]
    monkeypatch.setattr(stage, at, 99 if what == "drawing" else lambda: 99)
    with pytest.raises(UserError, match=f"{what} is {before!r} there and 99 now"):
        pretrain(tmp_path, recipe, ONE_STEP, watch=0)


def test_the_digest_of_words_follows_words(monkeypatch):
    before = words_version()
    assert before == words_version()
    monkeypatch.setattr(vocabulary_of, "vocabulary", lambda: {**vocabulary(), "another": 1000})
    assert words_version() != before


def test_minutes_count_from_the_start_of_the_command(tmp_path, monkeypatch):
    """Drawing takes all the time that there was: one step, and the same command resumes it."""
    draw, clock, late = stage.render_cache, time.monotonic, [0.0]

    def slow(*args, **how):
        late[0] = 600.0
        return draw(*args, **how)

    monkeypatch.setattr(time, "monotonic", lambda: clock() + late[0])
    monkeypatch.setattr(stage, "render_cache", slow)
    how = {"running": replace(QUIET, minutes=9.0), "watch": 0}
    assert pretrain(tmp_path, replace(TINY, accumulate=1), **how).step == 1
    monkeypatch.setattr(stage, "render_cache", draw)
    assert pretrain(tmp_path, replace(TINY, accumulate=1), **how).step == TINY.steps


def test_a_folder_in_use_is_refused(tmp_path):
    with (
        locked(tmp_path, "x"),
        pytest.raises(UserError, match=r"The training in .* is being written by process"),
    ):
        pretrain(tmp_path, TINY, QUIET)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_an_init_that_does_not_fit_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match="another size or width"):
        pretrain(tmp_path / "run", replace(TINY, init="storybook-clip"), QUIET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"sizes": ((30, 32),)}, "sizes"),
        ({"sizes": ((-32, 32),)}, "sizes"),
        ({"sizes": ()}, "sizes"),
        ({"heads": 3}, "heads 3"),
        ({"drop": 1.0}, "drop 1.0"),
        ({"drop": math.nan}, "drop nan"),
        ({"class_weight": 0, "patch_weight": 0, "aligned_weight": 0}, "class_weight"),
        ({"class_weight": math.inf}, "class_weight inf"),
        ({"patch_weight": -1.0}, "patch_weight -1.0"),
        *(
            ({name: 0}, f"{name} 0")
            for name in ("steps", "scenes", "heads", "text_heads", "patch", "embed", "layers")
        ),
        *(({name: -1}, f"{name} -1") for name in ("side", "width", "text_width", "text_layers", "seed", "warmup")),
        *(({name: value}, f"{name} ") for name in ("lr", "sharpness") for value in (0.0, -1.0, math.nan, math.inf)),
        ({"seed": 2**64}, "seed"),
        ({"scenes": 2_000_000}, "cannot render 2000000 scenes"),
        ({"init": "nowhere"}, "init: nowhere: is no folder"),
        ({"colour": -0.1}, "colour -0.1"),
        ({"colour": 1.1}, "colour 1.1"),
        ({"weight_decay": math.nan}, "weight_decay nan"),
        ({"loss": "triplet"}, "triplet"),
    ],
)
def test_impossible_recipes_are_refused_before_anything_is_written(tmp_path, wrong, named):
    with pytest.raises(UserError, match=named):
        pretrain(tmp_path / "run", replace(TINY, **wrong), QUIET)
    assert list(tmp_path.iterdir()) == []


def test_recipes_are_read_from_options():
    recipe = read_recipe(Pretrain, ["steps=7", "sizes=[[32, 48], [48, 32]]", "lr=3e-4", "loss=sigmoid"])
    assert recipe == Pretrain(steps=7, sizes=((32, 48), (48, 32)), lr=3e-4, loss="sigmoid")
    assert recipe.largest == (48, 48)
    with pytest.raises(UserError, match="did you mean 'layers'"):
        read_recipe(Pretrain, ["layer=7"])
    with pytest.raises(UserError, match=r"steps.*valid integer"):
        read_recipe(Pretrain, ["steps=many"])


def test_command_line_lists_the_recipe_and_names_what_is_wrong():
    run = CliRunner()
    listed = run.invoke(app, ["storybook", "pretrain", "--list", "--set", "layers=6"])
    assert listed.exit_code == 0
    assert re.search(r"^layers=6 +default \d+$", listed.output, re.MULTILINE)
    refused = run.invoke(app, ["storybook", "pretrain", "--set", "layer=6"])
    assert refused.exit_code == 1
    assert "did you mean 'layers'" in refused.output
