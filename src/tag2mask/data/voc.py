"""A data set in the layout of the PASCAL VOC devkit, or with XML files like its own.

Tags come from the boxes in ``Annotations``, difficult ones too, or from a tags file; never from masks: the masks
are ground truth, and only evaluation may look at them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path

from tag2mask.classes import class_index, fold, load_classes
from tag2mask.data.boxes import Labels, read_boxes
from tag2mask.data.columns import Columns, ColumnsBuilder
from tag2mask.data.folder import image_ids, walk_images
from tag2mask.data.lists import read_list
from tag2mask.data.own_classes import classes_of_names
from tag2mask.data.protocol import Asked, Reader, Sign
from tag2mask.data.tag_check import check_names
from tag2mask.data.tag_nothing import is_background
from tag2mask.data.tags import (
    TagFile,
    TagReading,
    Unknown,
    Vocabulary,
    choose_classes,
    class_list,
    find_tag_file,
    match_images,
    row_notes,
    settled_tags,
)
from tag2mask.data.truth import MaskFolders
from tag2mask.data.voc_layout import Layout, find_layout
from tag2mask.types import ClassSet, UserError
from tag2mask.words import counted, listing

__all__ = ["read_voc"]


def read_voc(
    root: Path | str,
    split: str | Path | None = None,
    classes: ClassSet | str | Path | None = None,
    tags: Path | str | None = None,
    unknown: Unknown = "error",
    *,
    network: ClassSet | None = None,
    truth_values: str | None = None,
    reading: TagReading | None = None,
) -> Columns:
    """Reads a VOC devkit, or images with XML files like its own.

    Args:
        root: the folder that holds ``JPEGImages``, or one above it (``VOCdevkit/VOC2012``); or one with ``images``
            and ``annotations``; or one with XML files beside the images.
        split: "train", "val", ... for the list in ``ImageSets/Segmentation``, else in ``ImageSets/Main``; or the
            path of a list (see ``tag2mask.data.lists``). None = all images.
        classes: a class set, its name, or its file, or "file" for the names in the data. Default: ``classes.yaml``
            in the folder, else "voc12" where it has every name in the data, else these names, sorted.
        tags: a tag file of any form (see ``tag2mask.data.tag_list``), or a folder of XML files. Default:
            ``Annotations``; without them ``tags.csv`` and the like.
        unknown: what becomes of names that are no class.
        network: the classes of a network that is to look at the images, which needs no tags: these are unknown where
            there are none, as in VOC's own test set. Its classes are taken where they have every name in the data,
            and VOC's do not.
        truth_values: what the numbers in the masks stand for (see ``tag2mask.data.truth_values``).
        reading: what was decided about tags of a file that could mean two things.

    Raises:
        UserError: no devkit, no such split, no source of tags, or two that disagree, or names of which most, but not
            all, are VOC's.
    """
    layout, notes = _layout(Path(root)), list[str]()
    top = layout.top
    images, ids, wanted = _images(layout, split, notes)
    given = None if classes == "file" else choose_classes(classes, top)
    called = None if given is None else class_list(classes, top, given)
    source = _source(tags, layout, tagged=network is None)
    # Mask values must not depend on the split, so all names count where these are the classes.
    scope = range(len(images)) if given is None else wanted
    if source is None:
        named, names = Labels(), Counter[str]()
    elif source.is_dir():
        named, names = _from_boxes(source, layout, ids, scope, wanted, notes, tagged=network is None)
    else:
        rows, said = settled_tags(source, images, given, reading)
        notes += said
        named, names = _from_file(rows, source, images, wanted, top, notes)
        if given is None:
            check_names(names, source.name, unknown == "skip")
    if given is None:
        own = classes == "file"
        given, said = _classes_of(names, top, source, unknown, own=own, network=network)
        notes += said
    if source == layout.boxes and tags is None:
        notes += _check_other(layout, images, wanted, named, given, ask=network is None)

    masks, said = MaskFolders((top / "SegmentationClass", top / "SegmentationClassAug")).read_as(
        [ids[position] for position in wanted], given, truth_values
    )
    notes += said
    words, builder = Vocabulary(given, unknown, called), ColumnsBuilder()
    for position in wanted:
        labels = named.get(position)
        known = None if labels is None else words.tags(labels)
        builder.add(ids[position], images[position], known, masks.has(ids[position]))
    notes += words.check(source)
    return builder.build(given, top, masks, notes)


def _layout(root: Path) -> Layout:
    layout = find_layout(root)
    if layout is None:
        raise UserError(
            f"{root} has no folder JPEGImages, no images/ with annotations/*.xml, and no XML files beside its "
            "images: give a VOC devkit, such as VOCdevkit/VOC2012, or a folder of one of these kinds"
        )
    return layout


def _images(layout: Layout, split: str | Path | None, notes: list[str]) -> tuple[list[str], list[str], Sequence[int]]:
    """All images, their ids, and the positions of those of the split."""
    prefix = f"{layout.images}/" if layout.images else ""
    images = [f"{prefix}{image}" for image in walk_images(layout.top / layout.images, notes)]
    ids = [name.removeprefix(prefix) for name in image_ids(images, notes)]
    wanted = range(len(images)) if split is None else _select(_list_file(layout.top, split), ids, notes)
    if not wanted:
        raise UserError(
            f"no image of {split or 'any split'} in {layout.top / layout.images}: unpack the images there"
        )
    return images, ids, wanted


def _recognise(asked: Asked) -> Sign | None:
    layout = find_layout(asked.path) if asked.path.is_dir() else None
    if layout is None:
        return None
    if layout.images == "JPEGImages":
        return Sign(layout.reason)
    tagged = (asked.tags is not None and not Path(asked.tags).is_dir()) or find_tag_file(asked.path) is not None
    # else a folder of images and its tags, whatever XML lies there
    return None if tagged else Sign(layout.reason, sure=False)


def _read(asked: Asked) -> Columns:
    return read_voc(
        asked.path,
        asked.split,
        asked.classes,
        asked.tags,
        asked.unknown,
        network=asked.network,
        truth_values=asked.truth_values,
        reading=asked.reading,
    )


READER = Reader(_recognise, _read, takes=("tags", "split", "truth_values"))


def _source(tags: Path | str | None, layout: Layout, *, tagged: bool) -> Path | None:
    """The folder of XML files or the tags file that says what the images hold."""
    if tags is not None:
        return Path(tags)
    if layout.boxes.is_dir():
        return layout.boxes
    source = find_tag_file(layout.top)
    if source is None and tagged:
        raise UserError(
            f"{layout.top} has no Annotations and no tags.csv, and tags are never read from masks: "
            "unpack the Annotations, or give a tags file (image,labels)"
        )
    return source


def _list_file(top: Path, split: str | Path) -> Path:
    name = str(split).removesuffix(".txt")
    lists = [top / "ImageSets" / kind / f"{name}.txt" for kind in ("Segmentation", "Main")]
    found = next((path for path in (*lists, Path(split)) if path.is_file()), None)
    if found is None:
        have = sorted({path.stem for path in (top / "ImageSets").glob("*/*.txt") if "_" not in path.stem})
        drawn = (top / "storybook.json").is_file()
        hint = "; a render that was stopped is resumed by the same `tag2mask storybook render`" if drawn else ""
        if (top / name).is_dir():
            hint = f"; {top / name} is a folder: give it as the data"
        raise UserError(
            f"no list of the split {str(split)!r} (looked at {lists[0]}): there is {listing(have) or 'none'}{hint}"
        )
    return found


def _select(path: Path, ids: Sequence[str], notes: list[str]) -> list[int]:
    """The positions of a list's images, in its order."""
    listed = read_list(path, ids)
    if listed.missing and not listed.positions:
        raise UserError(
            f"{path}: none of its {len(listed.missing)} entries is an image that is there: it says "
            f"{listing(listed.missing, 3)}, and the ids of the images look like {ids[0] if ids else 'nothing'!r}"
        )
    if listed.flags:
        said = ", ".join(f"{flag}: {count}" for flag, count in sorted(listed.flags.items(), reverse=True))
        notes.append(f"all images that {path.name} lists are taken, whatever number follows them ({said})")
    notes += counted(f"images of {path.name} that are not there", listed.missing)
    notes += counted(f"lines of {path.name} that repeat an image", listed.repeated)
    return listed.positions


