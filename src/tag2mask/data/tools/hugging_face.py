"""Hugging Face datasets' imagefolder: pictures, masks, and a line of metadata for each.

::

    train/images/<id>.jpg
    train/masks/<id>.png
    train/metadata.jsonl    {"file_name": "images/a.jpg", "mask_file_name": "masks/a.png", "tags": ["cat"]}
    classes.txt             a line for each mask value, from background on
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pydantic import Field

from tag2mask.data.png import encode_mask
from tag2mask.data.protocol import Content, Export, FolderExporter
from tag2mask.data.tools.layout import Lines, ToolOptions, encoded, label_names, picture, picture_name
from tag2mask.data.tools.reading import Correction, Files, Importer, Labels, check_names, indexed_mask
from tag2mask.data.tools.shapes import layers
from tag2mask.types import IGNORE


class HuggingFaceOptions(ToolOptions):
    """What ``--set`` can change."""

    split: str = Field("train", pattern=r"^\w+$", description="the split that the pictures are: a folder's name")


def _files(export: Export) -> Iterator[tuple[str, Content]]:
    names, split = label_names(export.classes), export.options.split
    rows = Lines()
    for image in export.images:
        yield from picture(image, f"{split}/images", export.options)
        yield f"{split}/masks/{image.id}.png", encode_mask(image.mask, export.classes.palette)
        rows.add(
            encoded(
                {
                    "file_name": f"images/{picture_name(image)}",
                    "mask_file_name": f"masks/{image.id}.png",
                    "tags": [names[value] for value, _ in layers(image.mask) if value != IGNORE],
                }
            )
        )
    yield f"{split}/metadata.jsonl", rows.file()
    yield "classes.txt", "".join(f"{name}\n" for name in export.classes.names).encode()


def _recognise(files: Files) -> bool:
    return bool(files.called("metadata.jsonl"))


def _read(files: Files, labels: Labels) -> Iterator[Correction]:
    for name in files.called("classes.txt"):
        known = files.read(name).decode("utf-8", "replace").splitlines()
        check_names(dict(enumerate(known)), labels, name)
    for name in files.ending(".png"):
        if "/masks/" in f"/{name}":
            yield Correction(f"/{name}".partition("/masks/")[2], partial(indexed_mask, files, name, labels))


EXPORTER = FolderExporter(files=_files, Options=HuggingFaceOptions, needs_images=True)
IMPORTER = Importer(recognise=_recognise, read=_read)
