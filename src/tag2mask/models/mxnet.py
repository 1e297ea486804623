"""Reading MXNet's ``.params`` files without MXNet: the only public form of ResNet-38's ImageNet weights.

A file is a list of dense arrays and a list of their names, all little-endian:

    uint64 0x112, uint64 0, uint64 n, n arrays, uint64 n, n times (uint64 length, name)

An array begins with the magic number of its version, or in the oldest version with its count of dimensions; then
come its sizes, where it was computed, the type of its numbers, and the numbers.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path

import torch
from torch import Tensor

from tag2mask.types import UserError

LIST = 0x112
SECOND, FIRST = 0xF993FAC9, 0xF993FAC8  # versions with 64-bit sizes; the second says dense or sparse
TYPES = (torch.float32, torch.float64, torch.float16, torch.uint8, torch.int32, torch.int8, torch.int64)
MOST_DIMENSIONS = 8


class _DamagedError(Exception):
    """The file is not what it should be."""


class _Reader:
    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.at = 0

    def skip(self, count: int) -> int:
        """Go on by so many bytes, and where they began."""
        start = self.at
        if count < 0 or start + count > len(self.data):
            raise _DamagedError("it ends too early")
        self.at += count
        return start

    def numbers(self, code: str, count: int = 1) -> tuple[int, ...]:
        layout = f"<{count}{code}"
        return struct.unpack_from(layout, self.data, self.skip(struct.calcsize(layout)))

    def array(self) -> Tensor:
        (magic,) = self.numbers("I")
        if magic == SECOND and self.numbers("i") != (0,):
            raise _DamagedError("it holds a sparse array")
        wide = magic in (FIRST, SECOND)
        (dimensions,) = self.numbers("I") if wide else (magic,)
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise _DamagedError(f"it holds an array of {dimensions} dimensions")
        shape = self.numbers("q" if wide else "I", dimensions)
        self.numbers("i", 2)  # the device
        (kind,) = self.numbers("i")
        if not 0 <= kind < len(TYPES) or min(shape) < 1:
            raise _DamagedError(f"it holds an array of type {kind} and shape {shape}")
        dtype, count = TYPES[kind], math.prod(shape)
        start = self.skip(count * dtype.itemsize)
        # numbers may begin anywhere in the file, so they are copied before they are read as a type
        raw = torch.frombuffer(self.data, dtype=torch.uint8, count=count * dtype.itemsize, offset=start)
        return raw.clone().view(dtype).view(shape)

    def name(self) -> str:
        (length,) = self.numbers("Q")
        start = self.skip(length)
        return self.data[start : start + length].decode("ascii", "replace")


def read_params(path: Path) -> dict[str, Tensor]:
    """The arrays of a ``.params`` file by their names ("arg:conv1a_weight").

    Raises:
        UserError: if the file cannot be read or is not of this format.
    """
    try:
        reader = _Reader(bytearray(path.read_bytes()))
        if reader.numbers("Q", 2)[0] != LIST:
            raise _DamagedError("it does not begin as MXNet's files do")
        (count,) = reader.numbers("Q")
        if count > len(reader.data):
            raise _DamagedError(f"it says that it holds {count} arrays")
        arrays = [reader.array() for _ in range(count)]
        (named,) = reader.numbers("Q")
        names = [reader.name() for _ in range(named)] if named == count else []
        if len(set(names)) != count:
            raise _DamagedError("it does not name each of its arrays")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected an MXNet .params file") from error
    except _DamagedError as error:
        raise UserError(f"{path}: was not read: {error}; expected an MXNet .params file; fetch it again") from error
    return dict(zip(names, arrays, strict=True))


_UNIT = re.compile(r"(res|bn)([2-7])(?:a|b(\d))_(branch\d\w*?)_(\w+)")
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}


def wideresnet_state(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """ResNet-38's arrays by the names of ``models.wideresnet``: ``res4b2_branch2a_weight`` -> ``b4_2.conv_branch2a``.

    Args:
        arrays: as ``read_params`` gives them.

    Returns:
        float32 tensors by our names; the classifier of images is left out.
    """
    state: dict[str, Tensor] = {}
    for full, value in arrays.items():
        name = full.split(":", 1)[-1]
        if match := _UNIT.fullmatch(name):
            kind, stage, unit, branch, rest = match.groups()
            block = f"b{stage}_{unit}" if unit else f"b{stage}"
            own = f"{block}.{'conv' if kind == 'res' else 'bn'}_{branch}.{_NORM.get(rest, rest)}"
        elif name == "conv1a_weight":
            own = "conv1a.weight"
        elif name.startswith("bn7_"):
            own = f"bn7.{_NORM.get(name.removeprefix('bn7_'), name)}"
        else:
            continue
        state[own] = value.float()
    return state
