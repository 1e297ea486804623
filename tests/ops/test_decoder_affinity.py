"""The decoder's affinity and its loss: recorded arrays, and readings by loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tag2mask.ops.decoder_affinity import affinity_loss, affinity_targets, decoder_affinity, near_cells
from tag2mask.types import IGNORE


@pytest.fixture(scope="module")
def case(golden):
    return {name: torch.from_numpy(array) for name, array in golden("weclip/losses").items()}


def test_pairs_and_loss_are_the_recorded_ones(case):
    targets = affinity_targets(case["cam_label"], (6, 6), 2)
    assert torch.equal(targets.long(), case["aff_label"].long())
    # the counts that the loss divides by: one more, against none
    assert ((targets == 1).sum() + 1, (targets == 0).sum() + 1) == (case["pos"], case["neg"])
    torch.testing.assert_close(affinity_loss(case["aff_pred"], targets), case["aff_loss"], rtol=0, atol=1e-5)
    assert torch.equal(near_cells((6, 6), 2), case["mask_radius2"].bool())


def test_near_cells_of_a_grid_that_is_no_square():
    grid, radius = (3, 5), 1
    near = near_cells(grid, radius)
    for a in range(15):
        for b in range(15):
            apart = max(abs(a // 5 - b // 5), abs(a % 5 - b % 5))
            assert near[a, b] == (apart <= radius)


def test_targets_by_loops():
    labels = torch.tensor([[[0, 0, 3], [3, IGNORE, 3]]])
    targets = affinity_targets(labels, (2, 3), 1)[0]
    flat = labels.flatten()
    for a in range(6):
        for b in range(6):
            near = abs(a // 3 - b // 3) <= 1 and abs(a % 3 - b % 3) <= 1
            known = IGNORE not in (flat[a], flat[b])
            assert targets[a, b] == (int(flat[a] == flat[b]) if near and known else IGNORE)


def test_a_cell_has_the_label_of_its_upper_left_pixel():
    labels = torch.arange(60).view(1, 6, 10)
    cells = labels[0][[0, 2, 4]][:, [0, 2, 5, 7]].flatten()  # floor(i 10 / 4)
    targets = affinity_targets(labels, (3, 4), 9)[0]
    assert torch.equal(targets, (cells[:, None] == cells[None]).to(torch.uint8))


@pytest.mark.parametrize("labels", [torch.zeros(1, 2, 2), torch.full((1, 2, 2), IGNORE)])
def test_a_kind_of_pairs_that_does_not_occur_adds_nothing(labels):
    affinity = torch.full((1, 4, 4), 0.25, requires_grad=True)
    loss = affinity_loss(affinity, affinity_targets(labels.long(), (2, 2)))
    expected = 0.5 * 16 * 0.75 / 17 if int(labels[0, 0, 0]) == 0 else 0.0
    torch.testing.assert_close(loss.item(), expected)
    loss.backward()
    assert torch.isfinite(affinity.grad).all()


def test_affinity_is_the_sigmoid_of_products():
    features = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    flat = features.flatten(2).numpy()
    expected = 1 / (1 + np.exp(-np.einsum("ben,bem->bnm", flat, flat)))
    np.testing.assert_allclose(decoder_affinity(features), expected, rtol=1e-5)