def _from_boxes(
    boxes: Path,
    layout: Layout,
    ids: Sequence[str],
    scope: Sequence[int],
    wanted: Sequence[int],
    notes: list[str],
    *,
    tagged: bool,
) -> tuple[Labels, Counter[str]]:
    """The names in the images at ``scope``, and in how many of these each is."""
    read = read_boxes(boxes, ids, scope)
    if tagged and not any(position in read.labels for position in wanted):
        why = [read.broken[n] for n in wanted if n in read.broken] or [ids[n] for n in wanted]
        raise UserError(f"no readable annotation in {boxes} for any of {len(wanted)} images: {listing(why)}")
    notes += read.notes(layout.where if boxes == layout.boxes else boxes.name, ids, wanted)
    return read.labels, read.names


def _from_file(
    rows: TagFile, source: Path, images: Sequence[str], wanted: Sequence[int], top: Path, notes: list[str]
) -> tuple[Labels, Counter[str]]:
    """The names in the wanted images, and in how many rows of the file each is."""
    labels, found = match_images(rows, images, source, top)
    chosen = {position: labels[position] for position in wanted if position in labels}
    notes += [f"tags from {source.name}", *found]
    notes += row_notes(source, [images[position] for position in wanted], _renumber(chosen, wanted))
    words = (name for labels in rows.values() for name in labels or ())
    return chosen, Counter(name for name in words if not is_background(name))


