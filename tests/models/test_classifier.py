"""The classifier: class maps against loops and autograd, and its files."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tag2mask.classes import load_classes
from tag2mask.methods import make_method
from tag2mask.models.backbone import Layout, ResNet
from tag2mask.models.classifier import Classifier, class_maps, load_backbone, load_classifier, save_classifier
from tag2mask.ops.image import MEAN, STD
from tag2mask.segment.network import build_network
from tag2mask.segment.saved import NetworkConfig
from tag2mask.storybook.embedded import embedded_clip
from tag2mask.types import UserError
from tiny_classifiers import LAYOUT, tiny_classifier

NAMES = ("ant", "bee", "cow")


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return tiny_classifier(NAMES, seed=3).eval()


def image(height: int = 45, width: int = 67) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


def test_logits_are_the_mean_of_the_maps(classifier) -> None:
    x = torch.randn(2, 3, 45, 67)
    with torch.no_grad():
        maps = classifier.maps(x)
        assert maps.shape == (2, 3, 3, 5)
        torch.testing.assert_close(maps.mean((2, 3)), classifier(x), atol=1e-5, rtol=1e-4)


def test_class_maps_are_gradcam(classifier) -> None:
    """A logit's gradient, averaged over the cells, weighs the features as the head does, but for their number."""
    picture = image()
    x = ((picture.float() / 255).permute(1, 2, 0) - torch.tensor(MEAN)) / torch.tensor(STD)
    features = classifier.backbone(x.permute(2, 0, 1)[None]).detach().requires_grad_()
    logits = classifier.head(features.mean((2, 3), keepdim=True))[0, :, 0, 0]
    for c in range(3):
        (grad,) = torch.autograd.grad(logits[c], features, retain_graph=True)
        gradcam = F.relu((grad.mean((2, 3), keepdim=True) * features).sum(1)[0])  # (h, w)
        gradcam = gradcam * features.shape[2] * features.shape[3]
        with torch.no_grad():
            got = class_maps(classifier, picture, torch.tensor([c]), scales=(1.0,), flip=False)
        torch.testing.assert_close(got[0], gradcam.detach() / (gradcam.max() + 1e-5), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_class_maps_by_an_explicit_loop(classifier) -> None:
    picture, wanted, grid = image(), [2, 0], (12, 17)
    total = torch.zeros(2, *grid)
    for scale in (1.0, 0.5, 2.0):
        size = (round(45 * scale), round(67 * scale))
        shrunk = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
        x = torch.tensor(np.asarray(shrunk).tolist()) / 255  # (h, w, 3)
        x = ((x - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)
        for mirrored in (False, True):
            features = classifier.backbone((x.flip(2) if mirrored else x)[None])[0]  # (C, h, w)
            for k, c in enumerate(wanted):
                cam = torch.zeros(features.shape[1:])
                for row in range(cam.shape[0]):
                    for column in range(cam.shape[1]):
                        cam[row, column] = (classifier.head.weight[c, :, 0, 0] * features[:, row, column]).sum()
                cam = cam.clamp(min=0)
                cam = cam.flip(1) if mirrored else cam
                total[k] += F.interpolate(cam[None, None], size=grid, mode="bilinear", align_corners=False)[0, 0]
    expected = torch.stack([one / (one.max() + 1e-5) for one in total])
    got = class_maps(classifier, picture, torch.tensor(wanted), scales=(1.0, 0.5, 2.0), grid=grid)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


# --- files -----------------------------------------------------------------------------------------------


def test_a_saved_classifier_comes_back(classifier, tmp_path) -> None:
    save_classifier(classifier, tmp_path, "a card")
    again, sha256 = load_classifier(tmp_path)
    assert again.names == NAMES
    assert again.backbone.layout == LAYOUT
    assert not again.training
    assert len(sha256) == 64
    assert (tmp_path / "MODEL_CARD.md").read_text() == "a card"
    x = torch.randn(1, 3, 45, 67)
    with torch.no_grad():
        torch.testing.assert_close(again(x), classifier(x), atol=2e-2, rtol=1e-2)
        backbone = load_backbone(tmp_path)
        assert torch.equal(backbone(x), again.backbone(x))
        finer = load_backbone(tmp_path, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 2))
        assert finer(x).shape == (1, 128, 6, 9)


def test_a_variance_beyond_half_precision_is_kept(tmp_path) -> None:
    model = Classifier(NAMES, LAYOUT)
    model.backbone.bn1.running_var.fill_(1e6)
    save_classifier(model, tmp_path, "")
    assert load_classifier(tmp_path)[0].backbone.bn1.running_var[0] == 1e6


def test_a_public_checkpoint(tmp_path) -> None:
    torch.manual_seed(0)
    published = ResNet(Layout(blocks=(1, 2, 1, 1), width=4))
    extra = {"fc.weight": torch.zeros(1000, 128), "fc.bias": torch.zeros(1000)}
    torch.save(published.state_dict() | extra, tmp_path / "resnet.pth")
    with pytest.warns(UserWarning, match=r"fc\.bias and fc\.weight, the checkpoint's own classifier, were left out"):
        loaded = load_backbone(tmp_path / "resnet.pth", strides=(1, 2, 2, 1), frozen_norm=True)
    assert loaded.layout == Layout((1, 2, 1, 1), 4, (1, 2, 2, 1), frozen_norm=True)
    for name, value in published.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].float(), value.float())


