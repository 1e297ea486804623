"""Networks by name: their sizes, parameter groups, and that they learn."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from segment.tiny_networks import TINY, TOYS, tiny
from tag2mask.models.classifier import load_backbone, load_classifier
from tag2mask.models.embedded import STORYBOOK_CLIP
from tag2mask.models.hub_segmentation import query_logits
from tag2mask.segment.network import ARCHITECTURES, SegmentationNet, build_network, load_network, save_network
from tag2mask.segment.saved import NetworkConfig
from tag2mask.storybook.embedded import CLIP_SHA256
from tag2mask.types import ClassSet, UserError


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> dict[str, str]:
    """Tiny models of transformers, as folders with random weights for two classes."""
    transformers = pytest.importorskip("transformers")
    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
    segformer = transformers.SegformerConfig(**sizes, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16)
    convnext = transformers.ConvNextConfig(**sizes, **stages)
    upernet = transformers.UperNetConfig(backbone_config=convnext, hidden_size=16, auxiliary_channels=16)
    swin = transformers.SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=4, **stages)
    mask2former = transformers.Mask2FormerConfig(
        backbone_config=swin,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        encoder_feedforward_dim=16,
        num_queries=6,
    )
    root = tmp_path_factory.mktemp("hub")
    found = {}
    torch.manual_seed(0)
    for name, model in (
        ("segformer", transformers.SegformerForSemanticSegmentation(segformer)),
        ("upernet", transformers.UperNetForSemanticSegmentation(upernet)),
        ("mask2former", transformers.Mask2FormerForUniversalSegmentation(mask2former)),
    ):
        model.save_pretrained(root / name)
        found[name] = f"transformers:{root / name}"
    pixels = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.25]}
    (root / "segformer" / "preprocessor_config.json").write_text(json.dumps(pixels))
    return found


def lowers_its_loss(net: SegmentationNet, lr: float) -> None:
    """One step of plain descent on a batch makes the loss of that batch smaller."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    masks = (images[:, 0] > 127).long()
    optimizer = torch.optim.SGD(net.parameter_groups(lr, 0.0))

    def loss() -> Tensor:
        torch.manual_seed(0)  # the same dropout
        out = net(images)
        sizes = [logits.shape[2:] for logits in (out if isinstance(out, list) else [out])]
        targets = [F.interpolate(masks[:, None].float(), size)[:, 0].long() for size in sizes]
        return sum(
            F.cross_entropy(o, t) for o, t in zip(out if isinstance(out, list) else [out], targets, strict=True)
        )

    before = loss()
    before.backward()
    optimizer.step()
    assert float(loss().detach()) < float(before.detach())


@pytest.mark.parametrize("name", list(TINY))
def test_a_step_of_training_lowers_the_loss(name: str) -> None:
    lowers_its_loss(tiny(name), 1e-3 if name == "small" else 1e-4)


@pytest.mark.parametrize("name", ["segformer", "upernet", "mask2former"])
def test_models_of_transformers(hub: dict[str, str], name: str, tmp_path: Path) -> None:
    config = NetworkConfig.of(hub[name], TOYS)
    with pytest.warns(UserWarning, match="tensors of its head start from random weights"):
        net = build_network(config, init="pretrained")
    images = torch.randint(0, 256, (2, 3, 70, 50), dtype=torch.uint8)
    with torch.no_grad():
        assert net.eval()(images).shape[:2] == (2, 3)
        save_network(tmp_path / "net", net, supervision="tags", noted={})
        moved = tmp_path / "elsewhere"
        folder = Path(hub[name].removeprefix("transformers:"))
        os.rename(folder, moved)  # what was saved needs it no more
        try:
            again = load_network(tmp_path / "net", "cpu")
        finally:
            os.rename(moved, folder)
        assert torch.equal(again(images), net(images))
    if name == "segformer":
        transformers = pytest.importorskip("transformers")
        weights = transformers.SegformerForSemanticSegmentation.from_pretrained(folder).state_dict()
        ours = net.network.model.state_dict()
        assert {n for n, v in ours.items() if not torch.equal(v, weights[n])} == {
            "decode_head.classifier.weight",
            "decode_head.classifier.bias",
        }
        assert net.config.options["mean"] == [0.5, 0.4, 0.3]
        by_hand = (images / 255 - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.2, 0.25])[
            :, None, None
        ]
        with torch.no_grad():
            assert torch.allclose(net(images), net.network.model(by_hand).logits, atol=1e-6)
        heads = {id(p) for n, p in net.network.model.named_parameters() if n.startswith("decode_head.")}
        for group in net.parameter_groups(1.0, 0.1):
            assert {id(p) in heads for p in group["params"]} == {group["lr"] == 10.0}
            assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.1}
    lowers_its_loss(build_network(config), 1e-2)


