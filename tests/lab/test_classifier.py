"""storybook-resnet's training: what a batch holds, what a stop changes (nothing), what is measured and written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tag2mask
from tag2mask.lab import running, train_classifier
from tag2mask.lab.cache import EDITION, Rendered, render_cache
from tag2mask.lab.classifier import (
    DICE,
    ClassifierRecipe,
    augment,
    make_classifier,
    measure,
)
from tag2mask.lab.running import Running
from tag2mask.lab.train_classifier import TaggedPictures, pretrain_resnet, tag_training
from tag2mask.models.classifier import load_classifier, save_classifier
from tag2mask.ops.image import MEAN, STD
from tag2mask.run.lock import locked
from tag2mask.run.sampling import Draw, Training
from tag2mask.run.tag_training import tag_loss
from tag2mask.run.training import fit
from tag2mask.storybook import CLASSES, draw_scene
from tag2mask.storybook.render import scene_seed
from tag2mask.types import UserError

TINY = ClassifierRecipe(width=2, scenes=12, size=(24, 32), crop=(16, 24), batch=4, steps=6, warmup=2)
QUIET = Running(device="cpu", progress=False)
ONE_STEP = dataclasses.replace(QUIET, minutes=0)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    drawn = render_cache(tmp_path_factory.mktemp("scenes"), Rendered(12, (24, 32)), workers=1)
    return TaggedPictures.of(drawn, TINY.classes, TINY.seed)


def test_tags_are_the_scenes_own(tmp_path) -> None:
    names = ("cat", "dog", "boat")
    drawn = render_cache(tmp_path, Rendered(5, (24, 32), classes=names), workers=1)
    data = TaggedPictures.of(drawn, names, seed=0)
    for i in range(5):
        scene = draw_scene(scene_seed("train", 0, i), (24, 32), names)
        picture, tags, _ = data[Draw(0, i)]
        assert np.array_equal(picture.permute(1, 2, 0).numpy(), scene.image)
        assert (tags.nonzero()[:, 0] + 1).tolist() == list(scene.tags)


def test_a_plain_view_is_the_picture_itself() -> None:
    recipe = dataclasses.replace(TINY, crop=(24, 32), zoom=(1.0, 1.0), jitter=0.0)
    images = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8)
    dice = torch.full((2, DICE), 0.5)
    dice[1, 3] = 0.4  # mirrored
    expected = (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    got = augment(images, dice, recipe)
    torch.testing.assert_close(got[0], expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got[1], expected[1].flip(-1), atol=1e-4, rtol=1e-4)


def test_a_window_is_that_part_of_the_picture() -> None:
    recipe = dataclasses.replace(TINY, size=(32, 32), crop=(16, 16), zoom=(0.5, 0.5), jitter=0.0)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    dice = torch.full((2, DICE), 0.5)
    dice[0, 1:3] = torch.tensor([0.0, 1.0])  # at the left, at the bottom
    dice[1, 1:3] = torch.tensor([1.0, 0.0])
    plain = (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    got = augment(images, dice, recipe)
    torch.testing.assert_close(got[0], plain[0, :, 16:, :16], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got[1], plain[1, :, :16, 16:], atol=1e-4, rtol=1e-4)


def test_colours_shift_by_the_dice() -> None:
    recipe = dataclasses.replace(TINY, crop=(24, 32), zoom=(1.0, 1.0), jitter=0.2)
    images = torch.full((1, 3, 24, 32), 100, dtype=torch.uint8)
    dice = torch.full((1, DICE), 0.5)
    dice[0, 4], dice[0, 6] = 1.0, 0.0  # brighter by 0.2, red less by half of that
    got = augment(images, dice, recipe)[0, :, 0, 0] * torch.tensor(STD) + torch.tensor(MEAN)
    torch.testing.assert_close(got * 255, torch.tensor([108.0, 120.0, 120.0]), atol=1e-2, rtol=1e-4)


def test_a_sample_depends_on_its_draw_alone(scenes) -> None:
    data = scenes
    first, second = data[Draw(3, 7)], data[Draw(3, 7)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(first[1].nonzero()[:, 0], torch.from_numpy(np.flatnonzero(scenes.tags[7])))
    assert not torch.equal(first[2], data[Draw(4, 7)][2])


def test_norms_do_not_decay() -> None:
    groups = tag_training(TINY, make_classifier(TINY)).configure_optimizers()["optimizer"].param_groups
    assert [{p.ndim for p in group["params"]} for group in groups] == [{4}, {1}]
    assert groups[0]["weight_decay"] > groups[1]["weight_decay"] == 0


def test_stopped_and_gone_on_is_as_never_stopped(scenes, tmp_path) -> None:
    """To the bit, running statistics and all."""

    def train(folder: str, *legs: int | None) -> dict[str, torch.Tensor]:
        for steps in legs:
            module = tag_training(TINY, make_classifier(TINY))
            training = Training(TINY.steps, TINY.batch, device="cpu", minutes=0 if steps == 1 else None)
            trainer = fit(module, scenes, training, tmp_path / folder, show=False)
        assert trainer.global_step == TINY.steps
        return module.network.state_dict()

    whole, stopped = train("whole", None), train("stopped", 1, 1, None)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert not torch.equal(whole["head.weight"], make_classifier(TINY).state_dict()["head.weight"])


def test_trains_measures_and_writes(tmp_path) -> None:
    """All the way: stopped by the clock, taken up again, measured, written, loaded."""
    assert pretrain_resnet(tmp_path, TINY, ONE_STEP, scenes=2, workers=1) is None
    assert not (tmp_path / "model.safetensors").exists()
    found = pretrain_resnet(tmp_path, TINY, QUIET, scenes=2, workers=1)
    assert 0 <= found.network.miou <= 1
    assert found.untrained != found.network
    classifier, _ = load_classifier(tmp_path)
    assert classifier.names == TINY.classes
    assert classifier.backbone.layout.stride == 16
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert f"{found.network.tag_map:.3f}" in card
    assert f"{found.untrained.tag_map:.3f}" in card
    assert "random weights" in card
    assert "| pictures seen | 24 |" in card
    with pytest.raises(UserError, match=r"another training: lr is 0\.002 there and 0\.1 now"):
        pretrain_resnet(tmp_path, dataclasses.replace(TINY, lr=0.1), Running(progress=False))
    assert json.loads((tmp_path / "training" / "recipe.json").read_text())["width"] == 2


def test_figures_are_measured_once(tmp_path, monkeypatch) -> None:
    how = {"running": QUIET, "scenes": 2, "workers": 1}
    found = pretrain_resnet(tmp_path, TINY, **how)
    other = pretrain_resnet(tmp_path, TINY, **{**how, "scenes": 3})
    assert (found.network.scenes, other.network.scenes) == (2, 3)
    assert found.network == measure(load_classifier(tmp_path)[0], 2)  # of what was written, in half precision
    for file in (tmp_path / "training").glob("measured-*-2.json"):
        file.write_text("{")
    assert pretrain_resnet(tmp_path, TINY, **how) == found
    monkeypatch.setattr(train_classifier, "measure", None)
    assert pretrain_resnet(tmp_path, TINY, **how) == found
    text = found.text()
    assert f"tag mAP {100 * found.network.tag_map:.1f} (floor: untrained {100 * found.untrained.tag_map:.1f})" in text


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "expected width and steps of at least 1"),
        ({"batch": 1}, "expected a batch of at least 2"),
        ({"scenes": 0}, "cannot render 0 scenes"),
        ({"crop": (8, 24)}, "at least 16 pixels"),
        ({"zoom": (0.0, 1.0)}, "0 < zoom <= 1"),
        ({"zoom": (0.9, float("nan"))}, "0 < zoom <= 1"),
        ({"jitter": 1.0}, "jitter < 1"),
        ({"lr": float("nan")}, "lr above 0"),
        ({"weight_decay": -0.1}, "weight_decay of at least 0"),
        ({"warmup": -1}, "warmup of at least 0"),
        ({"seed": 1000}, "no seed 1000"),
    ],
)
def test_impossible_recipes_are_refused(tmp_path, setting, message) -> None:
    with pytest.raises(UserError, match=message):
        pretrain_resnet(tmp_path / "out", dataclasses.replace(TINY, **setting), QUIET)
    assert not (tmp_path / "out").exists()


def test_what_others_keep_in_the_folder_is_left_alone(tmp_path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"a CLIP")
    (tmp_path / "training").mkdir()
    with pytest.raises(UserError, match=r"holds other things \(model.safetensors\)"):
        pretrain_resnet(tmp_path, TINY, QUIET)
    assert (tmp_path / "model.safetensors").read_bytes() == b"a CLIP"
    assert list((tmp_path / "training").iterdir()) == []


def test_nothing_to_measure_on_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="measured on 0 scenes"):
        pretrain_resnet(tmp_path / "out", TINY, QUIET, scenes=0)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused(tmp_path):
    with (
        locked(tmp_path / "training", "x"),
        pytest.raises(UserError, match=r"The training in .* is being written by process"),
    ):
        pretrain_resnet(tmp_path, TINY, QUIET)


def test_a_compiled_loss_is_what_is_trained(tmp_path, monkeypatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    pretrain_resnet(tmp_path, TINY, dataclasses.replace(ONE_STEP, compiled=True), scenes=2, workers=1)
    assert compiled == [tag_loss]


def test_begins_with_the_weights_it_is_given(tmp_path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    pretrain_resnet(first, TINY, QUIET, scenes=2, workers=1)
    gone_on = dataclasses.replace(TINY, seed=1, steps=2, lr=1e-12, weight_decay=0.0, init=str(first))
    pretrain_resnet(second, gone_on, QUIET, scenes=2, workers=1)
    before, digest = load_classifier(first)
    after, _ = load_classifier(second)
    for name, value in before.named_parameters():
        torch.testing.assert_close(after.get_parameter(name), value, rtol=2e-3, atol=1e-5, msg=name)
    assert digest[:12] in (second / "MODEL_CARD.md").read_text()
    assert json.loads((second / "training" / "recipe.json").read_text())["init_sha256"] == digest


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"width": 3}, "is of width 3, the recipe of width 2; give --width 3"),
        ({"classes": ("cat", "dog")}, "knows cat, dog, with .*; expected aeroplane"),
    ],
)
def test_weights_of_another_shape_cannot_begin(tmp_path, other, message) -> None:
    save_classifier(make_classifier(dataclasses.replace(TINY, **other)).eval(), tmp_path / "other", "")
    with pytest.raises(UserError, match=message):
        pretrain_resnet(tmp_path / "out", dataclasses.replace(TINY, init=str(tmp_path / "other")), QUIET)
    assert not (tmp_path / "out").exists()


def test_other_drawings_are_another_training(tmp_path, monkeypatch) -> None:
    how = {"running": ONE_STEP, "scenes": 2, "workers": 1}
    pretrain_resnet(tmp_path, TINY, **how)
    monkeypatch.setattr(running, "EDITION", EDITION + 1)
    with pytest.raises(UserError, match=f"drawing is {EDITION} there and {EDITION + 1} now"):
        pretrain_resnet(tmp_path, TINY, **how)


def test_an_impossible_device_leaves_no_folder(tmp_path) -> None:
    with pytest.raises(UserError, match="gpu7"):
        pretrain_resnet(tmp_path / "run", TINY, Running(device="gpu7", progress=False))
    assert not (tmp_path / "run").exists()


def test_the_floor_is_of_norms_that_have_seen_pictures(scenes) -> None:
    fresh = make_classifier(TINY)
    settled = train_classifier._settled(make_classifier(TINY), scenes, TINY)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), settled.parameters(), strict=True))
    means = [name for name, _ in fresh.named_buffers() if name.endswith("running_mean")]
    assert means
    assert not any(torch.equal(fresh.get_buffer(name), settled.get_buffer(name)) for name in means)


def test_the_guess_is_the_share_of_pictures_that_show_a_class() -> None:
    found = measure(make_classifier(TINY), 6, size=(32, 32), scales=(1.0,))
    tags = [draw_scene(scene_seed("val", 0, i), (32, 32), TINY.classes).tags for i in range(6)]
    counts = [sum(number in each for each in tags) for number in range(1, 21)]
    shown = [count / 6 for count in counts if count]
    assert found.chance == pytest.approx(sum(shown) / len(shown))


def test_loss_falls(scenes) -> None:
    recipe = dataclasses.replace(TINY, steps=30, lr=1e-2, zoom=(1.0, 1.0), jitter=0.0)
    module = tag_training(recipe, make_classifier(recipe))
    optimizer = module.configure_optimizers()["optimizer"]
    data = scenes
    batch = data.collate([data[Draw(0, i)] for i in range(12)])
    module.log = lambda *_: None
    losses = []
    for _ in range(recipe.steps):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_network_that_sees_nothing_measures_as_the_floor() -> None:
    """Head weights of zero: every map is empty, so everything is background."""
    classifier = make_classifier(TINY)
    torch.nn.init.zeros_(classifier.head.weight)
    found = measure(classifier, 3, size=(48, 64), scales=(1.0,))
    truth = [draw_scene(scene_seed("val", 0, i), (48, 64), TINY.classes).mask for i in range(3)]
    background = np.mean(np.concatenate([mask.ravel() == 0 for mask in truth]))
    classes = len(np.unique(np.concatenate([mask.ravel() for mask in truth])))
    assert found.miou == pytest.approx(background / classes)


def test_the_weights_that_ship() -> None:
    """Those of the card, small, and as good as it says: 36 scenes, one scale, well under what was measured."""
    folder = Path(tag2mask.__file__).parent / "storybook" / "weights" / "resnet"
    data = (folder / "model.safetensors").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert digest in (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert len(data) <= 6 * 2**20
    classifier, sha256 = load_classifier()
    assert sha256 == digest
    assert classifier.names == CLASSES
    found = measure(classifier, 36, scales=(1.0,), flip=False)
    assert found.tag_map > 0.85  # 0.887
    assert found.miou > 0.36  # 0.388
    assert found.miou > 2.5 * found.everything  # 2.7 times
