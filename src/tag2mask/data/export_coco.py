"""Masks as COCO JSON, written while they come: memory does not grow with their number.

An annotation is a class of an image, an object that hangs together, or such an object's outline.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Literal, TextIO

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from pydantic import Field

from tag2mask.data.protocol import Export, ExportOptions, FileExporter
from tag2mask.data.tools.shapes import layers, objects, outline
from tag2mask.types import IGNORE, ClassSet

COCO_STAMP = '"info": {"description": "tag2mask: masks of a run"}'
"""Stands at the beginning of our COCO files, so that they are known as ours."""

Shapes = Literal["classes", "objects", "polygons"]

__all__ = ["write_coco"]


class CocoOptions(ExportOptions):
    """What ``--set`` can change."""

    shapes: Shapes = Field(
        "classes",
        description="an annotation for each class (run lengths), each object (run lengths), or each object's outline",
    )


def write_coco(
    masks: Iterable[tuple[str, str, NDArray[np.uint8]]],
    classes: ClassSet,
    handle: TextIO,
    shapes: Shapes = "classes",
) -> int:
    """Writes masks as a COCO instances file: one annotation for each class in each image, or for each object.

    Category ids are the mask values 1..C; image and annotation ids count from 1. Ignored pixels (255) belong to no
    annotation. The sample's id stands in each image as "sample".

    Args:
        masks: (sample id, file name, (H, W) uint8 mask).
        handle: a text file open for writing.

    Returns:
        The number of images.

    Raises:
        ValueError: a mask that is not (H, W) uint8, or holds a value that is no class.
    """
    count = annotations = 0
    handle.write(f'{{{COCO_STAMP},\n"annotations": [')
    # Images come second in the file, so they wait on disk.
    with tempfile.SpooledTemporaryFile(max_size=1 << 20, mode="w+", encoding="utf-8") as waiting:
        for count, (name, file_name, mask) in enumerate(masks, start=1):
            for tag, found in _shapes(name, mask, classes, shapes):
                annotations += 1
                annotation = {"id": annotations, "image_id": count, "category_id": tag, **found, "iscrowd": 0}
                handle.write(",\n" * (annotations > 1) + json.dumps(annotation))
            height, width = mask.shape
            image = {"id": count, "file_name": file_name, "height": height, "width": width, "sample": name}
            waiting.write(",\n" * (count > 1) + json.dumps(image))
        handle.write('],\n"images": [')
        waiting.seek(0)
        for line in waiting:
            handle.write(line)
    categories = [
        {"id": tag, "name": name, "supercategory": "none"} for tag, name in enumerate(classes.foreground, start=1)
    ]
    handle.write(f'],\n"categories": {json.dumps(categories)}}}\n')
    return count


def _shapes(
    name: str, mask: NDArray[np.uint8], classes: ClassSet, shapes: Shapes
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(mask value, what COCO says of the shape) of all shapes in a mask."""
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise ValueError(f"the mask of {name} is {mask.shape} {mask.dtype}, but (H, W) uint8 is expected")
    for tag, layer in layers(mask):
        if tag == IGNORE:
            continue
        if tag >= len(classes):
            raise ValueError(f"the mask of {name} holds {tag}, but {classes.id} ends at {len(classes) - 1}")
        if shapes == "classes":
            yield tag, _runs(layer)
            continue
        for shape, (top, left) in objects(layer):
            whole = np.zeros_like(layer)
            whole[top : top + shape.shape[0], left : left + shape.shape[1]] = shape
            found = _runs(whole)
            if shapes == "polygons":
                found["segmentation"] = [[number for point in outline(shape, (top, left)) for number in point]]
            yield tag, found


def _runs(layer: NDArray[np.uint8]) -> dict[str, Any]:
    shape = rle.encode(np.asfortranarray(layer))
    return {
        "segmentation": {"size": shape["size"], "counts": shape["counts"].decode("ascii")},
        "area": int(rle.area(shape)),
        "bbox": rle.toBbox(shape).tolist(),
    }


def _write(export: Export, file: BinaryIO) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    write_coco(
        ((image.id, image.file, image.mask) for image in export.images), export.classes, text, export.options.shapes
    )
    text.detach()  # flushed; the file is its owner's to close


EXPORTER = FileExporter(
    write=_write,
    called="COCO export of tag2mask",
    example="masks.json",
    mark=COCO_STAMP,
    Options=CocoOptions,
    needs_images=True,
)
