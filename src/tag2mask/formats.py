"""What data is read from, and what masks are written as: a line here and a file in ``data`` each.

Another package adds its own by entry points (docs/add-a-reader-or-exporter.md). Nothing is imported early.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tag2mask import tables

__all__ = [
    "EXPORTERS",
    "EXPORTER_GROUP",
    "IMPORTERS",
    "READERS",
    "READER_GROUP",
    "Format",
    "exporters",
    "readers",
    "said",
]


@dataclass(frozen=True)
class Format:
    """where: "module:attribute" of a ``data.protocol`` Reader or exporter. what: it in words, as after "give"."""

    where: str
    what: str


READERS = {
    "voc": Format("tag2mask.data.voc:READER", "a VOC devkit, or images with XML files like its own"),
    "coco": Format("tag2mask.data.coco:READER", "a COCO annotations file (.json), or its folder"),
    "folder": Format("tag2mask.data.folder:READER", "a folder of images, with or without a tags file"),
    "image": Format("tag2mask.data.one_image:READER", "one image (say what is in it: --tags 'dog;person')"),
}
"""By name, as ``--kind`` takes it. Of data that two are sure of, the first one's."""

EXPORTERS = {
    "png": Format("tag2mask.data.tools.png_folder:EXPORTER", "a folder of indexed PNGs with the classes' colours"),
    "coco": Format("tag2mask.data.tools.coco:EXPORTER", "a COCO JSON file, with compressed RLE of each class"),
    "voc": Format("tag2mask.data.tools.voc_folder:EXPORTER", "a folder as VOC has it, with CVAT's label map"),
    "cvat": Format("tag2mask.data.tools.cvat:EXPORTER", "an XML file for CVAT, with a mask of each object"),
    "label-studio": Format("tag2mask.data.tools.label_studio:EXPORTER", "tasks and a configuration for Label Studio"),
    "labelme": Format("tag2mask.data.tools.labelme:EXPORTER", "a JSON file beside each picture, for LabelMe"),
    "datumaro": Format("tag2mask.data.tools.datumaro:EXPORTER", "a folder for Datumaro"),
    "fiftyone": Format("tag2mask.data.tools.fiftyone:EXPORTER", "a folder for FiftyOne"),
    "hf": Format("tag2mask.data.tools.hugging_face:EXPORTER", "a folder for Hugging Face datasets"),
    "ultralytics": Format("tag2mask.data.tools.ultralytics:SEMANTIC", "a folder for Ultralytics' semantic networks"),
    "yolo-seg": Format("tag2mask.data.tools.ultralytics:YOLO", "a folder for YOLO, with an outline of each object"),
    "voc-test": Format("tag2mask.data.tools.voc_test:EXPORTER", "a .tgz file for the VOC server"),
}
"""By name, as ``export --to`` takes it."""

IMPORTERS = {
    "png": Format("tag2mask.data.tools.png_folder:IMPORTER", "a folder of indexed PNGs"),
    "coco": Format("tag2mask.data.tools.coco:IMPORTER", "a COCO JSON file"),
    "voc": Format(
        "tag2mask.data.tools.voc_folder:IMPORTER", 'a folder as VOC has it, or CVAT\'s "Segmentation mask"'
    ),
    "cvat": Format("tag2mask.data.tools.cvat:IMPORTER", '"CVAT for images" XML, as it is or zipped'),
    "label-studio": Format("tag2mask.data.tools.label_studio:IMPORTER", "Label Studio's JSON"),
    "labelme": Format("tag2mask.data.tools.labelme:IMPORTER", "LabelMe's JSON files"),
    "datumaro": Format("tag2mask.data.tools.datumaro:IMPORTER", "Datumaro's JSON"),
    "fiftyone": Format("tag2mask.data.tools.fiftyone:IMPORTER", "a folder that was exported for FiftyOne"),
    "hf": Format("tag2mask.data.tools.hugging_face:IMPORTER", "a folder for Hugging Face datasets"),
    "ultralytics": Format("tag2mask.data.tools.ultralytics:READ_SEMANTIC", "Ultralytics' masks"),
    "yolo-seg": Format("tag2mask.data.tools.ultralytics:READ_YOLO", "YOLO's outlines"),
}
"""Corrected masks by format, as ``import --from`` takes it."""

READER_GROUP, EXPORTER_GROUP = "tag2mask.readers", "tag2mask.exporters"
"""The entry-point groups in which other packages offer more."""


def readers() -> dict[str, Format]:
    """All readers at hand by name; ours come first and keep their names."""
    return _with_others(READERS, READER_GROUP)


def exporters() -> dict[str, Format]:
    """All exporters at hand by name; ours come first and keep their names."""
    return _with_others(EXPORTERS, EXPORTER_GROUP)


def said(table: Mapping[str, Format]) -> str:
    """What a table holds, in words: "a, b, or c"."""
    *most, last = (entry.what for entry in table.values())
    return f"{'; '.join(most)}; or {last}" if most else last


def _with_others(own: Mapping[str, Format], group: str) -> dict[str, Format]:
    places = tables.offered({name: entry.where for name, entry in own.items()}, group)
    foreign = tables.packages(group)
    return {
        name: own[name] if name in own else Format(where, f"of the package {foreign[name]}")
        for name, where in places.items()
    }
