"""Pretraining: what it reads and what it must not, that it may be killed, that it learns, and that others read it."""

from __future__ import annotations

import json
import math
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

from tag2mask.cli import app
from tag2mask.config import read_recipe
from tag2mask.models.weights import load_clip
from tag2mask.run.sampling import Draw
from tag2mask.run.training import fit, steps_done
from tag2mask.stages import pretrain as stage
from tag2mask.stages.pretrain import in_training, pretrain, write_clip
from tag2mask.storybook import CLASSES20, cache, embedded_clip
from tag2mask.storybook import vocabulary as vocabulary_of
from tag2mask.storybook.cache import Rendered, render_cache
from tag2mask.storybook.captions import says
from tag2mask.storybook.losses import aligned_similarity, alike, contrastive, cosine, pairwise
from tag2mask.storybook.pretrain import (
    ContrastiveCLIP,
    Pretrain,
    build_clip,
    encode_image,
    kept_patches,
    readings,
    warm_start,
)
from tag2mask.storybook.views import Pairs, look
from tag2mask.storybook.vocabulary import END, vocabulary, words_version
from tag2mask.storybook.watch import Watch, read_best, read_watch
from tag2mask.types import UserError

TINY = Pretrain(
    width=16,
    layers=2,
    heads=2,
    side=32,
    embed=16,
    text_width=16,
    text_layers=1,
    text_heads=2,
    scenes=16,
    sizes=((32, 32), (24, 32)),
    steps=4,
    batch=8,
    warmup=2,
    accumulate=2,
    ema=0.9,
)


class Killed(BaseException):
    """As good as kill -9."""


class Seen(ContrastiveCLIP):
    """Writes down its samples, and may be killed at one of its batches."""

    def __init__(self, recipe, die_at=None):
        super().__init__(recipe, build_clip(recipe))
        self.seen, self.die_at = [], die_at

    def training_step(self, batch, batch_idx):
        self.seen.append((batch["step"], batch["index"].tolist(), batch["ids"].tolist(), batch["view"].tolist()))
        if len(self.seen) == self.die_at:
            raise Killed
        return super().training_step(batch, batch_idx)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return render_cache(tmp_path_factory.mktemp("cache"), Rendered(16, (32, 32)), workers=1)


def pairs_of(scenes, recipe=TINY):
    return Pairs(scenes, recipe.seed, recipe.crop, recipe.colour)


def train(module, scenes, folder, **how):
    return fit(module, pairs_of(scenes), TINY.training(device="cpu", **how), folder, show=False)


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    module = Seen(TINY)
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
    module = ContrastiveCLIP(TINY, build_clip(TINY))
    trainer = train(module, found, tmp_path / "run")
    assert trainer.global_step == TINY.steps


# --- pictures and captions


def test_a_sample_is_a_function_of_its_draw(scenes):
    pairs = pairs_of(scenes)
    first, again = pairs[Draw(3, 5)], pairs_of(scenes)[Draw(3, 5)]
    assert first[2:] == again[2:]
    assert len({pairs[Draw(step, 5)][3] for step in range(40)}) > 20
    for step in range(40):
        _, image, view, text, _ = pairs[Draw(step, 5)]
        assert np.array_equal(image.numpy(), scenes.images[5])
        there = {*scenes.told[5].names, *scenes.told[5].things, "railway"}
        assert all(claim.any_of & there for claim in says(text)), text
        height, width, top, left = view[:4]
        assert TINY.crop <= height <= 1
        assert TINY.crop <= width <= 1
        assert 0 <= top <= 1 - height + 1e-9
        assert 0 <= left <= 1 - width + 1e-9


def test_a_view_is_a_crop_a_mirror_and_other_light():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (4, 20, 40, 3), dtype=np.uint8))
    plain = images.permute(0, 3, 1, 2).float() / 255
    whole = [1.0, 1.0, 0.0, 0.0]
    views = torch.tensor(
        [
            [*whole, 0.0, 0, 0, 0, 0],
            [*whole, 1.0, 0, 0, 0, 0],
            [0.5, 0.25, 0.25, 0.5, 0.0, 0, 0, 0, 0],
            [*whole, 0.0, 0.5, 0.1, 0.0, -0.1],
        ]
    )
    same, mirrored, _, light = look(images, views, (20, 40))
    torch.testing.assert_close(same, plain[0], atol=2e-5, rtol=0)
    torch.testing.assert_close(mirrored, plain[1].flip(-1), atol=2e-5, rtol=0)
    shift = torch.tensor([0.1, 0.0, -0.1])[:, None, None]
    torch.testing.assert_close(light, 1.5 * (plain[3] - 0.5) + 0.5 + shift, atol=5e-5, rtol=0)
    crop = look(images, views, (10, 10))[2]
    torch.testing.assert_close(crop, plain[2, :, 5:15, 20:30], atol=2e-5, rtol=0)


