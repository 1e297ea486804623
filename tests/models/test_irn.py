from __future__ import annotations

import pytest
import torch
from torch import nn

from tag2mask.models.irn import RESNET50, DisplacementHead, EdgeHead, IRNHeads, MeanShift, Project, boundary_map

SMALL = (8, 16, 32, 64, 128)


def features(size, channels=SMALL, batch=2, seed=0):
    """What a ResNet of strides 4, 4, 8, 16, 16 gives."""
    generator = torch.Generator().manual_seed(seed)
    grids = [[-(-side // stride) for side in size] for stride in (4, 4, 8, 16, 16)]
    return [torch.randn(batch, c, *grid, generator=generator) for c, grid in zip(channels, grids, strict=True)]


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_shapes_and_parameters_equal_the_released_ones(golden):
    recorded = golden("clims/irn_shapes")
    heads = IRNHeads()
    assert count(heads.edge) == recorded["n_edge_params"]
    assert count(heads.displacement) == recorded["n_dp_params"]
    edge, displacement = heads(features((65, 97), RESNET50))
    assert list(edge.shape) == recorded["edge_shape"].tolist()
    assert list(displacement.shape) == recorded["dp_shape"].tolist()
    assert [1, *boundary_map(edge, (65, 97)).shape] == recorded["edgedisp_edge_shape"].tolist()


def test_parameters_by_hand():
    assert count(EdgeHead()) == 32 * sum(RESNET50) + 5 * 2 * 32 + 161
    assert count(DisplacementHead()) == 1_269_120


@pytest.mark.parametrize("size", [(480, 640), (65, 97), (16, 16), (513, 31)])
def test_no_size_is_cropped(size):
    """480 x 640 came out as 512 x 512 in the released code."""
    edge, displacement = IRNHeads(SMALL, edge_width=8, displacement_width=32)(features(size))
    grid = tuple(-(-side // 4) for side in size)
    assert edge.shape[2:] == displacement.shape[2:] == grid
    assert boundary_map(edge, size).shape == grid


def test_the_frozen_features_get_no_gradient():
    given = [x.requires_grad_() for x in features((32, 48))]
    heads = IRNHeads(SMALL, edge_width=8, displacement_width=32)
    edge, displacement = heads(given)
    (edge.sum() + displacement.square().sum()).backward()
    assert all(x.grad is None for x in given)
    assert all(p.grad is not None for p in heads.parameters())


def test_every_feature_map_counts_in_both_heads():
    heads = IRNHeads(SMALL, edge_width=8, displacement_width=32).eval()
    given = features((32, 48))
    edge, displacement = heads(given)
    for i in range(5):
        other = [x + 1 if i == j else x for j, x in enumerate(given)]
        # A group norm takes a constant away only within its group, so a shift of all channels is seen.
        other[i] = given[i] * torch.linspace(0.2, 3, given[i].shape[1])[:, None, None]
        changed = heads(other)
        assert not torch.allclose(changed[0], edge, atol=1e-4)
        assert not torch.allclose(changed[1], displacement, atol=1e-5)


def test_enlarging_comes_before_the_relu():
    project = Project(2, 4, 2, 2)
    x = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    plain = nn.functional.group_norm(nn.functional.conv2d(x, project.conv.weight), 2)
    expected = nn.functional.interpolate(plain, size=(6, 6), mode="bilinear", align_corners=False).relu()
    torch.testing.assert_close(project(x), expected)


def test_mean_shift_acts_in_eval_alone():
    shift = MeanShift()
    one = torch.stack([torch.full((2, 3, 4), 1.0), torch.full((2, 3, 4), 5.0)], 1)  # (2, 2, 3, 4)
    two = torch.zeros(7, 2, 9, 9)
    shift.measure([one, two])
    assert shift.running_mean.tolist() == [0.5, 2.5]  # every batch counts the same, whatever its size
    assert torch.equal(shift(one), one)
    shift.eval()
    torch.testing.assert_close(shift(one)[:, 1], torch.full((2, 3, 4), 2.5))
    assert "running_mean" in shift.state_dict()
    with pytest.raises(ValueError, match="no batch"):
        shift.measure([])


def test_logits_are_averaged_before_the_sigmoid():
    logits = torch.tensor([[[[8.0, 0.0]]], [[[0.0, -2.0]]]])  # (2, 1, 1, 2)
    torch.testing.assert_close(boundary_map(logits, (4, 8)), torch.tensor([[3.0, 0.0]]).sigmoid())
    with pytest.raises(ValueError, match=r"expected \(2, 1, 2, 2\)"):
        boundary_map(logits, (8, 8))
