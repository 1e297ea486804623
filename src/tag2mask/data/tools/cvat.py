"""CVAT for images 1.1: one XML file with a mask for each object; upload it as annotations of a task with the images.

A mask is run lengths within its box, row by row, background first.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from tag2mask.data.protocol import Export, FileExporter
from tag2mask.data.tools.layout import PieceOptions, label_names
from tag2mask.data.tools.reading import Correction, Files, Importer, Labels, Unread, UnreadableError, size_of
from tag2mask.data.tools.shapes import Mask, fill_in, layers, objects, paint, runs

MARK = "<!-- tag2mask: masks of a run -->"


def _write(export: Export, file: BinaryIO) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    names = label_names(export.classes)
    labels = "".join(f"<label><name>{escape(name)}</name><attributes/></label>" for name in names.values())
    text.write(f'<?xml version="1.0" encoding="utf-8"?>\n{MARK}\n<annotations>\n<version>1.1</version>\n')
    text.write(f"<meta><task><labels>{labels}</labels></task></meta>\n")
    for number, image in enumerate(export.images):
        height, width = image.mask.shape
        text.write(f'<image id="{number}" name={quoteattr(image.file)} width="{width}" height="{height}">\n')
        for value, layer in layers(image.mask):
            for shape, (top, left) in objects(layer):
                rle = ", ".join(map(str, runs(shape.ravel())))
                text.write(
                    f'<mask label={quoteattr(names[value])} source="auto" occluded="0" rle="{rle}" left="{left}" '
                    f'top="{top}" width="{shape.shape[1]}" height="{shape.shape[0]}" z_order="0"/>\n'
                )
        text.write("</image>\n")
    text.write("</annotations>\n")
    text.detach()


def _recognise(files: Files) -> bool:
    return any(b"<annotations>" in files.read(name)[:4096] for name in files.ending(".xml")[:1])


def _read(files: Files, labels: Labels) -> Iterator[Correction | Unread]:
    for name in files.ending(".xml"):
        try:
            root = _document(files, name)
        except UnreadableError as error:
            yield Unread(name, str(error))
            continue
        for image in root.iter("image"):
            yield Correction(image.get("name", ""), partial(_mask, image, labels))


def _document(files: Files, name: str) -> ElementTree.Element:
    content = files.read(name)
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise UnreadableError(f"{name} in {files.path} declares a document type, which CVAT does not; it is not read")
    try:
        return ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise UnreadableError(f"{name} in {files.path} is damaged XML ({error}); export it again") from error


def _mask(image: ElementTree.Element, labels: Labels) -> Mask:
    name = image.get("name", "")
    size = size_of(image.get("height"), image.get("width"), name)
    mask = np.zeros(size, np.uint8)
    for shape in sorted(image, key=lambda each: int(each.get("z_order") or 0)):
        if shape.tag not in ("mask", "polygon"):
            if shape.tag == "tag":  # of the whole image
                continue
            raise UnreadableError(
                f"{name}: a {shape.tag}; masks and polygons can be read: draw it as one of these in CVAT"
            )
        value = labels.value(shape.get("label"), name)
        try:
            _draw(shape, mask, value)
        except (TypeError, ValueError) as error:
            raise UnreadableError(f"{name}: a {shape.tag} of {shape.get('label')} is damaged ({error})") from error
    return mask


def _draw(shape: ElementTree.Element, mask: Mask, value: int) -> None:
    if shape.tag == "polygon":
        points = [tuple(map(float, pair.split(","))) for pair in shape.get("points", "").split(";")]
        fill_in(mask, [[(x, y) for x, y in points]], value)
        return
    left, top, width, height = (int(float(shape.get(key, ""))) for key in ("left", "top", "width", "height"))
    if min(left, top) < 0 or left + width > mask.shape[1] or top + height > mask.shape[0]:
        raise ValueError("its box reaches over the image")
    lengths = [int(length) for length in shape.get("rle", "").split(",")]
    part = paint(lengths, width * height).reshape(height, width)
    mask[top : top + height, left : left + width][part == 1] = value


EXPORTER = FileExporter(
    write=_write,
    called="CVAT export of tag2mask",
    example="annotations.xml",
    mark=MARK,
    Options=PieceOptions,
    needs_images=True,
)
IMPORTER = Importer(recognise=_recognise, read=_read)
