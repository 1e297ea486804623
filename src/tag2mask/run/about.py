"""What run.yaml says of a run's masks: their classes, the rule that made them, and who did."""

from __future__ import annotations

from collections.abc import Sequence

from tag2mask.classes import color_map
from tag2mask.run.folder import Run
from tag2mask.types import ClassSet, Dataset, MaskRule, UserError
from tag2mask.words import listing

__all__ = ["check_classes", "is_predicted", "rule_of", "stored_classes"]


def check_classes(run: Run, data: Dataset) -> None:
    """Mask values mean nothing across class sets.

    Raises:
        UserError: the run has other classes than ``data``, or a damaged run.yaml.
    """
    names = stored_classes(run).names
    if names != data.classes.names:
        raise UserError(
            f"{run.path} holds masks of {len(names)} classes ({', '.join(names[:4])}, …), but the data has "
            f"{len(data.classes)} ({', '.join(data.classes.names[:4])}, …){_difference(names, data.classes.names)}. "
            "Masks of other classes cannot be compared. If tags of the run's own data have changed, give the same "
            "label command again; else give --classes as in the run, or make masks of the truth's classes, and "
            "evaluate those"
        )


def _difference(had: Sequence[str], has: Sequence[str]) -> str:
    """Which names are new and which are gone, in words."""
    new, gone = ([name for name in a if name not in b] for a, b in ((has, had), (had, has)))
    parts = [f"{what}: {listing(names)}" for what, names in (("new", new), ("gone", gone)) if names]
    return f"; {'; '.join(parts)}" if parts else "; their order is another"


def stored_classes(run: Run) -> ClassSet:
    """The classes that run.yaml holds, with their colours.

    Raises:
        UserError: run.yaml is damaged.
    """
    try:
        stored = run.settings["classes"]
        names = tuple(str(name) for name in stored["names"])
        colours = stored.get("palette") or color_map(len(names))
        palette = tuple((int(red), int(green), int(blue)) for red, green, blue in colours)
        if not names or len(palette) < len(names) or not all(0 <= c <= 255 for colour in palette for c in colour):
            raise ValueError(f"{len(names)} names and {len(palette)} colours of 0..255")
        return ClassSet(str(stored.get("id", "")), names, palette)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(run, "classes", error) from error


def is_predicted(run: Run) -> bool:
    """Whether a network made the masks, and not a method from tags."""
    return run.settings.get("stage") == "predict"


def rule_of(run: Run) -> MaskRule:
    """The mask rule that run.yaml holds.

    Raises:
        UserError: run.yaml is damaged.
    """
    try:
        return MaskRule.from_plain(run.settings["mask_rule"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(run, "mask_rule", error) from error


def _damaged(run: Run, setting: str, error: Exception) -> UserError:
    return UserError(
        f"{run.path / 'run.yaml'} is damaged: settings.{setting} is not as label wrote it "
        f"({type(error).__name__}: {error}); restore the file, or label again into another folder"
    )
