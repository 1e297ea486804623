"""A run's masks in the formats that other tools read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tag2mask.data.coco_rle import write_coco
from tag2mask.data.image import BadImage
from tag2mask.data.png import encode_mask, read_mask
from tag2mask.run.files import atomic_path, write_atomic
from tag2mask.run.folder import Run
from tag2mask.run.progress import progress as show_progress
from tag2mask.stages.evaluate import check_classes
from tag2mask.types import Dataset, UserError

FORMATS = ("png", "coco")


def export(
    run: Run | Path | str,
    data: Dataset,
    to: Literal["png", "coco"],
    out: Path | str,
    *,
    progress: bool = True,
) -> Path:
    """Write the masks of a run in another form and return where they are.

    Only images of ``data`` that have a mask are written; memory does not grow with their number.

    Args:
        run: the run, or its folder.
        data: the data set that was labelled; it gives file names and classes.
        to: "png": a folder of indexed PNGs, ``<id>.png``, with the class set's palette and 255 for ignored
            pixels, as PASCAL VOC has them. "coco": one JSON file of instances with compressed run lengths, one
            annotation a class and image; it appears whole or not at all.
        out: the folder ("png") or the file ("coco").
        progress: show it on stderr.

    Raises:
        UserError: an unknown format, other classes than the run's, no mask to write, or one that is damaged.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    out = Path(out)
    if to not in FORMATS:
        raise UserError(f"cannot export to {to!r}; choose one of {', '.join(FORMATS)}")
    if to == "coco" and out.is_dir():
        raise UserError(f"{out} is a folder; COCO is one file, such as {out / 'masks.json'}")
    check_classes(run, data)
    masks = _masks(run, data, progress)
    first = next(masks, None)
    if first is None:
        raise UserError(f"{run.path} has no mask for any of the {len(data)} images of {data.root}; label them first")
    masks = itertools.chain([first], masks)
    if to == "png":
        for id, _, mask in masks:
            write_atomic(out / f"{id}.png", encode_mask(mask, data.classes.palette))
    else:
        with atomic_path(out) as path, path.open("w", encoding="utf-8") as handle:
            write_coco(masks, data.classes, handle)
    return out


def _masks(run: Run, data: Dataset, progress: bool) -> Iterator[tuple[str, str, NDArray[np.uint8]]]:
    """(id, file name relative to the data set's folder, mask)."""
    for sample in show_progress(data, "export", enabled=progress):
        path = run.mask_path(sample.id)
        if not path.exists():
            continue
        try:
            mask = read_mask(path)
        except BadImage as error:
            raise UserError(f"{error}; remove it and run label again") from error
        inside = sample.image.is_relative_to(data.root)
        name = sample.image.relative_to(data.root).as_posix() if inside else sample.image.as_posix()
        yield sample.id, name, mask
