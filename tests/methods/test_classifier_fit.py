"""Classifier CAM that learns: its fit, step by step and stopped anywhere, and who takes what was learned."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from methods.toys import CLASSES, TinyData, forbidden
from tag2mask.classes import load_classes
from tag2mask.config import read_config
from tag2mask.methods import make_method, make_options
from tag2mask.methods.fitting import settings as fitting
from tag2mask.methods.fitting.tagged import TaggedImages
from tag2mask.methods.protocol import Machine
from tag2mask.models.classifier import Classifier, load_backbone, load_classifier, save_classifier, start_classifier
from tag2mask.models.clims import build_clims
from tag2mask.models.find_classifier import MAKE, find_classifier, weights_sha256
from tag2mask.ops.image import MEAN, STD, standardise
from tag2mask.ops.metrics import average_precision
from tag2mask.run.checkpoint import LAST
from tag2mask.run.folder import Run
from tag2mask.run.sampling import Draw, sample_indices
from tag2mask.run.tag_training import TagTraining
from tag2mask.run.training import Stopped
from tag2mask.segment.architectures import pixels_of_start
from tag2mask.segment.augment import Augment, LongSide
from tag2mask.stages.label import label
from tag2mask.stages.machinery.fit import FITTED, fitted_digest
from tag2mask.stages.report_weights import weights_of
from tag2mask.storybook import draw_scene
from tag2mask.storybook.render import scene_seed
from tag2mask.types import ClassSet, Sample, UserError
from tiny_classifiers import LAYOUT

SMALL = {"steps": 5, "batch": 3, "crop": 32, "long_side": (24, 40), "lr": 0.01}
RECIPES = Path(__file__).parents[2] / "recipes"


pytestmark = pytest.mark.usefixtures("one_thread")


def labelled(data, out, options, **more):
    method = make_method("classifier-cam", data.classes, device="cpu", **options)
    return label(data, method, out, progress=False, **more)


def learn(data, out, weights, machine=Machine(), **options) -> Run:  # noqa: B008  # frozen
    options = {"weights": weights, **SMALL, **options}
    labelled(data, out, options, fit_only=True, machine=machine)
    return Run.open(out)


def learned(run: Run) -> dict[str, bytes]:
    return {
        name: (run.checkpoints / name).read_bytes() for name in json.loads((run.checkpoints / FITTED).read_text())
    }


# --- the start


def test_it_starts_with_the_rows_of_the_classes_that_the_weights_know(weights):
    start, unknown = start_classifier(weights, CLASSES.foreground, seed=3)
    given, _ = load_classifier(weights)
    assert unknown == ("green",)
    assert torch.equal(start.head.weight[[0, 2]], given.head.weight[[2, 0]])
    same, other = (start_classifier(weights, CLASSES.foreground, seed=seed)[0] for seed in (3, 4))
    assert torch.equal(start.head.weight, same.head.weight)
    assert not torch.equal(start.head.weight[1], other.head.weight[1])
    for name, value in given.backbone.state_dict().items():
        assert torch.equal(start.backbone.state_dict()[name], value), name


def test_it_starts_from_imagenet_weights_or_from_nothing(weights, tmp_path):
    torch.save({**load_backbone(weights).state_dict(), "fc.weight": torch.zeros(1000, 128)}, tmp_path / "public.pth")
    with pytest.warns(UserWarning, match="own classifier, were left out"):
        start, unknown = start_classifier(tmp_path / "public.pth", CLASSES.foreground)
    assert unknown == CLASSES.foreground
    assert torch.equal(start.backbone.layer4[0].conv1.weight, load_backbone(weights).layer4[0].conv1.weight)
    assert start.backbone.layout.stride == 16
    drawn, unknown = start_classifier("random", CLASSES.foreground)
    assert unknown == CLASSES.foreground
    assert (drawn.backbone.layout.width, drawn.backbone.layout.blocks) == (64, (3, 4, 6, 3))


# --- the fit


@pytest.mark.parametrize(
    "frozen", [{"frozen_parts": 1}, {"frozen_parts": 3, "frozen_norm": True}, {"frozen_parts": 0}]
)
def test_a_fit_is_what_its_steps_are(frozen, weights, data, tmp_path):
    """Against a loop written here, in double precision: the loss by its formula, SGD by hand, poly, head times 10."""
    run = learn(data, tmp_path / "run", weights, steps=3, weight_decay=0.5, seed=2, **frozen)
    start, _ = start_classifier(weights, CLASSES.foreground, seed=2)
    network, before = start.double().train(), {k: v.clone() for k, v in start.double().state_dict().items()}
    if frozen.get("frozen_norm"):
        network.eval()
    parts = [("conv1", "bn1"), ("layer1",), ("layer2",)][: frozen["frozen_parts"]]
    first = {each for part in parts for each in part}
    still = {name for name, _ in network.named_parameters() if name.split(".")[1] in first}
    seen = TaggedImages(data, Augment(32, scale=LongSide(24, 40), place="anywhere", resample="bicubic"), 2)
    for step in range(3):
        pictures, tags = seen.collate([seen[Draw(step, int(i))] for i in sample_indices(2, step, 3, 7)])
        p = network(standardise(pictures, MEAN, STD).double()).sigmoid()
        target = torch.stack([torch.isin(torch.arange(1, 4), own) for own in tags]).double()
        network.zero_grad()
        (-(target * p.log() + (1 - target) * (1 - p).log()).mean()).backward()
        rate = 0.01 * (1 - step / 3) ** 0.9
        with torch.no_grad():
            for name, value in network.named_parameters():
                if name not in still:
                    decay = 0.5 * value if value.ndim == 4 else 0
                    value -= (10 if name.startswith("head.") else 1) * rate * (value.grad + decay)
    got = torch.load(run.checkpoints / LAST, weights_only=True)["state_dict"]
    for name, value in network.state_dict().items():  # as a whole and of its change: single numbers round anyhow
        moved, apart = (value - before[name]).float().norm(), (got[f"network.{name}"] - value).float().norm()
        assert apart <= 2e-3 * moved + 1e-6, name
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in network.named_parameters()} - still
    kept, _ = load_classifier(run.checkpoints)
    for name, value in kept.named_parameters():
        torch.testing.assert_close(value, got[f"network.{name}"], rtol=1e-3, atol=1e-6)


def test_killed_after_any_step_it_ends_in_the_same_bytes(weights, data, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "SAVE_STEPS", 1)
    expected = learned(learn(data, tmp_path / "whole", weights))
    keep = TagTraining.training_step

    class Killed(BaseException):
        """As good as kill -9: nothing of this package cleans up after it."""

    for at in range(5):

        def breaking(self, batch, index, at=at):
            if self.global_step == at:
                raise Killed
            return keep(self, batch, index)

        monkeypatch.setattr(TagTraining, "training_step", breaking)
        with pytest.raises(Killed):
            learn(data, tmp_path / "stopped", weights)
        assert fitted_digest(Run.open(tmp_path / "stopped")) is None
    monkeypatch.setattr(TagTraining, "training_step", keep)
    assert learned(learn(data, tmp_path / "stopped", weights)) == expected
    assert learned(learn(data, tmp_path / "other", weights, seed=1)) != expected


def test_stopped_by_the_clock_it_goes_on(weights, data, tmp_path):
    expected = learned(learn(data, tmp_path / "whole", weights))
    for step in range(1, 5):
        with pytest.raises(Stopped, match=f"time is over at step {step} of 5; all of it is saved"):
            learn(data, tmp_path / "run", weights, machine=Machine(minutes=0))
    assert learned(learn(data, tmp_path / "run", weights, machine=Machine(minutes=0))) == expected


def test_epochs_are_of_the_images_with_tags(weights, data, tmp_path):
    bare = [replace(sample, tags=tags) for sample, tags in zip(data.samples[:2], ((), None), strict=True)]
    run = learn(TinyData([*bare, *data.samples[2:]], data.root), tmp_path / "run", weights, steps=None, epochs=2)
    assert torch.load(run.checkpoints / LAST, weights_only=True)["global_step"] == round(2 * 5 / 3)
    with pytest.raises(UserError, match="none of the 2 images"):
        learn(TinyData(bare, data.root), tmp_path / "none", weights)


def test_it_learns(tmp_path):
    """Scenes that it has not seen: with a head of chance it guesses their tags, after some steps it knows them."""
    classes = ("boat", "cat", "person")
    given, _ = load_classifier()
    save_classifier(replace_names(given), tmp_path / "headless", "")
    samples, held_out = [], []
    for i in range(48):
        scene = draw_scene(scene_seed("train", 0, i), (48, 64), classes)
        Image.fromarray(scene.image).save(tmp_path / f"{i}.png")
        (samples if i < 24 else held_out).append(Sample(str(i), tmp_path / f"{i}.png", tuple(scene.tags), forbidden))
    palette = load_classes("voc12").palette[:4]
    data = TinyData(samples, tmp_path, ClassSet("three", ("background", *classes), palette))
    options = {"steps": 12, "batch": 8, "crop": 64, "long_side": (64, 64), "lr": 0.02, "frozen_norm": True}
    run = learn(data, tmp_path / "run", str(tmp_path / "headless"), **options)
    known = mean_ap(load_classifier(run.path)[0], held_out)
    guessed = mean_ap(start_classifier(tmp_path / "headless", classes)[0], held_out)
    assert known > guessed + 0.15, (known, guessed)


def replace_names(classifier: Classifier) -> Classifier:
    """The same, of classes that nobody has."""
    classifier.names = tuple(f"no {name}" for name in classifier.names)
    return classifier


@torch.no_grad()
def mean_ap(classifier: Classifier, samples) -> float:
    pictures = [torch.frombuffer(bytearray(Image.open(s.image).tobytes()), dtype=torch.uint8) for s in samples]
    pixels = torch.stack(pictures).view(-1, 48, 64, 3).permute(0, 3, 1, 2)
    shown = torch.stack([torch.isin(torch.arange(1, 4), torch.tensor(s.tags)) for s in samples])
    return float(average_precision(classifier(standardise(pixels, MEAN, STD)), shown).nanmean())


# --- what is kept, and who takes it


def test_the_run_is_a_classifier_wherever_weights_are_named(weights, data, tmp_path):
    run = learn(data, tmp_path / "run", weights)
    classifier, digest = load_classifier(run.path)
    assert classifier.names == CLASSES.foreground
    file = run.checkpoints / "model.safetensors"
    for source in (str(run.path), run.checkpoints, file):
        assert find_classifier(source) == run.checkpoints
        assert weights_sha256(source) == digest
        network, unknown = build_clims(source, CLASSES.foreground, "cam")
        assert unknown == ()  # the start of CLIMS knows what was learned
        assert torch.equal(network.head.classifier.weight, classifier.head.weight)
        assert load_backbone(source).state_dict().keys() == classifier.backbone.state_dict().keys()
    for name in ("irn", "psa"):
        refiner = make_method(name, CLASSES, weights=str(run.path))
        backbone = refiner.backbone if name == "irn" else refiner.net.backbone
        assert torch.equal(backbone.layer3[0].conv2.weight, classifier.backbone.layer3[0].conv2.weight)
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["tag2mask"])
    assert (about["model_type"], about["supervision"]) == ("tag2mask-classifier", "tags")
    assert "| supervision | tags |" in (run.checkpoints / "MODEL_CARD.md").read_text()


def test_labels_by_the_run_are_those_of_the_run(weights, data, tmp_path):
    options = {"weights": weights, **SMALL}
    labelled(data, tmp_path / "run", options)
    given = {"weights": str(tmp_path / "run")}
    labelled(data, tmp_path / "again", given)
    first, second = Run.open(tmp_path / "run"), Run.open(tmp_path / "again")
    for sample in data:
        assert first.mask_path(sample.id).read_bytes() == second.mask_path(sample.id).read_bytes()
        assert first.scores_path(sample.id).read_bytes() == second.scores_path(sample.id).read_bytes()
    assert (first.settings["fitted"], "fitted" in second.settings) == ("here", False)
    assert weights_of(first)[0].startswith(
        f"Backbone: {weights} (sha256 "
    )  # not what labelled, but what it began with
    assert weights_of(second)[0].startswith(f"Classifier: {tmp_path / 'run'} (sha256 ")


def test_pixel_labels_behind_the_first_weights_are_not_forgotten(weights, data, tmp_path):
    decoder = {"decode_head.conv.weight": torch.zeros(3, 128, 3, 3)}
    torch.save({**load_backbone(weights).state_dict(), **decoder}, tmp_path / "segmenter.pth")
    with pytest.warns(UserWarning, match="left out"):
        run = learn(data, tmp_path / "run", str(tmp_path / "segmenter.pth"), steps=1)
    said = "tags+pixels(weights: segmenter.pth)"
    assert run.settings["supervision"] == said
    labelled(data, tmp_path / "on", {"weights": str(run.path)})
    assert Run.open(tmp_path / "on").settings["supervision"] == said
    assert pixels_of_start(str(run.path), "small") == ("pixels(weights: segmenter.pth)",)
    assert f"| supervision | {said} |" in (run.checkpoints / "MODEL_CARD.md").read_text()


def test_runs_that_keep_no_classifier_are_named(weights, data, tmp_path):
    labelled(data, tmp_path / "given", {"weights": str(learn_names(tmp_path))})
    with pytest.raises(UserError, match=r"given learned nothing; name the weights that it labelled with, .*named"):
        load_classifier(tmp_path / "given")
    with pytest.raises(Stopped):
        learn(data, tmp_path / "begun", weights, machine=Machine(minutes=0))
    with pytest.raises(UserError, match="begun has not finished learning; give its command again"):
        load_classifier(tmp_path / "begun")
    learn(data, tmp_path / "run", weights)
    options = {"weights": weights, **SMALL}
    labelled(data, tmp_path / "took", options, fitted=tmp_path / "run")
    with pytest.raises(UserError, match=r"took took what another run learned; name that one, .*run"):
        load_classifier(tmp_path / "took")
    for run in (tmp_path / "took", tmp_path / "run"):
        document = run / "run.yaml"
        document.write_text(document.read_text().replace("method: classifier-cam", "method: clims"))
        with pytest.raises(UserError, match="is a run of clims; expected one of classifier-cam"):
            load_classifier(run)


def learn_names(folder: Path) -> Path:
    """A classifier of all the toys' classes."""
    save_classifier(Classifier(CLASSES.foreground, LAYOUT), folder / "named", "")
    return folder / "named"


