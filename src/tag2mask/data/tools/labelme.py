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
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from tag2mask.data.protocol import Content, Export, FolderExporter, Labelled
from tag2mask.data.tools.layout import ToolOptions, encoded, label_names, picture, picture_name
from tag2mask.data.tools.reading import Correction, Files, Importer, Labels, size_of
from tag2mask.data.tools.shapes import Mask, fill, layers, objects, outline
from tag2mask.types import UserError


class LabelMeOptions(ToolOptions):
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
        for shape, (top, left) in objects(layer):
            if kind == "polygons":
                points: list[Any] = outline(shape, (top, left))
                mask = None
            else:
                points = [[left, top], [left + shape.shape[1] - 1, top + shape.shape[0] - 1]]
                buffer = io.BytesIO()
                Image.fromarray(shape.astype(bool)).save(buffer, format="PNG")
                mask = base64.b64encode(buffer.getvalue()).decode("ascii")
            yield {
                "label": names[value],
                "points": points,
                "group_id": None,
                "description": "",
                "shape_type": kind.removesuffix("s"),
                "flags": {},
                "mask": mask,
            }


def _recognise(files: Files) -> bool:
    return any(
        b'"shapes"' in files.read(name) and b'"imagePath"' in files.read(name) for name in _documents(files)[:1]
    )


def _documents(files: Files) -> list[str]:
    return files.ending(".json")


def _read(files: Files, labels: Labels) -> Iterator[Correction]:
    for name in _documents(files):
        where = f"{name} in {files.path}"
        try:
            document = json.loads(files.read(name))
            shapes = document["shapes"]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{where} is no file of LabelMe ({error})") from error
        mask = np.zeros(size_of(document.get("imageHeight"), document.get("imageWidth"), where), np.uint8)
        for shape in shapes:
            try:
                drawn = _drawn(shape, mask.shape)
            except (IndexError, KeyError, TypeError, ValueError, OSError, binascii.Error) as error:
                raise UserError(f"{where}: a damaged shape of {shape.get('label')!r} ({error})") from error
            mask[drawn == 1] = labels.value(shape.get("label"), where)
        yield Correction(name.removesuffix(".json"), mask)


def _drawn(shape: dict[str, Any], size: tuple[int, int]) -> Mask:
    points, kind = shape["points"], shape.get("shape_type", "polygon")
    if kind == "polygon":
        return fill([[(float(x), float(y)) for x, y in points]], size)
    if kind != "mask":
        raise ValueError(f"it is a {kind}; polygons and masks can be read")
    with Image.open(io.BytesIO(base64.b64decode(shape["mask"], validate=True))) as image:
        size_of(image.height, image.width, "its mask")
        part = np.array(image.convert("1")).astype(np.uint8)
    left, top = (round(float(number)) for number in points[0])
    if min(left, top) < 0 or top + part.shape[0] > size[0] or left + part.shape[1] > size[1]:
        raise ValueError("its mask reaches over the image")
    drawn = np.zeros(size, np.uint8)
    drawn[top : top + part.shape[0], left : left + part.shape[1]] = part
    return drawn


EXPORTER = FolderExporter(files=_files, Options=LabelMeOptions, needs_images=True)
IMPORTER = Importer(recognise=_recognise, read=_read)
