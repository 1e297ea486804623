"""GradCAM's pieces: gradients against autograd, normalisation against numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tag2mask.ops.cam import gradcam, min_max, normalise_cam, score_cotangents

SCALE = 7.0


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def texts(count=5):
    return F.normalize(normal(count, 6, seed=1), dim=1)


def scores_written_out(embedding, rows, score):
    cosines = torch.stack([(embedding * row).sum() / embedding.pow(2).sum().sqrt() for row in rows])
    if score == "logits":
        return SCALE * cosines
    e = (SCALE * cosines).exp()
    return e / e.sum()


@pytest.mark.parametrize("score", ["softmax", "logits"])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_cotangents_are_the_gradients(score, count):
    embedding = (3 * normal(6)).requires_grad_(True)  # not of length 1
    values = scores_written_out(embedding, texts(), score)
    expected = [torch.autograd.grad(v, embedding, retain_graph=True)[0] for v in values[:count]]
    got = score_cotangents(embedding.detach().float(), texts().float(), count, SCALE, score)
    torch.testing.assert_close(got, torch.stack(expected).float(), rtol=1e-4, atol=1e-5)
    assert got.abs().max() > 1e-3


def test_gradcam_is_a_rectified_weighted_sum():
    activation = torch.tensor([[1.0, 2.0], [3.0, -4.0], [0.0, 1.0]])  # (N, D)
    weights = torch.tensor([[1.0, 1.0], [-1.0, 0.5]])  # (K, D)
    assert gradcam(activation, weights).tolist() == [[3.0, 0.0, 1.0], [0.0, 0.0, 0.5]]


def test_min_max_is_map_by_map():
    maps = torch.tensor([[2.0, 4.0, 3.0], [-1.0, 0.0, 9.0]])
    expected = torch.tensor([[0.0, 1.0, 0.5], [0.0, 0.1, 1.0]])
    torch.testing.assert_close(min_max(maps), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
def test_a_constant_map_becomes_zero(value):
    assert torch.equal(min_max(torch.full((2, 5), value)), torch.zeros(2, 5))
    assert torch.equal(normalise_cam(torch.full((2, 5), value)), torch.zeros(2, 5))


def test_a_faint_map_reaches_one():
    faint = 1e-7 * torch.tensor([[0.0, 0.25, 1.0], [0.5, 0.0, 1.0]])
    assert min_max(faint).max() < 0.9  # once is not enough
    out = normalise_cam(faint)
    assert (out.amax(1) > 0.99).all()
    torch.testing.assert_close(out, faint / 1e-7, rtol=0, atol=1e-5)
