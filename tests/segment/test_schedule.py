"""Rates step by step, against recorded ones and against loops written from the specification."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from tag2mask.segment import schedule


def test_poly_step_by_step() -> None:
    """The specification's numbers for lr 0.1 over 5 steps; after the end the last rate stays."""
    rates = [0.1 * schedule.poly(t, 5) for t in range(6)]
    assert rates == pytest.approx([0.1, 0.0818052, 0.0631446, 0.0438383, 0.0234924, 0.0234924], abs=1e-7)


def test_poly_held_for_ten_steps() -> None:
    rates = [2.5e-4 * schedule.poly(t, 20000, hold=10) for t in range(31)]
    assert len(set(rates[:10])) == len(set(rates[10:20])) == 1
    assert rates[9] == 2.5e-4
    assert rates[10] == pytest.approx(2.49887497e-4, rel=1e-8)
    assert rates[20] < rates[19]


def test_poly_warms_up_and_refuses_nonsense() -> None:
    assert [schedule.poly(t, 10, power=1, warmup=4) for t in range(5)] == pytest.approx(
        [0.25, 0.5 * 0.9, 0.75 * 0.8, 0.7, 0.6]
    )
    for bad in ({"step": -1, "total": 5}, {"step": 0, "total": 0}, {"step": 0, "total": 5, "hold": 0}):
        with pytest.raises(ValueError, match="expected step >= 0"):
            schedule.poly(**bad)


def test_ramps_reach_their_end_and_stay() -> None:
    for kind, end in (("sigmoid", 1), ("log", 1 - math.exp(-5))):
        values = [schedule.ramp(t, 100, kind) for t in range(0, 120, 5)]
        assert values == sorted(values)
        assert values[20] == values[-1] == pytest.approx(end)
        assert schedule.ramp(3, 0, kind) == 1
    assert schedule.ramp(50, 100) == pytest.approx(math.exp(-5 * 0.25))


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_groups_of_convolutions() -> None:
    net = Tiny()
    net.backbone[0].weight.requires_grad_(False)
    groups = schedule.conv_groups(net.backbone, net.head, 0.1, 5e-4)
    found = {(round(g["lr"] / 0.1), g["weight_decay"]): {id(p) for p in g["params"]} for g in groups}
    expected = {
        (1, 0.0): {id(p) for p in net.backbone[1].parameters()},
        (1, 5e-4): {id(net.backbone[2].weight)},
        (2, 0.0): {id(net.backbone[2].bias)},
        (10, 5e-4): {id(net.head[0].weight), id(net.head[2].weight)},
        (10, 0.0): {id(p) for p in net.head[1].parameters()},
        (20, 0.0): {id(net.head[2].bias)},
    }
    assert found == expected


def test_set_rate_scales_the_first_rate_whenever_called() -> None:
    net = Tiny()
    optimizer = schedule.sgd(schedule.conv_groups(net.backbone, net.head, 0.1, 0), 0.1, 0)
    for _ in range(2):
        schedule.set_rate(optimizer, 0.5)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.05, 0.05, 0.1, 0.5, 0.5, 1.0])
    plain = schedule.sgd(net.parameters(), 0.2, 0)
    schedule.set_rate(plain, 0.5)
    schedule.set_rate(plain, 0.25)
    assert plain.param_groups[0]["lr"] == pytest.approx(0.05)


def test_decay_as_momentum_only_where_asked() -> None:
    weight = nn.Parameter(torch.ones(1))
    kept = schedule.sgd([{"params": [weight], "weight_decay": 0.3}], 0.1, 1e-4, decay_as_momentum=True).param_groups[
        0
    ]
    assert (kept["momentum"], kept["weight_decay"]) == (1e-4, 0.3)
    bare = schedule.sgd([weight], 0.1, 1e-4, decay_as_momentum=True).param_groups[0]
    assert (bare["momentum"], bare["weight_decay"]) == (1e-4, 0)
    right = schedule.sgd([weight], 0.1, 1e-4).param_groups[0]
    assert (right["momentum"], right["weight_decay"]) == (0.9, 1e-4)


def test_golden_deeplab_rates(golden) -> None:
    data = golden("clims/deeplab_poly_lr")
    total, power, hold = int(data["iter_max"]), float(data["power"]), int(data["step_size"])
    for iteration, lr in zip(data["iteration"], data["lr_used"], strict=True):  # iterations count from 1
        factor = schedule.poly(int(iteration) - 1, total, power=power, hold=hold)
        assert float(data["base_lr"]) * factor == pytest.approx(float(lr), rel=1e-9)


