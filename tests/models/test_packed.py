"""Weights that oneDNN has ordered give the products of the plain ones, and none that are out of date."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from tag2mask.models import packed
from tag2mask.models.packed import Linear, linear, linear_back, mlp, pack, pack_back
from tag2mask.models.transformer import MLP, Block


def layer(dtype: torch.dtype = torch.float32) -> Linear:
    generator = torch.Generator().manual_seed(0)
    made = Linear(48, 80)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return made.to(dtype).requires_grad_(False)


def tokens(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(1, count, 48, generator=torch.Generator().manual_seed(1)).to(dtype)


def ordered(one: Linear) -> bool:
    return packed._known.get(one.weight) is not None


@pytest.fixture
def products(monkeypatch):
    """Counts the products by ordered weights."""
    found, real = [], packed._product
    monkeypatch.setattr(packed, "_product", lambda *args: found.append(1) or real(*args))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_product_is_the_same(dtype, products):
    one = layer(dtype)
    pack([(one.weight, one.bias)])
    if not ordered(one):
        pytest.skip("this torch has no oneDNN")
    products.clear()
    rows = {}
    for count in (1, 7, 300):
        x = tokens(count, dtype)
        found = one(x)
        assert torch.allclose(found.float(), F.linear(x, one.weight, one.bias).float(), rtol=1e-2, atol=1e-4)
        rows[count] = one(tokens(300, dtype)[:, :count])
    assert torch.equal(rows[7], rows[300][:, :7])  # whatever else is multiplied
    assert len(products) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_way_back_is_the_plain_one(dtype, products):
    one = layer(dtype)
    gradients = torch.randn(70, 80, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = linear_back(gradients, one.weight)
    assert torch.equal(expected, gradients @ one.weight)
    pack([(one.weight, one.bias)])
    pack_back([one.weight])
    if packed._known_back.get(one.weight) is None:
        pytest.skip("this torch has no oneDNN")
    products.clear()
    found = linear_back(gradients, one.weight)
    assert len(products) == 1
    assert torch.allclose(found.float(), expected.float(), rtol=1e-2, atol=1e-4 if dtype == torch.float32 else 0.05)
    one.weight.mul_(2)
    assert torch.equal(linear_back(gradients, one.weight), gradients @ one.weight)
    with torch.enable_grad():
        assert torch.equal(linear_back(gradients, one.weight), gradients @ one.weight)
    assert len(products) == 1


def block(activation: str, dtype: torch.dtype = torch.float32) -> Block:
    """Of width 48, with weights large enough to drive the activation out of its straight part."""
    torch.manual_seed(0)
    made = Block(48, 4, activation)
    for parameter in made.mlp.parameters():
        parameter.data = torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5 * 2
    return made.to(dtype).requires_grad_(False)


def fused(one: MLP) -> bool:
    return packed._known_mlps.get(one.c_fc.weight) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_an_mlp_is_the_plain_one(activation, dtype, products):
    made = block(activation, dtype)
    x = tokens(300, dtype) * 3
    c_fc, c_proj = made.mlp.c_fc, made.mlp.c_proj
    hidden = F.linear(x.double(), c_fc.weight.double(), c_fc.bias.double())
    hidden = F.gelu(hidden) if activation == "gelu" else hidden * torch.sigmoid(1.702 * hidden)
    expected = F.linear(hidden, c_proj.weight.double(), c_proj.bias.double())
    near = float(expected.abs().max()) * (2e-6 if dtype == torch.float32 else 1e-2)
    torch.testing.assert_close(made.mlp(x).double(), expected, atol=near, rtol=0)
    made.pack()
    if not fused(made.mlp):
        pytest.skip("this torch has no oneDNN")
    products.clear()
    torch.testing.assert_close(made.mlp(x).double(), expected, atol=near, rtol=0)
    assert len(products) == 2
    assert torch.equal(made.mlp(x)[:, :7], made.mlp(x[:, :7]))  # whatever else is multiplied


@torch.no_grad()
def test_an_mlp_that_changed_is_not_the_packed_one(products):
    made, x = block("quick_gelu"), tokens(5)
    c_fc, c_proj = made.mlp.c_fc, made.mlp.c_proj
    made.pack()
    if not fused(made.mlp):
        pytest.skip("this torch has no oneDNN")
    for parameter in (c_fc.weight, c_fc.bias, c_proj.weight):
        parameter.mul_(2)
        products.clear()
        changed = made.mlp(x)
        assert not products
        made.pack()  # again, of what they are now
        torch.testing.assert_close(made.mlp(x), changed)
    c_proj.bias.add_(1)  # which is not part of what is packed
    products.clear()
    torch.testing.assert_close(made.mlp(x), changed + 1)
    assert len(products) == 2
    with torch.enable_grad():
        assert mlp(x, c_fc, c_proj) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert mlp(x, c_fc, c_proj) is None
    assert mlp(x.bfloat16(), c_fc, c_proj) is None


@torch.no_grad()
def test_a_block_for_gradients_keeps_what_is_between_its_layers(products):
    made = block("quick_gelu")
    made.pack_both_ways()
    assert not fused(made.mlp)
    products.clear()
    hidden = made.mlp.c_fc(tokens(5))
    linear_back(made.mlp.c_proj(made.mlp.act(hidden))[0], made.mlp.c_proj.weight)
    if ordered(made.mlp.c_fc):
        assert len(products) == 3


@torch.no_grad()
def test_weights_that_changed_are_not_the_ordered_ones(products):
    one, x = layer(), tokens(5)
    pack([(one.weight, one.bias)])
    for change in (lambda: one.weight.mul_(2), lambda: setattr(one.weight, "data", one.weight + 1)):
        change()
        products.clear()
        assert torch.equal(one(x), F.linear(x, one.weight, one.bias))
        assert not products
        pack([(one.weight, one.bias)])  # again, of what they are now
        assert torch.allclose(one(x), F.linear(x, one.weight, one.bias), atol=1e-4)


def test_gradients_and_autocast_go_through_the_plain_weights(products):
    one = layer()
    pack([(one.weight, one.bias)])
    products.clear()
    x = tokens(5).requires_grad_(True)
    linear(x, one.weight, one.bias).sum().backward()
    assert torch.allclose(x.grad, one.weight.sum(0).expand_as(x))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(x, one.weight, one.bias).dtype == torch.bfloat16
    assert not products


@torch.no_grad()
def test_a_torch_without_it_or_with_another_is_as_good(monkeypatch):
    one, made, x = layer(), block("quick_gelu"), tokens(5)
    expected, through = F.linear(x, one.weight, one.bias), made.mlp(x)
    for wrong in (RuntimeError("another signature"), AttributeError("no such operator")):
        with monkeypatch.context() as patch:
            patch.setattr(packed, "_product", lambda *_, wrong=wrong: (_ for _ in ()).throw(wrong))
            pack([(one.weight, one.bias)])
            made.pack()
            assert torch.equal(one(x), expected)
            assert torch.equal(made.mlp(x), through)
    with monkeypatch.context() as patch:
        patch.setattr(packed, "_product", lambda x, weight, bias, *_: torch.zeros(*x.shape[:-1], len(bias)))
        pack([(one.weight, one.bias)])
        made.pack()
        assert torch.equal(one(x), expected)
        assert torch.equal(made.mlp(x), through)


@torch.no_grad()
def test_copies_have_plain_weights_and_the_ordered_ones_go_with_theirs():
    one = layer()
    pack([(one.weight, one.bias)])
    other = copy.deepcopy(one)
    assert not ordered(other)
    assert torch.allclose(other(tokens(5)), one(tokens(5)), atol=1e-4)
    before = len(packed._known)
    pack([(other.weight, other.bias)])
    grown = len(packed._known)
    del other
    assert len(packed._known) == before
    assert grown in (before, before + 1)
