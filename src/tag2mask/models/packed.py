"""Products by frozen weights that oneDNN has put into its own order once, on a processor.

``F.linear`` has MKL multiply in float32, which is slower than oneDNN's kernels on some processors (by a seventh on an
AMD of 2023), and has oneDNN order the weights of bfloat16 anew at every product. The operators that keep them ordered
are those that torch's own compiler writes into its programs; they have no public name, so this is the one place that
calls them, and where they are missing or do not agree with ``F.linear``, that is taken. What is public was no
substitute in torch 2.13: ``torch.utils.mkldnn.to_mkldnn`` gains a third of it in float32 and a tenth in bfloat16,
TorchScript's ``optimize_for_inference`` nothing, and ``torch.compile`` wants a C++ compiler on the user's machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

P = TypeVar("P")

_ROWS = 1024  # about as many tokens as an image has; for others the same order is nearly as good

Stamp = tuple[tuple[int, int], ...]
"""What tells whether weights have changed."""


class Inner(NamedTuple):
    """An activation f(factor x) / factor, where f is oneDNN's operation with this algorithm ("" for none)."""

    operation: str
    algorithm: str
    factor: float


class _Packed(NamedTuple):
    """An ordered weight, and the stamp of the plain one."""

    weight: Tensor
    stamp: Stamp


class _PackedMLP(NamedTuple):
    """The ordered weights of two layers, the first one's bias, what is between them; the stamp of the plain ones."""

    first: Tensor
    bias: Tensor
    inner: Inner
    second: Tensor
    stamp: Stamp


_known: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of x W^T
_known_back: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of x W
_known_mlps: WeakIdKeyDictionary = WeakIdKeyDictionary()  # by the first layer's weight


class Linear(nn.Linear):
    """``nn.Linear``, by packed weights where ``pack`` was called for them and no gradients are wanted."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b: (..., I), (O, I), (O,) -> (..., O)."""
    packed = _known.get(weight)
    if packed is None or not _fits(x, packed.stamp, weight):
        return F.linear(x, weight, bias)
    return _product(x, packed.weight, bias)


def linear_back(x: Tensor, weight: Tensor) -> Tensor:
    """x W, which is how gradients go back through ``linear``: (R, O), (O, I) -> (R, I)."""
    packed = _known_back.get(weight)
    if packed is None or not _fits(x, packed.stamp, weight):
        return x @ weight
    return _product(x, packed.weight, None)


def mlp(x: Tensor, first: Linear, second: Linear) -> Tensor | None:
    """Both layers and what is between them, if ``pack_mlp`` was called for them and no gradients are wanted."""
    packed = _known_mlps.get(first.weight)
    if packed is None or not _fits(x, packed.stamp, first.weight, first.bias, second.weight):
        return None
    return _products(x, packed, second.bias)


def pack(layers: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Keep ordered copies of (weight (O, I), bias (O,)) for as long as the weights live; as much memory again.

    Weights that are not on a processor, not of float32 or bfloat16, or change later, are multiplied as ever. A change
    that torch does not count, through ``weight.data``, is not seen: change weights in place instead.
    """
    for weight, bias in layers:
        _keep(_known, weight, weight, bias)


def pack_back(weights: Iterable[Tensor]) -> None:
    """``pack`` for ``linear_back``, of weights (O, I)."""
    for weight in weights:
        _keep(_known_back, weight, weight.T, None)


@torch.no_grad()
def _keep(known: WeakIdKeyDictionary, weight: Tensor, turned: Tensor, bias: Tensor | None) -> None:
    """Order ``turned``, which is ``weight`` as it is multiplied, unless that is known."""
    stamp = _stamp(weight)
    if _is_known(known, weight, stamp):
        return
    probe = _probe(turned)
    packed = _proven(
        weight,
        lambda: _Packed(_order(turned), stamp),
        lambda packed: _product(probe, packed.weight, bias),
        lambda: F.linear(probe, turned, bias),
    )
    if packed is not None:
        known[weight] = packed


@torch.no_grad()
def pack_mlp(first: Linear, second: Linear, act: Callable[[Tensor], Tensor], inner: Inner) -> None:
    """``pack`` for ``mlp``. The activation is then part of the first product, and no pass over what that gives.

    Args:
        first: the layer before the activation.
        second: the layer after it.
        act: the activation.
        inner: the same in oneDNN's words. Its factor goes into the weights.
    """
    stamp = _stamp(first.weight, first.bias, second.weight)
    if _is_known(_known_mlps, first.weight, stamp):
        return
    probe, bias, factor = _probe(first.weight), first.bias * inner.factor, inner.factor
    packed = _proven(
        first.weight,
        lambda: _PackedMLP(_order(first.weight * factor), bias, inner, _order(second.weight / factor), stamp),
        lambda packed: _products(probe, packed, second.bias),
        lambda: F.linear(act(F.linear(probe, first.weight, first.bias)), second.weight, second.bias),
    )
    if packed is not None:
        _known_mlps[first.weight] = packed


def _is_known(known: WeakIdKeyDictionary, weight: Tensor, stamp: Stamp) -> bool:
    """Whether what is packed is of the weight as it is; what is of another time is forgotten."""
    packed = known.get(weight)
    if packed is not None and packed.stamp != stamp:
        del known[weight]
    return packed is not None and packed.stamp == stamp


def _probe(weight: Tensor) -> Tensor:
    """Two rows to multiply by a weight (O, I): (2, I)."""
    return torch.linspace(-1, 1, 2 * weight.shape[1]).view(2, -1).to(weight.dtype)


def _proven(
    weight: Tensor, make: Callable[[], P], use: Callable[[P], Tensor], plain: Callable[[], Tensor]
) -> P | None:
    """What was packed, if it can be had and gives what the plain weights give."""
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    try:
        packed = make()
        found = use(packed)
    except (AttributeError, RuntimeError):  # no oneDNN in this torch, or another signature
        return None
    near = 1e-3 if weight.dtype == torch.float32 else 0.05
    return packed if torch.allclose(found, plain(), rtol=near, atol=near) else None


def _fits(x: Tensor, packed: Stamp, *weights: Tensor) -> bool:
    """Whether x may be multiplied by what was packed of the weights."""
    plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or x.dtype != weights[0].dtype
    return not plain and packed == _stamp(*weights)


def _order(weight: Tensor) -> Tensor:
    ordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
    return ordered


def _products(x: Tensor, packed: _PackedMLP, bias: Tensor) -> Tensor:
    hidden = _product(x, packed.first, packed.bias, packed.inner.operation, packed.inner.algorithm)
    return _product(hidden, packed.second, bias)


def _product(x: Tensor, ordered: Tensor, bias: Tensor | None, operation: str = "none", algorithm: str = "") -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, ordered, bias, operation, [], algorithm)
    return out


def _stamp(*weights: Tensor) -> Stamp:
    return tuple((weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights)
