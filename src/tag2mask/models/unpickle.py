"""Tensors in other people's pickles, read without running these: what ``safe_pickle`` has for arrays, for tensors."""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import torch
from torch import Tensor

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def rebuild_tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """The tensor that lies in a flat ``storage`` from ``offset`` on; a view that repeats elements is refused.

    Raises:
        pickle.UnpicklingError: where storage is no flat tensor, or the view does not fit into it.
    """
    if not isinstance(storage, Tensor) or storage.ndim != 1:
        raise pickle.UnpicklingError("a tensor without a storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise pickle.UnpicklingError(f"a tensor of size {size} and stride {stride}")
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if count and (count > len(storage) or last >= len(storage)):
        raise pickle.UnpicklingError(f"a tensor of size {size} in a storage of {len(storage)} elements")
    return storage.as_strided(size, stride, offset) if count else storage.new_empty(size)


def storage_from_bytes(data: bytes) -> Tensor:
    """A flat tensor from the bytes that torch.save writes, as a tensor inside another pickle carries its numbers.

    Raises:
        pickle.UnpicklingError: they are not stored so, or would run something.
    """
    try:
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # torch's own words advise to run what is inside
        raise pickle.UnpicklingError("a tensor whose numbers are not stored as torch stores them") from None
    return torch.tensor([], dtype=storage.dtype).set_(storage)