# --- losses


def test_aligned_similarity_against_a_loop():
    torch.manual_seed(0)
    patches, texts = torch.randn(3, 7, 5), torch.randn(4, 5)
    found = aligned_similarity(patches, texts, 6.0)
    for b in range(3):
        for t in range(4):
            text = texts[t] / texts[t].norm()
            units = [patch / patch.norm() for patch in patches[b]]
            powers = [math.exp(6.0 * float(unit @ text)) for unit in units]
            embedding = sum(power * unit for power, unit in zip(powers, units, strict=True)) / sum(powers)
            assert abs(float(found[b, t]) - float(embedding @ text)) < 1e-6


def test_contrastive_is_cross_entropy_where_no_two_captions_are_alike():
    torch.manual_seed(0)
    similarity, scale = torch.randn(6, 6), torch.tensor(3.0)
    labels = torch.arange(6)
    expected = (F.cross_entropy(3 * similarity, labels) + F.cross_entropy(3 * similarity.T, labels)) / 2
    positive = alike(torch.tensor([4, 8, 1, 0, 7, 2]))
    torch.testing.assert_close(contrastive(similarity, positive, scale), expected)


def test_captions_that_claim_the_same_are_no_rivals():
    """Two pictures with one caption: both losses are least where each is as like the other's as its own."""
    positive = alike(torch.tensor([5, 5, 9]))
    assert positive.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    apart = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    together = torch.tensor([[1.0, 1, -1], [1, 1, -1], [-1, -1, 1]])
    scale, bias = torch.tensor(5.0), torch.tensor(-1.0)
    assert contrastive(together, positive, scale) < contrastive(apart, positive, scale)
    assert pairwise(together, positive, scale, bias) < pairwise(apart, positive, scale, bias)
    by_hand = 0.0
    for i in range(3):
        for j in range(3):
            sign = 1 if positive[i, j] else -1
            by_hand += math.log(1 + math.exp(-sign * (5 * float(apart[i, j]) - 1)))
    assert float(pairwise(apart, positive, scale, bias)) == pytest.approx(by_hand / 3, rel=1e-5)


