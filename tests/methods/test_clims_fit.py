"""CLIMS's fit: its parts, its stops, what it learns from."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from methods.clims_cases import (
    CLASSES,
    SMALL,
    TEXTS,
    fitted,
    method_of,
    pictures_and_maps,
    seven_images,
    write_weights,
)
from methods.toys import TinyData, forbidden, make_data
from tag2mask.data.image import read_image
from tag2mask.methods import make_method
from tag2mask.methods.fitting import clims as subject
from tag2mask.methods.fitting import settings as fitting
from tag2mask.methods.fitting.classifier import tag_training
from tag2mask.methods.fitting.clims import CLIMSTraining, TagCaptions, descent_of
from tag2mask.methods.fitting.clims_critic import Critic
from tag2mask.ops.calibration import calibrate_threshold
from tag2mask.ops.image import MEAN, STD, resize_bicubic, standardise
from tag2mask.run.sampling import sample_indices
from tag2mask.run.tag_training import TagTraining
from tag2mask.stages.label import label
from tag2mask.types import Sample, UserError
from tiny_clips import oracle

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    return write_weights(tmp_path_factory.mktemp("classifier"))


@pytest.fixture
def data(tmp_path) -> TinyData:
    return seven_images(tmp_path / "images")


# --- the fit


def start_training(method, network, **changes):
    """The training of the classifier, under a recipe with changes."""
    recipe = replace(method.recipe, **changes)
    return tag_training(network, 3, descent_of(recipe, replace(method.fit_of().settings, lr=recipe.baseline_lr)))


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_classifier_before_it(variant, clip, weights):
    """One step by hand: the tags' own rows are the targets, a picture without tags teaches nothing."""
    options = {"baseline_epochs": 1, "baseline_lr": 0.2, "lr": 0.01, "weight_decay": 0.03, "variant": variant}
    texts = {"clims": TEXTS, "clims-released": TEXTS}
    method = make_method("clims", replace(CLASSES, texts=texts), clip=clip, weights=weights, **{**SMALL, **options})
    network, _ = method.start()
    module = start_training(method, network, frozen_norm=True)
    pictures, _ = pictures_and_maps(3)
    tags = [torch.tensor([1, 3]), torch.tensor([2]), torch.zeros(0, dtype=torch.int64)]
    with pytest.warns(UserWarning, match="log"):
        loss = module.training_step((pictures, tags), 0)
    with torch.no_grad():
        logits = network(standardise(pictures, MEAN, STD))[:2]
        right = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
        p = logits.sigmoid()
        expected = -(right * p.log() + (1 - right) * (1 - p).log()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    optimizer = module.configure_optimizers()["optimizer"]
    assert {group["initial_lr"] for group in optimizer.param_groups} >= {0.2, 2.0}
    assert {group["momentum"] for group in optimizer.param_groups} == {0.03 if variant == "released" else 0.0}


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_what_each_part_is_cropped_to(variant, clip, weights, data, tmp_path, monkeypatch):
    crops = {}
    monkeypatch.setattr(
        subject, "train_to_end", lambda module, images, *rest: crops.update({rest[-1]: images.settings.crop})
    )
    texts = {"clims": TEXTS, "clims-released": TEXTS}
    classes = replace(CLASSES, texts=texts)
    options = {**SMALL, "variant": variant, "baseline_epochs": 1, "finetune_clip": 1, "threshold": None}
    if variant == "released":
        options["threshold"] = 0.2
    method = make_method("clims", classes, clip=clip, weights=weights, allow_unknown=True, **options)
    subject.train(method.fit_of(), data, tmp_path)
    assert crops == {"clip": 28, "clims start": 28 if variant == "paper" else 32, "clims": 32}


@pytest.mark.parametrize("part", ["start", "clims"])
def test_the_stem_learns_nothing(part, clip, weights):
    """In both trainings, even at a rate that throws everything else; its norm still counts what it sees."""
    method = method_of(clip, weights, lr=1.0, baseline_epochs=1, baseline_lr=1.0, weight_decay=0.5)
    network, _ = method.start()
    critic = Critic(CLASSES, TEXTS, clip, method.recipe)
    if part == "start":
        module = start_training(method, network)
    else:
        module = CLIMSTraining(network, critic, descent_of(method.recipe, method.fit_of().settings))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pictures, _ = pictures_and_maps(3)
    optimizer = module.configure_optimizers()["optimizer"]
    with pytest.warns(UserWarning, match="log"):
        module.training_step((pictures, [torch.tensor([1, 3]), torch.tensor([2]), torch.tensor([3])]), 0).backward()
    optimizer.step()
    same = {name for name, value in network.state_dict().items() if torch.equal(value, before[name])}
    learnable = {name for name, _ in network.named_parameters() if name.startswith("backbone.")}
    stem = {f"backbone.{name}" for name in ("conv1.weight", "bn1.weight", "bn1.bias")}
    assert same & learnable == stem
    assert "backbone.bn1.running_mean" not in same


def test_a_fit_is_what_its_steps_are(clip, weights, data, tmp_path):
    """Against a loop written here: SGD by hand, the head ten times as fast, poly decay, norms without decay."""
    options = {"weight_decay": 1.0, "steps": 3}
    got = fitted(method_of(clip, weights, **options), data, tmp_path / "run")
    method = method_of(clip, weights, **options)
    network, _ = method.start()
    network.train()
    critic = Critic(CLASSES, TEXTS, clip, method.recipe)
    images = subject.TaggedImages(
        data,
        subject.Augment(32, scale=subject.LongSide(24, 40), place="anywhere", resample="bicubic"),
        0,
    )
    for step in range(3):
        drawn = [images[subject_draw(step, int(i))] for i in sample_indices(0, step, 3, 7)]
        pictures, tags = images.collate(drawn)
        maps = network.maps(standardise(pictures, MEAN, STD)).sigmoid()
        network.zero_grad()
        critic(pictures, maps, tags).total.backward()
        rate = 0.01 * (1 - step / 3) ** 0.9
        with torch.no_grad():
            for name, p in network.named_parameters():
                if p.grad is None or name.startswith(("backbone.conv1.", "backbone.bn1.")):
                    continue
                shrink = p if p.ndim == 4 else 0
                p -= (10 if name.startswith("head.") else 1) * rate * (p.grad + shrink)
    start = method.start()[0].state_dict()
    for name, value in network.state_dict().items():  # as a whole and of its change: single numbers round anyhow
        moved, apart = (value - start[name]).float().norm(), (got[name] - value).float().norm()
        assert apart <= 2e-3 * moved, name
    assert not torch.equal(got["backbone.layer4.0.conv1.weight"], start["backbone.layer4.0.conv1.weight"])
    assert torch.equal(got["backbone.conv1.weight"], start["backbone.conv1.weight"])


def subject_draw(step, sample):
    from tag2mask.run.sampling import Draw

    return Draw(step, sample)


class Killed(BaseException):
    """As good as kill -9: nothing of this package cleans up after it."""


def test_killed_in_any_part_it_ends_in_the_same_bits(clip, weights, data, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "SAVE_STEPS", 2)
    options = {
        "allow_unknown": True,
        "finetune_clip": 3,
        "finetune_lr": 0.01,
        "baseline_epochs": 1.5,
        "baseline_lr": 0.01,
    }
    expected = fitted(method_of(clip, weights, **options), data, tmp_path / "whole")
    out = tmp_path / "stopped"
    for part, at in ((TagCaptions, 3), (TagTraining, 4), (CLIMSTraining, 1), (CLIMSTraining, 4)):
        keep, calls = part.training_step, []

        def breaking(self, batch, index, keep=keep, calls=calls, at=at):
            calls.append(index)
            if len(calls) == at:
                raise Killed
            return keep(self, batch, index)

        monkeypatch.setattr(part, "training_step", breaking)
        with pytest.raises(Killed):
            fitted(method_of(clip, weights, **options), data, out)
        monkeypatch.setattr(part, "training_step", keep)
    got = fitted(method_of(clip, weights, **options), data, out)
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    untuned = {name: value for name, value in options.items() if not name.startswith("finetune")}
    other = fitted(method_of(clip, weights, **untuned), data, tmp_path / "untuned")
    assert not torch.equal(other["head.classifier.weight"], expected["head.classifier.weight"])


def test_fine_tuning_reads_captions_of_the_tags(clip, weights):
    method = method_of(clip, weights, finetune_clip=3)
    module = TagCaptions(method.fit_of())
    tags = [torch.tensor([1, 3]), torch.tensor([2]), torch.tensor([2])]
    assert module.captions(tags[:2]) == ["a photo of red and dog", "a photo of cat"]
    pictures, _ = pictures_and_maps(3)
    with pytest.warns(UserWarning, match="log"):
        loss = module.training_step((pictures, tags), 0)
    with torch.no_grad():
        pixels = standardise(pictures, clip.mean, clip.std)
        images = F.normalize(oracle().get_image_features(pixels).pooler_output, dim=-1)
        texts = clip.text_features(["a photo of red and dog", "a photo of cat"], allow_unknown=True)[[0, 1, 1]]
        logits = oracle().logit_scale.exp() * images @ texts.T
        target = torch.tensor([[1, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]])
        expected = -(target * (logits.log_softmax(1) + logits.log_softmax(0))).sum() / 3
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    before = [p.clone() for p in clip.model.parameters()]
    loss.backward()
    assert all(p.grad is not None for p in module.model.parameters())
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, clip.model.parameters(), strict=True))


