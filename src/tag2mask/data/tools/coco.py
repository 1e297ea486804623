"""Corrected masks in COCO's JSON, ours and others': polygons and run lengths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from pycocotools import mask as rle

from tag2mask.data.coco_outline import draw, read_outline
from tag2mask.data.tools.reading import Correction, Files, Importer, Labels, UnreadableError, json_document, size_of
from tag2mask.data.tools.shapes import Mask
from tag2mask.types import UserError


def _recognise(files: Files) -> bool:
    document = json_document(files)
    return isinstance(document, dict) and {"images", "annotations", "categories"} <= document.keys()


def _read(files: Files, labels: Labels) -> Iterator[Correction]:
    document = json_document(files)
    if document is None:
        raise UserError(f"{files.path} has no JSON file, or several; give the one")
    try:
        names = {each["id"]: each["name"] for each in document["categories"]}
        drawn: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in document["annotations"]:
            drawn[annotation["image_id"]].append(annotation)
        images = [(str(image.get("sample") or image.get("file_name")), image) for image in document["images"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{files.path} is no COCO file ({type(error).__name__}: {error})") from error
    for name, image in images:
        yield Correction(name, partial(_mask, name, image, drawn[image.get("id")], names, labels))


def _mask(
    name: str, image: Mapping[str, Any], drawn: list[dict[str, Any]], names: Mapping[Any, Any], labels: Labels
) -> Mask:
    mask = np.zeros(size_of(image.get("height"), image.get("width"), name), np.uint8)
    for annotation in drawn:
        try:
            outline = read_outline(annotation.get("segmentation"))
            if outline is None:
                continue
            shape = rle.decode(draw(outline, (mask.shape[0], mask.shape[1])))
        except ValueError as error:
            raise UnreadableError(f"{name}: {error}") from error
        number = annotation.get("category_id")
        mask[shape == 1] = labels.value(names.get(number, f"category {number}"), name)
    return mask


IMPORTER = Importer(recognise=_recognise, read=_read, ignored=False)
