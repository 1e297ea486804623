"""A folder as VOC has it, which many tools read; zipped, it is CVAT's "Segmentation mask 1.1".

::

    JPEGImages/<id>.jpg
    SegmentationClass/<id>.png               indexed, with the classes' colours
    ImageSets/Segmentation/default.txt       the ids
    labelmap.txt                             name:red,green,blue:: of each colour
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tag2mask.classes import color_map
from tag2mask.data.png import encode_mask
from tag2mask.data.protocol import Content, Export, FolderExporter
from tag2mask.data.tools.layout import Lines, ToolOptions, label_names, picture
from tag2mask.data.tools.reading import Correction, Files, Importer, Labels, indexed_mask, picture_of
from tag2mask.data.tools.shapes import Mask
from tag2mask.types import IGNORE, UserError

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
            mask = _by_colour(files, name, colours) if colours else indexed_mask(files, name, labels)
            yield Correction(own, mask)


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


def _by_colour(files: Files, name: str, colours: dict[tuple[int, ...], int]) -> Mask:
    """A mask from its colours: what they stand for, whatever the file's own indices are."""
    pixels = np.array(picture_of(files, name).convert("RGB")).astype(np.int64)  # (H, W, 3)
    codes = pixels @ np.array([1 << 16, 1 << 8, 1])
    mask, left = np.zeros(codes.shape, np.uint8), np.ones(codes.shape, bool)
    for (red, green, blue), value in colours.items():
        here = codes == (red << 16) + (green << 8) + blue
        mask[here], left[here] = value, False
    if left.any():
        colour = tuple(int(number) for number in pixels[left][0])
        raise UserError(f"{name} in {files.path} has the colour {colour}, which {_MAP} does not name")
    return mask


EXPORTER = FolderExporter(files=_files, Options=ToolOptions, needs_images=True)
IMPORTER = Importer(recognise=_recognise, read=_read)
