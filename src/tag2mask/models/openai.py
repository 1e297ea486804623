"""Reading TorchScript archives, which is what OpenAI ships its CLIPs as, without running them."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from tag2mask.models.torch_files import ArchiveReader
from tag2mask.models.unpickle import STORAGES, rebuild_tensor
from tag2mask.safe_pickle import RestrictedUnpickler, Sealed

LARGEST_PICKLE = 64 * 2**20  # bytes; that of OpenAI's largest model has under two million
DEEPEST = 32  # modules in modules


def is_script(path: Path) -> bool:
    """Whether a zip archive is one of TorchScript."""
    with zipfile.ZipFile(path) as archive:
        return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def read_script_archive(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of a TorchScript archive, by their dotted names; its code is never looked at.

    Raises:
        Exception: of any kind, where the archive asks for anything else, or its records do not add up.
    """
    with zipfile.ZipFile(path) as archive:
        root = ArchiveReader(archive, path.stat().st_size, LARGEST_PICKLE).load(_ScriptUnpickler)
    state: dict[str, Tensor] = {}
    _collect(root, "", state, 0)
    if not state:
        raise pickle.UnpicklingError("an archive without tensors")
    return state


class _Module:
    """Stand-in for every scripted module: it only holds attributes."""


class _ScriptUnpickler(RestrictedUnpickler):
    def __init__(self, stream: Any, storage: Callable[[Any], Any]) -> None:
        names: dict[tuple[str, str], object] = {
            ("torch._utils", "_rebuild_tensor_v2"): Sealed(rebuild_tensor),
            ("collections", "OrderedDict"): OrderedDict,
        }
        names |= {("torch", name): dtype for name, dtype in STORAGES.items()}
        for kind in ("int", "double", "bool", "tensor"):
            names["torch.jit._pickle", f"build_{kind}list"] = Sealed(lambda data: data)
        names["torch.jit._pickle", "restore_type_tag"] = Sealed(lambda data, _: data)
        super().__init__(stream, names)
        # made again for each file: a pickle may write attributes to a class it was given
        self.module = type("Module", (_Module,), {})
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return self.module
        return super().find_class(module, name)

    def persistent_load(self, reference: Any) -> Tensor:
        tensor: Tensor = self.storage(reference)
        return tensor


def _collect(module: object, prefix: str, state: dict[str, Tensor], depth: int) -> None:
    if depth > DEEPEST or not isinstance(module, _Module):
        raise pickle.UnpicklingError("a root that is no module" if depth == 0 else "modules nested in themselves")
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            state[f"{prefix}{name}"] = value
        elif isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", state, depth + 1)
