"""Label Studio: tasks with brush labels, one for each class, as predictions that a person corrects.

::

    tasks.json      import it into a project
    config.xml      paste it as the project's labelling interface
    images/<id>.jpg

Pixels are Label Studio's run lengths of RGBA values: 32 bits for the number of values, 5 for the size of one less 1,
four times 4 for the sizes of lengths less 1; then for each run a 1, the number of its length's size in 2 bits, the
length less 1, and the value. The alpha channel says what is labelled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tag2mask.data.protocol import Content, Export, FolderExporter
from tag2mask.data.tools.layout import ToolOptions, encoded, json_list, label_names, picture, picture_name
from tag2mask.data.tools.reading import Correction, Files, Importer, Labels, UnreadableError, json_document, size_of
from tag2mask.data.tools.shapes import Mask, fill_in, layers, runs
from tag2mask.types import UserError

_SIZES = (3, 4, 8, 16)  # bits of a run's length


class LabelStudioOptions(ToolOptions):
    """What ``--set`` can change."""

    prefix: str = Field(
        "/data/local-files/?d=", description="what stands before images/... in a task: where Label Studio finds them"
    )


def encode_brush(layer: Mask) -> list[int]:
    """Label Studio's run lengths of a layer, (H, W) of 0 and 1, as bytes."""
    flat = layer.ravel()
    bits = [f"{4 * flat.size:032b}", "00111", *(f"{size - 1:04b}" for size in _SIZES)]
    value = 0
    for length in runs(flat):
        left = 4 * length
        while left:
            now = min(left, 1 << _SIZES[-1])
            index = next(i for i, size in enumerate(_SIZES) if now <= 1 << size)
            bits.append(f"1{index:02b}{now - 1:0{_SIZES[index]}b}{value:08b}")
            left -= now
        value = 255 - value
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return list(int(stream, 2).to_bytes(len(stream) // 8, "big"))


def decode_brush(data: Sequence[int], size: tuple[int, int]) -> Mask:
    """What :func:`encode_brush` gave, or Label Studio's own: (H, W) of 0 and 1.

    Raises:
        ValueError: they are damaged, or of another size.
    """
    try:
        bits = np.unpackbits(np.array(data, dtype=np.uint8))
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"its rle is no list of bytes ({error})") from error
    read = _Bits(bits)
    count, width = read.number(32), read.number(5) + 1
    sizes = [read.number(4) + 1 for _ in range(4)]
    if count != 4 * size[0] * size[1] or width != 8:
        raise ValueError(f"its rle is of {count} values of {width} bits, expected 4 x {size[1]} x {size[0]} of 8")
    values, at = np.zeros(count, np.uint8), 0
    while at < count:
        repeated, length = read.number(1), read.number(sizes[read.number(2)]) + 1
        if at + length > count:
            raise ValueError("its rle is longer than the image")
        values[at : at + length] = read.number(8) if repeated else read.numbers(length)
        at += length
    return (values.reshape(*size, 4)[..., 3] > 0).astype(np.uint8)


class _Bits:
    def __init__(self, bits: NDArray[np.uint8]) -> None:
        self._bits, self._at = bits, 0

    def _take(self, count: int) -> NDArray[np.uint8]:
        taken = self._bits[self._at : self._at + count]
        if len(taken) < count:
            raise ValueError("its rle ends too early")
        self._at += count
        return taken

    def number(self, count: int) -> int:
        return int("".join(map(str, self._take(count).tolist())), 2)

    def numbers(self, count: int) -> NDArray[np.uint8]:
        return np.packbits(self._take(8 * count))


def _files(export: Export) -> Iterator[tuple[str, Content]]:
    names, tasks = label_names(export.classes), json_list()
    for image in export.images:
        yield from picture(image, "images", export.options)
        height, width = image.mask.shape
        results = [
            {
                "id": f"{value}",
                "type": "brushlabels",
                "from_name": "tag",
                "to_name": "image",
                "image_rotation": 0,
                "original_width": width,
                "original_height": height,
                "value": {"format": "rle", "brushlabels": [names[value]], "rle": encode_brush(layer)},
            }
            for value, layer in layers(image.mask)
        ]
        data = {"image": f"{export.options.prefix}images/{picture_name(image)}", "sample": image.id}
        tasks.add(encoded({"data": data, "predictions": [{"model_version": "tag2mask", "result": results}]}))
    yield "tasks.json", tasks.file()
    labels = "".join(f"<Label value={quoteattr(name)}/>" for name in names.values())
    brush = f'<BrushLabels name="tag" toName="image">{labels}</BrushLabels>'
    yield "config.xml", f'<View><Image name="image" value="$image"/>{brush}</View>\n'.encode()


def _recognise(files: Files) -> bool:
    document = json_document(files, ("tasks.json",))
    return isinstance(document, list) and bool(document) and isinstance(document[0], dict) and "data" in document[0]


def _read(files: Files, labels: Labels) -> Iterator[Correction]:
    for place, task in enumerate(json_document(files, ("tasks.json",)), start=1):
        data = task.get("data", {})
        name = data.get("sample") or str(data.get("image", "")).rpartition("?d=")[2]
        done = [each for each in task.get("annotations", []) if not each.get("was_cancelled")]
        if len(done) > 1:
            raise UserError(
                f"task {place} ({name}) has {len(done)} annotations: keep the one that holds, export again"
            )
        results = (done or task.get("predictions") or [{}])[-1].get("result", [])
        if not done and not task.get("predictions"):
            continue  # nobody has looked at it
        yield Correction(name, partial(_mask, results, labels, name))


def _mask(results: list[dict[str, Any]], labels: Labels, name: str) -> Mask | None:
    """The mask of a task; None where nothing in it says how large the image is."""
    mask = None
    for result in results:
        value, kind = result.get("value", {}), result.get("type", "")
        if kind not in ("brushlabels", "polygonlabels"):
            raise UnreadableError(f"{name}: a label of the type {kind!r}; brush and polygon labels can be read")
        size = size_of(result.get("original_height"), result.get("original_width"), name)
        mask = np.zeros(size, np.uint8) if mask is None else mask
        try:
            for label in value.get(kind, []):
                number = labels.value(label, name)
                if kind == "brushlabels":
                    mask[decode_brush(value.get("rle", []), size) == 1] = number
                else:
                    points = [(x * size[1] / 100, y * size[0] / 100) for x, y in value.get("points", [])]
                    fill_in(mask, [points], number)
        except (TypeError, ValueError) as error:
            raise UnreadableError(f"{name}: {error}") from error
    return mask


EXPORTER = FolderExporter(files=_files, Options=LabelStudioOptions, needs_images=True)
IMPORTER = Importer(recognise=_recognise, read=_read)
