"""A data set in the layout of the PASCAL VOC devkit.

Tags come from the boxes in ``Annotations``, difficult ones too, or from a tags file; never from masks: the masks
are ground truth, and only evaluation may look at them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.parsers import expat

from tag2mask.classes import load_classes
from tag2mask.data.columns import Columns, ColumnsBuilder, MaskFolders, counted, listing
from tag2mask.data.folder import image_ids, walk_images
from tag2mask.data.image import without_suffix
from tag2mask.data.tags import (
    TagReading,
    Unknown,
    Vocabulary,
    choose_classes,
    find_tag_file,
    match_images,
    read_tags,
    row_notes,
)
from tag2mask.types import ClassSet, UserError

__all__ = ["find_devkit", "read_list", "read_voc"]


def read_voc(
    root: Path | str,
    split: str | Path | None = None,
    classes: ClassSet | str | Path | None = None,
    tags: Path | str | None = None,
    unknown: Unknown = "error",
    *,
    tagged: bool = True,
    reading: TagReading | None = None,
) -> Columns:
    """Reads a VOC devkit.

    Args:
        root: the folder that holds ``JPEGImages``, or one above it (``VOCdevkit/VOC2012``).
        split: "train", "val", ... for the list in ``ImageSets/Segmentation``, else in ``ImageSets/Main``; or the
            path of a list: ids, or pairs "/JPEGImages/x.jpg /SegmentationClassAug/x.png". None = all images.
        classes: a class set, its name, or its file. Default: ``classes.yaml`` in the folder, else "voc12".
        tags: a tag file. Default: ``Annotations``; without them ``tags.csv`` and the like.
        unknown: what becomes of names that are no class.
        tagged: whether tags are needed; else they are unknown where there are none, as in VOC's own test set.
        reading: what was decided about tags of a file that could mean two things.

    Raises:
        UserError: no devkit, no such split, no source of tags, or unknown names.
    """
    top = find_devkit(Path(root))
    if top is None:
        raise UserError(f"{root} has no folder JPEGImages: give a VOC devkit, such as VOCdevkit/VOC2012")
    chosen = choose_classes(classes, top) or load_classes("voc12")
    notes: list[str] = []
    images = [f"JPEGImages/{image}" for image in walk_images(top / "JPEGImages", notes)]
    ids = [name.removeprefix("JPEGImages/") for name in image_ids(images, notes)]
    wanted = range(len(images)) if split is None else _select(_list_file(top, split), ids, notes)
    if not wanted:
        raise UserError(f"no image of {split or 'any split'} in {top / 'JPEGImages'}: unpack the images there")

    words, builder = Vocabulary(chosen, unknown), ColumnsBuilder()
    source = Path(tags) if tags is not None else None
    boxes = top / "Annotations"
    if source is None and not boxes.is_dir():
        source = find_tag_file(top)
        if source is None and tagged:
            raise UserError(
                f"{top} has no Annotations and no tags.csv, and tags are never read from masks: "
                "unpack the Annotations, or give a tags file (image,labels)"
            )
    masks = MaskFolders((top / "SegmentationClass", top / "SegmentationClassAug"))
    named = (
        _from_boxes(boxes, ids, wanted, notes, tagged)
        if source is None
        else _from_file(source, images, wanted, top, notes, (chosen, unknown, reading))
    )
    for position in wanted:
        labels = named.get(position)
        known = None if labels is None else words.tags(labels)
        builder.add(ids[position], images[position], known, masks.has(ids[position]))
    notes += words.check(boxes if source is None else source)
    return builder.build(chosen, top, masks, notes)


def find_devkit(root: Path) -> Path | None:
    """The folder with ``JPEGImages`` at or below ``root``, in the devkit's own nesting."""
    nested = [root, *(root / name for name in ("VOC2012", "VOCdevkit/VOC2012"))]
    return next((folder for folder in nested if (folder / "JPEGImages").is_dir()), None)


def _list_file(top: Path, split: str | Path) -> Path:
    lists = [top / "ImageSets" / kind / f"{split}.txt" for kind in ("Segmentation", "Main")]
    found = next((path for path in (*lists, Path(split)) if path.is_file()), None)
    if found is None:
        have = sorted({path.stem for path in (top / "ImageSets").glob("*/*.txt") if "_" not in path.stem})
        drawn = (top / "storybook.json").is_file()
        hint = "; a render that was stopped goes on by the same `tag2mask storybook render`" if drawn else ""
        raise UserError(
            f"no list of the split {str(split)!r} (looked at {lists[0]}): there is {listing(have) or 'none'}{hint}"
        )
    return found


