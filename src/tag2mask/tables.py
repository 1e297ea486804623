"""Things by name: a table of ours, and what other packages offer by entry points."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tag2mask.types import UserError
from tag2mask.words import did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["find", "offered", "packages"]


def offered(own: Mapping[str, str], group: str) -> dict[str, str]:
    """Name -> "module:attribute" of all that is at hand; ours come first and keep their names.

    Args:
        own: the table of ours.
        group: the entry-point group in which other packages offer more, "name = module:attribute".
    """
    others = {point.name: point.value for point in _points(group)}
    return {**own, **{name: where for name, where in others.items() if name not in own}}


def packages(group: str) -> dict[str, str]:
    """Name -> the package that offers it."""
    return {point.name: point.dist.name if point.dist else point.value for point in _points(group)}


@cache
def _points(group: str) -> tuple[EntryPoint, ...]:
    from importlib.metadata import entry_points  # not needed for help, and long to load

    return tuple(entry_points(group=group))


def find(what: str, name: str, places: Mapping[str, str]) -> Any:
    """What a name stands for.

    Args:
        what: "method", "reader", ... for messages.
        name: a key of ``places``.
        places: "module:attribute" by name.

    Raises:
        UserError: no such name, or another package's does not import.
    """
    if name not in places:
        raise UserError(f'{what} "{name}" is not known{did_you_mean(name, places)}; known: {", ".join(places)}')
    module, _, attribute = places[name].partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f'{what} "{name}" ({places[name]}) does not import: {error}') from error
