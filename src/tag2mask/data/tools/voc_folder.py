"""A folder as VOC has it, which many tools read; zipped, it is CVAT's "Segmentation mask 1.1".

::

    JPEGImages/<id>.jpg
    SegmentationClass/<id>.png               indexed, with the classes' colours
    ImageSets/Segmentation/default.txt       the ids
    labelmap.txt                             name:red,green,blue:: of each colour
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from tag2mask.classes import color_map
from tag2mask.data.png import encode_mask
from tag2mask.data.protocol import Content, Export, FolderExporter
from tag2mask.data.tools.layout import Lines, ToolOptions, label_names, picture
from tag2mask.data.tools.reading import Correction, Files, Importer, Labels, indexed_mask, picture_of
from tag2mask.data.tools.shapes import Mask
from tag2mask.types import IGNORE, UserError

_MOST_COLOURS = 20
"""Of one mask, that are named where the label map does not: a photograph has a hundred thousand."""

_MAP, _MASKS = "labelmap.txt", "SegmentationClass/"


def _files(export: Export) -> Iterator[tuple[str, Content]]:
    palette, ids = export.classes.palette, Lines()
    colours = {**dict(enumerate(palette)), IGNORE: color_map(256)[IGNORE]}
    names = {0: "background", **label_names(export.classes)}
    rows = (f"{name}:{','.join(map(str, colours[value]))}::\n" for value, name in names.items())
    yield _MAP, ("# label:color_rgb:parts:actions\n" + "".join(rows)).encode()
    for image in export.images:
        yield from picture(image, "JPEGImages", export.options)
        yield f"{_MASKS}{image.id}.png", encode_mask(image.mask, palette)
        ids.add(image.id)
    yield "ImageSets/Segmentation/default.txt", ids.file()


def _recognise(files: Files) -> bool:
    return any(_MASKS in name for name in files.ending(".png"))


def _read(files: Files, labels: Labels) -> Iterator[Correction]:
    colours = _colours(files, labels)
    for name in files.ending(".png"):
        if f"/{_MASKS}" in f"/{name}":
            own = f"/{name}".partition(f"/{_MASKS}")[2]
            read = partial(_by_colour, colours=colours) if colours else indexed_mask
            yield Correction(own, partial(read, files, name, labels))


def _colours(files: Files, labels: Labels) -> dict[tuple[int, ...], int]:
    """The mask value of each colour in the label map, empty where there is none."""
    found: dict[tuple[int, ...], int] = {}
    for name in files.called(_MAP):
        for line in files.read(name).decode("utf-8", "replace").splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            label, _, rest = line.partition(":")
            try:
                colour = tuple(int(number) for number in rest.split(":")[0].split(","))
            except ValueError as error:
                raise UserError(f"{name}: {line!r} is not name:red,green,blue::") from error
            found[colour] = labels.value(label, name)
    return found


def _by_colour(files: Files, name: str, labels: Labels, colours: dict[tuple[int, ...], int]) -> Mask:
    """A mask from its colours: what they stand for, whatever the file's own indices are."""
    pixels = np.array(picture_of(files, name).convert("RGB")).astype(np.int64)  # (H, W, 3)
    codes = pixels @ np.array([1 << 16, 1 << 8, 1])
    mask, left = np.zeros(codes.shape, np.uint8), np.ones(codes.shape, bool)
    for (red, green, blue), value in colours.items():
        here = codes == (red << 16) + (green << 8) + blue
        mask[here], left[here] = value, False
    if left.any():
        for code in np.unique(codes[left])[:_MOST_COLOURS].tolist():
            labels.unknown(f"the colour ({code >> 16}, {code >> 8 & 255}, {code & 255}), not in {_MAP}", name)
    return mask


EXPORTER = FolderExporter(files=_files, Options=ToolOptions, needs_images=True)
IMPORTER = Importer(recognise=_recognise, read=_read)
