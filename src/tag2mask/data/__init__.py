"""Readers of tagged images, and writers of masks.

A reader gives a Dataset: one Sample an image, with the tags that are known and, where there is some, the ground
truth to be read when asked for. Its ``notes`` say what a user should know about the reading.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from tag2mask.data.coco import read_coco
from tag2mask.data.columns import Columns
from tag2mask.data.folder import read_folder
from tag2mask.data.tags import TagReading, Unknown, choose_classes, find_tag_file
from tag2mask.data.truth_turn import Turn
from tag2mask.data.voc import read_voc
from tag2mask.data.voc_layout import find_layout
from tag2mask.types import ClassSet, UserError
from tag2mask.words import listing

__all__ = ["TagReading", "read_coco", "read_dataset", "read_folder", "read_voc"]

Kind = Literal["voc", "coco", "folder"]


def read_dataset(
    path: Path | str,
    kind: Kind | None = None,
    *,
    classes: ClassSet | str | Path | None = None,
    tags: Path | str | None = None,
    split: str | None = None,
    images: Path | str | None = None,
    truth: Path | str | None = None,
    unknown: Unknown = "error",
    network: ClassSet | None = None,
    truth_values: str | None = None,
    truth_turn: Turn | None = None,
    reading: TagReading | None = None,
) -> Columns:
    """Reads a data set of any kind; the first note says which kind was taken, and why.

    Args:
        path: a folder, or a COCO annotations file.
        kind: "voc", "coco" or "folder". Default: guessed from what is there.
        classes, tags, split, images, truth, unknown: as for the reader of that kind. For a COCO folder ``split``
            chooses among its annotation files ("val2017").
        network: the classes of a network that shall look at the images, which needs no tags: where the data has none
            they are unknown, and a folder that brings no classes along, or a COCO file of the same ones, has these.
        truth_values: what the numbers in masks of ground truth stand for: "as-is", "from-0", "from-2", "coco-ids",
            "255=cat", or a file (see ``tag2mask.data.truth_values``).
        truth_turn: which pixels of photographs that EXIF turns the ground truth was drawn on, where the masks' size
            does not tell.
        reading: what was decided about tags of a file that could mean two things.

    Raises:
        UserError: nothing there, an argument that this kind has no use for, or what the reader finds.
    """
    path = Path(path)
    chosen, reason = (kind, "as asked") if kind is not None else _guess(path, tags)
    given = {"tags": tags, "split": split, "images": images, "truth": truth, "truth_values": truth_values}
    useful = {"voc": ("tags", "split"), "coco": ("split", "images", "truth"), "folder": ("tags", "truth")}[chosen]
    useful += ("truth_values",) if chosen == "voc" or truth is not None else ()
    idle = [name for name, value in given.items() if value is not None and name not in useful]
    if idle:
        raise UserError(
            f"{path} is read as {chosen} ({reason}), which has no use for {', '.join(idle)}: leave it out, "
            "or name another kind"
        )
    if network is not None and chosen == "folder" and classes is None:
        # what is tagged and has truth besides numbers its classes by its own tags
        numbered = truth is not None and (tags is not None or find_tag_file(path) is not None)
        classes = choose_classes(None, path) or (None if numbered else network)
    if chosen == "voc":
        dataset = read_voc(
            path, split, classes, tags, unknown, network=network, truth_values=truth_values, reading=reading
        )
    elif chosen == "coco":
        dataset = read_coco(
            _annotations(path, split), images, classes, truth, unknown, network=network, truth_values=truth_values
        )
    else:
        dataset = read_folder(path, tags, classes, truth, unknown, truth_values, reading)
    return replace(dataset, notes=(f"read as {chosen} ({reason})", *dataset.notes), truth_turn=truth_turn)


def _guess(path: Path, tags: Path | str | None) -> tuple[Kind, str]:
    if path.is_file():
        if path.suffix.lower() == ".json":
            return "coco", "a JSON file"
        raise UserError(
            f"{path} is a file: give a folder of images, a VOC devkit, or a COCO annotations file (.json)"
        )
    if not path.is_dir():
        raise UserError(f"{path} does not exist: give a folder of images, a VOC devkit, or a COCO annotations file")
    layout = find_layout(path)
    if layout is not None and layout.images == "JPEGImages":
        return "voc", layout.reason
    if any((path / "annotations").glob("instances_*.json")):
        return "coco", "it has annotations/instances_*.json"
    tagged = (tags is not None and not Path(tags).is_dir()) or find_tag_file(path) is not None
    if layout is not None and not tagged:  # else a folder of images and its tags, whatever XML lies there
        return "voc", layout.reason
    return "folder", "it is a folder"


def _annotations(path: Path, split: str | None) -> Path:
    if path.is_file():
        return path
    files = sorted((path / "annotations").glob("instances_*.json"))
    fitting = [file for file in files if split is None or file.stem == f"instances_{split}"]
    if len(fitting) != 1:
        have = listing([file.stem.removeprefix("instances_") for file in files]) or "none"
        raise UserError(f"{path / 'annotations'} has these splits: {have}; name one of them, or give the JSON file")
    return fitting[0]
