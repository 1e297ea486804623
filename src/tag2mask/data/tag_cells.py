"""One cell or value of a tag file as words: a text with ";", a list of Python, JSON or numpy, a number."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

__all__ = ["NO", "YES", "Words", "cell_text", "is_shapes", "words_of"]

Words = tuple[str, ...] | None
"""The words in a cell as written; None = there are none, the image is not tagged."""

YES, NO = "<true>", "<false>"
"""The words of a list of true and false, which is a place for each class; no names are written so."""

_ITS_OWN = re.compile(r"[;\uff1b\r\n\t]")  # ";" of any width, lines and tabs: never part of a name
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_NO_COMMA = re.compile(r"['\"]\s+['\"]")  # numpy prints ['cat' 'dog'], which Python would read as one text
_ENDS = {"[": "]", "(": ")", "{": "}"}


def words_of(value: Any) -> Words:
    """The words in a value of a tag file.

    Raises:
        ValueError: it is neither text, nor a list of texts, nor a class's number.
    """
    if isinstance(value, str):
        return _words_of_text(value)
    if isinstance(value, dict) and value.keys() == {"choices"}:  # as Label Studio writes several choices
        value = value["choices"]
    if is_shapes(value):
        value = list(dict.fromkeys(word for shape in value for word in shape[_label_key(shape)]))
    if isinstance(value, int) and not isinstance(value, bool):
        return (str(value),)
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        if isinstance(value, list) and value and all(isinstance(item, bool) for item in value):
            return tuple(YES if item else NO for item in value)
        if not all(isinstance(item, str) or (isinstance(item, int) and not isinstance(item, bool)) for item in items):
            raise ValueError(value)
        return tuple(word for item in items if (word := str(item).strip())) or None
    if value is None:
        return None
    raise ValueError(value)


def is_shapes(value: Any) -> bool:
    """Whether a value is a list of boxes, polygons and the like as Label Studio writes them, each with its labels."""
    return isinstance(value, list) and bool(value) and all(isinstance(s, dict) and _label_key(s) for s in value)


def _label_key(shape: dict[str, Any]) -> str | None:
    keys = [key for key, labels in shape.items() if key.endswith("labels") and isinstance(labels, list)]
    return keys[0] if len(keys) == 1 else None


def cell_text(cell: str) -> str:
    """A cell without the spaces around it, and without quotes that another program left there."""
    cell = cell.strip()
    if len(cell) >= 2 and cell[0] == cell[-1] and cell[0] in "'\"`":
        inner = cell[1:-1]
        return inner.strip() if cell[0] not in inner else cell
    return cell


def _words_of_text(text: str) -> Words:
    text = cell_text(text)
    if len(text) >= 2 and _ENDS.get(text[0]) == text[-1]:
        listed = _literal(text)
        if listed is not None:
            return words_of(listed)
    words = (cell_text(word) for word in _ITS_OWN.split(text))
    return tuple(word for word in words if word) or None


def _literal(text: str) -> Any:
    """The list, set or dict that a text spells out, or None where it is a name in brackets."""
    if _NO_COMMA.search(text) and "," not in text:
        return [first or second for first, second in _QUOTED.findall(text)]
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, list | tuple | set | dict):
            return value
    if text[0] != "[":
        return None
    inner = text[1:-1]  # [cat, dog]: a list whose writer left the quotes out
    numbers = inner.split()
    if "," not in inner and len(numbers) > 1 and all(number.isdigit() for number in numbers):
        return numbers
    return [cell_text(word) for word in re.split(r"[,;]", inner)]
