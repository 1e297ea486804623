"""Masks as COCO JSON with compressed run lengths, written while they come: memory does not grow with their number."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterable
from typing import BinaryIO, TextIO

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from tag2mask.data.protocol import Export, FileExporter
from tag2mask.types import IGNORE, ClassSet

COCO_STAMP = '"info": {"description": "tag2mask: masks of a run"}'
"""Stands at the beginning of our COCO files, so that they are known as ours."""

__all__ = ["write_coco"]


def write_coco(masks: Iterable[tuple[str, str, NDArray[np.uint8]]], classes: ClassSet, handle: TextIO) -> int:
    """Writes masks as a COCO instances file: one annotation for each class in each image.

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
            for tag, shape in _shapes(name, mask, classes):
                annotations += 1
                annotation = {
                    "id": annotations,
                    "image_id": count,
                    "category_id": tag,
                    "segmentation": {"size": shape["size"], "counts": shape["counts"].decode("ascii")},
                    "area": int(rle.area(shape)),
                    "bbox": rle.toBbox(shape).tolist(),
                    "iscrowd": 0,
                }
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


def _shapes(name: str, mask: NDArray[np.uint8], classes: ClassSet) -> list[tuple[int, dict]]:
    """(mask value, run lengths) of every class in a mask."""
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise ValueError(f"the mask of {name} is {mask.shape} {mask.dtype}, but (H, W) uint8 is expected")
    values = [int(value) for value in np.unique(mask) if 0 < value != IGNORE]
    if values and values[-1] >= len(classes):
        raise ValueError(f"the mask of {name} holds {values[-1]}, but {classes.id} ends at {len(classes) - 1}")
    one_hot = mask[:, :, None] == np.array(values, dtype=np.uint8)  # (H, W, K)
    return list(zip(values, rle.encode(np.asfortranarray(one_hot.astype(np.uint8))), strict=True)) if values else []


def _write(export: Export, file: BinaryIO) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    write_coco(((image.id, image.file, image.mask) for image in export.images), export.classes, text)
    text.detach()  # flushed; the file is its owner's to close


EXPORTER = FileExporter(
    write=_write, called="COCO export of tag2mask", example="masks.json", mark=COCO_STAMP, needs_images=True
)
