"""Ultralytics: masks for semantic segmentation, and outlines of objects for YOLO.

Semantic::                               YOLO::

    images/train/<id>.jpg                    images/train/<id>.jpg
    masks/train/<id>.png   255 is ignored    labels/train/<id>.txt   class x y x y ..., shares of the sides
    data.yaml                                data.yaml

YOLO's classes count from 0 without background, and it knows no ignored pixels: they are as background there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import yaml

from tag2mask.data.png import encode_mask
from tag2mask.data.protocol import Content, Export, FolderExporter
from tag2mask.data.tools.layout import PieceOptions, ToolOptions, picture
from tag2mask.data.tools.reading import (
    Correction,
    Files,
    Importer,
    Labels,
    UnreadableError,
    check_names,
    indexed_mask,
)
from tag2mask.data.tools.shapes import Mask, fill_in, layers, outlines
from tag2mask.safe_yaml import parse_yaml
from tag2mask.types import IGNORE

_YAML = "data.yaml"


class YoloOptions(ToolOptions, PieceOptions):
    """What ``--set`` can change of outlines."""


def _data(names: dict[int, str], **more: str) -> bytes:
    # without "path": then the folders are beside this file, wherever it is read from
    content = {"train": "images/train", "val": "images/train", **more, "names": names}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()


def _semantic(export: Export) -> Iterator[tuple[str, Content]]:
    yield _YAML, _data(dict(enumerate(export.classes.names)), masks_dir="masks")
    for image in export.images:
        yield from picture(image, "images/train", export.options)
        yield f"masks/train/{image.id}.png", encode_mask(image.mask, export.classes.palette)


def _yolo(export: Export) -> Iterator[tuple[str, Content]]:
    yield _YAML, _data(dict(enumerate(export.classes.foreground)))
    for image in export.images:
        yield from picture(image, "images/train", export.options)
        height, width = image.mask.shape
        lines = []
        for value, layer in layers(image.mask):
            if value == IGNORE:
                continue
            for points in outlines(layer):
                shares = (f"{x / width:.7g} {y / height:.7g}" for x, y in points)
                lines.append(f"{value - 1} {' '.join(shares)}\n")
        yield f"labels/train/{image.id}.txt", "".join(lines).encode()


def _names(files: Files) -> dict[int, str]:
    """The names in the YAML file by number, empty where there is none."""
    for name in files.called(_YAML):
        document = parse_yaml(files.read(name), f"{name} in {files.path}")
        names = document.get("names") if isinstance(document, dict) else None
        if isinstance(names, list):
            return dict(enumerate(map(str, names)))
        if isinstance(names, dict):
            return {int(number): str(each) for number, each in names.items()}
    return {}


def _has(files: Files, folder: str, suffix: str) -> bool:
    return bool(files.called(_YAML)) and any(f"/{folder}/" in f"/{name}" for name in files.ending(suffix))


def _read_semantic(files: Files, labels: Labels) -> Iterator[Correction]:
    check_names(_names(files), labels, _YAML)
    for name in files.ending(".png"):
        if "/masks/" in f"/{name}":
            yield Correction(_inside(name, "masks"), partial(indexed_mask, files, name, labels))


def _read_yolo(files: Files, labels: Labels) -> Iterator[Correction]:
    names = _names(files)
    for name in files.ending(".txt"):
        if "/labels/" in f"/{name}":
            own = _inside(name, "labels")
            yield Correction(own, partial(_filled, files, name, own, names, labels))


def _filled(files: Files, where: str, image: str, names: dict[int, str], labels: Labels) -> Mask | None:
    """The mask of a label file; None where the run has no such image."""
    size = labels.size(image)
    if size is None:
        return None
    text, mask = files.read(where).decode("utf-8", "replace"), np.zeros(size, np.uint8)
    for line, words in enumerate((row.split() for row in text.splitlines()), start=1):
        if not words:
            continue
        try:
            shares, number = np.array(words[1:], dtype=np.float64).reshape(-1, 2), int(words[0])
            value = labels.value(names.get(number, number), where)
            fill_in(mask, [[(x, y) for x, y in (shares * size[::-1]).tolist()]], value)
        except ValueError as error:
            raise UnreadableError(f"{where}, line {line}: no outline ({error})") from error
    return mask


def _inside(name: str, folder: str) -> str:
    """An image's name within a split of that folder, "a/b" of "labels/train/a/b.txt"."""
    return "/".join(f"/{name}".rpartition(f"/{folder}/")[2].rpartition(".")[0].split("/")[1:])


SEMANTIC = FolderExporter(files=_semantic, Options=ToolOptions, needs_images=True)
YOLO = FolderExporter(files=_yolo, Options=YoloOptions, needs_images=True)
READ_SEMANTIC = Importer(recognise=lambda files: _has(files, "masks", ".png"), read=_read_semantic)
READ_YOLO = Importer(recognise=lambda files: _has(files, "labels", ".txt"), read=_read_yolo, ignored=False)
