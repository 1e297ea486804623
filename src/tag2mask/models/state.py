"""State dicts from files: read without running anything, and fitted to a network whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from tag2mask.models.containers import read_weights
from tag2mask.types import UserError

_COUNTER = "num_batches_tracked"  # of a batch norm; means nothing with a fixed momentum


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights (``containers.read_weights``), in float32. Nothing in the file is run.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    return floats(read_weights(path).state)


def floats(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, of whatever shapes, in float32."""
    return {name: value.float() for name, value in state.items()}


def fit_state(module: nn.Module, state: Mapping[str, Tensor], path: Path, without: tuple[str, ...] = ()) -> None:
    """Load ``state`` into ``module``, whole: every tensor must be there, in its shape, and nothing else.

    without: beginnings of the names that keep what they have, and that the state lacks.

    Raises:
        UserError: naming what is missing, left over, or of another shape, with the sizes.
    """
    wanted = {
        name: value
        for name, value in module.state_dict().items()
        if not name.endswith(_COUNTER) and not name.startswith(without)
    }
    given = {name: value for name, value in state.items() if not name.endswith(_COUNTER)}
    faults = [
        f"{name} is {tuple(given[name].shape)}, expected {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in given and given[name].shape != value.shape
    ]
    faults += [f"{name} is missing" for name in wanted if name not in given]
    faults += [f"{name} has no place" for name in given if name not in wanted]
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise UserError(f"{path}: {'; '.join(faults[:3])}{more}; these are weights of another network")
    module.load_state_dict(dict(given), strict=False)


def state_sha256(module: nn.Module) -> str:
    """The sha256 of all weights of a module, however they were stored."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        if not name.endswith(_COUNTER):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
