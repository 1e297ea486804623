"""Reading other people's pickles without running them: the few things that weights and CAM files are made of.

A pickle is a program. These readers know a short list of names (tensors, arrays, ordered dicts) and give each a
stand-in of our own; any other name ends the reading before it is looked up, let alone called.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tag2mask import safe_pickle
from tag2mask.safe_pickle import PlainArray, RestrictedUnpickler, Sealed

__all__ = [
    "STORAGES",
    "PlainArray",
    "RestrictedUnpickler",
    "Sealed",
    "numpy_names",
    "plain",
    "read_npy_dict",
    "rebuild_tensor",
]

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


def _storage_from_bytes(data: bytes) -> Tensor:
    # how a tensor inside np.save's pickle carries its numbers (IRN's CAM files): torch.save's own format
    try:
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # torch's own words advise to run what is inside
        raise pickle.UnpicklingError("a tensor whose numbers are not stored as torch stores them") from None
    return torch.tensor([], dtype=storage.dtype).set_(storage)


def _torch_names() -> dict[tuple[str, str], object]:
    return {
        ("torch._utils", "_rebuild_tensor_v2"): Sealed(rebuild_tensor),
        ("torch.storage", "_load_from_bytes"): Sealed(_storage_from_bytes),
    }


def numpy_names(array: type[PlainArray] = PlainArray) -> dict[tuple[str, str], object]:
    """What NumPy's arrays, types and numbers are made of, and tensors beside them; ``array`` stands for the arrays.

    Made anew for each file: a pickle may write attributes to a class it was given.
    """
    return {**safe_pickle.numpy_names(array), **_torch_names()}


def plain(value: Any) -> Any:
    """Arrays, tensors (as arrays), numbers and words in the place of their stand-ins, in lists, tuples and dicts.

    Raises:
        pickle.UnpicklingError: it holds something else.
    """
    return safe_pickle.plain(value, _array_of)


def read_npy_dict(path: str | Path) -> dict[Any, Any]:
    """The dict in a ``.npy`` file, as the field keeps CAMs (``np.save(path, {"keys": ..., "attn_highres": ...})``).

    Arrays, tensors (returned as arrays), strings, numbers, lists and dicts are read; nothing is imported or run.

    Raises:
        UserError: where the file holds something else, or is damaged.
    """
    return safe_pickle.read_npy_dict(path, _torch_names(), _array_of)


def _array_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().numpy().copy()
    raise pickle.UnpicklingError(f"a {type(value).__name__}")
