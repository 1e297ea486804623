from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tag2mask.models.backbone import Layout, ResNet
from tag2mask.models.pot import POTNetwork, released_names
from tag2mask.models.state import fit_state

STRIDES = (1, 2, 2, 1)


def small(width=4, classes=3):
    torch.manual_seed(0)
    return POTNetwork(ResNet(Layout(blocks=(1, 1, 1, 1), width=width, strides=STRIDES, frozen_norm=True)), classes)


def test_the_released_checkpoints_names_and_shapes():
    path = Path(__file__).resolve().parents[3] / "shared" / "golden" / "pot" / "state_dict_shapes.json"
    if not path.exists():
        pytest.skip("the recorded names are not at hand (looked beside the project for shared/golden)")
    shapes = json.loads(path.read_text())
    state = {name: torch.empty(shape) for name, shape in shapes.items()}
    with torch.device("meta"):
        network = POTNetwork(ResNet(Layout(strides=STRIDES, frozen_norm=True)), 20)
    kept = released_names(state)
    wanted = network.state_dict()
    assert {name: tuple(value.shape) for name, value in kept.items()} == {
        name: tuple(value.shape) for name, value in wanted.items()
    }


def test_released_names_leave_aliases_out_and_load_whole():
    network = small()
    state = {name.replace("backbone.", "resnet50.", 1): value + 1 for name, value in network.state_dict().items()}
    aliases = {
        "backbone.0.weight": torch.zeros(1),
        "newly_added.0.weight": torch.zeros(1),
        "f9.weight": torch.ones(2),
    }
    fit_state(network, released_names({**aliases, **state}), "given.pth")
    assert torch.equal(network.side2.weight, state["side2.weight"])
    assert torch.equal(network.backbone.layer1[0].conv1.weight, state["resnet50.layer1.0.conv1.weight"])


@pytest.mark.parametrize("size", [(64, 64), (120, 150), (33, 17), (16, 16)])
def test_shapes_of_any_size(size):
    logits, features = small()(torch.randn(2, 3, *size))
    grid = tuple(-(-side // 16) for side in size)
    assert logits.shape == (2, 3, *grid)
    assert features.shape == (2, 768, *grid)


def test_each_stages_part_has_length_one_and_the_picture_counts_in_each():
    network = small()
    pixels = torch.randn(1, 3, 48, 64)
    _, features = network(pixels)
    # the last two parts are made on the grid itself, so nothing shortens them
    for part in features.split((128, 128, 256, 256), 1)[2:]:
        np.testing.assert_allclose(part.norm(dim=1).detach(), 1, atol=1e-3)
    for side in (network.side1, network.side2, network.side3, network.side4):
        with torch.no_grad():
            before = network(pixels)[1]
            side.weight[:, -3:] += 1
            assert not torch.equal(network(pixels)[1], before)


def test_maps_are_those_of_the_whole_pass():
    network = small().eval()
    pixels = torch.randn(1, 3, 48, 64)
    torch.testing.assert_close(network.maps(pixels), network(pixels)[0])


def test_what_learns_and_at_which_rate():
    network = small()
    fresh = {id(parameter) for parameter in network.new_parameters()}
    names = {name for name, parameter in network.named_parameters() if id(parameter) in fresh}
    assert names == {"side1.weight", "side2.weight", "side3.weight", "side4.weight", "classifier.weight"}
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {"backbone.conv1.weight", "backbone.bn1.weight", "backbone.bn1.bias"}


def test_statistics_of_norms_stay_in_training():
    network = small().train()
    before = network.backbone.bn1.running_mean.clone()
    network(torch.randn(2, 3, 32, 32))
    assert torch.equal(before, network.backbone.bn1.running_mean)


def test_the_features_by_hand():
    """One stage after the other: corners of the picture on corners of the stage, pixels of a part on its area."""
    network = small().double()
    pixels = torch.randn(1, 3, 50, 70, dtype=torch.float64)
    stages = network.backbone.features(pixels)[1:]
    parts = []
    for side, stage in zip((network.side1, network.side2, network.side3, network.side4), stages, strict=True):
        rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in stage.shape[2:])
        corners = torch.stack([columns.expand(len(rows), -1), rows[:, None].expand(-1, len(columns))], -1)[None]
        beside = torch.cat([stage, F.grid_sample(pixels, corners, align_corners=True)], 1)
        seen = torch.einsum("od,bdhw->bohw", side.weight[:, :, 0, 0], beside)
        parts.append(seen / (seen.square().sum(1, keepdim=True).sqrt() + 1e-5))
    height, width = stages[2].shape[2:]
    areas = [(2 * torch.arange(n, dtype=torch.float64) + 1) / n - 1 for n in (height, width)]
    cells = torch.stack([areas[1].expand(height, -1), areas[0][:, None].expand(-1, width)], -1)[None]
    whole = [F.grid_sample(part, cells, align_corners=False, padding_mode="border") for part in parts]
    torch.testing.assert_close(network(pixels)[1], torch.cat(whole, 1))
