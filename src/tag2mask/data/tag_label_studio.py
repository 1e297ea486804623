"""Label Studio's exports: JSON (tasks with annotations) and JSON-MIN (a flat row a task).

Choices of a whole image are its tags, and so are the labels of boxes, polygons and brushes in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tag2mask.classes import plain
from tag2mask.data.image import is_image
from tag2mask.data.tag_cells import Words, is_shapes, words_of
from tag2mask.data.tag_columns import Row, Rows
from tag2mask.types import UserError
from tag2mask.words import counted, many

__all__ = ["label_studio"]

_OWN = frozenset(
    (
        *("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time"),
        *("annotation_created_at", "task", "project", "agreement"),
    )
)
"""What JSON-MIN writes beside the data and the controls."""


def label_studio(values: Sequence[Any], source: str) -> Rows | None:
    """The rows of a Label Studio export, or None where the list is something else.

    Raises:
        UserError: it is one, but not with what is needed, or with two meanings.
    """
    if not values or not all(isinstance(value, dict) for value in values):
        return None
    if all(isinstance(value.get("data"), dict) and value.keys() & {"annotations", "completions"} for value in values):
        return _tasks(values, source)
    if all(value.keys() & {"annotation_id", "lead_time"} for value in values):
        return _flat(values, source)
    return None


def _tasks(values: Sequence[Mapping[str, Any]], source: str) -> Rows:
    rows: list[Row] = []
    controls: Counter[str] = Counter()
    others: Counter[str] = Counter()
    skipped: list[str] = []
    differing: list[str] = []
    for number, task in enumerate(values, start=1):
        where = f"task {task.get('id', number)}"
        image = _image(task["data"], where, source)
        annotations = task.get("annotations", task.get("completions"))
        if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
            raise UserError(
                f"{source} is Label Studio's JSON, but {where} has no annotations in full: export it as JSON or "
                "JSON-MIN from Label Studio's Export dialogue"
            )
        done = [one for one in annotations if not one.get("was_cancelled")]
        if annotations and not done:
            skipped.append(image)
        said = [_labels(one.get("result") or [], where, source, controls, others) for one in done]
        if len({frozenset(words) for words in said}) > 1:
            differing.append(f"{image}: {' / '.join('+'.join(sorted(words)) or 'nothing' for words in said)}")
        words = tuple(dict.fromkeys(word for one in said for word in one))
        rows.append((where, image, words or None))
    notes = [f"{source} was read as Label Studio's JSON: {many(len(values), 'task')}"]
    notes += counted("images that annotators label differently, their labels put together", differing)
    notes += counted("tasks that were skipped in Label Studio, not tagged", skipped)
    notes += counted("results that are no labels, left out", [f"{kind}: {n}" for kind, n in others.items()])
    return Rows(rows, notes + _several(controls))


def _labels(result: Any, where: str, source: str, controls: Counter[str], others: Counter[str]) -> list[str]:
    if not isinstance(result, list) or not all(isinstance(part, dict) for part in result):
        raise UserError(f"{source}, {where}: its result is {result!r:.80}, expected a list as Label Studio writes it")
    found: list[str] = []
    for part in result:
        value = part.get("value")
        shape = {key: words for key, words in value.items() if _holds_labels(key)} if isinstance(value, dict) else {}
        if not shape:
            others[str(part.get("type", "without a type"))] += 1
        for words in shape.values():
            try:
                found += words_of(words) or ()
            except ValueError:
                raise UserError(f"{source}, {where}: labels are {words!r:.80}, expected a list of names") from None
            controls[str(part.get("from_name", "unnamed"))] += 1
    return list(dict.fromkeys(found))


def _holds_labels(key: str) -> bool:
    return key in ("choices", "labels") or key.endswith("labels")


def _flat(values: Sequence[Mapping[str, Any]], source: str) -> Rows:
    rows: list[Row] = []
    controls: Counter[str] = Counter()
    keys = _controls(values, source)
    for number, task in enumerate(values, start=1):
        where = f"task {task.get('id', number)}"
        image = _image({key: value for key, value in task.items() if key not in keys}, where, source)
        found: list[str] = []
        for key in keys:
            try:
                words: Words = words_of(task.get(key))
            except ValueError:
                raise UserError(f"{source}, {where}: {key!r} is {task[key]!r:.80}, expected labels") from None
            controls[key] += words is not None
            found += words or ()
        rows.append((where, image, tuple(dict.fromkeys(found)) or None))
    return Rows(
        rows, [f"{source} was read as Label Studio's JSON-MIN: {many(len(values), 'task')}", *_several(controls)]
    )


def _controls(values: Sequence[Mapping[str, Any]], source: str) -> list[str]:
    """The keys under which JSON-MIN has labels: lists of shapes and choices, else the one text that is no image."""
    held: dict[str, list[Any]] = {}
    for task in values:
        for key, value in task.items():
            if key not in _OWN and value is not None:
                held.setdefault(key, []).append(value)
    sure = [
        key
        for key, found in held.items()
        if any(is_shapes(value) or (isinstance(value, dict) and value.keys() == {"choices"}) for value in found)
    ]
    texts = [
        key
        for key, found in held.items()
        if key not in sure and all(isinstance(one, str) for one in found) and not any(map(_is_image, found))
    ]
    named = [key for key in texts if plain(key) in ("choice", "choices", "label", "labels", "tag", "tags", "class")]
    if not sure and not named and len(texts) > 1:
        raise UserError(
            f"{source} is Label Studio's JSON-MIN, and any of {', '.join(map(repr, texts))} could hold the labels: "
            "export it as JSON instead, which says so"
        )
    return [*sure, *(named or ([] if sure else texts))]


def _image(data: Mapping[str, Any], where: str, source: str) -> str:
    """The one value that is the place of an image."""
    found = {key: value for key, value in data.items() if isinstance(value, str) and _is_image(value)}
    named = [value for key, value in found.items() if plain(key) in ("image", "img", "imageurl", "url")]
    if len(found) == 1 or len(named) == 1:
        return named[0] if len(named) == 1 else next(iter(found.values()))
    raise UserError(
        f"{source} is a Label Studio export, but {where} has {len(found)} images in its data "
        f"({', '.join(map(repr, found or data))}), expected one"
    )


def _is_image(value: str) -> bool:
    return is_image(value.split("?d=")[-1].partition("?")[0].partition("#")[0])


def _several(controls: Counter[str]) -> list[str]:
    if len(controls) < 2:
        return []
    listed = [f"{name!r}: {count}" for name, count in controls.items()]
    return counted("controls of Label Studio whose labels are taken together (--classes chooses among them)", listed)
