"""Pretraining: what it reads and what it must not, that it may be killed, that it learns, and that others read it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import signal
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer
from transformers import CLIPModel as Theirs
from typer.testing import CliRunner

from small_pretraining import TAUGHT, TINY, few_scenes, pairs_of, small_classifier, train
from tag2mask.cli import app
from tag2mask.config import read_recipe
from tag2mask.lab import cache
from tag2mask.lab import pretrain as stage
from tag2mask.lab import vocabulary as vocabulary_of
from tag2mask.lab.cache import Rendered, render_cache
from tag2mask.lab.contrastive import ContrastiveCLIP
from tag2mask.lab.lessons import class_texts
from tag2mask.lab.losses import aligned_similarity, contrastive, cosine, pairwise
from tag2mask.lab.pretrain import in_training, pretrain, write_clip
from tag2mask.lab.pretrain_recipe import Pretrain
from tag2mask.lab.running import Running
from tag2mask.lab.towers import build_clip, encode_image, kept_patches, readings
from tag2mask.lab.views import look
from tag2mask.lab.vocabulary import END, encode, vocabulary, words_version
from tag2mask.models.classifier import save_classifier
from tag2mask.models.weights import load_clip
from tag2mask.run.checkpoint import steps_done
from tag2mask.run.lock import locked
from tag2mask.run.sampling import Draw
from tag2mask.storybook import CLASSES
from tag2mask.types import UserError

QUIET = Running(device="cpu", progress=False)
ONE_STEP = replace(QUIET, minutes=0.0)


class Killed(BaseException):
    """As good as kill -9."""


class Seen(ContrastiveCLIP):
    """Writes down its samples, and may be killed at one of its batches."""

    def __init__(self, recipe, die_at=None):
        super().__init__(recipe, build_clip(recipe))
        self.seen, self.die_at = [], die_at

    def training_step(self, batch, batch_idx):
        self.seen.append((batch["step"], batch["ids"].tolist(), batch["view"].tolist()))
        if len(self.seen) == self.die_at:
            raise Killed
        return super().training_step(batch, batch_idx)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return few_scenes(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    module = Seen(TAUGHT)
    train(module, scenes, tmp_path_factory.mktemp("whole"))
    return module


# --- the cache


def test_masks_are_never_read(tmp_path, monkeypatch):
    class Unmasked:
        """A scene whose mask must not be asked for."""

        def __init__(self, scene):
            self._scene = scene

        def __getattr__(self, name):
            if name == "mask":
                raise AssertionError("a mask was read")
            return getattr(self._scene, name)

    draw = cache.draw_scene
    monkeypatch.setattr(cache, "draw_scene", lambda *args: Unmasked(draw(*args)))
    found = render_cache(tmp_path, Rendered(3, (32, 48)), workers=1)
    assert found.images.shape == (3, 32, 48, 3)
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "cache.json", "images.npy", "scenes.jsonl"]
    module = ContrastiveCLIP(TAUGHT, build_clip(TAUGHT))
    trainer = train(module, found, tmp_path / "run")
    assert trainer.global_step == TAUGHT.steps


def test_decay_spares_norms_biases_and_temperature():
    module = ContrastiveCLIP(TINY, build_clip(TINY))
    decayed, spared = (group["params"] for group in module.configure_optimizers()["optimizer"].param_groups)
    names = {id(p): name for name, p in module.named_parameters()}
    norms = {id(p) for m in module.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    assert not norms & {id(p) for p in decayed}
    assert not [names[id(p)] for p in decayed if names[id(p)].endswith(("bias", "logit_scale"))]
    assert len(decayed) + len(spared) == len(list(module.model.parameters()))


# --- the training


@pytest.mark.parametrize("die_at", [2, 6, 7])
def test_killed_in_the_middle_it_ends_in_the_same_bits(trained, scenes, tmp_path, die_at):
    broken = Seen(TAUGHT, die_at)
    with pytest.raises(Killed):
        train(broken, scenes, tmp_path, save_steps=1)
    done = (die_at - 1) // 2
    assert steps_done(tmp_path) == done
    resumed = Seen(TAUGHT)
    train(resumed, scenes, tmp_path, save_steps=1)
    assert broken.seen[: 2 * done] + resumed.seen == trained.seen
    whole, parts = trained.state_dict(), resumed.state_dict()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    assert any(name.startswith("average.") for name in whole)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_every_reading_is_held_against_captions_and_tags(scenes, loss):
    """Each with its own weight: the class token, the mean of the patches, and the patches that fit."""
    recipe = replace(TAUGHT, class_weight=0.7, patch_weight=0.6, aligned_weight=0.3, tag_weight=0.4, loss=loss)
    pairs = pairs_of(scenes, recipe)
    batch = pairs.collate([pairs[Draw(3, i)] for i in range(8)])
    module = ContrastiveCLIP(recipe, build_clip(recipe))
    logged = {}
    module.log_dict = logged.update
    total = module.training_step(batch, 0)
    size = recipe.sizes[1]
    keep = kept_patches(3, recipe.seed, 8, size[0] * size[1] // 64, recipe.drop)
    pixels = (look(batch["image"], batch["view"], size) - module.mean) / module.std
    with torch.no_grad():
        model, scale = module.model, module.model.logit_scale.exp()
        read = readings(model.vision, encode_image(model.vision, pixels, keep))
        captions = model.text(batch["ids"], batch["end"])
        names, count = class_texts(CLASSES, recipe.seed, 3)
        classes = torch.cat([model.text(*map(torch.from_numpy, encode([name]))) for name in names[count:]])

        def fits(similarity):
            same = batch["meaning"][:, None] == batch["meaning"][None]
            if loss == "sigmoid":
                return pairwise(similarity, same, scale, module.bias)
            return contrastive(similarity, same, scale)

        expected = {
            "class": 0.7 * fits(cosine(read.whole, captions)),
            "patch": 0.6 * fits(cosine(read.mean, captions)),
            "aligned": 0.3 * fits(aligned_similarity(read.each, captions, recipe.sharpness)),
            "tags_class": 0.2 * contrastive(cosine(read.whole, classes), batch["tags"], scale),
            "tags_patch": 0.2 * contrastive(cosine(read.mean, classes), batch["tags"], scale),
        }
    for name, value in expected.items():
        torch.testing.assert_close(logged[f"loss_{name}"], value, rtol=1e-4, atol=1e-5, msg=name)
    parts = [value for name, value in logged.items() if name.startswith("loss_")]
    assert len(parts) == len(expected) + 3
    assert float(total.detach()) == pytest.approx(float(sum(parts)), rel=1e-5)


def test_the_temperature_stays_within_clips_bound(scenes, tmp_path):
    module = ContrastiveCLIP(TINY, build_clip(TINY))
    nn.init.constant_(module.model.logit_scale, 10.0)
    train(module, scenes, tmp_path, minutes=0.0)
    assert float(module.model.logit_scale.detach().exp()) == pytest.approx(100)


def test_the_rate_warms_up(scenes, tmp_path):
    recipe = replace(TINY, steps=40, warmup=4, accumulate=1)
    trainer = train(ContrastiveCLIP(recipe, build_clip(recipe)), scenes, tmp_path, minutes=0.0)
    assert trainer.global_step == 1
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [recipe.lr * 2 / 4] * 2
    assert trainer.optimizers[0].param_groups[0]["weight_decay"] == recipe.weight_decay


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


def test_what_is_kept_are_the_averaged_weights(tmp_path):
    found = pretrain(tmp_path, replace(TINY, accumulate=1), QUIET, watch=0)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    kept = load_clip(found.clip, cache=None).model.vision.proj
    torch.testing.assert_close(kept, state["average.vision.proj"].half().float(), rtol=0, atol=0)
    assert not torch.equal(kept, state["model.vision.proj"].half().float())


def test_average_follows_the_weights(trained):
    start = build_clip(TINY).vision.proj
    last, mean = trained.model.vision.proj, trained.weights.vision.proj
    assert trained.weights is trained.average
    assert 0 < (mean - start).norm() < (last - start).norm()


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_loss_falls(scenes, tmp_path, loss):
    recipe = replace(TAUGHT, steps=30, accumulate=1, batch=16, lr=5e-3, ema=0.0, loss=loss, drop=0.25)
    losses = []

    class Noting(ContrastiveCLIP):
        def training_step(self, batch, batch_idx):
            value = super().training_step(batch, batch_idx)
            losses.append(float(value.detach()))
            return value

    train(Noting(recipe, build_clip(recipe)), scenes, tmp_path)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])


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


# --- the result


def test_weights_in_training_are_written_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_clip(tmp_path, build_clip(TINY).requires_grad_(True))
    assert (tmp_path / "model.safetensors").is_file()


def test_weights_are_read_by_us_and_by_transformers(trained, tmp_path):
    write_clip(tmp_path, trained.weights)
    ours = load_clip(tmp_path, cache=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs, info = Theirs.from_pretrained(
            tmp_path, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert not any(info.values())
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    texts = ["a clean origami bird avian.", "two dogs next to the sea"]
    with torch.inference_mode():
        images = theirs.visual_projection(theirs.vision_model(pixels).pooler_output)
        words = tokenizer(texts, padding=True, return_tensors="pt")
        sentences = theirs.text_projection(theirs.text_model(**words).pooler_output)
        mine = ours.model.vision.project(ours.model.vision(pixels).tokens[:, 0])
        trained_image = readings(trained.weights.vision, encode_image(trained.weights.vision, pixels, None)).whole
    torch.testing.assert_close(mine, images, atol=1e-3, rtol=0)
    torch.testing.assert_close(mine, trained_image, atol=1e-2, rtol=0)
    torch.testing.assert_close(ours.text_features(texts), F.normalize(sentences, dim=-1), atol=1e-3, rtol=0)
    live = in_training(trained.weights, torch.device("cpu"))
    torch.testing.assert_close(live.text_features(texts), ours.text_features(texts), atol=1e-2, rtol=0)
    assert ours.unknown("a zebra") == ["zebra"]
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["eos_token_id"] == vocabulary()[END]


def test_command_line_lists_the_recipe_and_names_what_is_wrong():
    run = CliRunner()
    listed = run.invoke(app, ["storybook", "pretrain", "--list", "--set", "layers=6"])
    assert listed.exit_code == 0
    assert re.search(r"^layers=6 +default \d+$", listed.output, re.MULTILINE)
    refused = run.invoke(app, ["storybook", "pretrain", "--set", "layer=6"])
    assert refused.exit_code == 1
    assert "did you mean 'layers'" in refused.output
