"""A run's masks in the formats that other tools read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tag2mask.data.coco_rle import COCO_STAMP, write_coco
from tag2mask.data.image import BadImage
from tag2mask.data.png import encode_mask, read_mask
from tag2mask.run.about import check_classes, stored_classes
from tag2mask.run.current import Current
from tag2mask.run.files import atomic_path, write_atomic
from tag2mask.run.folder import CHECKPOINTS, CONFIDENCE, MASKS, SCORES, Run
from tag2mask.run.progress import progress as show_progress
from tag2mask.run.warn import warn
from tag2mask.types import Dataset, UserError

FORMATS = ("png", "coco")
MARKER = ".tag2mask-export"
"""An empty file that says that the folder is an export, whose masks may be replaced."""


def export(
    run: Run | Path | str,
    data: Dataset | None,
    to: Literal["png", "coco"],
    out: Path | str,
    *,
    progress: bool = True,
) -> Path:
    """Write the masks of a run in another form and return where they are.

    Only images of ``data`` that have a mask are written, and only masks that are of what ``data`` is now
    (``run.current``); a warning says what was left out. Memory does not grow with their number. Nothing is replaced
    but what an earlier export wrote.

    Args:
        run: the run, or its folder.
        data: the data set that was labelled; it gives file names and classes. For "png" it may be None: all masks
            of the run are written.
        to: "png": a folder of indexed PNGs, ``<id>.png``, with the class set's palette and 255 for ignored
            pixels, as PASCAL VOC has them. "coco": one JSON file of instances with compressed run lengths, one
            annotation a class and image; it appears whole or not at all.
        out: the folder ("png") or the file ("coco").
        progress: show it on stderr.

    Raises:
        UserError: an unknown format, other classes than the run's, no mask to write, or one that is damaged;
            ``out`` holds, or lies among, the images, the run's own files, or anything else that is no export.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    out = Path(out)
    if to not in FORMATS:
        raise UserError(f"cannot export to {to!r}; choose one of {', '.join(FORMATS)}")
    if data is None and to == "coco":
        raise UserError("COCO needs the images' file names; give the data set, or export to png")
    if data is not None:
        check_classes(run, data)
    if to == "png":
        _refuse_folder(out, run, data)
    else:
        refuse_foreign_file(out, COCO_STAMP, "COCO export of tag2mask", "masks.json")
    classes = stored_classes(run) if data is None else data.classes
    masks = _run_masks(run, progress) if data is None else _masks(run, data, progress)
    first = next(masks, None)
    if first is None:
        whose = "" if data is None else f" for any of the {len(data)} images of {data.root}"
        raise UserError(f"{run.path} has no mask{whose}; label them first")
    masks = itertools.chain([first], masks)
    if to == "png":
        write_atomic(out / MARKER, b"")
        for id, _, mask in masks:
            write_atomic(out / f"{id}.png", encode_mask(mask, classes.palette))
        return out
    with atomic_path(out) as path, path.open("w", encoding="utf-8") as handle:
        write_coco(masks, classes, handle)
    return out


def refuse_foreign_file(path: Path, mark: str, kind: str, example: str) -> None:
    """Only what this package wrote may be replaced.

    Args:
        path: where a file shall be written.
        mark: what stands near the beginning of every file of this kind.
        kind: what such a file is called.
        example: a file name to advise.

    Raises:
        UserError: there is a folder, or a file without the mark.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; the {kind} is one file, such as {path / example}")
    if not path.exists():
        return
    if path.is_file():
        with path.open("rb") as file:
            if mark.encode() in file.read(1024):
                return
    raise UserError(f"{path} exists and is no {kind}, so it is not replaced; choose another name, or remove it")


def _refuse_folder(out: Path, run: Run, data: Dataset | None) -> None:
    """Masks named as the images are must not come to lie upon anything but an earlier export."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; masks are written into a folder: choose a new or empty one")
    if data is not None:
        images = {sample.image.parent for sample in data}
    else:
        root = run.noted.get("data_root")
        images = {Path(root)} if isinstance(root, str) and Path(root).is_dir() else set()
    own = {run.path / name for name in (MASKS, CONFIDENCE, SCORES, CHECKPOINTS)}
    place = out.resolve()
    for what, folders in (("the images", images), ("the run's own files", own)):
        for folder in folders:
            there = folder.resolve()
            if place.is_relative_to(there) or there.is_relative_to(place):
                raise UserError(f"{out} is, holds, or lies in {folder}, where {what} are; choose a folder elsewhere")
    if out.is_dir() and not (out / MARKER).is_file():
        found = sorted(path.name for path in out.iterdir())
        if found:
            raise UserError(
                f"{out} is not empty and is no earlier export (it holds {found[0]}); choose a new or empty folder"
            )


def _run_masks(run: Run, progress: bool) -> Iterator[tuple[str, str, NDArray[np.uint8]]]:
    """(id, file name of the mask, mask) of all masks of the run."""
    for id in show_progress(run.ids(), "export", enabled=progress):
        yield id, f"{id}.png", _read(run, id)


def _masks(run: Run, data: Dataset, progress: bool) -> Iterator[tuple[str, str, NDArray[np.uint8]]]:
    """(id, file name relative to the data set's folder, mask)."""
    without = untagged = 0
    current = Current(run)
    for sample in show_progress(data, "export", enabled=progress):
        if (reason := current.why_none(sample)) is not None:
            without += reason == "absent"
            untagged += reason == "absent" and sample.tags is None
            continue
        mask = _read(run, sample.id)
        inside = sample.image.is_relative_to(data.root)
        name = sample.image.relative_to(data.root).as_posix() if inside else sample.image.as_posix()
        yield sample.id, name, mask
    if 0 < without < len(data):
        tags = f" ({untagged} of them have no tags)" if untagged else ""
        warn(
            f"{without} of {len(data)} images have no mask in {run.path}{tags} and are left out; label them, "
            "export again"
        )
    if note := current.note():
        warn(note)


def _read(run: Run, id: str) -> NDArray[np.uint8]:
    try:
        return read_mask(run.mask_path(id))
    except BadImage as error:
        raise UserError(f"{error}; remove it and run label again") from error
