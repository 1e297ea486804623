"""Reading what ``torch.save`` wrote without running it: zip archives, the older pickles, and bare pickles.

Tensors and arrays are read. Whatever else people keep beside them (an argparse.Namespace, a log, a scheduler) becomes
an inert stand-in of ours: its name is looked up nowhere, and what a pickle does to it has no effect. Names that only
a program needs (``os.system``, ``eval``) end the reading.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tag2mask.models.unpickle import STORAGES, rebuild_tensor, storage_from_bytes
from tag2mask.safe_pickle import PlainArray, RestrictedUnpickler, Sealed, numpy_names

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""With these two numbers begins what torch.save wrote before it made zip archives, and on request still does."""

_PROGRAMS = """asyncio bdb code codeop commands ctypes ftplib http httplib importlib multiprocessing nt os pdb pip
pkgutil popen2 posix profile pty requests runpy shutil smtplib socket subprocess sys timeit trace urllib webbrowser"""
PROGRAMS = frozenset(_PROGRAMS.split())
"""Modules whose names no weights need."""

_RUNS = "__import__ apply breakpoint compile delattr eval exec execfile file globals input open setattr vars"
RUNS = frozenset(_RUNS.split())
PYTHON = frozenset(("builtins", "__builtin__", "io", "_io"))
"""Python's own functions that no weights need, and the modules under whose names they are pickled."""

DTYPES = tuple(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))


class Inert(dict[Any, Any]):
    """What stands for an object that no weights need. It keeps what a pickle puts into it, and does nothing.

    called: its name in the pickle. state: what was set on it.
    """

    called = "object"
    state: Any = None
    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be a key, as any object

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __call__(self, *_: Any, **__: Any) -> Inert:
        """The result of a function that is not there."""
        return Inert()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, _: Any) -> None:
        """As of a list."""

    def extend(self, _: Any) -> None:
        """As of a list."""

    def add(self, _: Any) -> None:
        """As of a set."""


class _Array(PlainArray):
    """An array among other things: one that is none of plain numbers or words is of no interest."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        try:
            super().__setstate__(state)
        except Exception:  # whatever is wrong with it, nobody asks for it
            self.value = None


def _or_inert(function: Callable[..., Any]) -> Sealed:
    """The function, or an inert object where it does not take what it is given."""

    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception:  # as above
            return Inert()

    return Sealed(call)


def _first(data: Any, *_: Any) -> Any:
    """Of a parameter its tensor, of a typed storage the bare one."""
    return data


def _viewed(
    storage: Any, offset: int, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    """A tensor whose storage is bytes without a type."""
    if not isinstance(storage, Tensor) or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a tensor without a storage")
    return rebuild_tensor(storage.view(dtype), offset, size, stride)


def _subclass(function: Any, _kind: Any, args: Any, _state: Any) -> Any:
    """A tensor of a class of its own, as a plain one."""
    return function(*args) if isinstance(function, Sealed) else Inert()


class WeightsUnpickler(RestrictedUnpickler):
    """Reads one pickle of torch.save's.

    storage: (reference) -> flat tensor, for what a pickle keeps beside itself.
    """

    def __init__(self, stream: Any, storage: Callable[[Any], Any] | None = None) -> None:
        tensor = Sealed(rebuild_tensor)
        names: dict[tuple[str, str], object] = {
            **numpy_names(_Array),
            ("torch._utils", "_rebuild_tensor"): tensor,
            ("torch._utils", "_rebuild_tensor_v2"): tensor,
            ("torch._utils", "_rebuild_tensor_v3"): Sealed(_viewed),
            ("torch._utils", "_rebuild_parameter"): Sealed(_first),
            ("torch._utils", "_rebuild_parameter_with_state"): Sealed(_first),
            ("torch._tensor", "_rebuild_from_type_v2"): Sealed(_subclass),
            ("torch.nn.parameter", "Parameter"): Sealed(_first),
            ("torch", "Size"): Sealed(tuple),
            ("torch.storage", "_load_from_bytes"): Sealed(storage_from_bytes),
            ("torch.storage", "UntypedStorage"): torch.uint8,
            ("torch.storage", "TypedStorage"): Sealed(_first),
        }
        core = ("numpy.core.multiarray", "numpy._core.multiarray")
        for odd in (*((module, "scalar") for module in core), ("torch.storage", "_load_from_bytes")):
            function: Any = names[odd]
            names[odd] = _or_inert(function)
        for name, dtype in STORAGES.items():
            names["torch", name] = names["torch.cuda", name] = dtype
        names |= {("torch", name): getattr(torch, name) for name in DTYPES}
        names |= {(module, "OrderedDict"): OrderedDict for module in ("collections", "ordereddict")}
        names |= {("collections", "defaultdict"): Sealed(lambda *_: {})}
        # Python 2's strings were bytes: latin-1 takes all of them
        super().__init__(stream, names, encoding="latin-1")
        self._storage = storage
        self._made: dict[tuple[str, str], type[Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name; never an import."""
        known = self._names.get((module, name))
        if known is not None:
            return known
        first = module.partition(".")[0]
        path = set(name.split("."))
        if first in PROGRAMS or (first in PYTHON and path & RUNS):
            return super().find_class(module, name)
        # made again for each file: a pickle may write attributes to a class it was given
        if (module, name) not in self._made:
            self._made[module, name] = type("Inert", (Inert,), {"called": f"{module}.{name}"})
        return self._made[module, name]

    def persistent_load(self, reference: Any) -> Any:
        """What is kept beside the pickle."""
        if self._storage is None:
            raise pickle.UnpicklingError("a reference to what is not there")
        return self._storage(reference)