def _renumber(labels: Labels, wanted: Sequence[int]) -> Labels:
    return {new: labels[old] for new, old in enumerate(wanted) if old in labels}


_LIKE = 0.8
"""How like a class of VOC's a name must be to be a slip of the pen: "persn" is, "truck" is not."""


def _classes_of(
    names: Mapping[str, int],
    top: Path,
    source: Path | None,
    unknown: Unknown,
    *,
    own: bool,
    network: ClassSet | None,
) -> tuple[ClassSet, list[str]]:
    """The classes of data that names its own, and notes.

    Args:
        names: in how many images each is. top: the folder of the data. source: what names them.
        unknown: "skip" says that a few names that are not VOC's are to be left out.
        own: the names are to be the classes, whether they are VOC's or not.
        network: the classes of a network that is to look at the images.

    Raises:
        UserError: most of the names are VOC's and some are not: are these mistakes, or classes?
    """
    words = sorted((name for name in names if fold(name) != "background"), key=lambda name: (fold(name), name))
    voc = load_classes("voc12")
    if not words or source is None:
        return voc, []
    called = top.resolve().name or "voc"
    if own:
        return classes_of_names(words, called, source.name, None, whole=False, counts=names)
    index = class_index(voc)
    known = [name for name in words if fold(name) in index]
    others = [name for name in words if fold(name) not in index]
    if network is not None and others and {fold(name) for name in words} <= class_index(network).keys():
        return network, [f"the classes are the network's, which has every name in {source.name}"]
    if known and others and _are_slips(known, others, names):
        check = Vocabulary(voc, unknown, "the built-in class list voc12")
        for name in names:
            check.tags([name] * names[name])
        try:
            check.check(source)
        except UserError as error:
            raise UserError(f"{error}; if all {len(words)} names are classes, give --classes file") from None
        return voc, []
    return classes_of_names(words, called, source.name, "voc12", whole=False, counts=names)


def _are_slips(known: Sequence[str], others: Sequence[str], names: Mapping[str, int]) -> bool:
    """Whether the other names may be mistakes in data of VOC's classes, so that a user must say what they are."""
    most = len(known) > len(others) or sum(names[k] for k in known) > 10 * sum(names[o] for o in others)
    return most or any(SequenceMatcher(None, fold(o), fold(k)).ratio() >= _LIKE for o in others for k in known)


def _check_other(
    layout: Layout,
    images: Sequence[str],
    wanted: Sequence[int],
    named: Labels,
    classes: ClassSet,
    *,
    ask: bool,
) -> list[str]:
    """Notes on a tags file beside the annotations, which are what is read.

    Raises:
        UserError: the two disagree on an image of which the file knows the tags, and ``ask``.
    """
    try:
        file = find_tag_file(layout.top)
    except UserError as error:
        return [f"no tag file is used, but {layout.where}: {error}"]
    if file is None:
        return []
    try:
        rows, _ = match_images(settled_tags(file, images, classes)[0], images, file, layout.top)
    except UserError as error:
        return [f"{file.name} is not used: {error}"]
    index = class_index(classes)

    def meant(labels: Sequence[str] | None) -> set[int | str] | None:
        return None if labels is None else {index.get(fold(name), fold(name)) for name in labels} - {"background"}

    rows = {position: rows[position] for position in wanted if rows.get(position) is not None}
    differing = [images[n] for n, labels in rows.items() if meant(labels) != meant(named.get(n))]
    if not differing:
        return [f"{file.name} says the same" if rows else f"{file.name} is not used: it has none of these images"]
    what = f"{file.name} and {layout.where} disagree on the tags of {len(differing)} of {len(rows)} images"
    if ask:
        raise UserError(
            f"{layout.top}: {what} ({listing(differing)}): say which is right, "
            f"with --tags {file} or --tags {layout.boxes}"
        )
    return [f"{what}, and the latter are taken: {listing(differing)}"]
