"""What stands in a run folder before a run begins there: whose it is, who writes in it, and how it is removed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tag2mask.run.artefacts import CHECKPOINTS, KINDS, REPORT_IMAGES, SEEDS, artefact, ids_of, remove_report_images
from tag2mask.run.document import read_document
from tag2mask.run.lock import Lock
from tag2mask.run.settings import describe_differences
from tag2mask.run.shard import Shard, shard_name
from tag2mask.run.warn import warn
from tag2mask.types import UserError

__all__ = [
    "lock_shard",
    "other_settings",
    "own_document",
    "refuse_other_writers",
    "remove_artefacts",
    "remove_figures",
    "warn_of_changes",
]

_FIGURES = ("metrics.json", "report.html")
_MATTERS = ("version", "torch", "crf_engine", "threads", "device", "precision", "batch_size")
"""Circumstances that may move the last bits of a result."""


def own_document(path: Path) -> dict[str, Any] | None:
    """What run.yaml of a folder holds; None in an empty one.

    Raises:
        UserError: the folder is not empty and is no run of ours, or its run.yaml is damaged.
    """
    document = read_document(path)
    if document is None:
        foreign = sorted(name for name in os.listdir(path) if not name.startswith(".") and name != SEEDS)
        if foreign:
            shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
            raise UserError(
                f"{path} is not empty and is no run of ours (it holds {shown}); choose a new or empty folder"
            )
    return document


def other_settings(path: Path, differences: str) -> UserError:
    """The error for a run in the folder that ``differences`` keep from being resumed (``document.may_resume``)."""
    return UserError(
        f"{path} was made {differences}. "
        "Choose another folder, or pass --overwrite to remove what is there and start over"
    )


def lock_shard(path: Path, shard: Shard) -> Lock:
    """The lock of a shard of the run.

    Raises:
        UserError: another process writes it.
    """
    index, count = shard
    what = str(path) if count == 1 else f"shard {index}/{count} of {path}"
    return Lock(path / f".{shard_name(shard)}.lock", what)


def refuse_other_writers(path: Path, own: Shard, *, spare_siblings: bool) -> None:
    """Shards of another count share images with ours; removing a whole run needs it free of all others.

    spare_siblings: let the other shards of the same count work on.

    Raises:
        UserError: another process writes such a shard.
    """
    for lock in path.glob(".*-of-*.lock"):
        index, _, count = lock.name[1:].removesuffix(".lock").partition("-of-")
        sibling = count == str(own[1])
        if sibling and (spare_siblings or index == str(own[0])):
            continue
        Lock(lock, f"shard {index}/{count} of {path}").release()


def warn_of_changes(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn where circumstances differ that may move the last bits of a result."""
    before = {"crf_engine": "torch", **before}  # the only one while none was noted
    both = [key for key in _MATTERS if key in before and key in now]
    changed = describe_differences({key: before[key] for key in both}, {key: now[key] for key in both})
    if changed:
        warn(
            f"{path} was begun under other circumstances: {changed}. "
            "The new results may differ from the earlier ones in a few pixels"
        )


def remove_artefacts(path: Path, whose: Callable[[str], bool], shard: Shard | None = None) -> None:
    """Remove artefacts of the ids chosen by ``whose``, masks first: an image without one is not done.

    shard: with it only that shard's manifest and summary go, and checkpoints and run.yaml stay.

    Raises:
        OSError: something cannot be removed.
    """
    if shard is None:
        for root, _, files in os.walk(path / CHECKPOINTS, topdown=False):
            for name in files:
                os.unlink(os.path.join(root, name))
            os.rmdir(root)
    for kind in KINDS:
        for id in ids_of(path, kind):
            if whose(id):
                artefact(path, kind, id).unlink()
    pattern = "*" if shard is None else shard_name(shard)
    for file in [*path.glob(f"manifest.{pattern}.jsonl"), *path.glob(f"summary.{pattern}.json")]:
        file.unlink()
    remove_figures(path)


def remove_figures(path: Path) -> None:
    """Remove what was measured and shown of the masks: metrics.json and the report."""
    for name in _FIGURES:
        (path / name).unlink(missing_ok=True)
    remove_report_images(path / REPORT_IMAGES)