def test_scores_of_queries_by_their_formula() -> None:
    classes, masks = torch.randn(1, 2, 4), torch.randn(1, 2, 2, 3)
    expected = torch.zeros(3, 2, 3)
    for query in range(2):
        for label in range(3):
            share = classes[0, query].exp()[label] / classes[0, query].exp().sum()
            expected[label] += share / (1 + (-masks[0, query]).exp())
    assert torch.allclose(query_logits(classes, masks)[0].exp(), expected, atol=1e-5)


def test_faults_of_models_of_transformers(hub: dict[str, str], tmp_path: Path, monkeypatch) -> None:
    def refused(source: str, init: str | None = None, **options: Any) -> str:
        with pytest.raises(UserError) as error:
            build_network(NetworkConfig.of(f"transformers:{source}", TOYS, **options), init=init)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "hf download no/such" in refused("no/such")
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "bert"}')
    assert "is a bert, which is no model for semantic segmentation" in refused(str(tmp_path / "clip"))
    folder = tmp_path / "pickled"
    shutil.copytree(hub["segformer"].removeprefix("transformers:"), folder)
    state = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert "weights were not read" in refused(str(folder), "pretrained")
    del state[max(state)]  # of the backbone
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert "are weights of another network" in refused(str(folder), "pretrained")
    assert 'expected "pretrained" or "random"' in refused(str(folder), "elsewhere.pth")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert 'pip install "tag2mask[transformers]"' in refused(str(folder))


def test_sizes_and_what_training_returns() -> None:
    images = torch.randint(0, 256, (2, 3, 65, 50), dtype=torch.uint8)
    shapes = {}
    for name in TINY:
        net = tiny(name)
        assert net.training
        with torch.no_grad():
            trained, tested = net(images), net.eval()(images)
            assert torch.equal(tested, net(images.float()))
        assert tested.shape[:2] == (2, 3)
        shapes[name] = [tuple(o.shape[2:]) for o in (trained if isinstance(trained, list) else [trained])]
    assert shapes == {
        "small": [(17, 13)],
        "deeplabv2-resnet101": [(9, 7), (5, 4), (7, 5), (9, 7)],  # scale 1, 0.5, 0.75, maximum
        "deeplabv1-resnet38": [(9, 7)],
    }
    assert isinstance(tiny("deeplabv2-resnet101", scales=())(images), Tensor)
    assert tiny("deeplabv1-resnet38").align_corners
    assert not tiny("deeplabv1-resnet38", head="mctformer").align_corners


def test_pixels_are_standardised_as_the_papers_do() -> None:
    images = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    images[:, 2] = 0
    blue_first = ARCHITECTURES["deeplabv2-resnet101"].pixels(images, None)[0, :, 0, 0]
    assert torch.allclose(blue_first, torch.tensor([-104.008, 255 - 116.669, 255 - 122.675]))
    imagenet = ARCHITECTURES["small"].pixels(images, None)[0, :, 0, 0]
    assert torch.allclose(imagenet, torch.tensor([0.515 / 0.229, 0.544 / 0.224, -0.406 / 0.225]))


def test_published_networks_have_the_published_sizes() -> None:
    voc = ClassSet("voc", ("background", *(f"c{i}" for i in range(20))), ((0, 0, 0),) * 21)
    with torch.device("meta"), pytest.warns(UserWarning, match="frozen norms"):
        counts = {
            (name, head): sum(p.numel() for p in build_network(NetworkConfig.of(name, voc, **options)).parameters())
            for name, head, options in (
                ("deeplabv2-resnet101", "", {}),
                ("deeplabv1-resnet38", "weakclip", {"head": "weakclip"}),
                ("deeplabv1-resnet38", "mctformer", {"head": "mctformer"}),
            )
        }
    assert list(counts.values()) == [44_048_532, 105_070_912 + 19_149_333, 105_070_912 + 18_971_669]


def test_the_small_network_starts_from_storybook_resnet() -> None:
    before = torch.random.get_rng_state()
    net = build_network(NetworkConfig.of("small", TOYS), init=ARCHITECTURES["small"].init)
    assert torch.equal(before, torch.random.get_rng_state())
    source = load_backbone().state_dict()
    inner: Any = net.network
    assert all(torch.equal(v, source[n]) for n, v in inner.backbone.state_dict().items())
    assert 1_500_000 < sum(p.numel() for p in net.parameters()) < 2_000_000
    head = {id(p) for p in inner.head.parameters()}
    for group in net.parameter_groups(1.0, 0.1):
        assert {id(p) in head for p in group["params"]} == {group["lr"] == 10.0}
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.1}
    assert {g["lr"] for g in tiny().parameter_groups(1.0, 0.1)} == {1.0}  # nothing is pretrained
    for wrong in ({"width": 8}, {"blocks": (1, 1, 1, 1)}):
        with pytest.raises(UserError, match="got a ResNet of width 16, blocks"):
            build_network(NetworkConfig.of("small", TOYS, **wrong), init="storybook-resnet")


