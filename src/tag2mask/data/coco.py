"""COCO's instance annotations (2014 and 2017), or any JSON file of the same form.

Tags are the classes with at least one annotation in the image; crowds count, since they too say that the class is
there. An image without annotations holds background only: COCO annotates its 80 classes exhaustively.

Ground truth is drawn when asked for: larger instances first, smaller ones on top. A crowd's outline is loose, so
what only a crowd covers becomes 255. The PNG masks that the papers use can be given as a folder instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from tag2mask.classes import class_index, fold, load_classes, plain_classes
from tag2mask.data.columns import Columns, ColumnsBuilder, counted, listing
from tag2mask.data.folder import image_ids
from tag2mask.data.tags import Unknown, Vocabulary, choose_classes
from tag2mask.data.truth import MaskFolders
from tag2mask.types import IGNORE, ClassSet, UserError

__all__ = ["CocoTruth", "read_coco"]


def read_coco(
    annotations: Path | str,
    images: Path | str | None = None,
    classes: ClassSet | str | Path | None = None,
    truth: Path | str | None = None,
    unknown: Unknown = "error",
    *,
    tagged: bool = True,
    truth_values: str | None = None,
) -> Columns:
    """Reads a COCO instances file.

    Args:
        annotations: ``instances_train2014.json`` or the like.
        images: the folder of the images. Default: ``images/`` or a folder named after the split, near the file.
        classes: a class set, its name, or its file, or "file" for the categories of the file itself. Default:
            ``classes.yaml`` beside the file, else "coco14". COCO's category ids, 1 to 90 with gaps, become 1 to 80
            by their names.
        truth: a folder of masks ``<id>.png`` (0..C and 255) instead of drawing.
        unknown: what becomes of categories that are no class.
        tagged: whether tags are needed; else a file without annotations (``image_info_test2017.json``) will do, and
            the tags of its images are unknown.
        truth_values: what the numbers in masks of ``truth`` stand for (see ``tag2mask.data.truth_values``).

    Raises:
        UserError: no such file or form, no images, or unknown categories.
    """
    path = Path(annotations)
    content = _load(path, tagged)
    known = "annotations" in content
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    chosen = (
        plain_classes([names[key] for key in sorted(names, key=_order)], path.stem)
        if classes == "file"
        else choose_classes(classes, path.parent) or load_classes("coco14")
    )
    notes: list[str] = []
    rows = content["images"]
    files = [str(row["file_name"]).replace("\\", "/") for row in rows]
    root = Path(images) if images is not None else _find_images(path, files)
    if images is not None and not root.is_dir():
        raise UserError(f"no folder of images at {images}: give the one that holds {listing(files, most=1)}")

    held: dict[Any, set[Any]] = {}
    boxes = content.get("annotations", ())
    for annotation in boxes:
        held.setdefault(annotation["image_id"], set()).add(annotation["category_id"])
    drawn = any(annotation.get("segmentation") for annotation in boxes)
    masks = MaskFolders((Path(truth),)) if truth is not None else None
    if masks is None and not drawn:
        what = "boxes only" if known else "no annotations"
        notes.append(f"{path.name} has {what}, so there is no ground truth to draw")

    words, builder = Vocabulary(chosen, unknown), ColumnsBuilder()
    ids = list(image_ids(files, notes))
    if masks is not None:
        masks, said = masks.read_as(ids, chosen, truth_values)
        notes += said
    present = _present(root, files)
    missing = [name for name in files if name not in present]
    empty: list[str] = []
    for row, name, file in zip(rows, ids, files, strict=True):
        categories = sorted(held.get(row["id"], ()), key=_order)
        if file in present:
            if not categories and known:
                empty.append(file)
            has_truth = drawn if masks is None else masks.has(name)
            tags = words.tags([names.get(key, f"category {key}") for key in categories])
            builder.add(name, file, tags if known else None, has_truth)
    notes += counted(f"images of {path.name} that are not in {root}", missing)
    if len(missing) == len(files):
        raise UserError(f"no image of {path.name} is in {root}: give the folder that holds {files[0]!r}")
    notes += counted("images without annotations, taken as background only", empty)
    notes += words.check(path)
    if masks is not None:
        return builder.build(chosen, root, masks, notes)
    return builder.build(chosen, root, CocoTruth(path, chosen) if drawn else None, notes)


@dataclass(eq=False)
class CocoTruth:
    """Draws ground-truth masks by id. The file is read on first use, and its outlines kept as packed bytes."""

    annotations: Path
    classes: ClassSet
    _scenes: dict[str, _Scene] | None = field(default=None, repr=False)

    def __call__(self, name: str) -> NDArray[np.uint8]:
        """The mask (H, W) uint8 of the image called ``name``.

        Raises:
            UserError: the file is gone, or holds sizes or outlines that cannot be drawn.
        """
        if self._scenes is None:
            self._scenes = self._read()
        scene = self._scenes[name]
        with _naming(self.annotations, f"the outlines of {name}"):
            layers = [(value, outline.run_lengths(scene.size)) for value, outline in scene.outlines]
            # Crowds first, then from large to small, so that what is small ends on top.
            layers.sort(key=lambda layer: (layer[0] != IGNORE, -int(rle.area(layer[1]))))
            mask = np.zeros(scene.size, dtype=np.uint8)
            for value, run_lengths in layers:
                mask[rle.decode(run_lengths).astype(bool)] = value
        return mask

    def __getstate__(self) -> dict[str, Any]:
        return {"annotations": self.annotations, "classes": self.classes, "_scenes": None}

    def _read(self) -> dict[str, _Scene]:
        content = _load(self.annotations)
        index = class_index(self.classes)
        tags = {row["id"]: index.get(fold(str(row["name"]))) for row in content["categories"]}
        files = [str(row["file_name"]).replace("\\", "/") for row in content["images"]]
        scenes = {}
        for row, file in zip(content["images"], files, strict=True):
            with _naming(self.annotations, f"width or height of {file}"):
                scenes[row["id"]] = _Scene((int(row["height"]), int(row["width"])), [])
        for annotation in content["annotations"]:
            tag, scene = tags.get(annotation["category_id"]), scenes.get(annotation["image_id"])
            with _naming(self.annotations, f"an outline of image {annotation['image_id']}"):
                outline = _outline(annotation.get("segmentation"))
            if tag is not None and scene is not None and outline is not None:
                scene.outlines.append((IGNORE if annotation.get("iscrowd") else tag, outline))
        return {name: scenes[row["id"]] for name, row in zip(image_ids(files, []), content["images"], strict=True)}


@dataclass(frozen=True, slots=True)
class _Outline:
    """One annotation: polygons, each the bytes of its float64 coordinates x, y, x, ..., or compressed run lengths."""

    polygons: tuple[bytes, ...] = ()
    counts: bytes = b""

    def run_lengths(self, size: tuple[int, int]) -> dict[str, Any]:
        if self.counts:
            return {"size": list(size), "counts": self.counts}
        return rle.merge(rle.frPyObjects([np.frombuffer(polygon).tolist() for polygon in self.polygons], *size))


@dataclass(frozen=True, slots=True)
class _Scene:
    """What is drawn in one image: mask values with their outlines."""

    size: tuple[int, int]
    outlines: list[tuple[int, _Outline]]


def _outline(segmentation: Any) -> _Outline | None:
    """COCO's polygons, or its run lengths, compressed or not; None where there is nothing."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        if isinstance(counts, list):
            counts = rle.frPyObjects(segmentation, *segmentation["size"])["counts"]
        return _Outline(counts=counts.encode() if isinstance(counts, str) else counts)
    # Fewer than three points enclose nothing, and pycocotools would take two for a box.
    polygons = tuple(np.array(p, dtype=np.float64).tobytes() for p in segmentation or () if len(p) >= 6)
    return _Outline(polygons=polygons) if polygons else None


