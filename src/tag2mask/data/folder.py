"""A folder of images, with or without a tags file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from unicodedata import normalize

from tag2mask.data.columns import Columns, ColumnsBuilder
from tag2mask.data.image import IMAGE_SUFFIXES, UNREAD_SUFFIXES, is_image, without_suffix
from tag2mask.data.protocol import Asked, Reader, Sign
from tag2mask.data.tag_columns import DRAFT
from tag2mask.data.tags import (
    FOLDERS,
    TagReading,
    Unknown,
    Vocabulary,
    choose_classes,
    class_list,
    find_tag_file,
    folder_tags,
    read_tags,
    row_notes,
)
from tag2mask.data.truth import MaskFolders
from tag2mask.types import ClassSet, UserError
from tag2mask.words import counted, listing

__all__ = ["image_ids", "read_folder", "walk_images"]


def read_folder(
    root: Path | str,
    tags: Path | str | None = None,
    classes: ClassSet | str | Path | None = None,
    truth: Path | str | None = None,
    unknown: Unknown = "error",
    truth_values: str | None = None,
    reading: TagReading | None = None,
) -> Columns:
    """Reads all images in a folder and the folders in it.

    Left out are hidden files and folders, the folder of ground truth, and run folders. Where the tags file lies
    beside a folder ``images`` and no image lies beside it, the images are those in ``images``. An image's id is its
    path without suffix; where two would be called the same ("a.jpg", "a.png"), both keep their suffix.

    Args:
        root: the folder.
        tags: a tag file of any form (see ``tag2mask.data.tag_list``), or "folders": an image's folder is its class.
            Default: ``tags.csv``, ``tags.jsonl``, ``labels.csv``, ``metadata.jsonl`` and the like in ``root``.
        classes: a class set, its name, or its file. Default: ``classes.yaml`` in ``root``, else the tags' names.
        truth: a folder of ground-truth masks, ``<id>.png`` or alike (see ``tag2mask.data.truth``).
        unknown: what becomes of names that are no class.
        truth_values: what the numbers in the masks stand for (see ``tag2mask.data.truth_values``).
        reading: what was decided about tags that could mean two things.

    Raises:
        UserError: no folder, no image, neither tags nor classes, unknown names, a malformed tags file, or tags that
            could mean two things.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: give the folder that holds the images")
    by_folder = str(tags) == FOLDERS and not Path(FOLDERS).is_file()
    source = None if by_folder else Path(tags) if tags is not None else find_tag_file(root)
    chosen = choose_classes(classes, root)
    notes: list[str] = []
    base = _image_folder(root, source, notes)
    if truth is not None and Path(truth).resolve() in (root.resolve(), base.resolve()):
        raise UserError(f"--truth {truth} is the folder of the images: give one that holds true masks alone")
    masks = MaskFolders((_truth_folder(truth),)) if truth is not None else None
    images = list(walk_images(base, notes, masks.folders if masks else ()))
    _check_something(root, base, images, known=source is not None or chosen is not None or by_folder)
    labels: dict[int, tuple[str, ...] | None] = {}
    called = None if chosen is None else class_list(classes, root, chosen)
    if by_folder or source is not None:
        listed, where = (folder_tags(images, root), root) if source is None else (source, source)
        labels, chosen, said = read_tags(listed, where, images, base, chosen, unknown, reading)
        notes += [f"an image's folder is its class (--tags {FOLDERS})"] if by_folder else []
        notes += [*said, *row_notes(where, images, labels)]
    else:
        notes.append(f"no tags file, tags unknown: all {len(images)} images")
    assert chosen is not None
    words, builder = Vocabulary(chosen, unknown, called), ColumnsBuilder()
    ids = list(image_ids(images, notes))
    if masks is not None:
        masks, said = masks.read_as(ids, chosen, truth_values)
        notes += said
    for position, (name, image) in enumerate(zip(ids, images, strict=True)):
        said_labels = labels.get(position)
        known = None if said_labels is None else words.tags(said_labels)
        relative = (base / image).relative_to(root).as_posix()
        builder.add(name, relative, known, masks is not None and masks.has(name))
    notes += words.check(source or root)
    dataset = builder.build(chosen, root, masks, notes)
    if masks is not None and not dataset.has_truth.any():
        masks.check_any(ids)
    return dataset


def _check_something(root: Path, base: Path, images: Sequence[str], *, known: bool) -> None:
    """Raises UserError where there is no image, or nothing that says what they hold (``known``)."""
    if not known:
        if (root / DRAFT).is_file():
            raise UserError(
                f"{root} has no tags.csv, but {DRAFT}, which nobody has confirmed: correct it, call its "
                'column of labels "labels", and save it as tags.csv'
            )
        nested = bool(images) and all("/" in image for image in images)
        hint = f", or take an image's folder for its class by --tags {FOLDERS}" if nested else ""
        raise UserError(
            f"{root} has no tags.csv and no class set is named: write tags.csv (image,labels), or name the classes"
            + hint
        )
    if not images:
        suffixes = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise UserError(f"no image in {base} (looked for {suffixes}): give the folder that holds the images")


