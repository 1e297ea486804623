"""The file that a fit leaves its network in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

from tag2mask.run.files import write_atomic


def keep_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a network's state as safetensors, whole or not at all.

    state: tensors of any shape, by name; each is written as it is.

    Raises:
        OSError: the disk is full or read-only.
    """
    kept = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    write_atomic(path, safetensors.torch.save(kept), sync=True)