def test_the_small_network_begins_with_its_classifiers_maps() -> None:
    classifier, _ = load_classifier()
    names = ("background", "dog", "unheard of", "boat")
    config = NetworkConfig("small", names, ((0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3)))
    net = build_network(config, init="storybook-resnet").eval()
    inner: Any = net.network
    images = torch.randint(256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        maps = classifier.eval().maps(net.standardise(images))[0]  # (C, h, w)
        coarse = inner.head.coarse(inner.backbone(net.standardise(images)))[0]  # (K, h, w)
    for value in (1, 3):
        expected = maps[classifier.names.index(names[value])]
        torch.testing.assert_close(coarse[value], expected, atol=1e-4, rtol=1e-4)
    assert coarse[2].abs().max() < maps.abs().max() / 4  # a class that the classifier does not know


def test_groups_of_the_deeplabs() -> None:
    with pytest.warns(UserWarning, match="frozen norms"):
        net = tiny("deeplabv2-resnet101", frozen_norm=True)
    rates = {g["lr"]: (len(g["params"]), g["weight_decay"]) for g in net.parameter_groups(1.0, 0.1)}
    assert rates == {1.0: (17, 0.1), 10.0: (4, 0.1), 20.0: (4, 0.0)}


def test_the_seed_decides() -> None:
    one, same, other = (tiny(seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert not torch.equal(one["network.head.classify.weight"], other["network.head.classify.weight"])


def test_a_public_checkpoint(tmp_path: Path) -> None:
    source, config = (
        tiny("deeplabv1-resnet38", seed=1),
        NetworkConfig.of("deeplabv1-resnet38", TOYS, **TINY["deeplabv1-resnet38"]),
    )
    path = tmp_path / "public.pth"
    inner: Any = source.network
    torch.save({**inner.backbone.state_dict(), **inner.head.state_dict()}, path)
    backbone, whole = (build_network(config, init=f"{p}{path}", seed=2).state_dict() for p in ("", "whole:"))
    for name, value in source.state_dict().items():
        assert torch.equal(whole[name], value) or name.endswith("num_batches_tracked")
    assert torch.equal(backbone["network.backbone.b2.conv_branch2a.weight"], inner.backbone.b2.conv_branch2a.weight)
    assert not torch.equal(backbone["network.head.conv_fov.weight"], inner.head.conv_fov.weight)
    four = ClassSet("four", (*TOYS.names, "hat"), (*TOYS.palette, (1, 2, 3)))
    others = NetworkConfig.of("deeplabv1-resnet38", four, **TINY["deeplabv1-resnet38"])
    build_network(others, init=str(path))
    with pytest.raises(UserError, match="its head must be for 4 classes"):
        build_network(others, init=f"whole:{path}")
    with pytest.raises(UserError, match="there is no such file"):
        build_network(config, init="nothing.pth")


def test_crops_that_part_a_patch_of_weclips_tower_are_refused() -> None:
    tower = {"clip": STORYBOOK_CLIP, "sha256": CLIP_SHA256, "width": 8, "blocks": 1, "heads": 1}
    net = tiny("weclip", **tower)
    patch = net.network.tower.patch
    net.check_crop(3 * patch)
    with pytest.raises(
        UserError, match=rf"weclip: crop {3 * patch + 1} is no multiple of {patch}, .*crop={3 * patch}$"
    ):
        net.check_crop(3 * patch + 1)
    with pytest.raises(UserError, match=f"crop={patch}$"):
        net.check_crop(1)


def test_unknown_names() -> None:
    def refused(name: str, classes: ClassSet = TOYS, **options: Any) -> str:
        with pytest.raises(UserError) as error:
            build_network(NetworkConfig.of(name, classes, **options))
        return str(error.value)

    assert "did you mean 'deeplabv2-resnet101'?" in refused("deeplab-resnet101")
    assert "known: small" in refused("transformers:")
    assert "did you mean 'width'" in refused("small", widht=3)
    assert "width = 0" in refused("small", width=0)
    assert "got 2 classes (cat, dog)" in refused("small", ClassSet("x", ("cat", "dog"), ((0, 0, 0),) * 2))
    assert "1 colours" in refused("small", ClassSet("x", ("background", "dog"), ((0, 0, 0),)))
