"""Datumaro: one JSON file with compressed run lengths of each class, and the pictures.

::

    annotations/default.json
    images/default/<id>.jpg
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from pycocotools import mask as rle

from tag2mask.data.coco_outline import draw, read_outline
from tag2mask.data.protocol import Content, Export, FolderExporter
from tag2mask.data.tools.layout import ToolOptions, encoded, json_list, label_names, picture, picture_name
from tag2mask.data.tools.reading import Correction, Files, Importer, Labels, UnreadableError, json_document, size_of
from tag2mask.data.tools.shapes import Mask, fill_in, layers
from tag2mask.types import UserError


def _files(export: Export) -> Iterator[tuple[str, Content]]:
    names = label_names(export.classes)
    number = {value: index for index, value in enumerate(names)}  # labels count from 0
    labels = [{"name": name, "parent": "", "attributes": []} for name in names.values()]
    categories = {"label": {"labels": labels, "attributes": []}}
    items = json_list(b'{"info": {}, "categories": %s, "items": [\n' % encoded(categories), b"]}\n")
    for image in export.images:
        yield from picture(image, "images/default", export.options)
        annotations = []
        for index, (value, layer) in enumerate(layers(image.mask)):
            shape = rle.encode(np.asfortranarray(layer))
            annotations.append(
                {
                    "id": index,
                    "type": "mask",
                    "attributes": {},
                    "group": 0,
                    "label_id": number[value],
                    "rle": {"counts": shape["counts"].decode("ascii"), "size": shape["size"]},
                    "z_order": 0,
                }
            )
        size = list(image.mask.shape)
        items.add(
            encoded(
                {"id": image.id, "annotations": annotations, "image": {"path": picture_name(image), "size": size}}
            )
        )
    yield "annotations/default.json", items.file()


def _recognise(files: Files) -> bool:
    document = json_document(files)
    return isinstance(document, dict) and {"categories", "items"} <= document.keys()


def _read(files: Files, labels: Labels) -> Iterator[Correction]:
    document = json_document(files)
    try:
        known = [each.get("name") for each in document["categories"].get("label", {}).get("labels", [])]
        items = [(str(item.get("id")), item) for item in document["items"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{files.path} is no file of Datumaro ({type(error).__name__}: {error})") from error
    for name, item in items:
        yield Correction(name, partial(_mask, name, item, known, labels))


def _mask(name: str, item: dict[str, Any], known: list[Any], labels: Labels) -> Mask | None:
    image = item.get("image") or {}
    mask = _blank(image["size"], name) if image.get("size") else None
    for annotation in sorted(item.get("annotations", []), key=lambda each: each.get("z_order", 0)):
        mask = _drawn(mask, annotation, known, labels, name)
    return mask


def _blank(size: Any, name: str) -> Mask:
    height, width = size if isinstance(size, list) and len(size) == 2 else (None, None)
    return np.zeros(size_of(height, width, name), np.uint8)


def _drawn(mask: Mask | None, annotation: dict[str, Any], known: list[Any], labels: Labels, name: str) -> Mask | None:
    """The mask with one more annotation; a run of lengths says the size where nothing else does."""
    kind = annotation.get("type")
    if kind not in ("mask", "polygon"):
        if kind == "label":  # of the whole image
            return mask
        raise UnreadableError(f"{name}: an annotation of the type {kind!r}; masks and polygons can be read")
    try:
        label = known[annotation["label_id"]]
        if mask is None:
            mask = _blank(annotation["rle"]["size"], name)
        if kind == "mask":
            outline = read_outline(annotation["rle"])
            shape = rle.decode(draw(outline, mask.shape)) if outline else np.zeros_like(mask)
            mask[shape == 1] = labels.value(label, name)
        else:
            points = annotation["points"]
            fill_in(mask, [list(zip(points[::2], points[1::2], strict=True))], labels.value(label, name))
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise UnreadableError(f"{name}: a damaged annotation ({error}); export it again") from error
    return mask


EXPORTER = FolderExporter(files=_files, Options=ToolOptions, needs_images=True)
IMPORTER = Importer(recognise=_recognise, read=_read)
