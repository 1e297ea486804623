"""Options that can have no effect beside the others: given all the same, they are refused."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel

from tag2mask.types import UserError


def refuse_idle(method: str, options: BaseModel, names: Iterable[str], why: str) -> None:
    """Refuse those of ``names`` that were given. None is no value, so it may stand there.

    Args:
        method: its name, for the message.
        options: as given; what is at its default because nobody said it does not count.
        names: of the options that have no effect.
        why: the setting that leaves them without one, and what to do.

    Raises:
        UserError: naming them.
    """
    given = sorted(name for name in options.model_fields_set & set(names) if getattr(options, name) is not None)
    if given:
        raise UserError(f"{method}: {', '.join(given)}: no effect {why}")
