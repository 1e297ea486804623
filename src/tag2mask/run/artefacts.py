"""Where the artefacts of an image lie in a run folder, by the image's id."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tag2mask.types import UserError

__all__ = ["CHECKPOINTS", "CONFIDENCE", "KINDS", "MASKS", "SCORES", "SEEDS", "artefact", "check_id", "ids_of"]

SEEDS = "seeds"
MASKS, CONFIDENCE, SCORES, CHECKPOINTS = "masks", "confidence", "scores", "checkpoints"

_SUFFIX = {MASKS: ".png", CONFIDENCE: ".png", SCORES: ".npz"}
KINDS = tuple(_SUFFIX)
"""Those that an image has, the mask first: an image without one is not done."""


def artefact(run: Path, kind: str, id: str) -> Path:
    """Where an image's artefact of a kind is or will be. Raises UserError as :func:`check_id`."""
    # by string, not with_suffix: an id may hold dots
    return run / kind / (check_id(id) + _SUFFIX[kind])


def ids_of(run: Path, kind: str) -> Iterator[str]:
    """The ids that have an artefact of a kind, in no order, as the folder is walked."""
    top, suffix = run / kind, _SUFFIX[kind]
    for root, _, files in os.walk(top):
        inside = Path(root).relative_to(top)
        for name in files:
            # temporary files end in .tmp
            if name.endswith(suffix):
                yield (inside / name).as_posix()[: -len(suffix)]


def check_id(id: str) -> str:
    """The id itself, if it can name files inside a folder.

    Raises:
        UserError: it is empty, absolute, has "..", "." or empty parts, a backslash or a NUL.
    """
    parts = id.split("/")
    if not all(parts) or {".", ".."} & set(parts) or "\\" in id or "\0" in id or PurePosixPath(id).is_absolute():
        raise UserError(f"image id {id!r}: expected a relative path with / between its parts and without . or ..")
    if os.name == "nt" and Path(id).drive:
        raise UserError(f"image id {id!r} begins with a drive; expected a relative path")
    return id