def _recognise(asked: Asked) -> Sign | None:
    return Sign("it is a folder", sure=False) if asked.path.is_dir() else None


def _read(asked: Asked) -> Columns:
    classes = asked.classes
    if asked.network is not None and classes is None:
        # what is tagged and has truth besides numbers its classes by its own tags
        numbered = asked.truth is not None and (asked.tags is not None or find_tag_file(asked.path) is not None)
        classes = choose_classes(None, asked.path) or (None if numbered else asked.network)
    return read_folder(asked.path, asked.tags, classes, asked.truth, asked.unknown, asked.truth_values, asked.reading)


READER = Reader(_recognise, _read, takes=("tags", "truth"))


def walk_images(root: Path, notes: list[str], without: Iterable[Path] = ()) -> Iterator[str]:
    """The images in a folder and in the folders in it, as paths relative to it, in sorted order.

    Links are followed, but no folder is read twice, so loops end. A folder that is named like an image is a folder:
    what is in it is found, and a note names it. A link to nowhere counts as an image, so that its failure is seen.
    A folder with a ``run.yaml`` holds this program's own masks, not images.

    Args:
        root: where to start.
        notes: gets a line for everything that was left out.
        without: folders to leave out.
    """
    seen: set[tuple[int, int]] = set()
    skipped = {_identity(folder) for folder in without}
    runs: list[str] = []
    again: list[str] = []
    misnamed: list[str] = []
    closed: list[str] = []
    unread: list[str] = []

    def walk(folder: Path, prefix: str) -> Iterator[str]:
        here = _identity(folder)
        if here in skipped:
            return
        if here in seen:
            again.append(prefix.rstrip("/"))
            return
        seen.add(here)
        if prefix and (folder / "run.yaml").is_file():
            runs.append(prefix.rstrip("/"))
            return
        try:
            with os.scandir(folder) as entries:
                listed = [(e.name, _is_dir(e), e.is_symlink()) for e in entries if not e.name.startswith(".")]
        except OSError:
            closed.append(prefix.rstrip("/") or ".")
            return
        files = sorted(name for name, is_dir, _ in listed if not is_dir)
        unread.extend(prefix + name for name in files if Path(name).suffix.lower() in UNREAD_SUFFIXES)
        yield from (prefix + name for name in files if is_image(name))
        # Links last: a folder that is reached both ways keeps its own name.
        for _, name in sorted((linked, name) for name, is_dir, linked in listed if is_dir):
            if is_image(name):
                misnamed.append(prefix + name)
            yield from walk(folder / name, f"{prefix}{name}/")

    yield from walk(root, "")
    notes += counted("linked folders that lead to what was read already", again)
    notes += counted("run folders, left out", runs)
    notes += counted("folders named like images, read as folders", misnamed)
    notes += counted("files of kinds that are not read, left out (save pictures as JPEG or PNG)", unread)
    notes += counted("folders that could not be read, left out", closed)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def image_ids(images: Sequence[str], notes: list[str]) -> Iterator[str]:
    """An id for each path: without suffix where that is unique, else with it.

    Ids that differ only by case or Unicode form count as the same, since their artefacts would be one file on some
    file systems.
    """

    def key(name: str) -> str:
        return normalize("NFC", name).casefold()

    full: set[int] = set()
    while True:  # a name that keeps its suffix may meet another one: "a.jpg" and "a.jpg.png"
        counts = Counter(key(_id(image, index in full)) for index, image in enumerate(images))
        clash = {
            index for index, image in enumerate(images) if index not in full and counts[key(_id(image, False))] > 1
        }
        if not clash:
            break
        full |= clash
    notes += counted("images that share a name, and keep their suffix in it", [images[n] for n in sorted(full)])
    return (_id(image, index in full) for index, image in enumerate(images))


def _id(image: str, with_suffix: bool) -> str:
    return image if with_suffix else without_suffix(image)


def _image_folder(root: Path, source: Path | None, notes: list[str]) -> Path:
    """``root``, or ``root/images`` where that is plainly meant."""
    inner = root / "images"
    if source is None or source.resolve().parent != root.resolve() or not inner.is_dir():
        return root
    entries = [entry for entry in sorted(root.iterdir()) if not entry.name.startswith(".")]
    if any(is_image(entry.name) and not entry.is_dir() for entry in entries):
        return root
    others = [entry.name for entry in entries if entry.is_dir() and entry != inner]
    notes.append("the images are those in images/" + (f", not in {listing(others)}" if others else ""))
    return inner


def _truth_folder(folder: Path | str) -> Path:
    if not Path(folder).is_dir():
        raise UserError(f"no folder of ground-truth masks at {folder}: give one that holds <id>.png")
    return Path(folder)