def test_golden_cct_rates(golden) -> None:
    data = golden("clims/cct_poly_lr")
    total = int(data["num_epochs"]) * int(data["iters_per_epoch"])
    rates = [float(data["base_lr"]) * schedule.poly(t, total) for t in range(total)]
    assert rates == pytest.approx(data["lr_used"].tolist(), rel=1e-9)


def test_golden_cct_ramps(golden) -> None:
    data = golden("clims/cct_rampup")
    per_epoch = int(data["iters_per_epoch"])
    for (epoch, i), weight in zip(data["epoch_iter"], data["weight"], strict=True):
        step = int(epoch) * per_epoch + int(i)
        found = float(data["final_w"]) * schedule.ramp(step, int(data["rampup_epochs"]) * per_epoch)
        assert found == pytest.approx(float(weight), rel=1e-9)
    for kind in schedule.RAMPS:
        values = [schedule.ramp(t, 100, kind) for t in range(0, 120, 10)]
        assert values == pytest.approx(data[kind].tolist(), rel=1e-9), kind


def test_golden_poly_optimizer(golden) -> None:
    """IRN's optimiser on a quadratic, its fault included: momentum is the weight decay."""
    data = golden("clims/poly_optimizer")
    w = nn.Parameter(torch.tensor(data["w0"], dtype=torch.float32))
    x = nn.Parameter(torch.tensor(data["x0"], dtype=torch.float32))
    decay = float(data["weight_decay_in_groups"][0])
    first = data["lr_traj"][0]
    groups = [
        {"params": [w], "lr": float(first[0]), "weight_decay": decay},
        {"params": [x], "lr": float(first[1]), "weight_decay": decay},
    ]
    optimizer = schedule.sgd(groups, float(first[0]), decay, decay_as_momentum=True)
    assert [g["momentum"] for g in optimizer.param_groups] == pytest.approx(data["momentum_in_groups"].tolist())
    for t, (rates, expected_w) in enumerate(zip(data["lr_traj"], data["w_traj"], strict=True)):
        schedule.set_rate(optimizer, schedule.poly(t, int(data["max_step"])))
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx(rates.tolist(), rel=1e-9)
        optimizer.zero_grad()
        (w**2).sum().mul(0.5).backward()
        optimizer.step()
        assert w.detach().numpy() == pytest.approx(expected_w, rel=1e-6), t


def test_cosine_by_epochs_is_the_recorded_one_an_epoch_late(golden) -> None:
    recorded = golden("mctformer/schedule")["lr"]
    late = [schedule.cosine_epochs(e, 60, 6.25e-5, late=True) for e in range(60)]
    np.testing.assert_allclose(late, recorded, rtol=0, atol=1e-12)
    on_time = [schedule.cosine_epochs(e, 60, 6.25e-5) for e in range(60)]
    assert on_time[:59] == late[1:]
    assert on_time[0] == 1e-6
    assert on_time[1] == pytest.approx(1e-6 + 6.15e-5 / 5, rel=1e-9)
    assert max(on_time) == on_time[5] < 6.25e-5
    assert on_time[59] == pytest.approx(1e-5 + 5.25e-5 * (1 + math.cos(math.pi * 59 / 60)) / 2, abs=1e-18)


def test_cosine_stays_at_its_end_and_refuses_nonsense() -> None:
    assert schedule.cosine_epochs(60, 60, 1e-3) == schedule.cosine_epochs(59, 60, 1e-3)
    for epoch, epochs in ((-1, 60), (0, 0)):
        with pytest.raises(ValueError, match="expected epoch >= 0"):
            schedule.cosine_epochs(epoch, epochs, 1e-3)


def test_weclips_rate():
    """At the ends of the warm-up and of the training; a short training has a short warm-up."""
    rate = [schedule.warm_poly(step, 30_000) for step in (0, 49, 50, 29_999)]
    assert rate == pytest.approx([1e-6, 1 - (1 - 49 / 50) * (1 - 1e-6), 1 - 50 / 30_000, 1 / 30_000])
    assert schedule.warm_poly(30_000, 30_000) == schedule.warm_poly(29_999, 30_000)
    assert schedule.warm_poly(5, 50) == pytest.approx(0.9)
    with pytest.raises(ValueError, match="expected step >= 0"):
        schedule.warm_poly(-1, 10)
