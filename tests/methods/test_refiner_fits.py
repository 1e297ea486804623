"""What IRN's and PSA's trainings are given, and what they do when files change under them."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from methods.cases import FITS, random_classifier
from methods.toys import CLASSES, TrainingFree, make_data
from tag2mask.data.image import read_image
from tag2mask.methods import make_method, method_class
from tag2mask.methods.fitting import affinity_training
from tag2mask.methods.fitting.affinity import PriorMaps, label_path, read_label
from tag2mask.models.classifier import Classifier, load_classifier, save_classifier
from tag2mask.ops.affinity_labels import irn_labels, psa_scores
from tag2mask.run.folder import Run
from tag2mask.run.sampling import Draw
from tag2mask.segment.augment import Augment, Colour, Uniform
from tag2mask.stages.label import label
from tag2mask.types import IGNORE, Constant, MaskRule, UserError

BOTH = ("irn", "psa")


def make(name, **options):
    return make_method(name, CLASSES, **{"weights": random_classifier().name, **FITS[name], **options})


@pytest.fixture
def seeds(tmp_path):
    data = make_data(tmp_path / "images", count=4)
    label(data, TrainingFree(CLASSES, TrainingFree.Options()), tmp_path / "seeds", progress=False)
    return data, Run.open(tmp_path / "seeds")


def fit(method, seeds, folder):
    data, prior = seeds
    with Run.create(folder, {"method": method.name}) as run:
        run.checkpoints.mkdir(exist_ok=True)
        method.fit(data, run.checkpoints, prior)
    return run


class StoppedError(Exception):
    pass


def given(method, seeds, folder, monkeypatch):
    """The module and the examples of a training that stops before its first step."""
    caught = []

    def stop(module, examples, *_):
        caught.extend([module, examples])
        raise StoppedError

    monkeypatch.setattr(affinity_training, "train", stop)
    with pytest.raises(StoppedError):
        fit(method, seeds, folder)
    return caught


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_what_irn_is_trained_with(variant, seeds, tmp_path, monkeypatch):
    method = make("irn", variant=variant, lr=0.3, displacement_lr=0.7, weight_decay=1e-3)
    module, examples = given(method, seeds, tmp_path / "run", monkeypatch)
    assert examples.settings == Augment(36, scale=Uniform(0.5, 1.5), place="anywhere", resample="bicubic")
    assert examples.settings.flip == 0.5
    optimizer = module.configure_optimizers()["optimizer"]
    edge, displacement = optimizer.param_groups
    assert {id(p) for p in edge["params"]} == {id(p) for p in method.net.edge.parameters()}
    assert {id(p) for p in displacement["params"]} == {id(p) for p in method.net.displacement.parameters()}
    assert [(g["initial_lr"], g["weight_decay"]) for g in (edge, displacement)] == [(0.3, 1e-3), (0.7, 1e-3)]
    assert [g["momentum"] for g in (edge, displacement)] == [1e-3 if variant == "released" else 0.0] * 2


@pytest.mark.parametrize("jitter", [True, False])
def test_what_psa_is_trained_with(jitter, seeds, tmp_path, monkeypatch):
    module, examples = given(make("psa", lr=0.2, jitter=jitter), seeds, tmp_path / "run", monkeypatch)
    assert examples.settings == Augment(72, colour=Colour(0.3, 0.3, 0.3, 0.1) if jitter else None, place="anywhere")
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert {group["initial_lr"] for group in groups} == {0.2, 2.0}
    assert {group["momentum"] for group in groups} == {0.0}


@pytest.mark.parametrize("name", BOTH)
def test_the_labels_of_an_image(name, seeds, tmp_path, monkeypatch):
    given(make(name), seeds, tmp_path / "run", monkeypatch)
    data, prior = seeds
    maps = PriorMaps.of(prior, make(name).options.threshold)
    for sample in data:
        image = torch.from_numpy(read_image(sample.image)).permute(2, 0, 1)
        tags = torch.tensor(sample.tags)
        seen = maps.read(prior.scores(sample.id), tags, tuple(image.shape[1:]))
        if name == "irn":
            expected = irn_labels(image, seen, tags, foreground=0.30, background=0.05)
        else:
            expected = (torch.cat([psa_scores(image, seen, 4), psa_scores(image, seen, 24)]) * 255).round().byte()
        kept = read_label(label_path(tmp_path / "run/checkpoints/labels", sample.id))
        assert torch.equal(kept, expected)


# --- faults ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_a_picture_that_breaks_during_the_fit_is_left_out(name, seeds, tmp_path, monkeypatch):
    data, _ = seeds
    _, examples = given(make(name), seeds, tmp_path / "run", monkeypatch)
    whole = examples[Draw(0, 1)]
    data.samples[1].image.write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="is no longer learned from"):
        picture, labels = examples[Draw(0, 1)]
    assert (picture.shape, labels.shape, labels.dtype) == (whole[0].shape, whole[1].shape, whole[1].dtype)
    assert (labels == IGNORE).all()
    label_path(tmp_path / "run/checkpoints/labels", data.samples[2].id).write_bytes(b"PK no archive")
    with pytest.warns(UserWarning, match="is no longer learned from"):
        assert (examples[Draw(0, 2)][1] == IGNORE).all()
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="is no longer learned from"):
        run = fit(make(name), seeds, tmp_path / "run")
    assert (run.checkpoints / "refiner.safetensors").exists()


@pytest.mark.parametrize("name", BOTH)
def test_an_unfinished_run_is_not_learned_from(name, seeds, tmp_path):
    data, prior = seeds
    half = Run(prior.path, prior.settings, prior.noted, images=5)
    with pytest.raises(UserError, match=r"is unfinished \(4 of 5 images\)"):
        fit(make(name), (data, half), tmp_path / "run")


@pytest.mark.parametrize("name", BOTH)
def test_without_any_tag_there_is_nothing_to_learn(name, seeds, tmp_path):
    data, prior = seeds
    bare = replace(data, samples=[replace(sample, tags=()) for sample in data.samples])
    with pytest.raises(UserError, match="none of the 4 images can be learned from"):
        fit(make(name), (bare, prior), tmp_path / "run")


def test_what_was_learned_on_other_weights_is_not_taken(seeds, tmp_path):
    data, prior = seeds
    folder = tmp_path / "weights"
    shutil.copytree(random_classifier().name, folder)
    method = make("irn", weights=str(folder))
    label(data, method, tmp_path / "run", prior=prior, progress=False)
    known, _ = load_classifier(folder)
    torch.manual_seed(5)
    save_classifier(Classifier(known.names, known.backbone.layout), folder, "")
    with pytest.raises(UserError, match=r"fitted with other settings: .*weights_sha256"):
        label(data, make("irn", weights=str(folder)), tmp_path / "x", prior=prior, fitted=tmp_path / "run")


@pytest.mark.parametrize("name", BOTH)
def test_maps_are_read_as_the_run_says_that_they_are_of(name, seeds, tmp_path):
    data, prior = seeds
    label(data, make(name), tmp_path / "run", prior=prior, progress=False)
    rule = MaskRule(background=Constant(0.9))
    label(data, TrainingFree(CLASSES, TrainingFree.Options()), tmp_path / "other", rule=rule, progress=False)
    method = make(name)
    label(data, method, tmp_path / "x", prior=tmp_path / "other", fitted=tmp_path / "run", progress=False)
    assert method.maps.rule.background == Constant(0.9)
    method.load(tmp_path / "run" / "checkpoints", prior)
    assert method.maps == PriorMaps.of(prior, method.options.threshold)
    blind = tmp_path / "blind"
    label(data, TrainingFree(CLASSES, TrainingFree.Options()), blind, keep_scores=False, progress=False)
    with pytest.raises(UserError, match="without score maps"):
        label(data, make(name), tmp_path / "y", prior=blind, fitted=tmp_path / "run", progress=False)


@pytest.mark.parametrize(("name", "published"), [("irn", "990, 3 epochs"), ("psa", "10,582, 8 epochs")])
def test_a_fit_says_how_long_the_published_one_was(name, published, seeds, tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match=rf"{name} learns for 2 steps; published: {published} of VOC 2012"):
        given(make(name, steps=2), seeds, tmp_path / "run", monkeypatch)
    described = method_class(name).Options.model_fields["steps"].description
    assert published.split(",")[0] in described or "10582" in described


@pytest.mark.parametrize("name", BOTH)
def test_a_backbone_from_pixel_labels_is_supervision_of_the_masks(name, seeds, tmp_path, monkeypatch):
    data, prior = seeds
    state = {f"module.{n}": v for n, v in load_classifier(random_classifier().name)[0].backbone.state_dict().items()}
    for file, extra, expected in (
        ("plain.pth", {}, "tags"),
        ("deeplab.pth", {"module.aspp.c0.weight": torch.zeros(2, 2, 3, 3)}, "tags+pixels(weights: deeplab.pth)"),
    ):
        torch.save({"state_dict": state | extra}, tmp_path / file)
        monkeypatch.setattr(affinity_training, "train", lambda *_: None)
        monkeypatch.setattr(affinity_training, "measure_displacement", lambda *_: None)
        method = make(name, weights=str(tmp_path / file))
        label(data, method, tmp_path / f"{file}-run", prior=prior.path, fit_only=True, progress=False)
        assert Run.open(tmp_path / f"{file}-run").settings["supervision"] == expected
