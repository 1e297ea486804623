"""Where images and annotations lie: in VOC's devkit, however it is nested, and as annotation tools write them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tag2mask.data.boxes import is_annotation
from tag2mask.data.image import is_image, without_suffix
from tag2mask.data.tags import find_tag_file
from tag2mask.types import UserError
from tag2mask.words import listing

__all__ = ["Layout", "find_devkit", "find_layout"]


@dataclass(frozen=True)
class Layout:
    """Where things lie: images in the folder ``images`` of ``top`` ("" = in ``top`` itself), XML files in ``boxes``.

    reason: what shows that it is so, for the note.
    """

    top: Path
    images: str
    boxes: Path
    reason: str

    @property
    def where(self) -> str:
        """The place of the XML files, as notes call it."""
        return self.boxes.name if self.images else "the XML files beside the images"


def find_layout(root: Path) -> Layout | None:
    """How ``root`` is laid out, or None where it is neither a devkit nor has XML files for its images.

    Raises:
        UserError: several devkits lie below it.
    """
    kit = find_devkit(root)
    if kit is not None:
        return Layout(kit, "JPEGImages", kit / "Annotations", "it has JPEGImages")
    folders = {path.name.lower(): path for path in _folders(root)}
    images, boxes = folders.get("images"), folders.get("annotations")
    if images is not None and boxes is not None and _some_annotation(boxes, beside=False):
        return Layout(root, images.name, boxes, f"it has {images.name}/, and XML files in {boxes.name}/")
    if _some_annotation(root, beside=True):
        return Layout(root, "", root, "it has XML files beside its images")
    return None


def find_devkit(root: Path) -> Path | None:
    """The folder with ``JPEGImages`` at or below ``root``: the devkit's own nesting, or up to three folders down.

    A folder that holds images or tags itself is searched for the devkit's own nesting alone.

    Raises:
        UserError: there are several.
    """
    if (root / "JPEGImages").is_dir():
        return root
    own = [root / "VOC2012", root / "VOCdevkit/VOC2012"]
    found = list(own) if find_tag_file(root) is not None or _holds_images(root) else list(_nested(root, depth=3))
    kits = {folder.resolve(): folder for folder in found if (folder / "JPEGImages").is_dir()}
    if len(kits) > 1:
        raise UserError(f"{root} has {len(kits)} VOC devkits, {listing(sorted(kits.values()))}: give one of them")
    return next(iter(kits.values()), None)


def _nested(root: Path, depth: int) -> Iterator[Path]:
    """The folders below one, but not those below a devkit, or below a folder of images."""
    for folder in _folders(root) if depth else ():
        yield folder
        if not (folder / "JPEGImages").is_dir() and not _holds_images(folder):
            yield from _nested(folder, depth - 1)


def _folders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            return sorted(Path(entry) for entry in entries if not entry.name.startswith(".") and _is_folder(entry))
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _files(root: Path) -> Iterator[str]:
    try:
        with os.scandir(root) as entries:
            yield from (entry.name for entry in entries if not entry.name.startswith("."))
    except OSError:
        return


def _holds_images(folder: Path) -> bool:
    return any(is_image(name) for name in _files(folder))


def _some_annotation(root: Path, beside: bool) -> bool:
    """Whether one of the first XML files in a folder or the folders in it is VOC's; ``beside``: beside an image."""
    for folder in (root, *_folders(root)):
        names = list(_files(folder))
        images = {without_suffix(name) for name in names if is_image(name)}
        if beside and not images:
            continue
        xml = sorted(name for name in names if name.lower().endswith(".xml") and (not beside or name[:-4] in images))
        if any(is_annotation(folder / name) for name in xml[:5]):
            return True
    return False
