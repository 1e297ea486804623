"""Reading OpenAI's ``.pt`` files: a plain state dict, or the TorchScript archive that OpenAI ships, never run."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tag2mask.models.unpickle import STORAGES, RestrictedUnpickler, Sealed, rebuild_tensor
from tag2mask.types import UserError

LARGEST_PICKLE = 64 * 2**20  # bytes; that of OpenAI's largest model has under two million
DEEPEST = 32  # modules in modules


def read_openai_pt(path: str | Path) -> dict[str, Tensor]:
    """The state dict in an OpenAI ``.pt`` file, by OpenAI's names, in the file's own types.

    Raises:
        UserError: where the file is damaged, or holds anything but tensors, numbers and modules.
    """
    path = Path(path)
    try:
        if _is_script(path):
            return read_script_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected an OpenAI .pt file") from error
    except Exception as error:  # whatever a damaged or hostile file provokes, it is the file's fault
        raise _refused(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    if not isinstance(state, dict):
        raise _refused(path, f"a {type(state).__name__} where a state dict was expected")
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def _refused(path: Path, why: str) -> UserError:
    return UserError(
        f"{path}: was not read: {why}; expected OpenAI's .pt (a state dict or a TorchScript archive). "
        "Nothing in it was run; take the file from its source again"
    )


def _is_script(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def read_script_archive(path: str | Path) -> dict[str, Tensor]:
    """The parameters and buffers of a TorchScript archive, by their dotted names; its code is never looked at.

    Raises:
        UserError: where the archive asks for anything else, or its records do not add up.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            root = _ArchiveReader(archive, path.stat().st_size).load()
        state: dict[str, Tensor] = {}
        _collect(root, "", state, 0)
    except Exception as error:  # as above
        raise _refused(path, str(error) or type(error).__name__) from error
    if not state:
        raise _refused(path, "an archive without tensors")
    return state


class _Module:
    """Stand-in for every scripted module: it only holds attributes."""


class _ArchiveReader:
    """Unpickles ``data.pkl`` of one archive, its tensors taken from the records beside it."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self.archive = archive
        self.records = {info.filename: info for info in archive.infolist()}
        roots = [name for name in self.records if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(roots) != 1 or len(self.records) != len(archive.infolist()):
            raise pickle.UnpicklingError("an archive with several roots or records of one name")
        self.root = roots[0].removesuffix("data.pkl")
        self.left = size  # records are stored as they are: together they never exceed the file, or it is a bomb
        self.storages: dict[str, Tensor] = {}

    def load(self) -> Any:
        order = self.records.get(f"{self.root}byteorder")
        if order is not None and self.archive.read(order) != b"little":
            raise pickle.UnpicklingError("an archive in big-endian byte order")
        pickled = self.records[f"{self.root}data.pkl"]
        if pickled.file_size > LARGEST_PICKLE:
            raise pickle.UnpicklingError(f"a data.pkl of {pickled.file_size} bytes")
        with self.archive.open(pickled) as stream:
            return _ScriptUnpickler(stream, self).load()

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


class _ScriptUnpickler(RestrictedUnpickler):
    def __init__(self, stream: Any, reader: _ArchiveReader) -> None:
        names: dict[tuple[str, str], object] = {
            ("torch._utils", "_rebuild_tensor_v2"): Sealed(rebuild_tensor),
            ("collections", "OrderedDict"): OrderedDict,
        }
        names |= {("torch", name): dtype for name, dtype in STORAGES.items()}
        for kind in ("int", "double", "bool", "tensor"):
            names["torch.jit._pickle", f"build_{kind}list"] = Sealed(lambda data: data)
        names["torch.jit._pickle", "restore_type_tag"] = Sealed(lambda data, _: data)
        super().__init__(stream, names)
        # made anew for each file: a pickle may write attributes to a class it was given
        self.module = type("Module", (_Module,), {})
        self.reader = reader

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return self.module
        return super().find_class(module, name)

    def persistent_load(self, reference: Any) -> Tensor:
        return self.reader.storage(reference)


def _collect(module: object, prefix: str, state: dict[str, Tensor], depth: int) -> None:
    if depth > DEEPEST or not isinstance(module, _Module):
        raise pickle.UnpicklingError("a root that is no module" if depth == 0 else "modules nested in themselves")
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            state[f"{prefix}{name}"] = value
        elif isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", state, depth + 1)