def test_where_there_are_no_weights_the_command_that_makes_them_is_named(tmp_path):
    words = shlex.split(MAKE.strip("`"))
    options = dict(words[i + 1].split("=") for i, word in enumerate(words) if word == "--set")
    assert make_options(words[words.index("-m") + 1], options).learns
    (tmp_path / "x.pth").write_bytes(b"x")
    for door in (load_classifier, load_backbone, lambda source: make_method("irn", CLASSES, weights=str(source))):
        with pytest.raises(UserError) as caught:
            door(tmp_path / "nothing")
        assert MAKE in str(caught.value)
    with pytest.raises(UserError, match="does not say which classes it knows; expected") as caught:
        make_method("classifier-cam", CLASSES, weights=str(tmp_path / "x.pth"))
    assert MAKE in str(caught.value)
    assert "public checkpoint" not in str(caught.value)  # that one knows no class of the user's


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.01, "seed": 1}, "lr, seed: no effect without epochs or steps; give one too"),
        ({"weights": "random"}, "random weights know nothing; give epochs or steps"),
        ({"epochs": 1, "steps": 3}, "give one"),
        ({"epochs": 1, "long_side": (640, 320)}, "the smaller number first"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(UserError, match=message):
        make_options("classifier-cam", options)


def test_without_learning_a_run_keeps_what_decides_its_labels_alone(data, tmp_path):
    labelled(data, tmp_path / "run", {"weights": str(learn_names(tmp_path))})
    settings = Run.open(tmp_path / "run").settings
    assert set(settings["options"]) == {"scales", "flip", "map_stride", "max_pixels", "weights"}
    assert set(settings["resolved"]) == {"weights_sha256"}
    assert "fitted" not in settings


def test_it_does_not_label_before_it_has_learned(weights, data, tmp_path):
    with pytest.raises(UserError, match="what it has learned"):
        make_method("classifier-cam", CLASSES, weights=weights, steps=1).scores([])
    given = {"weights": str(learn_names(tmp_path))}
    with pytest.raises(UserError, match=r"nothing to fit here \(`tag2mask methods classifier-cam` says"):
        labelled(data, tmp_path / "x", given, fit_only=True)
    learn(data, tmp_path / "run", weights)
    with pytest.raises(UserError, match="learns nothing with these options"):
        labelled(data, tmp_path / "x", given, fitted=tmp_path / "run")


def test_the_published_settings():
    """As IRN's and CLIMS's code have them; see the method's docstring."""
    for name, frozen in (("voc12_classifier_cam", (True, 3)), ("voc12_classifier_cam_clims", (False, 1))):
        options = make_options("classifier-cam", read_config(RECIPES / f"{name}.yaml").options)
        chosen = [options.chosen(key) for key in ("batch", "crop", "long_side", "frozen_norm")]
        assert (options.epochs, options.lr, options.weight_decay) == (5, 0.1, 1e-4)
        assert chosen == [16, 512, (320, 640), frozen[0]]
        assert options.frozen_parts == frozen[1]
        assert options.weights.endswith(".pth")
    default = make_options("classifier-cam", {"weights": "resnet50.pth", "epochs": 5})
    assert [default.chosen(key) for key in ("batch", "crop", "long_side", "frozen_norm")] == [
        16,
        512,
        (320, 640),
        False,
    ]


def test_what_followed_from_the_weights_is_on_record(weights):
    method = make_method("classifier-cam", CLASSES, weights=weights, epochs=1)
    assert method.resolved["frozen_parts"] == 1
    assert (method.resolved["crop"], method.resolved["batch"]) == (512, 16)
    with pytest.warns(UserWarning, match="ImageNet's ResNet-50"):
        scenes = make_method("classifier-cam", load_classes("voc12"), epochs=1)
    assert (scenes.resolved["crop"], scenes.resolved["frozen_norm"]) == (192, True)
    assert make_method("classifier-cam", CLASSES, weights="random", epochs=1).resolved["frozen_parts"] == 0
