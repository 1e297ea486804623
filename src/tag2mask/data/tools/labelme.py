"""LabelMe: a JSON file beside each picture, with an outline or the exact pixels of each object.

::

    <id>.jpg
    <id>.json

A polygon is easy to change but LabelMe draws it with its edge, a pixel wider than it was; ``--set shapes=masks``
keeps every pixel, in shapes that LabelMe 5.3 and later know.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from tag2mask.data.protocol import Content, Export, FolderExporter, Labelled
from tag2mask.data.tools.layout import PieceOptions, ToolOptions, encoded, label_names, picture, picture_name
from tag2mask.data.tools.reading import Correction, Files, Importer, Labels, UnreadableError, size_of
from tag2mask.data.tools.shapes import Mask, Points, fill_in, layers, objects, outlines


class LabelMeOptions(ToolOptions, PieceOptions):
    """What ``--set`` can change."""

    shapes: Literal["polygons", "masks"] = Field("polygons", description="outlines, or every pixel")


def _files(export: Export) -> Iterator[tuple[str, Content]]:
    names = label_names(export.classes)
    for image in export.images:
        for name, content in picture(image, ".", export.options):
            yield name.removeprefix("./"), content
        height, width = image.mask.shape
        yield (
            f"{image.id}.json",
            encoded(
                {
                    "version": "5.5.0",
                    "flags": {},
                    "shapes": list(_shapes(image, names, export.options.shapes)),
                    "imagePath": picture_name(image).rpartition("/")[2],
                    "imageData": None,
                    "imageHeight": height,
                    "imageWidth": width,
                }
            ),
        )


def _shapes(image: Labelled, names: dict[int, str], kind: str) -> Iterator[dict[str, Any]]:
    for value, layer in layers(image.mask):
        for points, mask in ((each, None) for each in outlines(layer)) if kind == "polygons" else _pixels(layer):
            yield {
                "label": names[value],
                "points": points,
                "group_id": None,
                "description": "",
                "shape_type": kind.removesuffix("s"),
                "flags": {},
                "mask": mask,
            }


def _pixels(layer: Mask) -> Iterator[tuple[Points, str]]:
    """(two corners, the pixels between them as a PNG in base64) of each object."""
    for shape, (top, left) in objects(layer):
        buffer = io.BytesIO()
        Image.fromarray(shape.astype(bool)).save(buffer, format="PNG")
        corners = [(left, top), (left + shape.shape[1] - 1, top + shape.shape[0] - 1)]
        yield corners, base64.b64encode(buffer.getvalue()).decode("ascii")


def _recognise(files: Files) -> bool:
    return any(
        b'"shapes"' in files.read(name) and b'"imagePath"' in files.read(name) for name in _documents(files)[:1]
    )


def _documents(files: Files) -> list[str]:
    return files.ending(".json")


def _read(files: Files, labels: Labels) -> Iterator[Correction]:
    for name in _documents(files):
        yield Correction(name.removesuffix(".json"), partial(_mask, files, name, labels))


def _mask(files: Files, name: str, labels: Labels) -> Mask:
    where = f"{name} in {files.path}"
    try:
        document = json.loads(files.read(name))
        shapes = document["shapes"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UnreadableError(f"{where} is no file of LabelMe ({error})") from error
    mask = np.zeros(size_of(document.get("imageHeight"), document.get("imageWidth"), where), np.uint8)
    for shape in shapes:
        try:
            _draw(shape, mask, labels.value(shape.get("label"), name))
        except (IndexError, KeyError, TypeError, ValueError, OSError, binascii.Error) as error:
            raise UnreadableError(f"{where}: a damaged shape of {shape.get('label')!r} ({error})") from error
    return mask


def _draw(shape: dict[str, Any], mask: Mask, value: int) -> None:
    points, kind = shape["points"], shape.get("shape_type", "polygon")
    if kind == "polygon":
        fill_in(mask, [[(float(x), float(y)) for x, y in points]], value)
        return
    if kind != "mask":
        raise ValueError(f"it is a {kind}; polygons and masks can be read")
    with Image.open(io.BytesIO(base64.b64decode(shape["mask"], validate=True))) as image:
        size_of(image.height, image.width, "its mask")
        part = np.array(image.convert("1")).astype(np.uint8)
    left, top = (round(float(number)) for number in points[0])
    if min(left, top) < 0 or top + part.shape[0] > mask.shape[0] or left + part.shape[1] > mask.shape[1]:
        raise ValueError("its mask reaches over the image")
    mask[top : top + part.shape[0], left : left + part.shape[1]][part == 1] = value


EXPORTER = FolderExporter(files=_files, Options=LabelMeOptions, needs_images=True)
IMPORTER = Importer(recognise=_recognise, read=_read)
