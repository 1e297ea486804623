"""Products by frozen weights that oneDNN has put into its own order once, on a processor.

``F.linear`` has MKL multiply in float32, which is slower than oneDNN's kernels on some processors (by a seventh on an
AMD of 2023), and has oneDNN order the weights of bfloat16 anew at every product. The operators that keep them ordered
are those that torch's own compiler writes into its programs; they have no public name, so this is the one place that
calls them, and where they are missing or do not agree with ``F.linear``, that is taken. What is public was no
substitute in torch 2.13: ``torch.utils.mkldnn.to_mkldnn`` gains a third of it in float32 and a tenth in bfloat16,
TorchScript's ``optimize_for_inference`` nothing, and ``torch.compile`` wants a C++ compiler on the user's machine.

Ordered weights belong to who had them ordered, and are used there alone: last bits differ from those of the plain
weights, and no method's results may depend on which other methods there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROWS = 1024  # about as many tokens as an image has; for others the same order is nearly as good


class Fused(NamedTuple):
    """An activation f(factor x) / factor, where f is oneDNN's operation with this algorithm ("" for none)."""

    operation: str
    algorithm: str
    factor: float


class _MLP(NamedTuple):
    """Two ordered weights and the activation between them, whose factor is in both."""

    first: Tensor
    between: Fused
    second: Tensor


class Packing:
    """Ordered copies of weights, as much memory again.

    Weights that are not on a processor, or neither float32 nor bfloat16, or change later, are multiplied as ever. A
    change that torch does not count, through ``weight.data``, is not seen: change weights in place instead.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, tuple[int, int]]] = {}  # by id: weights, which so live on, and stamps
        self.forward: dict[int, Tensor] = {}
        self.backward: dict[int, Tensor] = {}
        self.mlps: dict[int, _MLP] = {}

    def __reduce__(self) -> tuple[type[Packing], tuple[()]]:
        """A copy is empty: it would be asked for other weights."""
        return Packing, ()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, in this thread, multiply by ordered weights wherever no gradients are wanted."""
        before = _USED.set(self)
        try:
            yield
        finally:
            _USED.reset(before)

    def add(self, weight: Tensor, bias: Tensor) -> None:
        """Order a weight (O, I) for ``linear``."""
        self._add(self.forward, weight, weight, bias)

    def add_back(self, weight: Tensor) -> None:
        """Order a weight (O, I) for ``linear_back``."""
        self._add(self.backward, weight, weight.T, None)

    @torch.no_grad()
    def _add(self, table: dict[int, Tensor], weight: Tensor, as_used: Tensor, bias: Tensor | None) -> None:
        ordered, probe = _order(as_used), _probe(as_used)
        if ordered is not None and _agree(lambda: _product(probe, ordered, bias), F.linear(probe, as_used, bias)):
            table[self._know(weight)] = ordered

    @torch.no_grad()
    def add_mlp(self, first: Linear, second: Linear, act: Callable[[Tensor], Tensor], fused: Fused) -> None:
        """Order two layers for ``mlp``: the activation is then part of the first product, and no pass over it.

        Where that is not to be had, each is ordered for ``linear``.

        Args:
            first: the layer before the activation.
            second: the layer after it.
            act: the activation.
            fused: the same in oneDNN's words.
        """
        ordered, then = _order(first.weight * fused.factor), _order(second.weight / fused.factor)
        if ordered is not None and then is not None:
            packed, probe = _MLP(ordered, fused, then), _probe(first.weight)
            plain = act(F.linear(probe, first.weight, first.bias))
            plain = F.linear(plain, second.weight, second.bias)
            if _agree(lambda: _products(probe, packed, first.bias, second.bias), plain):
                self.mlps[self._know(first.weight)] = packed
                self._know(second.weight)
                return
        for layer in (first, second):
            self.add(layer.weight, layer.bias)

    def holds(self, weight: Tensor) -> bool:
        """Whether a weight was ordered here and is as it was then."""
        known = self._known.get(id(weight))
        return known is not None and known[1] == _stamp(weight)

    def _know(self, weight: Tensor) -> int:
        self._known[id(weight)] = weight, _stamp(weight)
        return id(weight)


_USED: ContextVar[Packing | None] = ContextVar("packing", default=None)


class Linear(nn.Linear):
    """``nn.Linear``, by an ordered weight where there is one."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b: (..., I), (O, I), (O,) -> (..., O)."""
    packing = _packing(x, weight)
    ordered = None if packing is None else packing.forward.get(id(weight))
    return F.linear(x, weight, bias) if ordered is None else _product(x, ordered, bias)


def linear_back(x: Tensor, weight: Tensor) -> Tensor:
    """x W, which is how gradients go back through ``linear``: (R, O), (O, I) -> (R, I)."""
    packing = _packing(x, weight)
    ordered = None if packing is None else packing.backward.get(id(weight))
    return x @ weight if ordered is None else _product(x, ordered, None)


def mlp(x: Tensor, first: Linear, second: Linear) -> Tensor | None:
    """Both layers and what is between them, (..., I) -> (..., O), where they were ordered for it; else None."""
    packing = _packing(x, first.weight)
    packed = None if packing is None or not packing.holds(second.weight) else packing.mlps.get(id(first.weight))
    return None if packed is None else _products(x, packed, first.bias, second.bias)


def _packing(x: Tensor, weight: Tensor) -> Packing | None:
    """What holds the weight here, if anything: not under gradients, which also keeps it out of compiled trainings."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or x.dtype != weight.dtype:
        return None
    packing = _USED.get()
    return packing if packing is not None and packing.holds(weight) else None


def _order(weight: Tensor) -> Tensor | None:
    """The weight as oneDNN wants it, if it can be had."""
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    try:
        ordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
    except (AttributeError, RuntimeError):  # no oneDNN in this torch, or another signature
        return None
    return ordered


def _probe(weight: Tensor) -> Tensor:
    """Two rows to multiply by a weight (O, I): (2, I)."""
    return torch.linspace(-1, 1, 2 * weight.shape[1], device=weight.device).view(2, -1).to(weight.dtype)


def _agree(packed: Callable[[], Tensor], plain: Tensor) -> bool:
    """Whether the products of ordered weights can be had and are those of the plain ones."""
    near = 1e-3 if plain.dtype == torch.float32 else 0.05
    try:
        return torch.allclose(packed(), plain, rtol=near, atol=near * max(1.0, float(plain.abs().max())))
    except (AttributeError, RuntimeError):
        return False


def _products(x: Tensor, packed: _MLP, bias: Tensor, last_bias: Tensor) -> Tensor:
    between = packed.between
    hidden = _product(x, packed.first, bias * between.factor, between.operation, between.algorithm)
    return _product(hidden, packed.second, last_bias)


def _product(x: Tensor, ordered: Tensor, bias: Tensor | None, operation: str = "none", algorithm: str = "") -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, ordered, bias, operation, [], algorithm)
    return out


def _stamp(weight: Tensor) -> tuple[int, int]:
    """What tells whether a weight has changed."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version
