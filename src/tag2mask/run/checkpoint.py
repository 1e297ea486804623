"""The state of a training on the disk: one file, from which a training resumes. Loads no Lightning."""

from __future__ import annotations

from pathlib import Path

import torch

from tag2mask.types import UserError

LAST = "last.ckpt"
"""In the folder of a training: its state after its last saved step."""


def steps_done(folder: Path) -> int:
    """The step that ``folder/last.ckpt`` was saved after; 0 where there is none.

    Raises:
        UserError: it is damaged.
    """
    last = folder / LAST
    if not last.exists():
        return 0
    try:
        return int(torch.load(last, map_location="cpu", weights_only=True)["global_step"])
    except Exception as error:  # of a torn file, torch raises whatever comes first, with advice that does not help
        raise UserError(
            f"{last} is damaged; restore a copy of it, or delete it to start this training over"
        ) from error
