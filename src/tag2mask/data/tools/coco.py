"""COCO's JSON, out and back in. Written while the masks come: memory does not grow with their number.

An annotation is a class of an image, an object that hangs together, or such an object's outline. Corrected masks may
be polygons or run lengths, ours or others'.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, BinaryIO, Literal, TextIO

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from pydantic import Field

from tag2mask.data.coco_outline import draw, read_outline
from tag2mask.data.protocol import Export, FileExporter
from tag2mask.data.tools.layout import PieceOptions
from tag2mask.data.tools.reading import Correction, Files, Importer, Labels, UnreadableError, json_document, size_of
from tag2mask.data.tools.shapes import Mask, layers, objects, outlines
from tag2mask.types import IGNORE, ClassSet, UserError

COCO_STAMP = '"info": {"description": "tag2mask: masks of a run"}'
"""Stands at the beginning of our COCO files, so that they are known as ours."""

Shapes = Literal["classes", "objects", "polygons"]

__all__ = ["write_coco"]


class CocoOptions(PieceOptions):
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
            shape = rle.encode(np.asfortranarray(layer))
            yield tag, {**_runs(shape), "area": int(rle.area(shape)), "bbox": rle.toBbox(shape).tolist()}
            continue
        drawn = outlines(layer) if shapes == "polygons" else iter(())
        for part, (top, left) in objects(layer):
            about = {"area": int(part.sum()), "bbox": [float(left), float(top), *map(float, part.shape[::-1])]}
            if shapes == "polygons":
                yield tag, {"segmentation": [[number for point in next(drawn) for number in point]], **about}
            else:
                yield tag, {**_runs(_placed(part, (top, left), mask.shape)), **about}


def _runs(shape: dict[str, Any]) -> dict[str, Any]:
    return {"segmentation": {"size": shape["size"], "counts": shape["counts"].decode("ascii")}}


def _placed(part: NDArray[np.uint8], at: tuple[int, int], size: tuple[int, ...]) -> dict[str, Any]:
    """Compressed run lengths of a part, (h, w) of 0 and 1, within an image: of the part's columns alone.

    at: its first row and column. size: (H, W) of the image.
    """
    (top, left), (height, width) = at, size
    change = np.diff(np.pad(part.astype(np.int8), ((1, 1), (0, 0))), axis=0).T  # (w, h + 1): 1 begins, -1 ends
    begins, ends = (
        (left + column) * height + top + row for column, row in (np.nonzero(change == n) for n in (1, -1))
    )
    going_on = begins[1:] == ends[:-1]  # from the bottom of a column to the top of the next
    begins, ends = begins[np.append(True, ~going_on)], ends[np.append(~going_on, True)]
    counts = np.diff(np.concatenate([[0], np.stack([begins, ends], 1).ravel(), [height * width]]))
    counts = counts if counts[-1] else counts[:-1]
    found: dict[str, Any] = rle.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return found


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
