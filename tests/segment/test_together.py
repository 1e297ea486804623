"""The pieces together: a few steps of training from random weights, then prediction, for each network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tag2mask.models.decoders import CCT_RESNET50, CCTNet
from tag2mask.models.deeplab import CAFFE_RESNET101, DeepLabV2, MultiScale, caffe_pixels
from tag2mask.models.wideresnet import DeepLabV1
from tag2mask.segment import cct
from tag2mask.segment.augment import Augment, Choice, Example, augment
from tag2mask.segment.losses import balanced_cross_entropy, cross_entropy, resize_labels
from tag2mask.segment.schedule import conv_groups, poly, set_rate, sgd
from tag2mask.segment.test_time import TestTime, predict_labels
from tag2mask.types import IGNORE

STEPS = 6
SMALL = {"blocks": (1, 1, 1, 1), "width": 8, "frozen_norm": False}


def scene(seed: int) -> Example:
    """A bright disc on a dark ground, and its mask with an unsure rim."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(56.0), torch.arange(72.0), indexing="ij")
    cy, cx = (torch.rand(2, generator=g) * 20 + 20).tolist()
    far = ((y - cy) ** 2 + (x - cx) ** 2).sqrt()
    image = torch.rand(3, 56, 72, generator=g) * 60 + 130 * (far < 16)
    labels = (far < 15).to(torch.uint8).masked_fill((far - 16).abs() < 1, IGNORE)
    return Example(image.to(torch.uint8), labels)


def batch(step: int) -> tuple[Tensor, Tensor]:
    settings = Augment(48, Choice((0.75, 1.0, 1.25)))
    parts = [augment(scene(i), settings, torch.Generator().manual_seed(1000 * step + i)) for i in range(4)]
    return caffe_pixels(torch.stack([p.image for p in parts])) / 60, torch.stack([p.labels for p in parts])  # type: ignore


def fit(net: nn.Module, groups: list[dict], loss_of: Callable[[int], Tensor]) -> list[float]:
    optimizer = sgd(groups, 0.01, 1e-4)
    found = []
    net.train()
    for step in range(STEPS):
        set_rate(optimizer, poly(step, STEPS))
        optimizer.zero_grad()
        loss = loss_of(step)
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def check(net: nn.Module, losses: list[float], multiple: int = 1) -> None:
    assert all(torch.isfinite(torch.tensor(losses)))
    assert sum(losses[-3:]) < 0.97 * sum(losses[:3])
    net.eval()
    picture = scene(9).image
    labels, confidence = predict_labels(
        lambda x: net(caffe_pixels(x) / 60), picture, TestTime(flip=True, multiple=multiple)
    )
    assert labels.shape == confidence.shape == (56, 72)
    assert torch.isfinite(confidence).all()


def test_deeplab_v2_at_several_scales() -> None:
    torch.manual_seed(0)
    base = DeepLabV2(2, replace(CAFFE_RESNET101, **SMALL), rates=(1, 2))  # type: ignore[arg-type]
    net = MultiScale(base)

    def loss(step: int) -> Tensor:
        pixels, labels = batch(0)
        outputs = net(pixels)
        assert len(outputs) == 4
        return sum(balanced_cross_entropy(x, resize_labels(labels, x.shape[2:])) for x in outputs)

    check(net, fit(net, conv_groups(base.backbone, base.head, 0.01, 1e-4), loss))


@pytest.mark.parametrize("head", ["mctformer", "seam"])
def test_deeplab_v1(head: str) -> None:
    torch.manual_seed(0)
    net = DeepLabV1(2, head, width=2, frozen_norm=False)  # type: ignore[arg-type]

    def loss(step: int) -> Tensor:
        pixels, labels = batch(0)
        logits = net(pixels)
        return cross_entropy(logits, resize_labels(labels, logits.shape[2:]))

    check(net, fit(net, conv_groups(net.backbone, net.head, 0.004, 1e-4), loss))


def test_cct_with_pseudo_masks() -> None:
    torch.manual_seed(0)
    names: tuple[cct.Kind, ...] = ("noise", "cutout")
    net = CCTNet(2, replace(CCT_RESNET50, **SMALL))  # type: ignore[arg-type]
    auxiliary = net.auxiliary_decoders(len(names))
    weights = cct.Weights(ramp_steps=4, consistency=1.0)

    def loss(step: int) -> Tensor:
        pixels, labels = batch(0)
        free, weak = batch(1)
        w_u, w_w = weights.at(step)
        other = cct.unlabelled_losses(net, auxiliary, free, names, torch.Generator().manual_seed(step), weak=weak)
        assert other.weak is not None
        # the other terms ramp up, so what must fall is the labelled one; it is what this returns at its value
        rest = w_u * other.consistency + w_w * other.weak
        return cross_entropy(net(pixels), labels) + rest - rest.detach()

    check(net, fit(net, [{"params": [*net.parameters(), *auxiliary.parameters()], "lr": 0.06}], loss), multiple=8)
