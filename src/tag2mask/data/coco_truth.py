"""Ground truth drawn from the outlines of a COCO file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from tag2mask.classes import class_index, fold
from tag2mask.data.coco_file import load_coco
from tag2mask.data.coco_images import find_pictures
from tag2mask.data.coco_outline import Outline, draw, read_outline, whole
from tag2mask.data.image import MAX_PIXELS, BadImage, image_size, open_image
from tag2mask.types import IGNORE, ClassSet, UserError

__all__ = ["CocoTruth"]


@dataclass(eq=False)
class CocoTruth:
    """Draws ground-truth masks by id. The file is read on first use, and its outlines kept as packed bytes.

    Larger objects come first, smaller ones on top. A crowd (``iscrowd``) has a loose outline, and what is marked
    ``ignore`` is by COCO's rules neither right nor wrong: what only these cover becomes 255. An outline of a category
    that is no class, "background" among them, draws nothing.
    """

    annotations: Path
    classes: ClassSet
    root: Path
    _scenes: dict[str, _Scene] | None = field(default=None, repr=False)

    def __call__(self, name: str) -> NDArray[np.uint8]:
        """The mask (H, W) uint8 of the image called ``name``, of the size that the file says.

        That size is the image's, upright or as its pixels are stored where EXIF turns it.

        Raises:
            UserError: the file is gone or another one, or holds sizes or outlines that cannot be drawn.
        """
        if self._scenes is None:
            self._scenes = self._read()
        scene = self._scenes.get(name)
        if scene is None:
            raise UserError(f"{self.annotations} lists no image {name}: it is not the file that was read")
        size = self._size(scene)
        layers = []
        for shape in scene.shapes:
            try:
                if shape.fault:
                    raise ValueError(shape.fault)
                layers.append((shape.value, draw(shape.outline, size)))
            except ValueError as error:
                raise UserError(
                    f"{self.annotations}: annotation {shape.id!r} of the image {scene.file!r}: {error}; correct it, "
                    "or leave it out"
                ) from error
        # Crowds first, then from large to small, so that what is small ends on top.
        layers.sort(key=lambda layer: (layer[0] != IGNORE, -int(rle.area(layer[1]))))
        mask = np.zeros(size, dtype=np.uint8)
        for value, run_lengths in layers:
            mask[rle.decode(run_lengths).astype(bool)] = value
        return mask

    def __getstate__(self) -> dict[str, Any]:
        return {"annotations": self.annotations, "classes": self.classes, "root": self.root, "_scenes": None}

    def _read(self) -> dict[str, _Scene]:
        content = load_coco(self.annotations)
        index = class_index(self.classes)
        tags = {key: index.get(fold(name)) for key, name in content.categories.items()}
        pictures, _ = find_pictures(content, self.root, [])
        scenes = {picture.name: _Scene(picture.file, picture.row.size, []) for picture in pictures}
        by_key = {key: scenes[picture.name] for picture in pictures for key in picture.keys}
        for annotation in content.annotations or ():
            tag, scene = tags.get(annotation["category_id"]), by_key.get(annotation["image_id"])
            if tag is not None and scene is not None:
                shape = _shape(annotation, tag)
                if shape is not None:
                    scene.shapes.append(shape)
        return scenes

    def _size(self, scene: _Scene) -> tuple[int, int]:
        """(H, W) as the file says, once it is sure that it is the image's."""
        said = f"{self.annotations}: image {scene.file!r}: "
        absent = scene.size == (None, None)
        upright = stored = None
        try:
            upright = image_size(self.root / scene.file)
            with open_image(self.root / scene.file) as image:
                stored = (image.size[1], image.size[0])
        except BadImage as error:
            if absent:
                raise UserError(f"{said}it has no width and height, and {error}") from error
        if absent:
            if upright is None or upright != stored:
                raise UserError(
                    f"{said}it has no width and height, and EXIF turns the image, so its outlines could be of the "
                    "turned one or not: give them"
                )
            return upright
        try:
            height, width = (whole(side) for side in scene.size)
            if height < 1 or width < 1 or height * width > MAX_PIXELS:
                raise ValueError(f"expected 1 to {MAX_PIXELS} pixels")
        except (ValueError, OverflowError) as error:
            raise UserError(
                f"{said}its width and height are {scene.size[1]!r} and {scene.size[0]!r} ({error}): correct them"
            ) from error
        if upright is not None and (height, width) not in (upright, stored):
            raise UserError(
                f"{said}the file says {width} x {height} (width x height), the image is {upright[1]} x {upright[0]}, "
                "so its outlines do not fit; correct width and height, or give the images that were annotated"
            )
        return height, width


class _Shape(NamedTuple):
    """What one annotation draws: a mask value and an outline, or why it cannot be drawn."""

    value: int
    id: Any
    outline: Outline
    fault: str = ""


@dataclass(frozen=True, slots=True)
class _Scene:
    """What is drawn in one image. size: (height, width) as the file has them."""

    file: str
    size: tuple[Any, Any]
    shapes: list[_Shape]


def _shape(annotation: dict[str, Any], tag: int) -> _Shape | None:
    try:
        outline = read_outline(annotation.get("segmentation"))
        unscored = _flag(annotation, "iscrowd") or _flag(annotation, "ignore")
    except (ValueError, OverflowError) as error:
        return _Shape(tag, annotation.get("id"), Outline(), str(error))
    return None if outline is None else _Shape(IGNORE if unscored else tag, annotation.get("id"), outline)


def _flag(annotation: dict[str, Any], key: str) -> bool:
    value = annotation.get(key)
    if value is None or value in (0, 1, "0", "1"):
        return value in (1, "1")
    raise ValueError(f"its {key} is {value!r}, expected 0 or 1")
