"""OpenAI's modified ResNet against plain re-statements with torch's functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.models.convert import from_openai_state
from tag2mask.models.tower import Positions
from tag2mask.types import UserError
from tiny_clips import openai_state


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return {name: value.float() for name, value in openai_state("resnet").items()}


@pytest.fixture(scope="module")
def model(state):
    return from_openai_state(openai_state("resnet"))


def pixels(height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def plain_features(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The last stage, from the state dict alone."""

    def conv(x: Tensor, at: str, conv: str, bn: str, **options: int) -> Tensor:
        x = F.conv2d(x, state[f"{at}{conv}.weight"], **options)
        mean, var = state[f"{at}{bn}.running_mean"], state[f"{at}{bn}.running_var"]
        scale = state[f"{at}{bn}.weight"] / (var + 1e-5).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + state[f"{at}{bn}.bias"][:, None, None]

    x = conv(x, "visual.", "conv1", "bn1", stride=2, padding=1).relu()
    x = conv(x, "visual.", "conv2", "bn2", padding=1).relu()
    x = conv(x, "visual.", "conv3", "bn3", padding=1).relu()
    x = F.avg_pool2d(x, 2)
    for stage, blocks in enumerate((1, 2, 1, 1), 1):
        for i in range(blocks):
            at = f"visual.layer{stage}.{i}."
            stride = 2 if stage > 1 and i == 0 else 1
            y = conv(x, at, "conv1", "bn1").relu()
            y = conv(y, at, "conv2", "bn2", padding=1).relu()
            y = conv(F.avg_pool2d(y, stride), at, "conv3", "bn3")
            if i == 0:
                x = conv(F.avg_pool2d(x, stride), at, "downsample.0", "downsample.1")
            x = (x + y).relu()
    return x


def torch_pool(state: dict[str, Tensor], x: Tensor, positions: Tensor) -> Tensor:
    """The pool as OpenAI states it: torch's own multi-head attention with separate projections."""
    s = {name.removeprefix("visual.attnpool."): value for name, value in state.items()}
    x = x.flatten(2).permute(2, 0, 1)  # (N, B, C)
    x = torch.cat([x.mean(0, keepdim=True), x]) + positions[:, None]
    out, _ = F.multi_head_attention_forward(
        query=x[:1],
        key=x,
        value=x,
        embed_dim_to_check=x.shape[-1],
        num_heads=x.shape[-1] // 64,
        q_proj_weight=s["q_proj.weight"],
        k_proj_weight=s["k_proj.weight"],
        v_proj_weight=s["v_proj.weight"],
        in_proj_weight=None,
        in_proj_bias=torch.cat([s["q_proj.bias"], s["k_proj.bias"], s["v_proj.bias"]]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=s["c_proj.weight"],
        out_proj_bias=s["c_proj.bias"],
        use_separate_proj_weight=True,
        training=False,
        need_weights=False,
    )
    return out[0]


@torch.no_grad()
def test_features(model, state) -> None:
    got = model.vision.features(pixels())
    assert got.shape == (2, 256, 2, 3)
    torch.testing.assert_close(got, plain_features(state, pixels()), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_pool_on_the_native_grid(model, state) -> None:
    features = torch.randn(2, 256, 2, 2, generator=torch.Generator().manual_seed(2))
    expected = torch_pool(state, features, state["visual.attnpool.positional_embedding"])
    torch.testing.assert_close(model.vision.pool(features), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pool_on_another_grid(model, state) -> None:
    features = model.vision.features(pixels())
    table = state["visual.attnpool.positional_embedding"]
    for mode in ("bilinear", "bicubic"):
        square = table[1:].T.reshape(1, -1, 2, 2)
        grown = F.interpolate(square, size=(2, 3), mode=mode, align_corners=False).flatten(2)[0].T
        expected = torch_pool(state, features, torch.cat([table[:1], grown]))
        got = model.vision.embedding(pixels(), readout="class", positions=Positions(mode))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_last_stage(model) -> None:
    features = model.vision.features(pixels()).requires_grad_()
    (grad,) = torch.autograd.grad(model.vision.pool(features).square().sum(), features)
    assert (grad.abs().sum((1, 2, 3)) > 0).all()


def test_sizes_are_read_off_the_weights(model) -> None:
    assert [len(stage) for stage in (model.vision.layer1, model.vision.layer2)] == [1, 2]
    assert model.vision.attnpool.heads == 4
    assert model.vision.attnpool.native_grid == (2, 2)
    assert model.vision.patch == 32
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_wrong_shapes(model) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        model.vision.features(torch.zeros(1, 3, 64, 80))
    state = openai_state("resnet")
    state["visual.layer3.0.conv2.weight"] = torch.zeros(32, 32, 1, 1)
    del state["visual.attnpool.q_proj.bias"]
    with pytest.raises(UserError, match=r"layer3\.0\.conv2\.weight is \(32, 32, 1, 1\), expected \(32, 32, 3, 3\)"):
        from_openai_state(state)
