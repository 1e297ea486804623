"""Finding a DINO on this machine: a hub repository, a folder, or a file of the authors' hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tag2mask.models.find_clip import cached_clip
from tag2mask.run.files import read_object
from tag2mask.types import UserError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The first there is taken."""


def find_dino(source: str | Path) -> Path:
    """The folder in Hugging Face layout or the file that ``source`` means.

    Raises:
        UserError: there is none.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    name = str(source)
    cached = cached_clip(name)
    if cached is not None:
        return cached
    short = name.replace("_reg", "_reg4") if name.endswith("_reg") else name
    file = Path(torch.hub.get_dir()) / "checkpoints" / f"{short}_pretrain.pth"
    if name.startswith("dinov2_") and file.is_file():
        return file
    raise UserError(
        f"{name}: is no folder, no file, and no DINO that is on this machine; fetch one with "
        "`tag2mask fetch facebook/dinov2-base` (or -small, -large, dinov2-with-registers-...), or give a folder, or "
        "a file of the authors' hub such as dinov2_vitb14_pretrain.pth"
    )


def weight_file(folder: Path) -> Path:
    """The file of weights in a folder.

    Raises:
        UserError: there is none.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: holds none of {', '.join(WEIGHTS)}; copy the whole folder, or fetch it again")


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / "config.json"
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); expected a DINO's folder in Hugging Face layout"
        ) from error
