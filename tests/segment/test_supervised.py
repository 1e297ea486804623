"""Losses of a network's outputs, the schedule step by step, and recipes that cannot be run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from stages.small_run import CLASSES
from tag2mask.config import read_recipe
from tag2mask.models.average import follow
from tag2mask.segment.examples import Batch
from tag2mask.segment.network import build_network, save_network
from tag2mask.segment.recipe import TrainRecipe, check, parse_scale
from tag2mask.segment.saved import NetworkConfig
from tag2mask.segment.supervised import SupervisedTraining, _Dice, make_optimizer, output_loss, rate
from tag2mask.types import IGNORE, UserError

TINY = {"width": 4, "blocks": (1, 1, 1, 1), "channels": 8}
LABELS = TrainRecipe(resize="labels")


def batch_of(labels, confidence=None):
    images = torch.rand(len(labels), 3, *labels.shape[1:]) * 255
    return Batch(images, labels, confidence, torch.zeros(len(labels)), torch.arange(len(labels)), 0)


@pytest.fixture
def labels():
    torch.manual_seed(1)
    labels = torch.randint(0, 4, (2, 24, 24), dtype=torch.uint8)
    labels[:, :3] = IGNORE
    return labels


# --- losses


def test_logits_are_enlarged_or_labels_shrunk(labels):
    logits = torch.randn(2, 4, 8, 8)
    batch = batch_of(labels)
    for align in (False, True):
        large = F.interpolate(logits, (24, 24), mode="bilinear", align_corners=align)
        expected = F.cross_entropy(large, labels.long(), ignore_index=255)
        found = output_loss(logits, batch, replace(LABELS, resize="logits"), align_corners=align)
        torch.testing.assert_close(found, expected)
    rows = 3 * torch.arange(8) + 1  # the pixel in which a cell's centre lies
    small = labels[:, rows][:, :, rows]
    torch.testing.assert_close(
        output_loss(logits, batch, LABELS), F.cross_entropy(logits, small.long(), ignore_index=255)
    )


def test_unsure_pixels_teach_nothing(labels):
    confidence = torch.rand(labels.shape)
    logits = torch.randn(2, 4, 24, 24)
    sure = labels.masked_fill(confidence < 0.8, IGNORE)
    for other in ({}, {"loss": "balanced"}, {"divide": "all"}):
        recipe = replace(LABELS, **other)
        found = output_loss(logits, batch_of(labels, confidence), replace(recipe, mu=0.8))
        torch.testing.assert_close(found, output_loss(logits, batch_of(sure), recipe))
        assert found != output_loss(logits, batch_of(labels, confidence), recipe)


def test_divide_all_counts_ignored_pixels(labels):
    logits = torch.randn(2, 4, 24, 24)
    valid, everything = (output_loss(logits, batch_of(labels), replace(LABELS, divide=d)) for d in ("valid", "all"))
    torch.testing.assert_close(everything, valid * 21 / 24)


@pytest.mark.parametrize("value", [IGNORE, 0, 2])
@pytest.mark.parametrize("loss", ["cross-entropy", "balanced", "seed+boundary"])
def test_batches_of_one_kind_give_finite_losses_and_gradients(loss, value):
    logits = (100 * torch.randn(2, 4, 9, 9)).requires_grad_()
    labels = torch.full((2, 24, 24), value, dtype=torch.uint8)
    found = output_loss(logits, batch_of(labels), replace(LABELS, loss=loss))
    found.backward()
    assert found.isfinite()
    assert logits.grad.isfinite().all()
    if value == IGNORE and loss != "seed+boundary":
        assert found == 0


@pytest.mark.filterwarnings("ignore:.*starts from random weights", "ignore:You are trying to.*self.log")
def test_every_output_has_its_own_loss(labels):
    net = build_network(NetworkConfig.of("deeplabv2-resnet101", CLASSES, width=4, blocks=(1, 1, 1, 1)), init="random")
    module = SupervisedTraining(LABELS, net)
    batch = batch_of(F.interpolate(labels[:, None], scale_factor=2)[:, 0])
    outputs = net(batch.images)
    assert len({tuple(each.shape) for each in outputs}) > 1
    expected = sum(output_loss(each, batch, LABELS) for each in outputs)
    torch.testing.assert_close(module.training_step(batch, 0), expected)


# --- dice, averages


def test_dropout_is_a_function_of_seed_and_batch():
    before = torch.get_rng_state()

    def drop(seed, step, rank=0):
        with _Dice(seed, step, rank, torch.device("cpu")):
            return F.dropout(torch.ones(64)).tolist()

    assert drop(1, 2) == drop(1, 2)
    assert len({tuple(drop(*which)) for which in ((1, 2), (2, 2), (1, 3), (1, 2, 1))}) == 4
    assert torch.equal(torch.get_rng_state(), before)


def test_the_average_follows_weights_and_takes_buffers():
    torch.manual_seed(0)
    average, now = (torch.nn.BatchNorm1d(2) for _ in range(2))
    with torch.no_grad():
        now.weight.fill_(3.0)
    now(torch.randn(5, 2))
    follow(average, now, 0.9, 1000)
    torch.testing.assert_close(average.weight.data, torch.full((2,), 0.9 + 0.3))
    assert torch.equal(average.running_mean, now.running_mean)
    assert average.num_batches_tracked == 1
    follow(average, now, 0.9, 0)  # young: a tenth
    torch.testing.assert_close(average.weight.data, torch.full((2,), 0.1 * 1.2 + 0.9 * 3))


# --- schedule and optimiser


def test_the_rate_is_held_for_ten_steps():
    recipe = TrainRecipe(steps=40, hold=10, warmup=0)
    for step in range(40):
        assert rate(step, recipe) == pytest.approx((1 - (step // 10 * 10) / 40) ** 0.9, rel=1e-12)


def test_the_rate_rises_and_may_end_elsewhere():
    recipe = TrainRecipe(steps=40, warmup=4, schedule_steps=41)
    assert [rate(step, recipe) for step in (0, 2, 3, 39)] == pytest.approx(
        [0.25, 0.75 * (39 / 41) ** 0.9, (38 / 41) ** 0.9, (2 / 41) ** 0.9]
    )


@pytest.mark.filterwarnings("ignore:.*starts from random weights")
def test_the_optimiser_is_the_recipes():
    net = build_network(NetworkConfig.of("deeplabv2-resnet101", CLASSES, width=4, blocks=(1, 1, 1, 1)), init="random")
    published = TrainRecipe(optimiser="sgd", lr=1e-3, weight_decay=5e-4)
    groups = make_optimizer(net, published).param_groups
    assert {(group["lr"], group["weight_decay"], group["momentum"]) for group in groups} == {
        (1e-3, 5e-4, 0.9),
        (1e-2, 5e-4, 0.9),
        (2e-2, 0.0, 0.9),
    }
    odd = make_optimizer(net, replace(published, decay_as_momentum=True)).param_groups
    assert {group["momentum"] for group in odd} == {5e-4}
    adam = make_optimizer(build_network(NetworkConfig.of("small", CLASSES, **TINY)), TrainRecipe())
    assert isinstance(adam, torch.optim.AdamW)


# --- recipes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"architecture": "smal"}, "did you mean 'small'"),
        ({"options": {"widht": 4}}, "did you mean 'width'"),
        ({"steps": 0, "crop": -1}, r"steps 0, crop -1: expected at least 1"),
        ({"lr": float("nan")}, "lr nan"),
        ({"lr": 0.0}, "above 0"),
        ({"weight_decay": -1.0}, "weight_decay -1"),
        ({"warmup": -1}, "warmup -1"),
        ({"mu": 1.5}, r"mu 1\.5: expected within 0 and 1"),
        ({"flip": float("nan")}, "flip nan"),
        ({"ema": 1.0}, r"ema 1\.0"),
        ({"clip_norm": 0.0}, "clip_norm 0"),
        ({"schedule_steps": 0}, "schedule_steps 0"),
        ({"scale": "uniform:2,1"}, "scale 'uniform:2,1'"),
        ({"scale": "choice:"}, "expected choice:"),
        ({"scale": "long-side:1.5,3"}, "expected choice:"),
        ({"colour": (0.1, 0.1, 0.1, 0.6)}, "hue to 0.5"),
        ({"fill": (0, 0, 300)}, "fill"),
        ({"decay_as_momentum": True}, "optimiser=sgd"),
        ({"divide": "all", "loss": "balanced"}, "divide=all"),
        ({"init": "weights/deeplabv1_resnet101-coco.pth"}, "set init_pixels=coco"),
        ({"architecture": "transformers:nvidia/segformer-b0-finetuned-ade-512-512"}, "set init_pixels=ade"),
        ({"init": "random", "init_pixels": "coco"}, "trained on nothing"),
    ],
)
def test_recipes_that_cannot_be_run_are_named(wrong, message):
    with pytest.raises(UserError, match=message) as caught:
        check(TrainRecipe(**wrong))
    assert "\n" not in str(caught.value)


def test_recipes_that_can():
    check(TrainRecipe())
    check(TrainRecipe(init="x-coco.pth", init_pixels="coco"))
    check(TrainRecipe(architecture="transformers:nvidia/mit-b0"))
    assert parse_scale("none") is None
    assert parse_scale("choice:0.5,2").factors == (0.5, 2)
    assert TrainRecipe(scale="long-side:200,800").augment.scale.high == 800


def test_a_network_of_ours_may_be_called_like_a_data_set(tmp_path):
    net = build_network(NetworkConfig.of("small", CLASSES, **TINY))
    save_network(tmp_path / "voc", net, supervision="tags", noted={})
    check(TrainRecipe(init=str(tmp_path / "voc")))


def test_recipes_from_yaml_and_the_command_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("steps: 7\noptions: {width: 8}\nscale: none\n")
    found = read_recipe(TrainRecipe, ["options.channels=16", "lr=3e-4", "mu=0.95"], path)
    assert found == TrainRecipe(steps=7, options={"width": 8, "channels": 16}, scale="none", lr=3e-4, mu=0.95)
    path.write_text("step: 7\n")
    with pytest.raises(UserError, match=r"r\.yaml: unknown key 'step' \(did you mean 'steps'\?\)"):
        read_recipe(TrainRecipe, [], path)
    path.write_text("steps: many\n")
    with pytest.raises(UserError, match=r"r\.yaml steps: .*valid integer"):
        read_recipe(TrainRecipe, [], path)
    with pytest.raises(UserError, match=r"--set loss: .*got 'dice'"):
        read_recipe(TrainRecipe, ["loss=dice"])
    with pytest.raises(UserError, match="not readable YAML"):
        read_recipe(TrainRecipe, ["options=[a"])