def _select(path: Path, ids: Sequence[str], notes: list[str]) -> list[int]:
    """The positions of a list's images, in its order."""
    wanted, missing, repeated = read_list(path, ids)
    notes += counted(f"images of {path.name} that are not there", missing)
    notes += counted(f"lines of {path.name} that repeat an image", repeated)
    return wanted


def read_list(path: Path, ids: Sequence[str]) -> tuple[list[int], list[str], list[str]]:
    """Finds the images that a list names, one a line.

    A line is an id, an id and a number (ImageSets/Main), or an image and its mask.

    Args:
        path: a text file.
        ids: of all images.

    Returns:
        the positions among ``ids`` in the list's order, the entries that are not there, and the ids named again.
    """
    index = {name: position for position, name in enumerate(ids)}
    wanted: dict[int, None] = {}
    missing: list[str] = []
    repeated: list[str] = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if not line.strip():
            continue
        spellings = [_entry(line.strip()), _entry(line.split()[0]), line.strip()]
        position = next((index[name] for name in spellings if name in index), None)
        if position is None:
            missing.append(spellings[1])
        elif position in wanted:
            repeated.append(ids[position])
        else:
            wanted[position] = None
    return list(wanted), missing, repeated


def _entry(text: str) -> str:
    return without_suffix(text.removeprefix("/").removeprefix("JPEGImages/"))


def _from_file(
    source: Path,
    images: Sequence[str],
    wanted: Sequence[int],
    top: Path,
    notes: list[str],
    how: tuple[ClassSet, Unknown, TagReading | None],
) -> dict[int, tuple[str, ...] | None]:
    rows, _, said = read_tags(source, source, *how)
    labels, found = match_images(rows, images, source, top)
    chosen = {position: labels[position] for position in wanted if position in labels}
    notes.append(f"tags from {source.name}")
    notes += [*said, *found]
    notes += row_notes(source, [images[position] for position in wanted], _renumber(chosen, wanted))
    return chosen


def _renumber(labels: dict[int, tuple[str, ...] | None], wanted: Sequence[int]) -> dict[int, tuple[str, ...] | None]:
    return {new: labels[old] for new, old in enumerate(wanted) if old in labels}


def _from_boxes(
    boxes: Path, ids: Sequence[str], wanted: Sequence[int], notes: list[str], tagged: bool
) -> dict[int, tuple[str, ...] | None]:
    """The names of all objects in the images' XML files."""
    labels: dict[int, tuple[str, ...] | None] = {}
    absent: list[str] = []
    broken: list[str] = []
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    for position in wanted:
        path = boxes / f"{ids[position]}.xml"
        try:
            names = tuple(sorted(set(object_names(path.read_bytes()))))
            labels[position] = shared.setdefault(names, names)
        except FileNotFoundError:
            absent.append(ids[position])
        except (expat.ExpatError, ValueError, OSError) as error:
            broken.append(f"{path.name} ({error})")
    notes.append("tags from the boxes in Annotations")
    notes += counted("images without a file in Annotations, tags unknown", absent)
    notes += counted("unreadable files in Annotations, tags unknown", broken)
    if not labels and tagged:
        raise UserError(
            f"no readable annotation in {boxes} for any of {len(wanted)} images: {listing(broken or absent)}"
        )
    return labels


def object_names(xml: bytes) -> list[str]:
    """``annotation/object/name`` of a VOC annotation; names of parts (head, hand) are no objects.

    Raises:
        expat.ExpatError: not XML.
        ValueError: a document type is declared; VOC has none, and entities are how XML is abused.
    """
    names: list[str] = []
    path: list[str] = []
    text: list[str] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        path.append(tag)
        text.clear()

    def end(tag: str) -> None:
        if path == ["annotation", "object", "name"]:
            names.append("".join(text).strip())
        path.pop()
        text.clear()

    def refuse(*declared: object) -> None:
        raise ValueError("it declares a document type, which no annotation needs")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text.append
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(xml, True)
    return names