def _load(path: Path, annotated: bool = True) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"no annotations at {path}: give a file like instances_train2014.json")
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}): download it again") from error
    needed = {"images": ("id", "file_name"), "annotations": ("image_id", "category_id"), "categories": ("id", "name")}
    if not annotated and isinstance(content, dict) and "annotations" not in content:
        del needed["annotations"]
    for part, keys in needed.items():
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= set(keys) for row in rows):
            raise UserError(
                f"{path} has no {part!r} with {' and '.join(keys)}: give COCO's instances file, "
                "not captions, results or image info"
            )
        for key in keys:
            if not key.endswith("id"):
                continue
            odd = next((row[key] for row in rows if not isinstance(row[key], (int, float, str))), _NONE)
            if odd is not _NONE:
                raise UserError(f"{path}: {key} {odd!r} in {part!r}, expected a number or text: download it again")
    return content


_NONE = object()


def _order(key: float | str) -> tuple[bool, float | str]:
    """Numbers before texts: Python does not compare the two."""
    return isinstance(key, str), key


@contextmanager
def _naming(path: Path, what: str) -> Iterator[None]:
    """Whatever is of the wrong kind inside is told with the name of the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise UserError(
            f"{path}: {what} cannot be read ({type(error).__name__}: {error}); download the file again, or mend it"
        ) from error


def _find_images(path: Path, files: Sequence[str]) -> Path:
    """The folder that holds the first of ``files``, looked for where COCO's images usually lie."""
    split = path.stem.rpartition("_")[2]  # instances_train2014 -> train2014
    tops = (
        (path.parent.parent, path.parent) if path.parent.name == "annotations" else (path.parent, path.parent.parent)
    )
    tried = [top / inner for top in tops for inner in (f"images/{split}", split, "images", "")]
    for folder in tried:
        if any((folder / file).is_file() for file in files[:20]):
            return folder
    raise UserError(
        f"the images of {path.name} are in none of {listing(tried, most=4)}: name the folder that holds "
        f"{files[0] if files else 'them'!r}"
    )


def _present(root: Path, files: Sequence[str]) -> set[str]:
    """Which of ``files`` lie in ``root``, with one look at each folder."""
    folders = {str(PurePosixPath(file).parent) for file in files}
    return set(_entries(root, folders)) & set(files)


def _entries(root: Path, folders: set[str]) -> Iterator[str]:
    for folder in folders:
        prefix = "" if folder == "." else f"{folder}/"
        if (root / folder).is_dir():
            yield from (prefix + entry.name for entry in (root / folder).iterdir())