def test_what_a_data_set_may_hold(clip, weights, data, tmp_path):
    """A damaged image, one without tags, one of unknown tags, one smaller than a cell: all of them, in one fit."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    small = make_data(tmp_path / "small", count=1, sizes=((3, 2),)).samples[0]
    mixed = [
        *data.samples[:2],
        Sample("broken", broken, (1,), forbidden),
        Sample("none", data.samples[3].image, (), forbidden),
        Sample("unknown", data.samples[4].image, None, forbidden),
        small,
    ]
    with pytest.warns(UserWarning, match="broken cannot be learned from"):
        summary = label(
            TinyData(mixed, data.root, CLASSES),
            make_method("clims", CLASSES, clip=clip, device="cpu", weights=weights, **SMALL),
            tmp_path / "run",
            progress=False,
        )
    assert (summary.done, summary.failed, summary.no_tags) == (4, 1, 1)


def test_without_a_single_tag_there_is_nothing_to_learn(clip, weights, data, tmp_path):
    bare = TinyData([replace(s, tags=()) for s in data.samples], data.root, CLASSES)
    with pytest.raises(UserError, match="none of the 7 images"):
        fitted(method_of(clip, weights), bare, tmp_path / "run")


def test_a_tokenizer_without_and_is_told_before_fine_tuning(clip, weights, data, tmp_path):
    with pytest.raises(UserError, match="does not know 'and'"):
        fitted(method_of(clip, weights, finetune_clip=3), data, tmp_path / "run")


def test_words_that_clip_does_not_know(clip, weights, data, tmp_path):
    classes = replace(CLASSES, texts={"clims": replace(TEXTS, names=("red", "gnu", "dog"))})
    method = make_method("clims", classes, clip=clip, weights=weights, **SMALL)
    with pytest.raises(UserError, match="gnu"):
        fitted(method, data, tmp_path / "run")


def test_texts_of_the_context_that_clip_does_not_know_are_left_out(clip, weights):
    phrases = tuple(dict.fromkeys(phrase for own in TEXTS.per_class.values() for phrase in own))
    first = next(iter(TEXTS.per_class))
    more = {**TEXTS.per_class, first: (*TEXTS.per_class[first], "gnu")}
    with pytest.warns(UserWarning, match="does not know the words of gnu: L_CBS goes without"):
        critic = Critic(CLASSES, replace(TEXTS, per_class=more), clip, method_of(clip, weights).recipe)
    torch.testing.assert_close(critic.phrases, clip.ensemble(phrases, TEXTS.templates))
    assert critic.relevant.shape == (3, len(phrases))
    with pytest.warns(UserWarning, match="unknown token"):
        kept = Critic(CLASSES, replace(TEXTS, per_class=more), clip, method_of(clip, weights).recipe, True)
    assert kept.relevant.shape == (3, len(phrases) + 1)


def test_no_texts_of_what_occurs_with_a_class_is_told(clip, weights):
    with pytest.warns(UserWarning, match="L_CBS does nothing"):
        Critic(CLASSES, replace(TEXTS, per_class={}), clip, method_of(clip, weights).recipe)


def test_it_does_not_label_before_it_has_learned(clip, weights):
    with pytest.raises(UserError, match="what it has learned"):
        method_of(clip, weights).scores([])


def test_a_threshold_is_taken_from_the_tags_once(clip, weights, data, tmp_path):
    options = {"variant": "released", "threshold": "calibrated"}
    method = method_of(clip, weights, **options)
    rows = []
    for sample in data:
        image = resize_bicubic(torch.from_numpy(read_image(sample.image)).permute(2, 0, 1).contiguous(), (32, 32))
        with torch.no_grad():
            pixels = standardise(image[None], MEAN, STD)
            seen = oracle().vision_model(pixels).pooler_output @ oracle().visual_projection.weight.T
        rows.append(F.normalize(seen, dim=-1)[0] @ clip.ensemble(TEXTS.names, TEXTS.templates).T)
    rows = torch.stack(rows)  # (7, 3)
    tags = (rows - rows.mean(0)).argmax(1) + 1  # a random CLIP knows nothing, unless the tags are what it sees
    seen = TinyData([replace(s, tags=(int(t),)) for s, t in zip(data, tags, strict=True)], data.root, CLASSES)
    expected = calibrate_threshold(rows, torch.eye(3, dtype=torch.bool)[tags - 1]).threshold
    fitted(method, seen, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "threshold.json"
    assert json.loads(path.read_text())["threshold"] == pytest.approx(expected, abs=1e-4)
