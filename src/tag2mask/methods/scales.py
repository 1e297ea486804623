"""Scales at which an image is looked at, as several methods have them among their options."""

from __future__ import annotations

from typing import TypeVar

LEAST, MOST = 0.05, 20

S = TypeVar("S", bound=tuple[float, ...] | None)


def check_scales(scales: S) -> S:
    """The scales themselves, for ``pydantic.field_validator("scales")``.

    Raises:
        ValueError: one is too small or too large to be meant; NaN, too.
    """
    if scales is not None and not all(LEAST <= scale <= MOST for scale in scales):
        raise ValueError(f"scales are between {LEAST} and {MOST}, got {scales}")
    return scales
