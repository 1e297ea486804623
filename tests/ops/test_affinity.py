"""Affinity and propagation against loops and matrix powers written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tag2mask.ops.affinity import propagate, sinkhorn, symmetric_affinity


def positive(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3 + 0.01


def by_loop(attention, rounds):
    """Columns first, then rows."""
    a = attention.copy()
    for _ in range(rounds):
        for j in range(a.shape[1]):
            a[:, j] /= a[:, j].sum()
        for i in range(a.shape[0]):
            a[i] /= a[i].sum()
    return a


@pytest.mark.parametrize("rounds", [0, 1, 2, 3])
def test_sinkhorn_is_columns_then_rows(rounds):
    a = positive(7, 7)
    np.testing.assert_allclose(sinkhorn(a, rounds).numpy(), by_loop(a.numpy(), rounds), rtol=1e-10)


def test_three_rounds_unless_told_otherwise():
    a = positive(7, 7)
    assert not torch.allclose(sinkhorn(a, 3), sinkhorn(a, 4), atol=1e-8)
    assert torch.equal(sinkhorn(a), sinkhorn(a, 3))
    assert torch.equal(symmetric_affinity(a), symmetric_affinity(a, 3))


def test_sinkhorn_of_a_stack_is_matrix_by_matrix():
    a = positive(2, 5, 5)
    out = sinkhorn(a)
    for one, got in zip(a, out, strict=True):
        np.testing.assert_allclose(got.numpy(), by_loop(one.numpy(), 3), rtol=1e-10)


def test_an_attention_must_be_square():
    with pytest.raises(ValueError, match="square"):
        sinkhorn(positive(3, 4))


def test_symmetric_affinity():
    a = positive(2, 6, 6)
    out = symmetric_affinity(a, 2)
    torch.testing.assert_close(out, out.transpose(1, 2), rtol=0, atol=0)
    for one, got in zip(a.numpy(), out, strict=True):
        d = by_loop(one, 2)
        np.testing.assert_allclose(got.numpy(), (d + d.T) / 2, rtol=1e-10)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_propagation_is_a_matrix_power_from_the_left(steps):
    affinity, maps = positive(5, 5), positive(3, 5, seed=1)  # not symmetric, so that a lost transpose is seen
    power = np.linalg.matrix_power(affinity.numpy(), steps)
    expected = np.array([[sum(power[i, j] * m[j] for j in range(5)) for i in range(5)] for m in maps.numpy()])
    np.testing.assert_allclose(propagate(affinity, maps, None, steps).numpy(), expected, rtol=1e-10)


def test_the_mask_cuts_sources_not_targets():
    affinity, maps = positive(5, 5), positive(2, 5, seed=1)
    mask = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]], dtype=torch.float64)
    before = maps.clone()
    power = affinity.numpy() @ affinity.numpy()
    expected = (power @ (maps * mask).numpy().T).T  # cut once, before the first step
    out = propagate(affinity, maps, mask, 2)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-10)
    assert (out > 0).all()  # it spreads beyond the mask
    assert torch.equal(maps, before)
