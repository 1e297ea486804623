"""Where the artefacts of an image lie in a run folder, by the image's id."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tag2mask.types import UserError

__all__ = [
    "CHECKPOINTS",
    "CONFIDENCE",
    "KINDS",
    "MASKS",
    "REPORT_IMAGES",
    "SCORES",
    "SEEDS",
    "artefact",
    "check_id",
    "ids_of",
    "remove_report_images",
]

SEEDS = "seeds"
MASKS, CONFIDENCE, SCORES, CHECKPOINTS = "masks", "confidence", "scores", "checkpoints"

_SUFFIX = {MASKS: ".png", CONFIDENCE: ".png", SCORES: ".npz"}
KINDS = tuple(_SUFFIX)
"""Those that an image has, the mask first: an image without one is not done."""

REPORT_IMAGES = "report-images"
"""The folder of the pages that show every image, beside ``report.html``."""

_PAGE, _THUMB = re.compile(r"(all|class\d+)-\d+\.html"), re.compile(r"\d+\.jpg")


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


def remove_report_images(folder: Path) -> list[str]:
    """Remove the pages and small pictures that a report wrote into a folder, and the folder if nothing is left.

    Returns the names of what else is in the folder; that stays.
    """
    if not folder.is_dir():
        return []
    for root, _, files in os.walk(folder, topdown=False):
        inside = Path(root).relative_to(folder).parts
        ours = _PAGE if not inside else _THUMB if inside[0] == "thumbs" and len(inside) == 2 else None
        for name in files:
            if ours is not None and (ours.fullmatch(name) or name.endswith(".tmp")):
                os.unlink(os.path.join(root, name))
        if not os.listdir(root):
            os.rmdir(root)
    return sorted(os.listdir(folder)) if folder.is_dir() else []
