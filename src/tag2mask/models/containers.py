"""The weights in a file: whatever it is packed in, read without running anything, by the names they have there."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tag2mask.models.file_kinds import AGAIN, kind_of, refuse
from tag2mask.models.openai import read_script_archive
from tag2mask.models.torch_files import Inert, read_archive, read_pickle
from tag2mask.run.warn import warn
from tag2mask.safe_pickle import PlainArray
from tag2mask.types import UserError

DEEPEST = 5
"""Containers in containers that are looked into."""

ASIDE = re.compile(
    r"(optim|sched|lr_|scaler|amp|grad|loss|criterion|callback|loop|args|hparams|hyper)", re.IGNORECASE
)
"""What people keep beside weights, by how its name begins."""

AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|avg|shadow)(?:$|[._])|averag", re.IGNORECASE)
"""Names of the mean of many steps' weights, which some keep beside the last ones."""


@dataclass(frozen=True)
class Weights:
    """What a file holds.

    state: tensors by their names there, in the types that they have. about: the metadata of a .safetensors.
    script: it is an archive of TorchScript.
    """

    path: Path
    state: dict[str, Tensor]
    about: Mapping[str, str] = field(default_factory=dict)
    script: bool = False


def read_weights(path: Path) -> Weights:
    """The weights of a file, whatever its name.

    Read are .safetensors, TorchScript archives, and what torch.save wrote, of any age: a state dict, or a checkpoint
    that holds one ("state_dict", "model", ...). Whatever else is in a checkpoint is left out, and nothing is run. Of
    last and averaged weights ("model", "model_ema") the last are taken, with a warning.

    Raises:
        UserError: it is something else, is damaged, or holds several networks' weights.
    """
    kind = kind_of(path)
    try:
        if kind == "safetensors":
            return _read_safetensors(path)
        if kind == "script":
            return Weights(path, read_script_archive(path), script=True)
        value = read_archive(path) if kind == "archive" else read_pickle(path)
        found = list(_state_dicts(value, "", 0))
        modules = list(_modules(value, "", 0))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a file of weights") from error
    except Exception as error:  # whatever a damaged or hostile file provokes, it is the file's fault
        raise _refused(path, error) from error
    return Weights(path, _chosen(path, found, modules, type(value)))