def check_memo(stream: Any) -> None:
    """Refuse a pickle that would make the reader reserve much memory for its places; the stream stays where it was.

    Raises:
        pickle.UnpicklingError: a place beyond the number of bytes before it, or it is damaged.
    """
    start = stream.tell()
    try:
        for opcode, argument, position in pickletools.genops(stream):
            if "PUT" in opcode.name and (argument or 0) > (position or 0) - start:
                raise pickle.UnpicklingError(f"a place {argument} that no pickle of this length needs")
    except ValueError as error:
        raise pickle.UnpicklingError(f"it is cut short or damaged ({error})") from error
    stream.seek(start)


class ArchiveReader:
    """One archive of torch.save's or TorchScript's: ``data.pkl``, and tensors in records beside it.

    largest: bytes of data.pkl.
    """

    def __init__(self, archive: zipfile.ZipFile, size: int, largest: int) -> None:
        self.archive = archive
        self.records = {info.filename: info for info in archive.infolist()}
        roots = [name for name in self.records if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(roots) != 1 or len(self.records) != len(archive.infolist()):
            raise pickle.UnpicklingError("an archive with several roots or records of one name")
        self.root = roots[0].removesuffix("data.pkl")
        self.left = size  # records are stored as they are: together they never exceed the file, or it is a bomb
        self.largest = largest
        self.storages: dict[str, Tensor] = {}

    def load(self, unpickler: Callable[[Any, Callable[[Any], Any]], pickle.Unpickler]) -> Any:
        """What data.pkl holds, by an unpickler made of (stream, storage)."""
        order = self.records.get(f"{self.root}byteorder")
        if order is not None and self.archive.read(order) != b"little":
            raise pickle.UnpicklingError("an archive in big-endian byte order")
        pickled = self.records[f"{self.root}data.pkl"]
        if pickled.file_size > self.largest:
            raise pickle.UnpicklingError(f"a data.pkl of {pickled.file_size} bytes")
        stream = io.BytesIO(self.archive.read(pickled))
        check_memo(stream)
        return unpickler(stream, self.storage).load()

    def storage(self, reference: Any) -> Tensor:
        """The flat tensor of a reference ("storage", type, key, device, count)."""
        kind, dtype, key, _, count = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not str(key).isdigit():
            raise pickle.UnpicklingError(f"a reference of kind {kind!r}")
        if key in self.storages:
            return self.storages[key]
        record = self.records[f"{self.root}data/{key}"]
        if record.file_size != count * dtype.itemsize:
            raise pickle.UnpicklingError(
                f"a tensor record of {record.file_size} bytes for {count} numbers of {dtype}"
            )
        self.left -= record.file_size
        if self.left < 0:
            raise pickle.UnpicklingError("tensor records that together are larger than the file")
        data = bytearray(self.archive.read(record))
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        self.storages[key] = flat
        return flat


def read_archive(path: Path) -> Any:
    """What a zip archive of torch.save's holds. Raises whatever a damaged or hostile file provokes."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        return ArchiveReader(archive, size, size).load(WeightsUnpickler)


def read_pickle(path: Path) -> Any:
    """What a file holds that torch.save wrote as pickles, or that is one pickle. Raises as ``read_archive``."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        first = _next(stream)
        if first != MAGIC:
            return first
        protocol, about = _next(stream), _next(stream)
        if protocol != PROTOCOL or not isinstance(about, dict) or not about.get("little_endian", True):
            raise pickle.UnpicklingError(f"torch's format {protocol} is not known, or in big-endian byte order")
        return _Legacy(stream).load()


def _next(stream: Any, storage: Callable[[Any], Any] | None = None) -> Any:
    check_memo(stream)
    return WeightsUnpickler(stream, storage).load()


class _Legacy:
    """A pickle whose tensors' numbers follow it."""

    def __init__(self, stream: mmap.mmap) -> None:
        self.stream = stream
        self.left = len(stream)
        self.storages: dict[str, Tensor] = {}

    def load(self) -> Any:
        value = _next(self.stream, self.storage)
        keys = _next(self.stream)
        if not isinstance(keys, list) or set(keys) != self.storages.keys() or len(set(keys)) != len(keys):
            raise pickle.UnpicklingError("other storages than its tensors need")
        for key in keys:
            flat = self.storages[key]
            (count,) = struct.unpack("<q", self.stream.read(8))
            data = bytearray(self.stream.read(flat.nbytes))
            if count != len(flat) or len(data) != flat.nbytes:
                raise pickle.UnpicklingError(f"{count} numbers where {len(flat)} were announced")
            if data:
                flat.copy_(torch.frombuffer(data, dtype=flat.dtype))
        return value

    def storage(self, reference: Any) -> Any:
        """The flat tensor of a reference ("storage", type, key, device, count, view), filled later."""
        if reference[0] == "module":  # the class of a pickled network, with its source text
            return reference[1]
        kind, dtype, key, _, count, *view = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(count, int) or count < 0:
            raise pickle.UnpicklingError(f"a reference of kind {kind!r}")
        if any(view):
            raise pickle.UnpicklingError("a storage that is a part of another one, which torch no longer writes")
        if key not in self.storages:
            self.left -= count * dtype.itemsize
            if self.left < 0:
                raise pickle.UnpicklingError("tensors that together are larger than the file, cut short")
            self.storages[key] = torch.empty(count, dtype=dtype)
        if self.storages[key].dtype != dtype or len(self.storages[key]) != count:
            raise pickle.UnpicklingError("one storage under two types")
        return self.storages[key]
