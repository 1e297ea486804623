"""Networks built for their shapes alone, before weights from a file take every parameter's place.

PyTorch has the device "meta" for this, but there the least arithmetic, and drawing normal numbers, loads its
compiler: seconds before the first picture. So nothing is drawn or computed there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


def drawn(*shape: int, std: float) -> nn.Parameter:
    """A parameter of normal numbers of mean 0; within ``shapes_only`` of no numbers."""
    values = torch.empty(shape)
    return nn.Parameter(values if values.is_meta else torch.randn(shape) * std)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules that are made in here have parameters without numbers, on the device "meta"."""
    with torch.device("meta"), _NoNormalNumbers():
        yield


class _NoNormalNumbers(TorchFunctionMode):
    """Leaves out ``nn.init.normal_``, which modules call as they are made."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **kwargs)
