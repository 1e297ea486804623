"""Losses against the released ones, and against loops in float64 over pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tag2mask.ops.affinity_losses import (
    feature_affinity,
    irn_loss,
    path_affinity,
    psa_loss,
)
from tag2mask.ops.pairs import disc_paths, path_offsets
from tag2mask.types import IGNORE


def test_irn_equals_the_released_losses(golden):
    recorded = golden("clims/irn_losses")
    logits, disp = torch.tensor(recorded["edge_logit"]), torch.tensor(recorded["disp"])
    labels = torch.tensor(recorded["seg"]).expand(2, -1, -1)
    loss = irn_loss(logits, disp, labels)
    for mine, name in (
        (loss.affinity.background, "bg_pos_aff_loss"),
        (loss.affinity.foreground, "fg_pos_aff_loss"),
        (loss.affinity.different, "neg_aff_loss"),
        (loss.displacement_foreground, "dp_fg_loss"),
        (loss.displacement_background, "dp_bg_loss"),
        (loss.total, "total_loss"),
    ):
        assert float(mine) == pytest.approx(float(recorded[name]), rel=1e-5), name
    affinity = path_affinity(logits[:, 0].sigmoid(), 10)
    np.testing.assert_allclose(affinity[..., ::7], recorded["aff"], rtol=1e-5, atol=1e-6)
    assert np.array_equal(recorded["disp_target"][0, :, :, 0].T, path_offsets(10))


def test_psa_equals_the_released_losses(golden):
    recorded = golden("clims/psa_affinity_labels_loss")
    features = torch.tensor(recorded["feat"])
    np.testing.assert_allclose(feature_affinity(features, 5), recorded["aff"], rtol=1e-5)
    loss = psa_loss(features, torch.tensor(recorded["label"])[None])
    for name, mine in (("bg", loss.background), ("fg", loss.foreground), ("neg", loss.different)):
        assert float(mine) == pytest.approx(float(recorded[f"{name}_loss"]), rel=1e-5)
    assert float(loss.total) == pytest.approx(float(recorded["loss"]), rel=1e-5)


def random_case(seed, radius):
    rng = np.random.default_rng(seed)
    size = (2 * radius + 1, 3 * radius)
    logits = rng.normal(size=(2, 1, *size))
    disp = rng.normal(size=(2, 2, *size)) * 3
    labels = rng.choice([0, 0, 4, 9, IGNORE], (2, *size)).astype(np.uint8)
    return logits, disp, labels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_irn_pair_by_pair(seed):
    radius = 3
    logits, disp, labels = random_case(seed, radius)
    sums = {kind: [0.0, 1e-5] for kind in ("bg", "fg", "neg", "dp_fg", "dp_bg")}

    def add(kind, value, count=1):
        sums[kind][0] += value
        sums[kind][1] += count

    edge = 1 / (1 + np.exp(-logits[:, 0]))
    for image in range(2):
        for y in range(edge.shape[1] - radius + 1):
            for x in range(radius - 1, edge.shape[2] - radius + 1):
                for path in disc_paths(radius):
                    dy, dx = path[0]
                    a = 1 - max(edge[image, y + py, x + px] for py, px in path)
                    one, two = labels[image, y, x], labels[image, y + dy, x + dx]
                    if IGNORE in (one, two):
                        continue
                    moved = disp[image, :, y, x] - disp[image, :, y + dy, x + dx]
                    if one != two:
                        add("neg", -np.log(1 + 1e-5 - a))
                    elif one:
                        add("fg", -np.log(a + 1e-5))
                        add("dp_fg", np.abs(moved - (dy, dx)).sum(), 2)
                    else:
                        add("bg", -np.log(a + 1e-5))
                        add("dp_bg", np.abs(moved).sum(), 2)
    expected = {kind: total / count for kind, (total, count) in sums.items()}
    loss = irn_loss(torch.tensor(logits), torch.tensor(disp), torch.tensor(labels), radius=radius)
    mine = {
        "bg": loss.affinity.background,
        "fg": loss.affinity.foreground,
        "neg": loss.affinity.different,
        "dp_fg": loss.displacement_foreground,
        "dp_bg": loss.displacement_background,
    }
    assert {k: float(v) for k, v in mine.items()} == pytest.approx(expected, rel=1e-4)
    total = 0.5 * (expected["bg"] / 2 + expected["fg"] / 2 + expected["neg"])
    assert float(loss.total) == pytest.approx(total + 0.5 * (expected["dp_fg"] + expected["dp_bg"]), rel=1e-4)


@pytest.mark.parametrize("radius", [3, 10])
def test_path_gradient_is_that_of_the_maximum(radius):
    generator = torch.Generator().manual_seed(0)
    edge = torch.rand(2, radius + 2, 3 * radius, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(path_affinity(edge, radius).shape, generator=generator, dtype=torch.float64)
    (path_affinity(edge, radius) * weight).sum().backward()
    other = edge.detach().clone().requires_grad_()
    rows = []
    far = radius - 1
    for path in disc_paths(radius):
        cells = [
            other[:, y : y + other.shape[1] - far, far + x : far + x + other.shape[2] - 2 * far] for y, x in path
        ]
        rows.append(1 - torch.stack(cells).amax(0).flatten(1))
    (torch.stack(rows, 1) * weight).sum().backward()
    torch.testing.assert_close(edge.grad, other.grad)


def test_a_batch_without_labels_has_no_loss():
    logits = torch.zeros(1, 1, 8, 12, requires_grad=True)
    nothing = torch.full((1, 8, 12), IGNORE, dtype=torch.uint8)
    loss = irn_loss(logits, torch.ones(1, 2, 8, 12), nothing, radius=3)
    loss.total.backward()
    assert loss.total == 0
    assert logits.grad is not None
    assert logits.grad.eq(0).all()


def test_another_grid_is_refused():
    labels = torch.zeros(1, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="one grid"):
        irn_loss(torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 8, 8), labels)
    with pytest.raises(ValueError, match="one grid"):
        psa_loss(torch.zeros(1, 4, 8, 8), labels)
