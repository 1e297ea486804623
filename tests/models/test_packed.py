"""Weights that oneDNN has ordered give the products of the plain ones, where and as long as they are asked for."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F

from tag2mask.models import packed
from tag2mask.models.packed import Linear, Packing, linear, linear_back, mlp
from tag2mask.models.transformer import Block

HALF = [torch.float32, torch.bfloat16]
NONE = "no weights are ordered in this number format here"


def block(activation: str = "quick_gelu", dtype: torch.dtype = torch.float32) -> Block:
    """Of width 48, with weights large enough to drive the activation out of its straight part."""
    generator = torch.Generator().manual_seed(0)
    made = Block(48, 4, activation)
    for parameter in made.parameters():
        scale = 2 * parameter.shape[-1] ** -0.5
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return made.to(dtype).requires_grad_(False)


def tokens(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return 3 * torch.randn(1, count, 48, generator=torch.Generator().manual_seed(1)).to(dtype)


def near(expected: torch.Tensor, dtype: torch.dtype) -> float:
    return float(expected.abs().max()) * (2e-6 if dtype == torch.float32 else 1e-2)


@pytest.fixture
def products(monkeypatch):
    """Counts the products by ordered weights."""
    found, real = [], packed._product
    monkeypatch.setattr(packed, "_product", lambda *args: found.append(1) or real(*args))
    return found


@pytest.mark.parametrize("dtype", HALF)
@torch.no_grad()
def test_the_product_is_the_same(dtype, products):
    one, packing = block(dtype=dtype).mlp.c_fc, Packing()
    packing.add(one.weight, one.bias)
    if not packing.forward:
        pytest.skip(NONE)
    products.clear()
    for count in (1, 7, 300):
        x = tokens(count, dtype)
        expected = F.linear(x.double(), one.weight.double(), one.bias.double())
        with packing.used():
            found = one(x)
        torch.testing.assert_close(found.double(), expected, atol=near(expected, dtype), rtol=0)
    assert len(products) == 3


@pytest.mark.parametrize("dtype", HALF)
@torch.no_grad()
def test_the_way_back_is_the_same(dtype, products):
    one, packing = block(dtype=dtype).mlp.c_fc, Packing()
    packing.add(one.weight, one.bias)
    packing.add_back(one.weight)
    if not packing.backward:
        pytest.skip(NONE)
    gradients = torch.randn(70, 192, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = gradients.double() @ one.weight.double()
    products.clear()
    with packing.used():
        found = linear_back(gradients, one.weight)
    assert len(products) == 1
    torch.testing.assert_close(found.double(), expected, atol=near(expected, dtype), rtol=0)
    assert torch.equal(linear_back(gradients, one.weight), gradients @ one.weight)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_an_mlp_is_the_plain_one(activation, dtype, products):
    made, packing = block(activation, dtype), Packing()
    c_fc, c_proj = made.mlp.c_fc, made.mlp.c_proj
    x = tokens(300, dtype)
    hidden = F.linear(x.double(), c_fc.weight.double(), c_fc.bias.double())
    hidden = F.gelu(hidden) if activation == "gelu" else hidden * torch.sigmoid(1.702 * hidden)
    expected = F.linear(hidden, c_proj.weight.double(), c_proj.bias.double())
    torch.testing.assert_close(made.mlp(x).double(), expected, atol=near(expected, dtype), rtol=0)
    made.pack(packing)
    if not packing.mlps:
        pytest.skip(NONE)
    products.clear()
    with packing.used():
        torch.testing.assert_close(made.mlp(x).double(), expected, atol=near(expected, dtype), rtol=0)
    assert len(products) == 2


@torch.no_grad()
def test_a_block_is_the_plain_one_either_way(products):
    for both_ways in (False, True):
        made, packing, x = block(), Packing(), tokens(30)
        expected = made(x)[0]
        made.pack(packing, both_ways=both_ways)
        assert bool(packing.mlps) != both_ways or not packing.forward
        products.clear()
        with packing.used():
            found = made(x)[0]
        torch.testing.assert_close(found, expected, atol=near(expected, torch.float32), rtol=0)
        if packing.forward:
            assert len(products) == 4


@torch.no_grad()
def test_outside_in_other_threads_and_under_gradients_the_weights_are_the_plain_ones(products):
    """No method's results may depend on which others have ordered the same weights."""
    made, packing, x = block(), Packing(), tokens(5)
    made.pack(packing)
    made.pack(packing, both_ways=True)
    products.clear()
    plain = made(x)[0]
    layers = made.mlp.c_fc, made.mlp.c_proj

    def elsewhere():
        with torch.no_grad():
            assert torch.equal(made(x)[0], plain)

    with packing.used():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        with torch.enable_grad():
            assert mlp(x, *layers) is None
            wanted = x.clone().requires_grad_(True)
            linear(wanted, layers[0].weight, layers[0].bias).sum().backward()
            torch.testing.assert_close(wanted.grad, layers[0].weight.sum(0).expand_as(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert mlp(x, *layers) is None
            assert linear(x, layers[0].weight, layers[0].bias).dtype == torch.bfloat16
        assert mlp(x.double(), *layers) is None
    assert torch.equal(made(x)[0], plain)
    assert not products


@torch.no_grad()
def test_weights_that_changed_are_not_the_ordered_ones(products):
    made, packing, x = block(), Packing(), tokens(5)
    made.pack(packing)
    if not packing.mlps:
        pytest.skip(NONE)
    c_fc, c_proj = made.mlp.c_fc, made.mlp.c_proj
    with packing.used():
        for bias in (c_fc.bias, c_proj.bias):  # which are not held
            bias.add_(1)
            products.clear()
            found = made.mlp(x)
            assert len(products) == 2
            with torch.enable_grad():
                torch.testing.assert_close(found, made.mlp(x), atol=1e-4, rtol=1e-5)
        c_proj.weight.mul_(2)
        products.clear()
        assert torch.equal(made.mlp(x), c_proj(made.mlp.act(c_fc(x))))
        made.attn.in_proj_weight.data = made.attn.in_proj_weight + 1
        made.attn.qkv(x)
        assert not products
    made.pack(packing)  # again, of what they are now
    products.clear()
    with packing.used():
        made(x)
    assert len(products) == 4
    made.bfloat16()
    with packing.used():
        assert made(x.bfloat16())[0].dtype == torch.bfloat16
    assert len(products) == 4


def test_a_copy_is_empty():
    made, packing = block(), Packing()
    made.pack(packing)
    for other in (copy.deepcopy(packing), copy.copy(packing), pickle.loads(pickle.dumps(packing))):
        assert not other.forward
        assert not other.mlps


@torch.no_grad()
def test_a_torch_without_it_or_with_another_is_as_good(monkeypatch):
    made, x = block(), tokens(5)
    expected = made(x)[0]

    def check():
        packing = Packing()
        made.pack(packing)
        made.pack(packing, both_ways=True)
        assert not packing.mlps
        assert not packing.forward
        assert not packing.backward
        with packing.used():
            assert torch.equal(made(x)[0], expected)

    for wrong in (RuntimeError("another signature"), AttributeError("no such operator")):
        with monkeypatch.context() as patch:
            patch.setattr(packed, "_product", lambda *_, wrong=wrong: (_ for _ in ()).throw(wrong))
            check()
    with monkeypatch.context() as patch:
        patch.setattr(packed, "_product", lambda x, weight, *_: torch.zeros(*x.shape[:-1], weight.shape[0]))
        check()


@torch.no_grad()
def test_layers_that_are_not_fused_are_ordered_one_by_one(monkeypatch):
    real = packed._product

    def without_swish(*args):
        if len(args) > 3 and args[3] == "swish":
            raise RuntimeError("no such operation")
        return real(*args)

    monkeypatch.setattr(packed, "_product", without_swish)
    made, packing = block(), Packing()
    made.pack(packing)
    assert not packing.mlps
    assert len(packing.forward) in (0, 4)


def test_a_training_compiles_in_one_piece():
    made = block().requires_grad_(True)
    out, none = torch.compile(made, backend="eager", fullgraph=True)(tokens(5))
    assert none is None
    out.sum().backward()
    assert isinstance(made.mlp.c_fc, Linear)
    assert made.mlp.c_fc.weight.grad.abs().max() > 0
