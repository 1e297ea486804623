"""Pretraining: what it reads and what it must not, that it may be killed, that it learns, that others read it."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer
from transformers import CLIPModel as Theirs

from small_pretraining import TAUGHT, TINY, few_scenes, pairs_of, train
from tag2mask.lab import cache
from tag2mask.lab.cache import Rendered, render_cache
from tag2mask.lab.contrastive import ContrastiveCLIP
from tag2mask.lab.lessons import class_texts
from tag2mask.lab.losses import aligned_similarity, contrastive, cosine, pairwise
from tag2mask.lab.pretrain import in_training, pretrain, write_clip
from tag2mask.lab.running import Running
from tag2mask.lab.towers import build_clip, encode_image, kept_patches, readings
from tag2mask.lab.views import look
from tag2mask.lab.vocabulary import END, encode, vocabulary
from tag2mask.models.weights import load_clip
from tag2mask.run.checkpoint import steps_done
from tag2mask.run.sampling import Draw
from tag2mask.storybook import CLASSES

QUIET = Running(device="cpu", progress=False)


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
