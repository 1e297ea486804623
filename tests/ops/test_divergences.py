"""Distances of distributions against float64 formulas, and what must hold of any."""

from __future__ import annotations

import math
import resource
import sys

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F

from tag2mask.ops.divergences import CONTROLS, DISTANCES, distances
from tag2mask.types import UserError

OF_DISTRIBUTIONS = [name for name in DISTANCES if name not in CONTROLS]
SYMMETRIC = [name for name in DISTANCES if name != "kl"]


def shares(count=9, texts=6, *, sharp=1.0, seed=0):
    dice = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(count, texts, generator=dice)).softmax(-1)


def unit(count, width=5, seed=1):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_pairs(name, rows, texts):
    """Each pair by its formula, in float64."""
    p, t = rows.double().numpy(), texts.double().numpy()
    entropy = lambda x: -np.sum(x * np.log(x))  # noqa: E731

    def one(a, b):
        if name == "js":
            return entropy((a + b) / 2) - (entropy(a) + entropy(b)) / 2
        if name == "kl":
            return np.sum(a * np.log(a / b))
        if name == "kl_sym":
            return np.sum(a * np.log(a / b)) + np.sum(b * np.log(b / a))
        if name == "ws_index":
            return np.abs(np.cumsum(a) - np.cumsum(b)).mean()
        if name == "cos":
            return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        if name == "l2":
            return np.linalg.norm(a - b)
        return ot.emd2(a / a.sum(), b / b.sum(), np.maximum(1 - t @ t.T, 0))

    return np.array([[one(a, b) for b in p] for a in p])


@pytest.mark.parametrize("name", [n for n in DISTANCES if n != "ws_text"])
@pytest.mark.parametrize("sharp", [0.05, 1.0, 4.0])
def test_is_its_formula(name, sharp):
    rows = shares(sharp=sharp)
    expected = by_pairs(name, rows, unit(6))
    np.testing.assert_allclose(distances(name, rows), expected, rtol=2e-4, atol=2e-7)


def test_small_divergences_keep_their_digits():
    """Distributions over 25 texts of cosines in [0, 1] are nearly uniform: what separates them is small."""
    rows = shares(12, 25, sharp=0.01)
    expected = by_pairs("js", rows, unit(25))
    assert 0 < expected[0, 1] < 1e-4
    np.testing.assert_allclose(distances("js", rows), expected, rtol=1e-3, atol=1e-12)


def test_ws_text_is_near_the_cost_of_the_best_transport():
    rows, texts = shares(), unit(6)
    expected = by_pairs("ws_text", rows, texts)
    got = distances("ws_text", rows, texts).numpy()
    np.testing.assert_allclose(got, expected, atol=0.1 * expected.max())
    order = np.argsort(expected.ravel())
    assert np.corrcoef(np.argsort(order), np.argsort(np.argsort(got.ravel())))[0, 1] > 0.95


@pytest.mark.parametrize("name", DISTANCES)
def test_zero_of_equal_rows_and_never_below(name):
    rows = shares(8, seed=2)
    rows[5] = rows[2]
    apart = distances(name, rows, unit(6))
    assert apart.dtype == torch.float32
    assert (apart >= 0).all()
    assert (apart.diagonal() == 0).all()
    assert apart[5, 2] < 1e-6
    assert apart[0, 1] > 1e-4


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric(name):
    apart = distances(name, shares(seed=3), unit(6))
    assert torch.equal(apart, apart.T)


def test_kl_is_not_symmetric():
    apart = distances("kl", shares(seed=3))
    assert (apart - apart.T).abs().max() > 0.01


def test_js_of_what_has_nothing_in_common_is_ln_2():
    apart = distances("js", torch.eye(4))
    assert apart.max() <= math.log(2) + 1e-6
    torch.testing.assert_close(
        apart[~torch.eye(4, dtype=torch.bool)], torch.full((12,), math.log(2)), atol=1e-5, rtol=0
    )
    assert torch.isfinite(distances("kl", torch.eye(4))).all()


def test_the_order_of_the_classes_counts_for_the_index_alone():
    rows, texts = shares(seed=4), unit(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for name in OF_DISTRIBUTIONS:
        before, after = distances(name, rows, texts), distances(name, rows[:, order], texts[order])
        if name == "ws_index":
            assert (before - after).abs().max() > 0.01
        else:
            torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DISTANCES)
def test_strips_and_batches_change_nothing(name, monkeypatch):
    rows, texts = shares(11, seed=5), unit(6)
    whole = distances(name, rows, texts)
    monkeypatch.setattr("tag2mask.ops.divergences._STRIP", 150)  # strips of two rows, or of one
    torch.testing.assert_close(distances(name, rows, texts), whole, rtol=1e-5, atol=1e-7)
    both = distances(name, torch.stack([shares(11, seed=6), rows]), texts)
    torch.testing.assert_close(both[1], whole, rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted otherwise")
def test_many_patches_and_texts_need_little_memory():
    """All pairs of 1024 patches over 92 texts are 386 MB once; never more than 500 MB are held."""
    distances("js", shares(64, 92))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    distances("js", shares(1024, 92))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB


def test_what_is_refused():
    with pytest.raises(UserError, match="did you mean 'js'"):
        distances("jss", shares())
    with pytest.raises(ValueError, match="needs the texts"):
        distances("ws_text", shares())
    with pytest.raises(ValueError, match="expected"):
        distances("js", shares()[0])
