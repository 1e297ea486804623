"""Products by frozen weights that oneDNN has put into its own order once, on a processor.

``F.linear`` has MKL multiply in float32, which is slower than oneDNN's kernels on some processors (by a seventh on an
AMD of 2023), and has oneDNN order the weights of bfloat16 anew at every product. The operators that keep them ordered
are those that torch's own compiler writes into its programs; they have no public name, so this is the one place that
calls them, and where they are missing or do not agree with ``F.linear``, that is taken. What is public was no
substitute in torch 2.13: ``torch.utils.mkldnn.to_mkldnn`` gains a third of it in float32 and a tenth in bfloat16,
TorchScript's ``optimize_for_inference`` nothing, and ``torch.compile`` wants a C++ compiler on the user's machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

_ROWS = 1024  # about as many tokens as an image has; for others the same order is nearly as good


class _Packed(NamedTuple):
    """Ordered weights, and what the plain ones were then."""

    weight: Tensor
    stamp: tuple[int, int]


_known: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of x W^T
_known_back: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of x W


class Linear(nn.Linear):
    """``nn.Linear``, by packed weights where ``pack`` was called for them and no gradients are wanted."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b: (..., I), (O, I), (O,) -> (..., O)."""
    ordered = _find(_known, x, weight)
    return F.linear(x, weight, bias) if ordered is None else _product(x, ordered, bias)


def linear_back(x: Tensor, weight: Tensor) -> Tensor:
    """x W, which is how gradients go back through ``linear``: (R, O), (O, I) -> (R, I)."""
    ordered = _find(_known_back, x, weight)
    return x @ weight if ordered is None else _product(x, ordered, None)


def pack(layers: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Keep ordered copies of (weight (O, I), bias (O,)) for as long as the weights live; as much memory again.

    Weights that are not on a processor, not of float32 or bfloat16, or change later, are multiplied as ever. A change
    that torch does not count, through ``weight.data``, is not seen: change weights in place instead.
    """
    for weight, bias in layers:
        _keep(_known, weight, weight, bias)


def pack_back(weights: Iterable[Tensor]) -> None:
    """``pack`` for ``linear_back``: of weights (O, I)."""
    for weight in weights:
        _keep(_known_back, weight, weight.T, None)


def _keep(known: WeakIdKeyDictionary, weight: Tensor, turned: Tensor, bias: Tensor | None) -> None:
    """Order ``turned``, which is ``weight`` as it is multiplied, unless that is known."""
    packed = known.get(weight)
    if packed is None or packed.stamp != _stamp(weight):
        known.pop(weight, None)
        ordered = _ordered(turned.detach().contiguous(), bias)
        if ordered is not None:
            known[weight] = _Packed(ordered, _stamp(weight))


def _find(known: WeakIdKeyDictionary, x: Tensor, weight: Tensor) -> Tensor | None:
    """The ordered weight, if there is one and x may be multiplied by it."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or x.dtype != weight.dtype:
        return None
    packed = known.get(weight)
    return packed.weight if packed is not None and packed.stamp == _stamp(weight) else None


@torch.no_grad()
def _ordered(weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """The weight as oneDNN wants it, if it can be had and gives the same product."""
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    probe = torch.linspace(-1, 1, 2 * weight.shape[1]).view(2, -1).to(weight.dtype)  # (2, I)
    try:
        ordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        found = _product(probe, ordered, bias)
    except (AttributeError, RuntimeError):  # no oneDNN in this torch, or another signature
        return None
    expected = F.linear(probe, weight, bias)
    near = 1e-3 if weight.dtype == torch.float32 else 0.05
    return ordered if torch.allclose(found, expected, rtol=near, atol=near) else None


def _product(x: Tensor, ordered: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, ordered, bias, "none", [], "")
    return out


def _stamp(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version
