"""Data for ``check`` to look at, also where ``label`` would refuse them: read as far as they can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tag2mask.config import DataConfig
from tag2mask.data.columns import Columns, ColumnsBuilder
from tag2mask.data.folder import image_ids, walk_images
from tag2mask.stages.run_data import open_data
from tag2mask.types import ClassSet, UserError

__all__ = ["read_as_far_as_possible"]

_DECISIONS: dict[str, tuple[str, Any]] = {
    "--separator": ("separator", "none"),
    "--twins": ("twins", "keep"),
    "--count-from": ("count_from", 1),
    "--unknown": ("unknown", "skip"),
}
"""By the option that a message names: what is taken for decided, so that reading goes on to the next message."""

_TRUTH = ("truth", "truth_values", "truth_turn")


def read_as_far_as_possible(config: DataConfig) -> tuple[Columns, tuple[str, ...]]:
    """The data set that the settings describe, and all that stops ``label`` in it, in the words of ``label``.

    Where a message names an option that decides the question, reading goes on as if it were decided, so that all
    messages come at once. Where nothing helps, the images of the folder are read alone, without tags or classes.

    Args:
        config: where the data are, and how they are read.

    Returns:
        The data, and the messages: the first is that of ``label`` now, and without any the data are as ``label`` has
        them. The last of several says as what the tags were taken.

    Raises:
        UserError: there is nothing to look at: no such folder or file, or no image in it.
    """
    stops: list[str] = []
    decided: dict[str, Any] = {}
    while True:
        tried = config.model_copy(update=decided)
        try:
            data = open_data(tried)
        except UserError as error:
            said = str(error)
            if said not in stops:
                stops.append(said)
            more = _decide(tried, decided, said)
            if more:
                decided |= more
                continue
            data = _images_alone(config, error)
            decided = {}
        if decided.keys() - _TRUTH:
            taken = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in decided.items() if key != "truth")
            data = data.with_notes(*data.notes, f"the tags are counted as with {taken}, which is not decided yet")
        return data, tuple(stops)


def _decide(tried: DataConfig, decided: dict[str, Any], said: str) -> dict[str, Any]:
    """What to take for decided after a message; nothing where no option is left that it names."""
    for flag, (key, value) in _DECISIONS.items():
        if flag in said and key not in decided and getattr(tried, key) in (None, "error"):
            return {key: value}
    return dict.fromkeys(_TRUTH) if tried.truth is not None else {}


def _images_alone(config: DataConfig, error: UserError) -> Columns:
    """All pictures in the folder, their tags unknown. Raises ``error`` where there are none."""
    root = Path(config.images or config.path or "")
    if not root.is_dir() or (config.images is None and config.path is None):
        raise error
    notes: list[str] = []
    without = [Path(config.truth)] if config.truth is not None and Path(config.truth).is_dir() else []
    images = list(walk_images(root, notes, without))
    if not images:
        raise error
    builder = ColumnsBuilder()
    for name, image in zip(image_ids(images, notes), images, strict=True):
        builder.add(name, image, None)
    said = f"tags, classes and truth could not be read: these are all pictures in {root}"
    return builder.build(ClassSet("none", ("background",), ((0, 0, 0),)), root, notes=[said, *notes])
