"""Reading other people's pickles without running them: numpy's arrays, and the little that stands around them.

A pickle is a program. These readers know a short list of names (arrays, and what a caller adds) and give each a
stand-in of our own; any other name ends the reading before it is looked up, let alone called.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tag2mask.types import UserError

__all__ = ["PlainArray", "RestrictedUnpickler", "Sealed", "numpy_names", "plain", "read_npy_dict"]

# what np.save may put into a pickle: no objects but Python's own, no structured types, no dates
NUMPY_KINDS = "biufcSU"


class Sealed:
    """A function as a stand-in that a pickle can call but not write attributes to."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"sets {name!r} on a function")

    def __call__(self, *args: Any) -> Any:
        """What the function gives."""
        return self._function(*args)


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickles what ``names`` lists and nothing else.

    names: {(module, name): stand-in}. Everything else raises pickle.UnpicklingError with the name in the message.
    """

    def __init__(
        self, stream: io.BufferedIOBase, names: Mapping[tuple[str, str], object], encoding: str = "ASCII"
    ) -> None:
        super().__init__(stream, encoding=encoding)
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name; never an import."""
        try:
            return self._names[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which no weights need") from None


class _DType:
    """Stand-in for numpy.dtype: ``dtype("f4", False, True)``, then its byte order as state."""

    def __init__(self, code: str, *_: object) -> None:
        if not isinstance(code, str):
            raise pickle.UnpicklingError("a numpy type that is no string")
        self.code = code
        self.order = "="

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if len(state) < 2 or state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("a numpy type of an unknown kind")
        self.order = str(state[1])

    @property
    def is_object(self) -> bool:
        return self.code in ("O", "O8", "|O")

    def real(self) -> np.dtype[Any]:
        kind = np.dtype(self.code)
        if kind.kind not in NUMPY_KINDS:
            raise pickle.UnpicklingError(f"an array of type {self.code!r}")
        return kind if self.order == "|" else kind.newbyteorder(self.order)  # type: ignore[arg-type]


class PlainArray:
    """Stand-in for numpy.ndarray, turned into a real one by ``plain``."""

    value: object = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if dtype.is_object:
            if shape != () or len(data) != 1:
                raise pickle.UnpicklingError(f"an array of objects of shape {shape}")
            self.value = data[0]
        else:
            self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: bytes | str, dtype: _DType, shape: tuple[int, ...], order: str = "C") -> NDArray[Any]:
    raw = data.encode("latin-1") if isinstance(data, str) else bytes(data)
    return np.frombuffer(raw, dtype.real()).reshape(shape, order=order).copy()  # type: ignore[call-overload]


def _scalar(dtype: _DType, data: bytes | str) -> Any:
    return _array(data, dtype, ())[()]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    # how protocol 2 writes bytes
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return text.encode("latin-1")


def numpy_names(array: type[PlainArray] = PlainArray) -> dict[tuple[str, str], object]:
    """What NumPy's arrays, types and numbers are made of; ``array`` stands for the arrays.

    Made again for each file: a pickle may write attributes to a class it was given.
    """

    class Array(array):  # type: ignore[misc,valid-type]
        pass

    class DType(_DType):
        pass

    names: dict[tuple[str, str], object] = {
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): DType,
        ("_codecs", "encode"): Sealed(_encode),
        ("__builtin__", "bytes"): Sealed(lambda: b""),  # protocol 2 calls it for empty bytes alone
        ("collections", "OrderedDict"): OrderedDict,
    }
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = Sealed(lambda *_: Array())
        names[f"{core}.multiarray", "scalar"] = Sealed(_scalar)
        names[f"{core}.numeric", "_frombuffer"] = Sealed(
            lambda data, dtype, shape, order="C": _array(data, dtype, shape, order)
        )
    return names


def plain(value: Any, depth: int = 0) -> Any:
    """Arrays, numbers and words in the place of their stand-ins, in lists, tuples and dicts.

    Raises:
        pickle.UnpicklingError: it holds something else.
    """
    if depth > 20:
        raise pickle.UnpicklingError("containers nested more than 20 deep")
    if isinstance(value, PlainArray):
        return plain(value.value, depth + 1)
    if isinstance(value, dict):
        return {plain(k, depth + 1): plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(v, depth + 1) for v in value)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic | np.ndarray):
        return value
    raise pickle.UnpicklingError(f"a {type(value).__name__}")


def read_npy_dict(path: str | Path) -> dict[Any, Any]:
    """The dict in a ``.npy`` file (``np.save(path, {...})``).

    Arrays, strings, numbers, lists and dicts are read; nothing is imported or run.

    Raises:
        UserError: where the file holds something else, or is damaged.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else _header_2_0
            shape, _, dtype = read_header(file)
            if shape != () or dtype != np.dtype(object):
                raise pickle.UnpicklingError(f"an array of shape {shape} and type {dtype}, not a dict")
            value = plain(RestrictedUnpickler(file, numpy_names()).load())
            if not isinstance(value, dict):
                raise pickle.UnpicklingError(f"a {type(value).__name__}, not a dict")
            return value
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a .npy file with a dict") from error
    except Exception as error:
        # whatever a damaged or hostile file provokes, it is the file's fault
        raise UserError(
            f"{path}: was not read: {error}; expected a dict of arrays written by np.save. "
            "Convert it where you trust it, or leave it out"
        ) from error


def _header_2_0(file: io.BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    return np.lib.format.read_array_header_2_0(file)
