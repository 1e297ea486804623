"""Figures of trained networks: measured once and kept, and the table of a recipe beside them in a model's card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from tag2mask.run.files import write_atomic

__all__ = ["measured_once", "recipe_rows"]

T = TypeVar("T")


def measured_once(file: Path, read: Callable[[Any], T], measure: Callable[[], T]) -> T:
    """Figures from a file where they are there, else measured, which takes minutes, and kept in it.

    Args:
        file: JSON. Its name says of which weights and scenes the figures are.
        read: the figures from what ``dataclasses.asdict`` made of them; what it cannot read is measured again.
        measure: makes them, a dataclass; those with a figure that is no number are not kept.
    """
    with suppress(OSError, ValueError, TypeError, AttributeError):  # where there are none, or they are not ours
        return read(json.loads(file.read_text(encoding="utf-8")))
    found: Any = measure()
    try:
        text = json.dumps(dataclasses.asdict(found), allow_nan=False)
    except ValueError:  # one is not finite
        return cast(T, found)
    write_atomic(file, text.encode())
    return cast(T, found)


def recipe_rows(recipe: Any) -> str:
    """The settings of a recipe (a dataclass), a row of a Markdown table each."""
    return "\n".join(f"| {name} | {value} |" for name, value in dataclasses.asdict(recipe).items())
