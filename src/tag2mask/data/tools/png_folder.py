"""Masks as indexed PNGs, ``<id>.png``, with the class set's palette and 255 for ignored pixels, as VOC has them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from tag2mask.data.png import encode_mask
from tag2mask.data.protocol import Export, FolderExporter
from tag2mask.data.tools.reading import Correction, Files, Importer, Labels, indexed_mask


def _files(export: Export) -> Iterator[tuple[str, bytes]]:
    for image in export.images:
        yield f"{image.id}.png", encode_mask(image.mask, export.classes.palette)


EXPORTER = FolderExporter(files=_files)


def _recognise(files: Files) -> bool:
    """Masks, and nothing beside them."""
    return bool(files.names) and files.names == files.ending(".png")


def _read(files: Files, labels: Labels) -> Iterator[Correction]:
    for name in files.ending(".png"):
        yield Correction(name, partial(indexed_mask, files, name, labels))


IMPORTER = Importer(recognise=_recognise, read=_read)
