"""Tag files in JSON: a line an image, a list of rows, a dict by image, and pandas' columns."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tag2mask.data.image import is_image
from tag2mask.data.tag_cells import words_of
from tag2mask.data.tag_columns import Row, Rows
from tag2mask.data.tag_label_studio import label_studio
from tag2mask.data.tag_table import find_roles, table_rows
from tag2mask.types import UserError
from tag2mask.words import many

__all__ = ["json_lines", "json_rows"]

_EXPECTED = 'expected {"image": "a.jpg", "labels": ["cat"]}'

Place = tuple[str, Any]
"""A place for messages, and the value there."""


def json_lines(text: str, source: str) -> Rows:
    """Reads JSON lines.

    Raises:
        UserError: a line that is not a JSON object with image and labels.
    """
    values: list[Place] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values.append((f"line {number}", _load(line)))
        except json.JSONDecodeError as error:
            raise UserError(f"{source}, line {number}: not JSON ({error.msg}): {_EXPECTED}") from error
        except ValueError as error:
            raise UserError(f"{source}, line {number}: {error}") from error
    return _objects(values, source)


def json_rows(text: str, source: str) -> Rows:
    """Reads a JSON file of any of these forms, or JSON lines under another name.

    Raises:
        UserError: it is none of them.
    """
    try:
        value = _load(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return json_lines(text, source)
        raise UserError(f"{source}, line {error.lineno}: not JSON ({error.msg})") from error
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error
    if isinstance(value, list):
        if (exported := label_studio(value, source)) is not None:
            return exported
        if value and all(isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) for row in value):
            return Rows(_by_image(((f"entry {n}", *row) for n, row in enumerate(value, start=1)), source), [])
        return _objects([(f"entry {number}", row) for number, row in enumerate(value, start=1)], source)
    if isinstance(value, dict) and value:
        return _dict(value, source)
    raise UserError(f"{source} holds {value!r:.80}: {_EXPECTED}, a list of these, or a dict of labels by image")


def _dict(value: dict[str, Any], source: str) -> Rows:
    if "images" in value and ("annotations" in value or "categories" in value):
        raise UserError(f"{source} is a COCO file: name it as the data itself, with its folder of images by --images")
    image, labels = find_roles(list(value), source)
    keys = list(value)
    if image is not None and labels is not None:
        images, words = value[keys[image]], value[keys[labels]]
        if isinstance(images, str):
            return _objects([("its only entry", value)], source)
        if type(images) is type(words) and isinstance(images, dict | list):
            return _columns(value, source)
    if all(isinstance(entry, dict) for entry in value.values()):
        first = next(iter(value.values()))
        inner = find_roles(list(first), source)[1]
        if inner is not None:
            label = list(first)[inner]
            odd = next((name for name, entry in value.items() if label not in entry), None)
            if odd is not None:
                raise UserError(f"{source}: {odd!r} has no {label!r}, as the first entry has")
            return Rows(_by_image(((repr(n), n, entry[label]) for n, entry in value.items()), source), [])
    if not any(is_image(key) for key in keys) and all(_are_images(entry) for entry in value.values()):
        held: dict[str, list[str]] = {}
        for name, images in value.items():
            for image in images:
                held.setdefault(image, []).append(name)
        return Rows(
            _by_image(((repr(image), image, names) for image, names in held.items()), source),
            [f"{source} was read as images by class: {many(len(value), 'class')}"],
        )
    return Rows(_by_image(((repr(name), name, entry) for name, entry in value.items()), source), [])


def _are_images(entry: Any) -> bool:
    return isinstance(entry, list) and bool(entry) and all(isinstance(item, str) and is_image(item) for item in entry)


def _columns(value: Mapping[str, Any], source: str) -> Rows:
    """``{"image": [...], "labels": [...]}``, or pandas' ``{"image": {"0": ...}, "labels": {"0": ...}}``."""
    columns = [list(column.values()) if isinstance(column, dict) else column for column in value.values()]
    orders = {tuple(column) if isinstance(column, dict) else len(column) for column in value.values()}
    if len(orders) != 1:
        raise UserError(f"{source}: its columns {', '.join(map(repr, value))} are not equally long")
    rows = [(f"entry {n}", list(row)) for n, row in enumerate(zip(*columns, strict=True), start=1)]
    return table_rows(list(value), rows, source)


def _objects(values: Sequence[Place], source: str) -> Rows:
    """Rows that are objects, each with its image and labels under the keys of the first."""
    for where, row in values:
        if not isinstance(row, dict):
            raise UserError(f"{source}, {where}: got {_short(row)}, {_EXPECTED}")
    if not values:
        raise UserError(f"{source} holds no row: {_EXPECTED}")
    header = list(dict.fromkeys(key for _, row in values for key in row))
    image, labels = find_roles(header, source)
    needed = [header[place] for place in (image, labels) if place is not None]
    kind = type(values[0][1].get(header[image])) if image is not None else None
    for where, row in values:
        if len(needed) < 2 and image is not None and len(row) == len(header) > 1:
            continue  # columns of 0 and 1
        name = row.get(header[image]) if image is not None else None
        named = isinstance(name, str | int) and not isinstance(name, bool) and type(name) is kind
        if len(needed) < 2 or not row.keys() >= set(needed) or not named:
            raise UserError(f"{source}, {where}: got {_short(row)}, {_EXPECTED}")
    rows = [(where, [row.get(key) for key in header]) for where, row in values]
    if labels is None:
        return table_rows(header, rows, source, image)
    _check_kinds(rows, labels, source)
    return table_rows(header, rows, source)


def _check_kinds(rows: Sequence[tuple[str, Sequence[Any]]], labels: int, source: str) -> None:
    """Numbers among names would be names: a file has one or the other."""
    before: bool | None = None
    for where, cells in rows:
        value = cells[labels]
        if isinstance(value, list) and value and all(isinstance(item, bool) for item in value):
            continue  # a vector
        for item in value if isinstance(value, list) else [value]:
            if item is None:
                continue
            if not isinstance(item, str | int) or isinstance(item, bool):
                raise UserError(f"{source}, {where}: labels are {_short(value)}, {_EXPECTED}")
            if before not in (None, isinstance(item, str)):
                kinds = "names" if before else "numbers"
                raise UserError(f"{source}, {where}: labels are {_short(value)}, expected {kinds} as before it")
            before = isinstance(item, str)


def _by_image(pairs: Iterator[tuple[str, str, Any]], source: str) -> Iterator[Row]:
    for where, image, value in pairs:
        try:
            yield where, image, words_of(value)
        except ValueError:
            raise UserError(f"{source}, {where}: labels are {_short(value)}, expected a list of names") from None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _load(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply to be a tag list") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of a key that is there twice JSON would keep the last alone."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is there twice: put its labels together")
    return found
