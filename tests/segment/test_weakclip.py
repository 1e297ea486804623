"""WeakCLIP in the segmentation room: recorded losses, views and rates, and what its options promise."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from golden_weakclip import recorded_network
from tag2mask.models.weakclip import TEMPERATURE
from tag2mask.models.weakclip_files import released_name
from tag2mask.ops.image import MEAN, STD, standardise
from tag2mask.segment.examples import Batch
from tag2mask.segment.losses import auxiliary_loss, balanced_seed_loss, boundary_loss, refine, shrink_to_corners
from tag2mask.segment.network import build_network, load_network, save_network
from tag2mask.segment.recipe import TrainRecipe, check
from tag2mask.segment.saved import NetworkConfig
from tag2mask.segment.schedule import cosine, set_rate
from tag2mask.segment.supervised import SupervisedTraining, output_loss
from tag2mask.segment.test_time import TestTime, predict
from tag2mask.types import ClassSet, UserError
from tiny_clips import oracle, shake, write_tokenizer

RELEASED = TrainRecipe(
    architecture="weakclip", loss="seed+boundary", loss_stride=8, auxiliary=0.4, crop=128, schedule="cosine"
)


@pytest.fixture(scope="module")
def released(golden):
    return recorded_network(golden)


def arrays(case):
    return {key: torch.from_numpy(value) for key, value in case.items() if value.dtype.kind in "fiub"}


# --- losses -------------------------------------------------------------------------------------------------


def test_recorded_crf_of_the_boundary_loss(golden):
    case = arrays(golden("weakclip/losses_b2", "crf_q"))
    images = case["crf_image"].permute(0, 3, 1, 2).contiguous()
    found = refine(images, case["crf_prob"].log())
    torch.testing.assert_close(found, case["crf_q"], rtol=0, atol=1e-3)


def test_recorded_losses_and_gradients(released, golden):
    case = golden("weakclip/losses_b2", "image")
    names, norms = case["gradnorm_names"].tolist(), case["gradnorm"]
    case = arrays(case)
    shrunk = shrink_to_corners(case["image"], (16, 16)).int() - case["crf_image"].permute(0, 3, 1, 2).int()
    assert shrunk.abs().max() <= 1
    assert (shrunk != 0).float().mean() <= 0.01
    scores, logits = released.look(standardise(case["image"], MEAN, STD))
    batch = Batch(case["image"].float(), case["labels"], None, torch.zeros(2), torch.arange(2), 0)
    both = output_loss(logits, batch, RELEASED)
    auxiliary = RELEASED.auxiliary * auxiliary_loss(scores / TEMPERATURE, case["labels"])
    assert auxiliary.item() == pytest.approx(case["aux_identity_loss_ce"].item(), abs=1e-5)
    seed, boundary = case["decode_loss_seeding"].item(), case["decode_loss_boundary"].item()
    assert both.item() == pytest.approx(seed + boundary, abs=2e-3)
    small = F.interpolate(logits, (16, 16), mode="bilinear", align_corners=False)
    corners = case["labels"][:, ::8, ::8]
    assert balanced_seed_loss(small, corners).item() == pytest.approx(seed, abs=1e-5)
    assert boundary_loss(small, case["crf_q"]).item() == pytest.approx(boundary, abs=1e-4)
    released.zero_grad()
    # with the recorded marginals, whose picture differs in a few grey levels
    (balanced_seed_loss(small, corners) + boundary_loss(small, case["crf_q"]) + auxiliary).backward()
    found = {released_name(name): each.grad for name, each in released.named_parameters()}
    for name, expected in case.items():
        if name.startswith("grad_"):
            torch.testing.assert_close(found[name.removeprefix("grad_")], expected, rtol=1e-3, atol=1e-6)
    for name, norm in zip(names, norms, strict=True):
        parts = [g for key, g in found.items() if g is not None and belongs(key, name)]
        assert float(torch.cat([g.flatten() for g in parts]).double().norm()) == pytest.approx(norm, rel=1e-3), name
    dead = [name for name, each in found.items() if each is None]
    assert len(dead) == 80
    assert all("coder.0." in name or "coder.1." in name for name in dead)


def belongs(name, module):
    """Whether a recorded norm is over that tensor; that of the backbone leaves out its adapter."""
    return name == module or (name.startswith(f"{module}.") and not (module == "backbone" and ".fpn" in name))


def test_the_cue_of_a_cell_is_its_corner():
    labels = torch.zeros(1, 16, 16, dtype=torch.uint8)
    labels[0, ::8, ::8] = 2
    batch = Batch(torch.rand(1, 3, 16, 16) * 255, labels, None, torch.zeros(1), torch.arange(1), 0)
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 2] = 9
    at_corners = output_loss(logits, batch, RELEASED)
    labels[0, ::8, ::8] = 0
    labels[0, 4::8, 4::8] = 2  # the centres count for nothing
    assert output_loss(logits, batch, RELEASED) > at_corners + 4


def test_ignored_pixels_count_in_the_auxiliary_loss():
    logits = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.ones(1, 4, 4, dtype=torch.uint8)
    half = labels.clone()
    half[:, :2] = 255
    kept = F.cross_entropy(logits, labels.long(), reduction="none")[:, 2:].sum() / 16
    assert auxiliary_loss(logits, half).item() == pytest.approx(kept.item(), rel=1e-5)


# --- rates --------------------------------------------------------------------------------------------------


def test_recorded_learning_rates(golden):
    case = golden("weakclip/schedule")
    for which, total in (("voc", 20_000), ("coco", 40_000)):
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1e-4, 0.0)]
        optimizer = torch.optim.AdamW(groups)
        for step, trained, frozen in zip(
            case[f"{which}_iters"], case[f"{which}_trained"], case[f"{which}_frozen"], strict=True
        ):
            share, floor = cosine(int(step), total, warmup=1500)
            set_rate(optimizer, share, floor * 1e-6)
            rates = [group["lr"] for group in optimizer.param_groups]
            np.testing.assert_allclose(rates, [trained, frozen], rtol=1e-9, atol=1e-12)


# --- test time ----------------------------------------------------------------------------------------------


def test_recorded_views_and_windows(released, golden, monkeypatch):
    """Two sizes, each mirrored too, in windows of 128 at a stride of 85; the mean of probabilities."""
    case = arrays(golden("weakclip/test_time", "pixels0"))
    size = tuple(case["ori_shape"].tolist())
    views = {tuple(view.shape[2:]): view for view in (case["pixels0"], case["pixels1"])}

    def recorded(x, size, **how):
        """The recorded pictures come standardised and in their sizes."""
        return views[tuple(size)].clone() if x.shape[1] == 3 else F.interpolate(x, size, **how)

    monkeypatch.setattr("tag2mask.segment.test_time.F", SimpleNamespace(interpolate=recorded, pad=F.pad))
    scales = tuple(view[0] / size[0] for view in views)
    settings = TestTime(scales, flip=True, window=128, stride=85)
    found = predict(released, torch.zeros(3, *size), settings)
    torch.testing.assert_close(found, case["prob"], rtol=0, atol=2e-5)
    winners = found.argmax(0)
    assert (winners == case["pred"]).float().mean() >= 0.999
    assert winners.unique().tolist() == case["keys"].tolist()


# --- recipes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auxiliary": 0.4}, "auxiliary is a loss of architecture=weakclip"),
        ({"lr_floor": 1e-6}, "lr_floor belongs to schedule=cosine"),
        ({"schedule": "cosine", "hold": 10}, "hold belongs to schedule=poly"),
        ({"loss_stride": 8}, "loss_stride 8 with loss=cross-entropy"),
        ({"loss": "seed+boundary", "loss_stride": 7}, "a number that divides the crop"),
        ({"loss": "seed+boundary", "loss_stride": 0}, "loss_stride 0: expected at least 1"),
        ({"auxiliary": -1.0}, "auxiliary -1.0: expected a finite number of at least 0"),
    ],
)
def test_settings_that_do_not_belong_together(change, message):
    with pytest.raises(UserError, match=message):
        check(TrainRecipe(init="random", **change))


# --- the architecture ---------------------------------------------------------------------------------------


@pytest.fixture
def options(tmp_path):
    """Of a small network over a CLIP in a folder."""
    folder = tmp_path / "clip"
    oracle().save_pretrained(folder)
    write_tokenizer(folder)
    names = ["photo", "red", "cat"]
    small = {"prompts": 2, "width": 8, "heads": 2, "channels": 6, "resolution": 32}
    return {"clip": str(folder), "texts": names, **small}


TOYS = ClassSet("toys", ("background", "red", "cat"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
PICTURE = torch.linspace(0, 255, 3 * 32 * 48).reshape(1, 3, 32, 48)


@pytest.mark.parametrize("changes", [{}, {"variant": "released"}, {"encoders": "trained"}], ids=str)
def test_a_saved_network_names_its_towers_or_keeps_those_that_learned(options, tmp_path, changes):
    net = build_network(NetworkConfig.of("weakclip", TOYS, **options, **changes), seed=3)
    save_network(tmp_path / "net", net, supervision="tags", noted={})
    kept = safetensors.torch.load_file(tmp_path / "net" / "model.safetensors")
    assert any(".tower." in name for name in kept) == bool(changes)
    assert not any("ids" in name or "ends" in name for name in kept)
    loaded = load_network(tmp_path / "net", "cpu")
    with torch.no_grad():
        assert torch.equal(loaded(PICTURE), net.eval()(PICTURE))


def test_another_clip_than_the_network_was_trained_on_is_refused(options, tmp_path):
    net = build_network(NetworkConfig.of("weakclip", TOYS, **options))
    assert len(net.config.options["sha256"]) == 64
    save_network(tmp_path / "net", net, supervision="tags", noted={})
    shake(oracle(), seed=5).save_pretrained(options["clip"])
    with pytest.raises(UserError, match=r"is one over .*; give that CLIP, or train again"):
        load_network(tmp_path / "net", "cpu")


def test_what_creeps_has_a_rate_of_its_own_and_all_decays(options):
    def groups(**changes):
        net = build_network(NetworkConfig.of("weakclip", TOYS, **options, **changes))
        found = {group["initial_lr"]: group["params"] for group in net.parameter_groups(1e-4, 3e-5)}
        assert all(group["weight_decay"] == 3e-5 for group in net.parameter_groups(1e-4, 3e-5))
        assert sum(len(each) for each in found.values()) == sum(p.requires_grad for p in net.parameters())
        return net.network, found

    net, found = groups(variant="released")
    held = {id(each) for part in (net.tower, net.text_encoder, net.adapter) for each in part.parameters()}
    assert {id(each) for each in found[0.0]} == held
    net, found = groups()
    assert found.keys() == {1e-4}
    net, found = groups(variant="released", adapter="trained")
    assert all(id(each) not in {id(e) for e in net.adapter.parameters()} for each in found[0.0])
    net, _ = groups(adapter="as-encoders")
    assert not any(each.requires_grad for each in net.adapter.parameters())


def test_pixels_are_standardised_by_the_clips_numbers_or_imagenets(options, tmp_path):
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(statistics))
    own = build_network(NetworkConfig.of("weakclip", TOYS, **options))
    expected = standardise(PICTURE, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    torch.testing.assert_close(own.standardise(PICTURE), expected)
    other = build_network(NetworkConfig.of("weakclip", TOYS, **options, pixels="imagenet"))
    torch.testing.assert_close(other.standardise(PICTURE), standardise(PICTURE, MEAN, STD))


def test_a_checkpoint_as_the_start_and_what_is_none(options, tmp_path):
    with pytest.raises(UserError, match="there is no such file; expected a released checkpoint"):
        build_network(NetworkConfig.of("weakclip", TOYS, **options), init="none.pth")
    with pytest.raises(UserError, match="got 2 texts for 3 classes"):
        build_network(NetworkConfig.of("weakclip", TOYS, **{**options, "texts": ["red", "cat"]}))
    with pytest.raises(UserError, match=r"does not know 'background'"):
        build_network(NetworkConfig.of("weakclip", TOYS, **{**options, "texts": None}))


def test_the_other_losses_leave_the_matching_scores_alone(options):
    net = build_network(NetworkConfig.of("weakclip", TOYS, **options))
    labels = torch.randint(0, 3, (2, 32, 32), dtype=torch.uint8)
    batch = Batch(torch.rand(2, 3, 32, 32) * 255, labels, None, torch.zeros(2), torch.arange(2), 0)
    plain = TrainRecipe(architecture="weakclip")
    assert SupervisedTraining(plain, net).batch_losses(batch).keys() == {"0"}
    both = replace(RELEASED, crop=32)
    torch.manual_seed(0)
    found = SupervisedTraining(both, net).batch_losses(batch)
    assert found.keys() == {"0", "auxiliary"}
    torch.manual_seed(0)
    _, scores = net(batch.images)
    assert found["auxiliary"].item() == pytest.approx(0.4 * auxiliary_loss(scores, labels).item())
