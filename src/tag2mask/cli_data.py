"""The options that say where data are and how they are read: one definition for all commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tag2mask.cli_options import gather
from tag2mask.formats import READERS, said

Data = Annotated[Path, typer.Argument(help=f"Give {said(READERS)}.")]

_OPTIONS: dict[str, tuple[type, str]] = {
    "path": (Path, "Folder or file of the data; default: where the run's was."),
    "kind": (str, f"Kind of data: {', '.join(READERS)}; default: detected."),
    "split": (
        str,
        "Part of the data. voc: a list under ImageSets, such as train or val; coco: an annotations file, such as "
        "val2017.",
    ),
    "tags": (
        Path,
        "File of images and labels (CSV, TSV, JSON, JSONL or .npy); the word folders: each folder is a class; or the "
        "labels of one image, 'dog;person'. "
        "Default: tags.csv, tags.jsonl, labels.csv, metadata.jsonl and the like in the folder.",
    ),
    "images": (Path, "Folder of the images, for coco."),
    "truth": (Path, "Folder of ground-truth masks, which are used to measure, never to make masks."),
    "truth_values": (
        str,
        "What the numbers in true masks stand for, if they are not the run's: as-is (the run's, even if tags "
        "disagree), from-0 (the first class is 0, background 255), from-2 (the first class is 2, background 1), "
        "coco-ids, 255=NAME, or a file with a line `value name` for each.",
    ),
    "truth_turn": (
        str,
        "How true masks lie on photographs that EXIF turns: stored (as the pixels in the file), or upright.",
    ),
    "classes": (
        str,
        "Class set: voc12, coco14, a YAML file of your own, or the word file (VOC's or COCO's own); default: "
        "the data's.",
    ),
    "unknown": (str, "What to do with tags that are not among the classes: error (stop), or skip (leave them out)."),
    "separator": (str, 'What separates labels besides ";", such as ","; the word none: nothing else.'),
    "twins": (str, "What to do with tags that look like one class (tree, trees): keep both, or merge them."),
    "count_from": (int, "The number of the first class, 0 or 1 (0 is the background), where tags are numbers."),
}
"""Type and help by the keys of ``config.DataConfig``."""

_FLAGS = {"path": "--data"}
"""Those that are not called as their keys are."""


def as_flags(where: dict[str, Any]) -> list[str]:
    """The words of the command line that give these options, as ``data_options`` took them."""
    return [word for key, value in where.items() for word in (_flag(key), str(value))]


def _flag(key: str) -> str:
    return _FLAGS.get(key, f"--{key.replace('_', '-')}")


def data_options(*without: str, **other: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command all these options, in the place of its parameter ``where``: a dict of those that were given.

    Args:
        without: keys that the command does not have.
        other: help of its own for some of them, by key.
    """
    kinds: dict[str, Any] = {}
    for key, (kind, words) in _OPTIONS.items():
        if key not in without:
            option = typer.Option(_flag(key), help=other.get(key, words))
            kinds[key] = Annotated[kind | None, option]
    return gather("where", kinds)