def test_a_public_checkpoint_with_three_convolutions_in_the_stem(tmp_path) -> None:
    torch.manual_seed(0)
    published = ResNet(Layout(blocks=(1, 1, 1, 1), width=4, stem="3x3"))
    theirs = {"conv1.0": "conv1", "conv1.1": "bn1", "conv1.3": "conv2", "conv1.4": "bn2", "conv1.6": "conv3"}
    theirs["bn1"] = "bn3"
    state = {}
    for name, value in published.state_dict().items():
        stem, dot, last = name.rpartition(".")
        state[theirs.get(stem, stem) + dot + last] = value
    assert "conv3.weight" in state
    for prefix in ("", "prefix."):
        named = {prefix * name.startswith(("conv", "bn")) + name: value for name, value in state.items()}
        torch.save(named, tmp_path / "deep.pth")
        loaded = load_backbone(tmp_path / "deep.pth", strides=(1, 2, 1, 1))
        assert loaded.layout == Layout((1, 1, 1, 1), 4, (1, 2, 1, 1), stem="3x3")
        for name, value in published.state_dict().items():
            assert torch.equal(loaded.state_dict()[name].float(), value.float())


def test_other_shapes_are_refused_by_name(classifier, tmp_path) -> None:
    state = ResNet(LAYOUT).state_dict()
    state["layer3.0.conv2.weight"] = torch.zeros(16, 16, 1, 1)
    del state["bn1.bias"]
    state["layer5.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(UserError) as caught:
        load_backbone(tmp_path / "odd.pth")
    text = str(caught.value)
    assert "layer3.0.conv2.weight is (16, 16, 1, 1), expected (16, 16, 3, 3)" in text
    assert "bn1.bias is missing" in text
    assert "layer5.weight has no place" in text
    torch.save({"encoder.weight": torch.zeros(2)}, tmp_path / "vit.pth")
    with pytest.raises(UserError, match=r"holds encoder\.weight.*expected a ResNet checkpoint"):
        load_backbone(tmp_path / "vit.pth")


def test_nothing_in_a_file_is_run(tmp_path) -> None:
    class Bad:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"conv1.weight": Bad()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="Nothing in it was run"):
        load_backbone(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"names": ["a"], "layout": {"depth": 3}}',
        '{"names": ["a"], "layout": {"strides": [1, 2]}}',
        '{"names": ["a"]}',
    ],
)
def test_damaged_settings(classifier, tmp_path, text) -> None:
    save_classifier(classifier, tmp_path, "")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json: cannot be read as a classifier's settings"):
        load_classifier(tmp_path)


def test_no_such_folder(tmp_path) -> None:
    with pytest.raises(UserError, match=r"holds no config\.json and no model\.safetensors"):
        load_classifier(tmp_path)


def test_the_embedded_weights_say_that_they_know_no_photographs(tmp_path) -> None:
    said = "was trained on drawn Storybook scenes alone and knows no photographs; for photographs take "
    doors = [
        lambda weights: make_method("classifier-cam", load_classes("voc12"), weights=weights),
        lambda weights: make_method("irn", load_classes("voc12"), weights=weights),
        lambda weights: make_method("psa", load_classes("voc12"), weights=weights),
        lambda weights: build_network(NetworkConfig.of("small", load_classes("voc12")), init=weights),
        lambda weights: build_network(NetworkConfig.of("cct-small", load_classes("voc12")), init=weights),
    ]
    shutil.copytree(embedded_clip().parent / "resnet", tmp_path / "mine")
    for door in doors:
        with pytest.warns(UserWarning, match=f"storybook-resnet {said}weights") as caught:
            door("storybook-resnet")
        assert len([each for each in caught if said in str(each.message)]) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            door(str(tmp_path / "mine"))
