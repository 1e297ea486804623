"""The options that say where data are and how they are read: one definition for all commands."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Annotated, Any

import typer

from tag2mask.formats import READERS, said

Data = Annotated[Path, typer.Argument(help=f"Give {said(READERS)}.")]

_OPTIONS: dict[str, Any] = {
    "path": Annotated[Path | None, typer.Option("--data", help="The data; default: where the run's was.")],
    "kind": Annotated[str | None, typer.Option(help=f"{', '.join(READERS)}; default: detected.")],
    "split": Annotated[
        str | None,
        typer.Option(
            help="voc: a list under ImageSets, such as train or val; coco: an annotations file, such as val2017."
        ),
    ],
    "tags": Annotated[
        Path | None,
        typer.Option(
            help="CSV, TSV, JSON, JSONL or .npy of images and labels, or the word folders: an image's folder is its "
            "class. Default: tags.csv, tags.jsonl, labels.csv, metadata.jsonl and the like in the folder."
        ),
    ],
    "images": Annotated[Path | None, typer.Option("--images", help="coco: the folder of the images.")],
    "truth": Annotated[Path | None, typer.Option(help="Folder of ground-truth masks; only `eval` reads them.")],
    "truth_values": Annotated[
        str | None,
        typer.Option(
            help="What the numbers in true masks stand for, where they are not the run's: as-is (they are, whatever "
            "the tags say), from-0 (the first class is 0, 255 background), from-2 (it is 2, 1 background), coco-ids, "
            "255=NAME, or a file with a line `value name` for each."
        ),
    ],
    "truth_turn": Annotated[
        str | None,
        typer.Option(help="Photographs that EXIF turns: true masks were drawn on their stored pixels, or upright."),
    ],
    "classes": Annotated[
        str | None,
        typer.Option(
            help="voc12, coco14, a YAML file of your own, or file (VOC's or COCO's own names); default: the data's."
        ),
    ],
    "unknown": Annotated[str | None, typer.Option(help="Tags that are no class: error, or skip them.")],
    "separator": Annotated[
        str | None, typer.Option(help='What stands between labels besides ";", such as ","; none: nothing does.')
    ],
    "twins": Annotated[
        str | None, typer.Option(help="Tags that look like one class (tree, trees): keep both, or merge.")
    ],
    "count_from": Annotated[
        int | None,
        typer.Option(help="The number of the first class, 0 or 1 (0 is the background), where tags are numbers."),
    ],
}
"""By the keys of ``config.DataConfig``."""


def data_options(*without: str, **other: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command all these options, in the place of its parameter ``where``: a dict of those that were given.

    Args:
        without: keys that the command does not have.
        other: help of its own for some of them, by key.
    """
    kinds = {key: kind for key, kind in _OPTIONS.items() if key not in without}
    for key, words in other.items():
        option = copy(kinds[key].__metadata__[0])
        option.help = words
        kinds[key] = Annotated[kinds[key].__origin__, option]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            found = {key: given.pop(key) for key in kinds}
            where = {key: str(v) if isinstance(v, Path) else v for key, v in found.items() if v is not None}
            command(**given, where=where)

        shown: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            if parameter.name != "where":
                shown.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
                continue
            for key, kind in kinds.items():
                option = inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
                shown.append(option)
        run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # what typer reads
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
        del run.__wrapped__  # its own parameters are not the command's
        return run

    return decorate
