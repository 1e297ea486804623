"""CLIMS as a method: its settings, and its critic; for the losses see tests/ops."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

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
from methods.toys import TinyData
from tag2mask.classes import load_classes
from tag2mask.methods import make_method
from tag2mask.methods.clims import CLIMSOptions, _native_size, make_recipe
from tag2mask.methods.fitting.clims_critic import Critic
from tag2mask.models.classifier import load_classifier
from tag2mask.models.convert import from_openai_state
from tag2mask.ops.clims import CAMERA_READY, RELEASED, RELEASED_COCO
from tag2mask.ops.image import MEAN, STD, standardise
from tag2mask.types import UserError
from tiny_clips import openai_state, oracle

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    return write_weights(tmp_path_factory.mktemp("classifier"))


@pytest.fixture
def data(tmp_path) -> TinyData:
    return seven_images(tmp_path / "images")


# --- the start and the settings


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_it_starts_as_the_classifier_that_it_is_given(clip, weights, variant):
    method = method_of(clip, weights, variant=variant)
    classifier, _ = load_classifier(weights)
    pixels = torch.randn(2, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = classifier.maps(pixels)[:, [2, 3, 0]]  # red, cat, dog
        torch.testing.assert_close(method.net.maps(pixels), expected, rtol=1e-4, atol=1e-5)
    assert method.recipe.baseline_epochs == 0
    assert method.resolved["weights_sha256"] == load_classifier(weights)[1]


def test_classes_that_the_weights_do_not_know_are_learned_first(clip, weights):
    classes = replace(CLASSES, names=("background", "red", "cat", "gnu"))
    options = {"weights": weights, **SMALL}
    assert make_method("clims", classes, clip=clip, **options).recipe.baseline_epochs == 15
    assert make_method("clims", classes, clip=clip, variant="released", **options).recipe.baseline_epochs == 5
    assert make_method("clims", classes, clip=clip, baseline_epochs=2, **options).recipe.baseline_epochs == 2


def recipe_of(classes="voc12", name="openai/clip-vit-base-patch32", **options):
    made = CLIMSOptions(**{"weights": "resnet50.pth", **options})
    return make_recipe(made, load_classes(classes), knows_all=False, clip_name=name, native_size=224, patch=32)


def test_the_published_settings():
    paper, released = recipe_of(), recipe_of(variant="released")
    coco = recipe_of("coco14", variant="released")
    assert (paper.loss, released.loss, coco.loss) == (CAMERA_READY, RELEASED, RELEASED_COCO)
    assert [(r.epochs, r.lr, r.batch, r.crop, r.long_side, r.clip_size) for r in (paper, released, coco)] == [
        (10, 2.5e-4, 16, 512, (320, 640), 224),
        (15, 2.5e-4, 16, 512, (320, 640), 224),
        (8, 5e-4, 16, 512, (320, 640), 224),
    ]
    assert [(r.decay_as_momentum, r.own_statistics) for r in (paper, released)] == [(False, True), (True, False)]
    rest = [(r.baseline_lr, r.baseline_epochs, r.finetune_decay, r.momentum, r.inner_crop) for r in (paper, released)]
    assert rest == [(0.01, 15, 0.003, 0, 448), (0.1, 5, 0.001, 0, 448)]


def test_the_settings_of_the_embedded_world():
    own = {"classes": "voc12", "name": "storybook-clip", "weights": "storybook-resnet"}
    paper, released = recipe_of(**own), recipe_of(variant="released", **own)
    assert paper.loss == replace(CAMERA_READY, suppression=5.0, area=5.0)
    assert released.loss == replace(RELEASED, threshold=0.0)  # until it is calibrated
    assert (paper.clip_size, paper.crop, paper.batch, paper.frozen_norm) == (128, 192, 8, True)
    chosen = recipe_of(suppression=29.5, clip_size=64, **own)
    assert (chosen.loss.suppression, chosen.loss.area, chosen.clip_size) == (29.5, 5.0, 64)


def test_thresholds_belong_to_one_clip():
    assert recipe_of(variant="released").loss.threshold == 0.26
    assert recipe_of("coco14", "/weights/ViT-B-32.pt", variant="released").loss.threshold == 0.285
    other = recipe_of(name="openai/clip-vit-base-patch16", variant="released")
    assert (other.calibrated, recipe_of(variant="released").calibrated) == (True, False)
    named = recipe_of(name="openai/clip-vit-base-patch16", variant="released", threshold=0.3)
    assert (named.calibrated, named.loss.threshold) == (False, 0.3)
    assert recipe_of(variant="released", threshold="calibrated").calibrated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.3}, "variant paper has texts of its own"),
        ({"variant": "released", "momentum": 0.9}, "weight decay as momentum; leave momentum out"),
        ({"clip_size": 100}, "no multiple of this CLIP's patch, 32"),
        ({"long_side": (640, 320)}, "the smaller number first"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(UserError, match=message):
        recipe_of(**options)


@pytest.mark.parametrize(("kind", "size"), [("vit", 24), ("resnet", 64)])
def test_clip_sees_images_of_the_size_it_was_trained_on(kind, size):
    assert _native_size(SimpleNamespace(model=from_openai_state(openai_state(kind)))) == size


def test_each_loss_can_be_switched_off():
    for name in ("object", "background", "suppression", "area"):
        loss = recipe_of(**{name: 0}).loss
        assert getattr(loss, name) == 0
        assert replace(loss, **{name: getattr(CAMERA_READY, name)}) == CAMERA_READY


# --- the critic


class Projection(nn.Module):
    """The toy CLIP of the recorded losses: cells of the picture, and one matrix."""

    patch, native_grid = 1, (224, 224)

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def embedding(self, pixels, *, readout):
        return F.adaptive_avg_pool2d(pixels, 8).flatten(1) @ self.matrix


def test_the_recorded_losses_and_their_gradient(golden):
    recorded = {k: torch.tensor(v) for k, v in golden("clims/clims_losses_current").items()}
    voc = load_classes("voc12")
    table = torch.zeros(20, recorded["text_feat_per_pair"].shape[1])
    table[recorded["pair_index"][:, 1]] = recorded["text_feat_per_pair"]

    def ensemble(names, templates, allow_unknown=False):
        assert templates == ("a photo of {}.",)
        return table if len(names) == 20 else recorded["text_feat_bg_voc"]

    fake = SimpleNamespace(
        unknown=lambda text: [],
        model=SimpleNamespace(vision=Projection(recorded["clip_image_proj"])),
        ensemble=ensemble,
        device=torch.device("cpu"),
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    critic = Critic(voc, voc.texts["clims-released"], fake, recipe_of(variant="released"))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    pictures = (recorded["img"] * std + mean) * 255  # the recorded ones are standardised, by ImageNet's statistics
    maps = recorded["cam"].clone().requires_grad_()
    terms = critic(pictures, maps, [row.nonzero()[:, 0] + 1 for row in recorded["label"]])
    names = {"object": "L_OTM", "background": "L_BTM", "suppression": "L_CBS", "area": "L_REG", "total": "loss"}
    for mine, theirs in names.items():
        assert getattr(terms, mine).item() == pytest.approx(recorded[theirs].item(), rel=1e-4), mine
    terms.total.backward()
    np.testing.assert_allclose(maps.grad, recorded["grad_cam"], rtol=1e-3, atol=1e-4)


def test_the_camera_ready_losses_of_a_step(clip, weights):
    """By transformers' CLIP and the four formulas, for a class that counts three times as much."""
    texts = replace(TEXTS, names=("red", "cat", "dog"), per_class={"chair": ("photo", "the dog")})
    classes = replace(CLASSES, names=("background", "red", "chair", "dog"))
    critic = Critic(classes, texts, clip, method_of(clip, weights).recipe)
    pictures, maps = pictures_and_maps(2)
    terms = critic(pictures, maps, [torch.tensor([1, 2]), torch.tensor([2])])
    rows = clip.text_features(["a photo of red", "a photo of cat", "a photo of photo", "a photo of the dog"])

    def cosine(view, row):
        with torch.no_grad():
            seen = oracle().vision_model(view).pooler_output @ oracle().visual_projection.weight.T
        return (F.normalize(seen, dim=-1)[0] @ rows[row]).item()

    def log(p):
        return -np.log(p) if p > 0.01 else -np.log(0.01) + (0.01 - p) / 0.01

    inside = outside = suppressed = 0.0
    for image, tag in ((0, 0), (0, 1), (1, 1)):
        pixels = standardise(pictures[image : image + 1], clip.mean, clip.std)
        mask = F.interpolate(maps[image, tag][None, None], (32, 32), mode="bilinear", align_corners=True)
        counts = 3 if tag == 1 else 1
        inside += counts * log(cosine(mask * pixels, tag)) / 3
        outside += counts * log(1 - cosine((1 - mask) * pixels, tag)) / 3
        if tag == 1:
            suppressed += np.mean([-np.log(1 - cosine(mask * pixels, row)) for row in (2, 3)])
    got = [terms.object.item(), terms.background.item(), terms.suppression.item()]
    assert got == pytest.approx([inside, outside, suppressed], rel=1e-3)


