"""COCO's JSON: read, checked, and its ids brought into one form, so that rows find each other."""

from __future__ import annotations

import gc
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from tag2mask.classes import fold
from tag2mask.types import UserError
from tag2mask.words import counted, listing

__all__ = ["CocoFile", "ImageRow", "Key", "load_coco"]

Key = int | str
"""An id of an image or a category: whole numbers as int, whatever else as text."""


class ImageRow(NamedTuple):
    """An image as the file lists it.

    file: its path as written, with "/" between the parts and without "." or empty ones; an absolute path begins with
    "/", and one that leaves its folder with "..". size: (height, width) as written, None where they are absent.
    """

    id: Key
    file: str
    size: tuple[Any, Any]


@dataclass(frozen=True)
class CocoFile:
    """What a COCO file holds.

    images: no id twice. categories: names by id, numbers first, then texts. annotations: as written, but image_id and
    category_id are Keys, and those of no image are left out; None where the file has no such part. notes: what a user
    should know.
    """

    path: Path
    images: list[ImageRow]
    categories: dict[Key, str]
    annotations: list[dict[str, Any]] | None
    notes: list[str]


def load_coco(path: Path, *, annotated: bool = True) -> CocoFile:
    """Reads a COCO instances file.

    Ids are compared as they are, else as texts: where one part writes 1 and another "1", they mean the same. A row
    that is there twice counts once. A category 0 that no annotation uses, and that is named as the supercategory of
    all others, is what Roboflow calls a project: it is no class.

    Args:
        path: the file.
        annotated: whether it must have annotations, else a list of images will do.

    Raises:
        UserError: no such file or form, two meanings for one id, or no annotation that belongs to an image.
    """
    collecting = gc.isenabled()
    gc.disable()  # a million rows come and none goes, so looking for garbage would take most of the time
    try:
        content = _parse(path)
    finally:
        if collecting:
            gc.enable()
    _check_parts(content, path, annotated)
    notes: list[str] = []
    images = _images(content["images"], path, notes)
    categories, supers = _categories(content["categories"], path)
    annotations = content.get("annotations")
    if annotations is not None:
        annotations = _matched(annotations, images, categories, path, notes)
        _leave_out_project(categories, supers, {row["category_id"] for row in annotations}, path, notes)
    return CocoFile(path, images, categories, annotations, notes)


def _parse(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no annotations at {path}: give a file like instances_train2014.json")
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_no_key_twice)
    except _KeyTwiceError as error:
        raise UserError(
            f"{path}: the key {error.args[0]!r} stands twice in one object, with two values: keep one of them"
        ) from error
    # ValueError: not JSON, not text, or a number of thousands of digits
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): download it again") from error


class _KeyTwiceError(Exception):
    pass


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON leaves open which of two equal keys counts, so the other would be lost in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next((key for key, value in pairs if value is not found[key] and value != found[key]), None)
        if twice is not None:
            raise _KeyTwiceError(twice)
    return found


def _check_parts(content: Any, path: Path, annotated: bool) -> None:
    needed = {"images": ("id",), "annotations": ("image_id", "category_id"), "categories": ("id", "name")}
    if not annotated and isinstance(content, dict) and "annotations" not in content:
        del needed["annotations"]
    for part, keys in needed.items():
        rows = content.get(part) if isinstance(content, dict) else None
        wanted = set(keys)
        if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= wanted for row in rows):
            said = (*keys, "file_name") if part == "images" else keys
            raise UserError(
                f"{path} has no {part!r} with {' and '.join(said)}: give COCO's instances file, "
                "not captions, results or image info"
            )