def _read_safetensors(path: Path) -> Weights:
    with safe_open(path, "pt") as file:
        return Weights(path, {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118


def _refused(path: Path, error: Exception) -> UserError:
    said = str(error).strip().splitlines()
    reason = said[0] if said else type(error).__name__
    if isinstance(error, KeyError):
        reason = f"a record {reason} is missing"
    if isinstance(error, EOFError | zipfile.BadZipFile | SafetensorError) or "ran out of input" in reason.lower():
        reason = f"it is cut short or damaged ({reason})"
    if isinstance(error, pickle.UnpicklingError) and "which no weights need" in reason:
        do = "Nothing in it was run; do not open it with other programs, and take the file from its source again"
    else:
        do = f"Nothing in it was run; {AGAIN}"
    return UserError(f"{path}: was not read: {reason}; expected tensors, and what checkpoints keep beside them. {do}")


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach()
    array = value.value if isinstance(value, PlainArray) else value
    if isinstance(array, np.ndarray) and array.dtype.kind in "biuf":
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    return None


def _tensors(value: Mapping[Any, Any]) -> dict[str, Tensor]:
    found = ((name, _tensor(each)) for name, each in value.items() if isinstance(name, str))
    return {name: tensor for name, tensor in found if tensor is not None}


def _inside(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """What a container holds, by its place."""
    if isinstance(value, Inert) and isinstance(value.state, dict):
        yield place, value.state
    if isinstance(value, dict):
        for name, each in value.items():
            if isinstance(name, str) and not ASIDE.match(name):
                yield f"{place}.{name}" if place else name, each
    elif isinstance(value, list | tuple) and len(value) <= 16:
        for index, each in enumerate(value):
            yield f"{place}[{index}]", each


def _is_module(value: Any) -> bool:
    state = value.state if isinstance(value, Inert) else None
    return isinstance(state, dict) and {"_parameters", "_modules"} <= state.keys()


def _state_dicts(value: Any, place: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The state dicts in what was unpickled: a dict of tensors that holds no other such dict but aside."""
    if depth > DEEPEST or _is_module(value) or not isinstance(value, dict | list | tuple):
        return
    inner = [each for at, part in _inside(value, place) for each in _state_dicts(part, at, depth + 1)]
    own = _tensors(value) if isinstance(value, dict) else {}
    dotted = any("." in name for name in own)
    if own and (dotted or (not inner and depth == 0)):
        yield place, own
    yield from inner


def _modules(value: Any, place: str, depth: int) -> Iterator[tuple[str, str]]:
    """Pickled networks, as (place, class)."""
    if _is_module(value):
        yield place, value.called
    elif depth <= DEEPEST and isinstance(value, dict | list | tuple):
        for at, part in _inside(value, place):
            yield from _modules(part, at, depth + 1)


def _chosen(
    path: Path, found: list[tuple[str, dict[str, Tensor]]], modules: list[tuple[str, str]], kind: type
) -> dict[str, Tensor]:
    """The one state dict that is meant."""
    if not found and modules:
        place, name = modules[0]
        where = f"under {place!r} " if place else ""
        raise refuse(
            path,
            f"a whole pickled network ({where}the class {name}), which only its own code can open",
            "where it was made, save its weights alone: torch.save(model.state_dict(), FILE)",
        )
    if not found:
        what = "an object" if issubclass(kind, Inert) else f"a {kind.__name__}"
        raise refuse(path, f"{what} without named tensors", "expected a state dict, or a checkpoint that holds one")
    distinct: list[tuple[str, dict[str, Tensor]]] = []
    for place, state in found:
        if not any(_equal(state, other) for _, other in distinct):
            distinct.append((place, state))
    last = [each for each in distinct if not AVERAGED.search(each[0])]
    if len(distinct) > 1 and len(last) != 1:
        listed = ", ".join(f"{place or 'the top'} ({len(state)} tensors)" for place, state in distinct)
        raise UserError(
            f"{path}: holds the weights of {len(distinct)} networks: {listed}; expected one. Save the one you mean "
            f"alone: torch.save({_path(distinct[0][0])}, FILE)"
        )
    if len(distinct) > 1:
        others = ", ".join(place for place, _ in distinct if place != last[0][0])
        warn(
            f"{path}: the weights under {last[0][0] or 'the top'} are taken, not the averaged ones under {others}; "
            f"for those, save them alone: torch.save({_path(others.split(', ')[0])}, FILE)"
        )
        return last[0][1]
    return distinct[0][1]


def _path(place: str) -> str:
    return "checkpoint" + "".join(f"[{part!r}]" for part in place.split(".")) if place else "checkpoint"


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape and torch.equal(one[name], other[name]) for name in one
    )


def prefix_of(names: Iterable[str], anchor: str, path: Path) -> str | None:
    """What stands before a network's names in a file ("module.", "encoder."), known by one of them; None: not there.

    Of last and averaged weights ("ema.") it is that of the last, with a warning.

    Raises:
        UserError: the file holds several such networks.
    """
    found = sorted({name[: -len(anchor)] for name in names if name == anchor or name.endswith(f".{anchor}")})
    last = [prefix for prefix in found if not AVERAGED.search(prefix)]
    if len(found) > 1 and len(last) == 1:
        warn(f"{path}: the weights under {last[0]!r} are taken, not the averaged ones")
        return last[0]
    if len(found) > 1:
        listed = ", ".join(repr(prefix) if prefix else "no prefix" for prefix in found)
        raise UserError(
            f"{path}: holds {len(found)} networks of one kind, under {listed}; expected one. Save the tensors of the "
            "one you mean in a file of their own"
        )
    return found[0] if found else None
