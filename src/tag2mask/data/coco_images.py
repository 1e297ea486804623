"""Finding the images that a COCO file lists, whatever their paths looked like where it was written."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from unicodedata import normalize

from tag2mask.data.coco_file import CocoFile, ImageRow, Key
from tag2mask.data.folder import image_ids, walk_images
from tag2mask.types import UserError
from tag2mask.words import counted, listing

__all__ = ["Picture", "find_folder", "find_pictures"]


class Picture(NamedTuple):
    """An image that is there.

    name: the sample's id. file: its path relative to the folder of images. row: as the COCO file lists it.
    keys: its ids there; several where it is listed several times.
    """

    name: str
    file: str
    row: ImageRow
    keys: tuple[Key, ...]


def find_folder(content: CocoFile, images: Path | str | None) -> Path:
    """The folder of the images: the one that is given, else where COCO's usually lie.

    Raises:
        UserError: it is not there.
    """
    path, files = content.path, [row.file for row in content.images]
    if images is not None:
        if not Path(images).is_dir():
            raise UserError(f"no folder of images at {images}: give the one that holds {listing(files, most=1)}")
        return Path(images)
    split = path.stem.rpartition("_")[2]  # instances_train2014 -> train2014
    tops = (
        (path.parent.parent, path.parent) if path.parent.name == "annotations" else (path.parent, path.parent.parent)
    )
    tried = [top / inner for top in tops for inner in (f"images/{split}", split, "images", "")]
    for holds in (_holds, _holds_alike):
        for folder in tried:
            if folder.is_dir() and holds(folder, files[:20]):
                return folder
    raise UserError(
        f"the images of {path.name} are in none of {listing(tried, most=4)}: name the folder that holds "
        f"{files[0] if files else 'them'!r}"
    )


def _holds(folder: Path, files: Sequence[str]) -> bool:
    return any(_inside(file) and (folder / file).is_file() for file in files)


def _holds_alike(folder: Path, files: Sequence[str]) -> bool:
    """Whether an image is there by its bare name, or by the end of its path."""
    names = {_alike(entry.name) for entry in folder.iterdir()}
    return any(
        {_alike(name) for name in _bare_names(file)} & names
        or any(_inside(end) and (folder / end).is_file() for end in _ends(file)[1:])
        for file in files
    )


def find_pictures(content: CocoFile, root: Path, notes: list[str]) -> tuple[list[Picture], list[str]]:
    """The images that are in ``root``, in the order of the file, and the paths of those that are not.

    An image that is not where the file says is looked for by the longest end of its path that is there, whatever the
    case and Unicode form; then, where the path has no folder of this place (a bare name, an absolute path, one with
    ".."), by its bare name in all folders of ``root``; then without the eight signs that Label Studio puts before a
    name. Nothing outside ``root`` is taken. A file that is listed by its own path is never taken for another's.

    Raises:
        UserError: an image could be several files, or a file several images; one image is listed with two sizes; a
            path leaves ``root``, and nothing there is called so; no image is there at all.
    """
    path, rows = content.path, content.images
    paths = _find([row.file for row in rows], root, path, notes)
    groups: dict[str, list[ImageRow]] = defaultdict(list)
    for row in rows:
        groups[row.file].append(row)
    several = {file: group for file, group in groups.items() if len(group) > 1}
    for file, group in several.items():
        if any(row.size != group[0].size for row in group):
            sizes = [f"{row.id!r}: {row.size[1]} x {row.size[0]}" for row in group]
            raise UserError(
                f"{path}: the image {file!r} is listed under several ids, with different sizes (width x height): "
                f"{listing(sizes)}; correct them, or leave all but one out"
            )
    notes += counted("images under several ids, their annotations put together", list(several))
    missing = [file for file in groups if paths.get(file) is None]
    outside = [file for file in missing if file.startswith("../")]
    if outside:
        raise UserError(
            f"{path}: {outside[0]!r} does not stay inside {root}, and no image there is called so "
            f"({len(outside)} such): give paths relative to the folder of the images, without '..'"
        )
    if len(missing) == len(groups):
        there = next(walk_images(root, []), None)
        seen = f"; images there are called like {there!r}" if there else ""
        raise UserError(
            f"no image of {path.name} is in {root}: give the folder that holds {listing(missing, most=1)!r}{seen}"
        )
    places = [paths.get(file) or file for file in groups]
    pictures = [
        Picture(name, place, group[0], tuple(row.id for row in group))
        for name, place, (file, group) in zip(image_ids(places, notes), places, groups.items(), strict=True)
        if paths.get(file) is not None
    ]
    return pictures, missing


def _find(files: Sequence[str], root: Path, path: Path, notes: list[str]) -> dict[str, str]:
    """Where each of the listed files is, relative to ``root``."""
    own = {file: inside for file in files if (inside := _relative(file, root)) is not None}
    there = _present(root, set(own.values()))
    found = {file: inside for file, inside in own.items() if inside in there}
    taken = set(found.values())
    rest = [file for file in dict.fromkeys(files) if file not in found]
    if not rest:
        return found
    by_path, by_name = _index(root)
    several: list[str] = []
    claims: dict[str, list[str]] = defaultdict(list)
    stripped: dict[str, list[str]] = defaultdict(list)
    for file in rest:
        places = _places(file, by_path, by_name)
        if len(places) > 1:
            several.append(f"{file!r} ({listing(places)})")
        elif places:
            claims[places[0]].append(file)
        else:
            plain = [place for name in _bare_names(file)[1:] for place in by_name.get(_alike(name), ())]
            if len(plain) == 1:
                stripped[plain[0]].append(file)
    if several:
        raise UserError(
            f"{path}: {len(several)} images could be several files in {root}: {listing(several, most=3)}; "
            "correct their file_name, or give the folder that holds just one of them with --images"
        )
    loose = {place: group for place, group in claims.items() if place not in taken}
    for place, group in loose.items():
        if len(group) > 1:
            raise UserError(
                f"{path}: {listing([repr(file) for file in group])} could each be {place!r} in {root}: "
                "correct their file_name"
            )
    loose |= {
        place: group
        for place, group in stripped.items()
        if len(group) == 1 and place not in taken and place not in loose
    }
    other = {group[0]: place for place, group in loose.items()}
    notes += counted(
        f"images found under another path than {path.name} says",
        [f"{file} is {place}" for file, place in other.items() if file != place],
    )
    return found | other


def _places(file: str, by_path: dict[str, list[str]], by_name: dict[str, list[str]]) -> list[str]:
    """The files that a path from elsewhere can mean: several where that is not clear."""
    for end in _ends(file):
        places = by_path.get(_alike(end), [])
        if places:
            return [end] if end in places else places
    if "/" not in file or not _inside(file):
        return by_name.get(_alike(_ends(file)[-1]), [])
    within = f"/{_alike(file)}"  # folders of this place: those, wherever they are
    return [place for place in by_name.get(_alike(_ends(file)[-1]), []) if _alike(place).endswith(within)]


def _index(root: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """All images in a folder by their path, and by their bare name, whatever the case and Unicode form."""
    by_path, by_name = defaultdict(list), defaultdict(list)
    for file in walk_images(root, []):
        by_path[_alike(file)].append(file)
        by_name[_alike(file.rpartition("/")[2])].append(file)
    return by_path, by_name


def _alike(name: str) -> str:
    return normalize("NFC", name).casefold()


def _inside(file: str) -> bool:
    """Whether a path, as ImageRow has it, stays in its folder."""
    return not file.startswith(("/", "../"))


def _ends(file: str) -> list[str]:
    """A path, then the same with ever fewer folders in front; what leaves the folder is no end."""
    parts = [part for part in file.split("/") if part not in ("", "..")]
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _bare_names(file: str) -> list[str]:
    """A file's name, and the one it had before Label Studio took it up."""
    name = file.rpartition("/")[2]
    before = re.sub(r"^[0-9a-f]{8}-(?=.)", "", name)
    return [name] if before == name else [name, before]


def _relative(file: str, root: Path) -> str | None:
    """A path from ``root``, or None where it leaves it."""
    for base in (root.as_posix(), root.resolve().as_posix()):
        if file.startswith(f"{base}/"):
            return file.removeprefix(f"{base}/")
    return file if _inside(file) else None


def _present(root: Path, files: set[str]) -> set[str]:
    """Which of ``files`` lie in ``root``, with one look at each folder."""
    folders = {str(PurePosixPath(file).parent) for file in files}
    return set(_entries(root, folders)) & files


def _entries(root: Path, folders: set[str]) -> Iterator[str]:
    for folder in folders:
        prefix = "" if folder == "." else f"{folder}/"
        if (root / folder).is_dir():
            yield from (prefix + entry.name for entry in (root / folder).iterdir())