def _key(value: Any, what: str, path: Path) -> Key:
    """An id in its one form: 7.0 is 7."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise UserError(f"{path}: {what} {_short(value)}, expected a whole number or text: correct it")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _order(key: Key) -> tuple[bool, Key]:
    """Numbers before texts: Python does not compare the two."""
    return isinstance(key, str), key


def _images(rows: Iterable[Mapping[str, Any]], path: Path, notes: list[str]) -> list[ImageRow]:
    found: dict[Key, ImageRow] = {}
    repeated: list[str] = []
    for row in rows:
        key = _key(row["id"], "id", path)
        image = ImageRow(key, _file(row, path), (row.get("height"), row.get("width")))
        first = found.setdefault(key, image)
        if first is image:
            continue
        if first.file != image.file:
            raise UserError(
                f"{path}: two images have the id {key!r}, {first.file!r} and {image.file!r}, so their annotations "
                "cannot be distinguished: give each its own id"
            )
        if first.size != image.size:
            raise UserError(
                f"{path}: the image {key!r}, {image.file!r}, stands there twice, as {_said(first)} and as "
                f"{_said(image)} (width x height): keep one of them"
            )
        repeated.append(image.file)
    notes += counted(f"images that {path.name} lists twice, taken once", repeated)
    return list(found.values())


def _said(image: ImageRow) -> str:
    return f"{_short(image.size[1])} x {_short(image.size[0])}"


def _file(row: Mapping[str, Any], path: Path) -> str:
    """The path of an image as its row gives it: file_name, else the end of coco_url (LVIS has no more)."""
    name = row.get("file_name") or row.get("coco_url")
    if not isinstance(name, str) or not name.strip():
        raise UserError(
            f"{path}: the image {_short(row['id'])} has no file_name, nor a coco_url, got {_short(name)}: "
            "name its file"
        )
    if "://" in name:  # what stands before is the server
        name = unquote(urlsplit(name).path).lstrip("/")
    name = name.replace("\\", "/")
    parts: list[str] = []
    for part in name.split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    if not parts or parts[-1] == "..":
        raise UserError(f"{path}: the image {_short(row['id'])} has the file_name {name!r}, which names no file")
    return ("/" if name.startswith("/") else "") + "/".join(parts)


def _categories(rows: Iterable[Mapping[str, Any]], path: Path) -> tuple[dict[Key, str], dict[Key, str]]:
    """Names and supercategories by id."""
    names: dict[Key, str] = {}
    supers: dict[Key, str] = {}
    for row in rows:
        key, name = _key(row["id"], "a category's id", path), row["name"]
        if not isinstance(name, (str, int, float)) or isinstance(name, bool):
            raise UserError(f"{path}: the category {key!r} is called {_short(name)}: give it a name in quotes")
        if names.setdefault(key, str(name)) != str(name):
            raise UserError(
                f"{path}: the category id {key!r} stands for {names[key]!r} and for {name!r}: give each its own id"
            )
        supers[key] = str(row.get("supercategory", ""))
    return {key: names[key] for key in sorted(names, key=_order)}, supers


def _leave_out_project(
    categories: dict[Key, str], supers: Mapping[Key, str], used: set[Key], path: Path, notes: list[str]
) -> None:
    others = [key for key in categories if key != 0]
    name = categories.get(0)
    if name is None or 0 in used or not others or any(fold(supers[key]) != fold(name) for key in others):
        return
    del categories[0]
    notes.append(
        f"{path.name} has a category 0, {name!r}, without annotations, that all others are part of: it is no class"
    )


def _matched(
    annotations: list[dict[str, Any]],
    images: list[ImageRow],
    categories: Mapping[Key, str],
    path: Path,
    notes: list[str],
) -> list[dict[str, Any]]:
    """The annotations of known images, their ids as those of the images and categories are."""
    known_images = _Ids([image.id for image in images], "image_id", path)
    known_categories = _Ids(categories, "category_id", path)
    kept = []
    strays: Counter[Key] = Counter()
    for annotation in annotations:
        image, known = known_images.find(annotation["image_id"])
        if known:
            annotation["image_id"] = image
            annotation["category_id"], _ = known_categories.find(annotation["category_id"])
            kept.append(annotation)
        else:
            strays[image] += 1
    if strays and not kept:
        raise UserError(
            f"{path}: none of its {len(annotations)} annotations belongs to an image: they say image_id "
            f"{listing([repr(key) for key in strays], most=3)}, but the images have the ids "
            f"{listing([repr(image.id) for image in images], most=3)}; are both of the same data?"
        )
    if strays:
        notes.append(
            f"annotations of images that {path.name} does not list, left out: {strays.total()} "
            f"(image_id {listing([repr(key) for key in strays])})"
        )
    notes += known_images.notes() + known_categories.notes()
    return kept


class _Ids:
    """The ids of one part, as another part refers to them."""

    def __init__(self, keys: Iterable[Key], reference: str, path: Path) -> None:
        self._known = set(keys)
        self._reference, self._path = reference, path
        self._by_text: dict[str, Key] = {}
        self._as_text: Counter[str] = Counter()
        for key in self._known:
            other = self._by_text.setdefault(str(key), key)
            if other is not key:
                number, text = sorted((other, key), key=_order)
                raise UserError(
                    f"{path}: the ids {number!r} and {text!r} stand beside each other, so a {reference} cannot be "
                    "distinguished from the other: write all of them as numbers"
                )

    def find(self, value: Any) -> tuple[Key, bool]:
        """The id that is meant, and whether it is known."""
        if type(value) is int and value in self._known:
            return value, True
        key = _key(value, self._reference, self._path)
        if key in self._known:
            return key, True
        match = self._by_text.get(str(key))
        if match is None:
            return key, False
        self._as_text[f"{key!r} for {match!r}"] += 1
        return match, True

    def notes(self) -> list[str]:
        count = self._as_text.total()
        return [f"{self._reference} in another type, read all the same: {count} ({listing(list(self._as_text))})"][
            : bool(count)
        ]
