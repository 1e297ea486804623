"""The closed-form channel weights against autograd, for every readout, activation, batch and number of classes."""

from __future__ import annotations

import pytest
import torch

from tag2mask.models.clip import VisionTransformer
from tag2mask.models.vjp import channel_weights, read_out, run_last_block


@pytest.fixture(params=["quick_gelu", "gelu"])
def vision(request):
    torch.manual_seed(0)
    tower = VisionTransformer(
        width=24, layers=2, heads=3, patch=4, native_grid=(3, 3), embed=10, activation=request.param
    )
    for p in tower.parameters():  # norms and biases too, so that none of them can be left out unseen
        p.data += 0.2 * torch.randn_like(p)
    return tower.double().requires_grad_(False)


def by_autograd(vision, x, image, cotangents, readout):
    block = vision.blocks[-1]
    activation = block.ln_1(x).detach()
    fed = activation.clone().requires_grad_(True)
    q, k, v = block.attn.qkv(fed)
    out = block.attn.probabilities(q, k) @ v
    middle = x + block.attn.out_proj(out.transpose(1, 2).flatten(2))  # the residual carries no gradient to A
    embedding = read_out(vision, middle + block.mlp(block.ln_2(middle)), readout)[image]
    rows = []
    for cotangent in cotangents:
        (g,) = torch.autograd.grad(embedding @ cotangent, fed, retain_graph=True)
        rows.append(g[image, 1:].mean(0))
    return torch.stack(rows)


@pytest.mark.parametrize("readout", ["patches", "class"])
@pytest.mark.parametrize("classes", [1, 3])
def test_channel_weights_equal_autograd(vision, readout, classes):
    x = torch.randn(2, 1 + 12, 24, dtype=torch.float64)
    cotangents = torch.randn(classes, 10, dtype=torch.float64)
    state = run_last_block(vision, x)
    for image in range(2):
        expected = by_autograd(vision, x, image, cotangents, readout)
        got = channel_weights(vision, state, image, cotangents, readout)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_run_last_block_is_the_block(vision):
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    state = run_last_block(vision, x)
    tokens, weights = vision.last_block(x, need_weights=True)
    torch.testing.assert_close(state.tokens, tokens)
    torch.testing.assert_close(state.attention.mean(1).float(), weights)


def test_a_single_patch_and_a_single_class(vision):
    x = torch.randn(1, 2, 24, dtype=torch.float64)
    cotangent = torch.randn(1, 10, dtype=torch.float64)
    got = channel_weights(vision, run_last_block(vision, x), 0, cotangent, "patches")
    torch.testing.assert_close(got, by_autograd(vision, x, 0, cotangent, "patches"))