def test_frozen_norms_keep_their_statistics(clip, weights, data, tmp_path):
    start = method_of(clip, weights).start()[0].state_dict()
    frozen = fitted(method_of(clip, weights, frozen_norm=True), data, tmp_path / "frozen")
    free = fitted(method_of(clip, weights), data, tmp_path / "free")
    name = "backbone.layer4.0.bn1.running_mean"
    assert torch.equal(frozen[name], start[name])
    assert not torch.equal(free[name], start[name])


def test_batches_of_none_and_of_one(clip, weights):
    critic = Critic(CLASSES, TEXTS, clip, method_of(clip, weights).recipe)
    pictures, maps = pictures_and_maps(2)
    none = torch.zeros(0, dtype=torch.int64)
    empty = critic(pictures, maps, [none, none])
    assert empty.total.item() == pytest.approx(CAMERA_READY.area * maps.mean().item())
    one = critic(pictures, maps.requires_grad_(), [none, torch.tensor([2])])
    one.total.backward()
    used = maps.grad.abs().sum((2, 3))  # the area moves every map, and equally
    assert (used[0] == used[0, 0]).all()
    assert used[1, 1] != used[1, 0]


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_what_clip_is_fed(clip, weights, variant):
    """CLIP's own statistics, against transformers' CLIP; the current repository's fault is ImageNet's."""
    texts = {"clims": TEXTS, "clims-released": TEXTS}
    method = make_method("clims", replace(CLASSES, texts=texts), clip=clip, weights=weights, variant=variant, **SMALL)
    critic = Critic(CLASSES, TEXTS, clip, replace(method.recipe, calibrated=False))
    image = (255 * torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(5))).byte()
    pixels = standardise(image[None], *((clip.mean, clip.std) if variant == "paper" else (MEAN, STD)))
    with torch.no_grad():
        seen = oracle().vision_model(pixels).pooler_output @ oracle().visual_projection.weight.T
        expected = F.normalize(seen, dim=-1) @ clip.ensemble(TEXTS.names, TEXTS.templates).T
    torch.testing.assert_close(critic.look(image), expected[0], rtol=1e-3, atol=1e-4)
