"""CLIP's towers: transformers' own forward is the oracle; every mode against the plain one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tag2mask.models import transformer
from tag2mask.models.clip import CLIPModel, VisionTransformer
from tag2mask.models.convert import from_hf_state
from tag2mask.models.tower import Each, Mean, Positions
from tiny_clips import oracle

BICUBIC = Positions("bicubic")
NEAR = 1e-4
"""Of tokens that reach 15: what float32 loses over four blocks, whatever the order of the sums."""


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def pair(request):
    theirs = oracle(hidden_act=request.param, layer_norm_eps=1e-3)
    return theirs, from_hf_state(theirs.state_dict(), theirs.config.to_dict())


@pytest.fixture(scope="module")
def ours() -> CLIPModel:
    theirs = oracle()
    return from_hf_state(theirs.state_dict(), theirs.config.to_dict())


def pixels(height: int = 40, width: int = 24, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (16, 56)])
@torch.no_grad()
def test_vision_agrees_with_transformers(pair, size) -> None:
    theirs, model = pair
    x = pixels(*size)
    expected = theirs.vision_model(
        x, interpolate_pos_encoding=True, output_attentions=True, output_hidden_states=True
    )
    got = model.vision(x, taps=range(4), attention=Each(4), positions=BICUBIC)
    assert got.grid == (size[0] // 8, size[1] // 8)
    torch.testing.assert_close(got.tokens, expected.last_hidden_state, atol=NEAR, rtol=0)
    for i in range(4):
        torch.testing.assert_close(got.attention[:, i], expected.attentions[i].mean(1), atol=1e-6, rtol=0)
        torch.testing.assert_close(got.taps[i], expected.hidden_states[i + 1], atol=NEAR, rtol=0)
    image = theirs.visual_projection(expected.pooler_output)
    torch.testing.assert_close(model.vision.project(got.tokens[:, 0]), image, atol=NEAR, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (77, 771)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_a_softmax_may_be_written_over_its_scores(dtype, shape) -> None:
    """What attention head by head relies on, torch says nothing of."""
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul_(9).to(dtype)
    expected = scores.softmax(-1)
    torch.softmax(scores, -1, out=scores)
    assert torch.equal(scores, expected)


@torch.no_grad()
def test_attention_in_bfloat16_is_about_as_exact_as_torchs_own(monkeypatch) -> None:
    """Scores are rounded before the softmax, but what comes in and goes out is rounded, too."""
    monkeypatch.setattr(transformer, "cpu_has_bfloat16", lambda: True)
    torch.manual_seed(0)
    attention = transformer.Attention(64, 4)
    torch.nn.init.normal_(attention.in_proj_bias)
    torch.nn.init.zeros_(attention.out_proj.bias)
    x = torch.randn(2, 520, 64) * 2
    exact = attention.double()(x.double())[0]
    half, x = attention.bfloat16(), x.bfloat16()
    found, none = half(x)
    assert none is None
    weighted, mean = half(x, need_weights=True)
    assert torch.equal(found, weighted)  # the same way, whether it is asked for or not
    torch.testing.assert_close(mean.sum(-1), torch.ones(2, 520), atol=1e-2, rtol=0)
    monkeypatch.setattr(transformer, "cpu_has_bfloat16", lambda: False)
    by_torch = half(x)[0]
    errors = [float((each.double() - exact).norm() / exact.norm()) for each in (found, by_torch)]
    assert not torch.equal(found, by_torch)
    assert errors[0] < 2 * errors[1] < 0.04


def test_attention_head_by_head_is_that_of_all_heads(ours, monkeypatch) -> None:
    """Without gradients a processor goes from head to head, and gets the same."""
    block = ours.vision.blocks[1]
    x = torch.randn(2, 13, block.ln_1.weight.shape[0], generator=torch.Generator().manual_seed(2))
    with monkeypatch.context() as patch:
        patch.setattr(transformer, "_head_by_head", None)  # not called
        expected, mean = block(x, need_weights=True)
        q, k, v = block.attn.qkv(x)
        every = block.attn.attend(q, k, v)
    monkeypatch.setattr(block.attn, "probabilities", None)
    with torch.no_grad():
        got, weights = block(x, need_weights=True)
        for found, other in zip(block.attn.attend(q, k, v), every, strict=True):
            torch.testing.assert_close(found, other.detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(got, expected.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(weights, mean.detach(), atol=1e-7, rtol=0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 13))


@torch.no_grad()
def test_text_agrees_with_transformers(pair) -> None:
    theirs, model = pair
    ids = torch.tensor([[1, 2, 3, 9, 0, 0, 0, 0], [1, 5, 9, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 9]])
    expected = theirs.text_projection(theirs.text_model(ids).pooler_output)
    end = torch.tensor([3, 2, 7])
    torch.testing.assert_close(model.text(ids, end), expected, atol=NEAR, rtol=0)
    # what follows the end of the text is never seen
    torch.testing.assert_close(model.text(ids[:1, :4], end[:1]), expected[:1], atol=NEAR, rtol=0)
    embedded = model.text.token_embedding(ids)
    assert torch.equal(model.text.from_embeddings(embedded, end), model.text(ids, end))
    assert torch.equal(model.logit_scale, theirs.logit_scale)


@torch.no_grad()
def test_asking_for_more_changes_nothing(ours) -> None:
    plain = ours.vision(pixels())
    full = ours.vision(pixels(), taps=(1, 3), attention=Each(4))
    torch.testing.assert_close(full.tokens, plain.tokens, atol=NEAR, rtol=0)
    assert sorted(full.taps) == [1, 3]
    assert torch.equal(full.taps[3], full.tokens)
    assert plain.attention is None
    assert full.attention.shape == (2, 4, 16, 16)
    torch.testing.assert_close(full.attention.sum(-1), torch.ones(2, 4, 16))
    last = ours.vision(pixels(), attention=Each(2)).attention
    torch.testing.assert_close(last, full.attention[:, 2:], atol=1e-6, rtol=0)
    mean = ours.vision(pixels(), attention=Mean(3)).attention
    torch.testing.assert_close(mean, full.attention[:, 1:].mean(1), atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_last_block_can_be_run_apart(ours) -> None:
    full = ours.vision(pixels(), attention=Each(4))
    part = ours.vision(pixels(), attention=Mean(3), stop_before_last=True)
    tokens, weights = ours.vision.last_block(part.tokens, need_weights=True)
    torch.testing.assert_close(tokens, full.tokens, atol=NEAR, rtol=0)
    torch.testing.assert_close(weights, full.attention[:, -1], atol=1e-6, rtol=0)
    torch.testing.assert_close(part.attention + weights / 3, full.attention[:, 1:].mean(1), atol=1e-6, rtol=0)
    assert ours.vision.last_block(part.tokens)[1] is None
    assert ours.vision(pixels(), attention=Each(1), stop_before_last=True).attention is None
    each = ours.vision(pixels(), attention=Each(3), stop_before_last=True).attention
    torch.testing.assert_close(each, full.attention[:, 1:3], atol=1e-6, rtol=0)


@torch.no_grad()
def test_value_mode_is_the_value_path_alone(ours) -> None:
    x = ours.vision(pixels(), stop_before_last=True).tokens
    block = ours.vision.blocks[-1]
    normed = F.layer_norm(x, (48,), block.ln_1.weight, block.ln_1.bias, block.ln_1.eps)
    v = normed @ block.attn.in_proj_weight[96:].T + block.attn.in_proj_bias[96:]
    expected = v @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
    torch.testing.assert_close(ours.vision.last_block(x, mode="value")[0], expected, atol=NEAR, rtol=0)


def test_gradients_reach_pixels_prompts_and_the_last_block(ours) -> None:
    x = pixels().requires_grad_()
    out = ours.vision(x, attention=Mean(2))
    (ours.vision.project(out.tokens).square().sum() + out.attention.square().sum()).backward()
    assert x.grad.abs().sum() > 0
    prompt = ours.text.token_embedding(torch.tensor([[1, 5, 6, 9]])).requires_grad_()
    ours.text.from_embeddings(prompt, torch.tensor([3])).sum().backward()
    assert (prompt.grad.abs().sum(-1) > 0).all()
    tokens = ours.vision(pixels(), stop_before_last=True).tokens.requires_grad_()
    for mode in ("full", "value"):
        (grad,) = torch.autograd.grad(ours.vision.last_block(tokens, mode=mode)[0].square().sum(), tokens)
        assert grad.abs().sum() > 0


def test_text_gradients_do_not_run_backwards_in_time(ours) -> None:
    prompt = ours.text.token_embedding(torch.tensor([[1, 5, 6, 9, 2]])).requires_grad_()
    ours.text.from_embeddings(prompt, torch.tensor([2])).sum().backward()
    assert (prompt.grad[0, 3:] == 0).all()


def test_positions(ours) -> None:
    vision: VisionTransformer = ours.vision
    table = vision.positional_embedding
    square = table[1:].reshape(4, 4, 48)
    assert torch.equal(vision.positions((4, 4), Positions()), table)
    # halving with half-pixel centres is the mean of 2x2 cells
    half = vision.positions((2, 2), Positions())
    expected = square.reshape(2, 2, 2, 2, 48).mean((1, 3)).reshape(4, 48)
    torch.testing.assert_close(half[1:], expected, atol=1e-6, rtol=0)
    assert torch.equal(half[0], table[0])
    # rows and columns do not change places
    wide = vision.positions((4, 8), Positions())[1:].reshape(4, 8, 48)
    torch.testing.assert_close(wide[:, 0], square[:, 0], atol=1e-6, rtol=0)
    rounded = vision.positions((3, 5), Positions(round_fp16=True))
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, vision.positions((3, 5), Positions()).half().float())
    assert not torch.equal(rounded, vision.positions((3, 5), Positions()))
    # WeakCLIP: to 8x8 first, then to the image's grid
    via = vision.positions((3, 5), Positions(via=(8, 8)))
    step = F.interpolate(square.permute(2, 0, 1)[None], size=(8, 8), mode="bilinear")
    step = F.interpolate(step, size=(3, 5), mode="bilinear")[0].flatten(1).T
    torch.testing.assert_close(via[1:], step, atol=1e-6, rtol=0)
    assert (via - vision.positions((3, 5), Positions())).abs().max() > 1e-3
    assert (vision.positions((3, 5), BICUBIC) - vision.positions((3, 5), Positions())).abs().max() > 1e-3


@torch.no_grad()
def test_the_image_s_position_setting_is_used(ours) -> None:
    a, b = (ours.vision(pixels(), positions=how).tokens for how in (BICUBIC, Positions()))
    assert (a - b).abs().max() > 1e-3


def test_wrong_shapes_are_refused(ours) -> None:
    for shape in ((3, 40, 24), (1, 1, 40, 24), (1, 3, 41, 24), (1, 3, 40, 20)):
        with pytest.raises(ValueError, match="multiples of the patch"):
            ours.vision(torch.zeros(shape))
    with pytest.raises(ValueError, match="at most 8"):
        ours.text(torch.zeros(1, 9, dtype=torch.int64), torch.tensor([3]))
    with pytest.raises(ValueError, match="this tower has 4"):
        ours.vision(pixels(), attention=Mean(5))
    with pytest.raises(ValueError, match="taps"):
        ours.vision(pixels(), taps=(3,), stop_before_last=True)
    with pytest.raises(ValueError, match="no attention"):
        ours.vision.last_block(torch.zeros(1, 5, 48), mode="value", need_weights=True)