def test_similarities_stay_exact_under_autocast():
    torch.manual_seed(0)
    pictures, patches, texts = torch.randn(3, 16), torch.randn(3, 7, 16), torch.randn(4, 16)
    exact = cosine(pictures, texts), aligned_similarity(patches, texts, 6.0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = cosine(pictures, texts), aligned_similarity(patches, texts, 6.0)
        assert (pictures @ texts.T).dtype == torch.bfloat16
    for found, expected in zip(rounded, exact, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


# --- the network


def test_readings_are_those_of_the_towers():
    model = build_clip(TINY)
    pixels = torch.randn(2, 3, 24, 32)
    tokens = encode_image(model.vision, pixels, None)
    torch.testing.assert_close(tokens, model.vision(pixels).tokens)
    whole, mean, each = readings(model.vision, tokens)
    torch.testing.assert_close(whole, model.vision.project(tokens[:, 0]))
    torch.testing.assert_close(mean, model.vision.project(tokens[:, 1:]).mean(1))
    torch.testing.assert_close(each, model.vision.project(tokens[:, 1:]))


def test_left_out_patches_are_not_seen():
    model = build_clip(TINY)
    keep = kept_patches(3, 0, 2, 16, 0.5)
    assert keep.shape == (2, 8)
    assert torch.equal(keep, kept_patches(3, 0, 2, 16, 0.5))
    assert not torch.equal(keep, kept_patches(4, 0, 2, 16, 0.5))
    assert kept_patches(3, 0, 2, 16, 0.0) is None
    pixels = torch.randn(2, 3, 32, 32)
    other = pixels.clone()
    blind = next(i for i in range(16) if i not in keep[0].tolist())
    other[0, :, blind // 4 * 8 :, blind % 4 * 8 :][:, :8, :8] += 5
    assert torch.equal(encode_image(model.vision, pixels, keep), encode_image(model.vision, other, keep))
    seen = int(keep[0, 0])
    other[0, :, seen // 4 * 8 :, seen % 4 * 8 :][:, :8, :8] += 5
    assert not torch.equal(encode_image(model.vision, pixels, keep), encode_image(model.vision, other, keep))


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
    broken = Seen(TINY, die_at)
    with pytest.raises(Killed):
        train(broken, scenes, tmp_path, save_steps=1)
    done = (die_at - 1) // 2
    assert steps_done(tmp_path) == done
    resumed = Seen(TINY)
    train(resumed, scenes, tmp_path, save_steps=1)
    assert broken.seen[: 2 * done] + resumed.seen == trained.seen
    whole, parts = trained.state_dict(), resumed.state_dict()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    assert any(name.startswith("average.") for name in whole)


def test_average_follows_the_weights(trained):
    start = build_clip(TINY).vision.proj
    last, mean = trained.model.vision.proj, trained.weights.vision.proj
    assert trained.weights is trained.average
    assert 0 < (mean - start).norm() < (last - start).norm()


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_loss_falls(scenes, tmp_path, loss):
    recipe = replace(TINY, steps=30, accumulate=1, batch=16, lr=5e-3, ema=0.0, loss=loss, drop=0.25)
    losses = []

    class Noting(ContrastiveCLIP):
        def training_step(self, batch, batch_idx):
            value = super().training_step(batch, batch_idx)
            losses.append(float(value.detach()))
            return value

    fit(Noting(recipe, build_clip(recipe)), pairs_of(scenes), recipe.training(device="cpu"), tmp_path, show=False)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])


def test_stage_renders_trains_watches_and_goes_on(tmp_path, capsys):
    recipe = replace(TINY, accumulate=1)
    first = pretrain(tmp_path / "run", recipe, device="cpu", minutes=0.0, watch=2, watch_scenes=3, progress=False)
    assert (first.step, first.best) == (1, None)
    assert "goes on" in first.text()
    while first.step < 4:
        first = pretrain(tmp_path / "run", recipe, device="cpu", minutes=0.0, watch=2, watch_scenes=3, progress=False)
    whole = pretrain(tmp_path / "whole", recipe, device="cpu", watch=2, watch_scenes=3, progress=False)
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
        pretrain(tmp_path / "run", replace(recipe, lr=0.01), device="cpu", progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("what", ["drawing", "words"])
def test_other_drawings_and_other_words_are_another_training(tmp_path, monkeypatch, what):
    recipe = replace(TINY, accumulate=1)
    pretrain(tmp_path, recipe, device="cpu", minutes=0.0, watch=0, progress=False)
    before = json.loads((tmp_path / "recipe.json").read_text())[what]
    monkeypatch.setattr(stage, f"{what}_version", lambda: "of tomorrow")
    with pytest.raises(UserError, match=f"{what} is '{before}' there and 'of tomorrow' now"):
        pretrain(tmp_path, recipe, device="cpu", minutes=0.0, watch=0, progress=False)


def test_the_digest_of_words_follows_words(monkeypatch):
    before = words_version()
    assert before == words_version()
    monkeypatch.setattr(vocabulary_of, "vocabulary", lambda: {**vocabulary(), "another": 1000})
    assert words_version() != before


def test_minutes_count_from_the_start_of_the_command(tmp_path, monkeypatch):
    """Drawing takes all the time that there was: one step, and the same command goes on."""
    draw, clock, late = stage.render_cache, time.monotonic, [0.0]

    def slow(*args, **how):
        late[0] = 600.0
        return draw(*args, **how)

    monkeypatch.setattr(time, "monotonic", lambda: clock() + late[0])
    monkeypatch.setattr(stage, "render_cache", slow)
    how = {"device": "cpu", "minutes": 9.0, "watch": 0, "progress": False}
    assert pretrain(tmp_path, replace(TINY, accumulate=1), **how).step == 1
    monkeypatch.setattr(stage, "render_cache", draw)
    assert pretrain(tmp_path, replace(TINY, accumulate=1), **how).step == TINY.steps


def test_an_init_that_does_not_fit_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match="another size or width"):
        pretrain(tmp_path / "run", replace(TINY, init="storybook-clip"), device="cpu", progress=False)
    assert list(tmp_path.iterdir()) == []


def watch_all(folder, figures, scenes, number=60):
    """A training of four steps that are watched one by one; what was kept, and the rows (step, scenes, figure)."""
    figures, kept = iter(figures), []
    path, best = folder / "watch.csv", folder / "watch.json"
    how = {"scenes": number, "by": "initial", "best": best, "keep": lambda _: kept.append(1)}
    watch = Watch(path, 1, lambda _: {"initial": next(figures)}, **how)
    recipe = replace(TINY, accumulate=1)
    module = ContrastiveCLIP(recipe, build_clip(recipe))
    fit(module, pairs_of(scenes), recipe.training(device="cpu"), folder, callbacks=[watch], show=False)
    rows = [(row["step"], row["scenes"], row["initial"]) for row in read_watch(path)]
    top = read_best(best)
    assert top in read_watch(path)
    return len(kept), rows, top


def test_watch_forgets_what_came_after_the_checkpoint(scenes, tmp_path):
    (tmp_path / "watch.csv").write_text("step,samples,scenes,initial\n1,8,60,1\n50,400,60,99\n")
    kept, rows, top = watch_all(tmp_path, [1.0, 3.0, 2.0, 9.0], scenes)
    assert rows == [(1, 60, 1), (2, 60, 3), (3, 60, 2), (4, 60, 9)]
    assert (kept, top["step"]) == (3, 4)


def test_the_best_weights_agree_with_the_rows_after_a_resumption(scenes, tmp_path):
    """Best at step 3, killed, gone on from the start; on a GPU, the second time is not as the first."""
    first = watch_all(tmp_path, [1.0, 3.0, 9.0, 5.0], scenes)
    assert (first[0], first[2]["step"]) == (3, 3)
    (tmp_path / "last.ckpt").unlink()
    kept, rows, top = watch_all(tmp_path, [1.0, 4.0, 8.0, 6.0], scenes)
    assert (kept, top) == (0, first[2])
    assert rows == [(1, 60, 1), (2, 60, 4), (3, 60, 9), (3, 60, 8), (4, 60, 6)]
    (tmp_path / "last.ckpt").unlink()
    kept, rows, top = watch_all(tmp_path, [1.0, 4.0, 9.5, 6.0], scenes)
    assert (kept, top["initial"]) == (1, 9.5)
    assert rows == [(1, 60, 1), (2, 60, 4), (3, 60, 9.5), (4, 60, 6)]


def test_another_number_of_scenes_is_not_compared(scenes, tmp_path):
    (tmp_path / "watch.json").write_text('{"step": 0, "samples": 0, "scenes": 3, "initial": 99}')
    kept, rows, top = watch_all(tmp_path, [1.0, 3.0, 2.0, 2.0], scenes)
    assert (kept, top["step"], rows[0]) == (2, 2, (0, 3, 99))


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
        ({"colour": -0.1}, "colour -0.1"),
        ({"weight_decay": math.nan}, "weight_decay nan"),
        ({"loss": "triplet"}, "triplet"),
    ],
)
def test_impossible_recipes_are_refused_before_anything_is_written(tmp_path, wrong, named):
    with pytest.raises(UserError, match=named):
        pretrain(tmp_path / "run", replace(TINY, **wrong), device="cpu", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_recipes_are_read_from_options():
    recipe = read_recipe(Pretrain, ["steps=7", "sizes=[[32, 48], [48, 32]]", "lr=3e-4", "loss=sigmoid"])
    assert recipe == Pretrain(steps=7, sizes=((32, 48), (48, 32)), lr=3e-4, loss="sigmoid")
    assert recipe.largest == (48, 48)
    with pytest.raises(UserError, match="did you mean layers"):
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
        trained_image = readings(trained.weights.vision, encode_image(trained.weights.vision, pixels, None))[0]
    torch.testing.assert_close(mine, images, atol=1e-3, rtol=0)
    torch.testing.assert_close(mine, trained_image, atol=1e-2, rtol=0)
    torch.testing.assert_close(ours.text_features(texts), F.normalize(sentences, dim=-1), atol=1e-3, rtol=0)
    live = in_training(trained.weights, torch.device("cpu"))
    torch.testing.assert_close(live.text_features(texts), ours.text_features(texts), atol=1e-2, rtol=0)
    assert ours.unknown("a zebra") == ["zebra"]
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["eos_token_id"] == vocabulary()[END]


def test_warm_start_takes_all_that_fits():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = load_clip("storybook-clip", cache=None)
    old = other.model.state_dict()
    words = other.tokenizer.backend.get_vocab()
    for layers in (6, 10):
        recipe = Pretrain(layers=layers, side=128)
        model = build_clip(recipe)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        fresh = warm_start(model, other)
        own = model.state_dict()
        last = min(layers, 8) - 1
        for name in ("conv1.weight", "proj", f"transformer.resblocks.{last}.mlp.c_fc.weight"):
            assert torch.equal(own[f"vision.{name}"], old[f"vision.{name}"])
        row, their_row = vocabulary()["dog"], words["dog"]
        table = "text.token_embedding.weight"
        assert torch.equal(own[table][row], old[table][their_row])
        row = vocabulary()["sofa"]
        assert "word sofa" in fresh
        assert torch.equal(own[table][row], before[table][row])
        left = [name for name in fresh if name.startswith("vision.")]
        assert all(
            name.startswith(("vision.transformer.resblocks.8", "vision.transformer.resblocks.9")) for name in left
        )
        assert len(left) == (0 if layers == 6 else 2 * 12)
    with pytest.raises(UserError, match="another size or width"):
        warm_start(build_clip(TINY), other)
    assert embedded_clip().is_dir()
    assert len(CLASSES20) == 20


def test_command_line_lists_the_recipe_and_names_what_is_wrong():
    run = CliRunner()
    listed = run.invoke(app, ["storybook", "pretrain", "--list", "--set", "layers=6"])
    assert listed.exit_code == 0
    assert "layers = 6\n" in listed.output
    refused = run.invoke(app, ["storybook", "pretrain", "--set", "layer=6"])
    assert refused.exit_code == 1
    assert "did you mean layers" in refused.output
