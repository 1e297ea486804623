"""FiftyOne's ImageSegmentationDirectory: pictures and masks of the same names, and what the values mean.

::

    data/<id>.jpg
    labels/<id>.png
    mask_targets.json    {"1": "cat", ..., "255": "ignore"}: set it as the data set's default_mask_targets
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from tag2mask.data.png import encode_mask
from tag2mask.data.protocol import Content, Export, FolderExporter
from tag2mask.data.tools.layout import ToolOptions, encoded, label_names, picture
from tag2mask.data.tools.reading import Correction, Files, Importer, Labels, check_names, indexed_mask, json_document

_TARGETS = "mask_targets.json"


def _files(export: Export) -> Iterator[tuple[str, Content]]:
    yield _TARGETS, encoded(label_names(export.classes)) + b"\n"
    for image in export.images:
        yield from picture(image, "data", export.options)
        yield f"labels/{image.id}.png", encode_mask(image.mask, export.classes.palette)


def _recognise(files: Files) -> bool:
    return _TARGETS in files.names


def _read(files: Files, labels: Labels) -> Iterator[Correction]:
    targets = json_document(files, (_TARGETS,))
    check_names({int(value): name for value, name in targets.items()}, labels, _TARGETS)
    for name in files.ending(".png"):
        if name.startswith("labels/"):
            yield Correction(name.removeprefix("labels/"), partial(indexed_mask, files, name, labels))


EXPORTER = FolderExporter(files=_files, Options=ToolOptions, needs_images=True)
IMPORTER = Importer(recognise=_recognise, read=_read)
