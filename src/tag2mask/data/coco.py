"""COCO's instance annotations (2014 and 2017), or any JSON file of the same form.

Tags are the classes with at least one annotation in the image; crowds count, since they too say that the class is
there. An image without annotations holds background only: COCO annotates its classes exhaustively.

Ground truth is drawn when asked for (see ``coco_truth``). Where some objects have an outline and others have none,
what is known of an image with one of these is not its truth: such an image has none. The PNG masks that the papers
use can be given as a folder instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tag2mask.classes import class_index, fold
from tag2mask.data.coco_file import CocoFile, Key, load_coco
from tag2mask.data.coco_images import Picture, find_folder, find_pictures
from tag2mask.data.coco_outline import has_outline
from tag2mask.data.coco_truth import CocoTruth
from tag2mask.data.columns import Columns, ColumnsBuilder
from tag2mask.data.own_classes import classes_of_names
from tag2mask.data.protocol import Asked, Reader, Sign
from tag2mask.data.tags import Unknown, Vocabulary, choose_classes, class_list
from tag2mask.data.truth import MaskFolders
from tag2mask.types import ClassSet, UserError
from tag2mask.words import counted, listing

__all__ = ["CocoTruth", "read_coco"]


def read_coco(
    annotations: Path | str,
    images: Path | str | None = None,
    classes: ClassSet | str | Path | None = None,
    truth: Path | str | None = None,
    unknown: Unknown = "error",
    *,
    network: ClassSet | None = None,
    truth_values: str | None = None,
) -> Columns:
    """Reads a COCO instances file.

    Args:
        annotations: ``instances_train2014.json`` or the like.
        images: the folder of the images. Default: ``images/`` or a folder named after the split, near the file.
            An image is found there by other paths too, see :func:`~tag2mask.data.coco_images.find_pictures`.
        classes: a class set, its name, or its file, or "file" for the categories of the file itself. Default:
            ``classes.yaml`` beside the file, else "coco14" where the file has its 80 classes and no others, else the
            file's categories. These are numbered in the order of their ids: COCO's own, 1 to 90 with gaps, become 1
            to 80. A category "background" is no class, and its outlines draw nothing.
        truth: a folder of masks ``<id>.png`` (0..C and 255) instead of drawing.
        unknown: what becomes of categories that are no class.
        network: the classes of a network that is to look at the images, which needs no tags: a file without
            annotations (``image_info_test2017.json``) will do, and the tags of its images are unknown. They are the
            classes by default where the file has the same ones, in whatever order, or none.
        truth_values: what the numbers in masks of ``truth`` stand for (see ``tag2mask.data.truth_values``).

    Raises:
        UserError: no such file or form, no images, unknown categories, or what has two meanings.
    """
    path = Path(annotations)
    content = load_coco(path, annotated=network is None)
    chosen, called, said = _classes(content, classes, network)
    notes = [*said, *_shared_names(content, chosen), *content.notes]
    root = find_folder(content, images)
    pictures, missing = find_pictures(content, root, notes)
    notes += counted(f"images of {path.name} that are not in {root}", missing)
    masks = MaskFolders((Path(truth),)) if truth is not None else None
    has_truth = set() if masks is not None else _drawable(content, chosen, pictures, notes)

    _check_categories(content, pictures, unknown)
    words, builder = Vocabulary(chosen, unknown, called), ColumnsBuilder()
    if masks is not None:
        masks, said = masks.read_as([picture.name for picture in pictures], chosen, truth_values)
        notes += said
    for picture, objects in _objects(content, pictures, notes):
        tags = words.tags(objects) if content.annotations is not None else None
        drawn = masks.has(picture.name) if masks is not None else picture.name in has_truth
        builder.add(picture.name, picture.file, tags, drawn)
    notes += words.check(path)
    if masks is not None:
        masks.check_any([picture.name for picture in pictures])
        return builder.build(chosen, root, masks, notes)
    return builder.build(chosen, root, CocoTruth(path, chosen, root) if has_truth else None, notes)


def _recognise(asked: Asked) -> Sign | None:
    if asked.path.is_file():
        return Sign("a JSON file") if asked.path.suffix.lower() == ".json" else None
    found = any((asked.path / "annotations").glob("instances_*.json"))
    return Sign("it has annotations/instances_*.json") if found else None


def _read(asked: Asked) -> Columns:
    return read_coco(
        _annotations(asked.path, asked.split),
        asked.images,
        asked.classes,
        asked.truth,
        asked.unknown,
        network=asked.network,
        truth_values=asked.truth_values,
    )


READER = Reader(_recognise, _read, takes=("split", "images", "truth"), suffixes=(".json",))


def _annotations(path: Path, split: str | None) -> Path:
    """The annotations file itself, or that of a split in a folder."""
    if path.is_file():
        return path
    files = sorted((path / "annotations").glob("instances_*.json"))
    fitting = [file for file in files if split is None or file.stem == f"instances_{split}"]
    if len(fitting) != 1:
        have = listing([file.stem.removeprefix("instances_") for file in files]) or "none"
        raise UserError(f"{path / 'annotations'} has these splits: {have}; name one of them, or give the JSON file")
    return fitting[0]


def _classes(
    content: CocoFile, classes: ClassSet | str | Path | None, network: ClassSet | None
) -> tuple[ClassSet, str, list[str]]:
    """The classes; what messages call them; notes."""
    path, names = content.path, list(content.categories.values())
    given = None if classes == "file" else choose_classes(classes, path.parent)
    folded = {fold(name) for name in names} - {"background"}
    if given is None and classes is None and network is not None:
        if not folded:
            return network, "the network's classes", [f"{path.name} has no categories: the classes are the network's"]
        if folded == {fold(name) for name in network.foreground}:
            given = network
    if given is not None:
        left = [name for name in names if fold(name) == "background"]
        notes = counted(f"categories of {path.name} that are no class, mask value 0 is the background", left)
        return given, class_list(classes, path.parent, given), notes
    known = None if classes == "file" else "coco14"
    objects = Counter(content.categories.get(row["category_id"]) for row in content.annotations or ())
    counts = {name: objects[name] for name in names}
    chosen, notes = classes_of_names(names, path.stem, path.name, known, whole=True, counts=counts)
    if content.annotations and chosen.id == path.stem:
        used = {annotation["category_id"] for annotation in content.annotations}
        held = {fold(content.categories[key]) for key in used if key in content.categories}
        idle = [repr(name) for name in chosen.foreground if fold(name) not in held]
        notes += counted(f"classes that no annotation of {path.name} is of", idle)
    return chosen, f"the categories of {path.name}", notes


def _shared_names(content: CocoFile, classes: ClassSet) -> list[str]:
    """A note on categories that are one class, with their ids and how many annotations are of each."""
    index, used = class_index(classes), Counter(row["category_id"] for row in content.annotations or ())
    groups: dict[int, list[Key]] = {}
    for key, name in content.categories.items():
        if (value := index.get(fold(name))) is not None:
            groups.setdefault(value, []).append(key)
    shared = [
        " and ".join(f"{content.categories[key]!r} (id {key!r}, {used[key]} annotations)" for key in keys)
        for keys in groups.values()
        if len(keys) > 1
    ]
    return counted(f"categories of {content.path.name} with ids of their own that are one class", shared)


def _objects(content: CocoFile, pictures: list[Picture], notes: list[str]) -> Iterator[tuple[Picture, list[str]]]:
    """Each picture with the names of what is in it, the background left out."""
    held: dict[Key, set[Key]] = {}
    for annotation in content.annotations or ():
        held.setdefault(annotation["image_id"], set()).add(annotation["category_id"])
    backgrounds = {key for key, name in content.categories.items() if fold(name) == "background"}
    empty: list[str] = []
    bare: list[str] = []
    for picture in pictures:
        categories = set().union(*(held.get(key, ()) for key in picture.keys))
        objects = [content.categories.get(key, f"category {key}") for key in categories - backgrounds]
        if not objects:
            (bare if categories else empty).append(picture.file)
        yield picture, sorted(objects)
    if content.annotations is not None:
        notes += counted("images without annotations, taken as background only", empty)
        notes += counted("images annotated as background, taken as background only", bare)


def _check_categories(content: CocoFile, pictures: list[Picture], unknown: Unknown) -> None:
    """Raises UserError where images have annotations of a category that the file does not list."""
    there = {key for picture in pictures for key in picture.keys}
    used = Counter(row["category_id"] for row in content.annotations or () if row["image_id"] in there)
    strays = [f"{key!r} ({count}x)" for key, count in used.most_common() if key not in content.categories]
    if strays and unknown == "error":
        known = listing([f"{key!r} ({name!r})" for key, name in content.categories.items()], most=10) or "none"
        raise UserError(
            f"{content.path}: its annotations have category_ids that its own 'categories' do not list: "
            f"{listing(strays)}; listed there: {known}. Add what is missing to 'categories', correct the "
            "annotations, or leave these out with --unknown skip"
        )


def _drawable(content: CocoFile, classes: ClassSet, pictures: list[Picture], notes: list[str]) -> set[str]:
    """The names of the pictures whose truth can be drawn: all, but for those with an object without an outline."""
    path, index = content.path, class_index(classes)
    tags = {key: index.get(fold(name)) for key, name in content.categories.items()}
    outlined = 0
    without: Counter[Key] = Counter()
    for annotation in content.annotations or ():
        has = has_outline(annotation.get("segmentation"))
        outlined += has
        if not has and tags.get(annotation["category_id"]) is not None:
            without[annotation["image_id"]] += 1
    if not outlined:
        what = "boxes only" if content.annotations is not None else "no annotations"
        notes.append(f"{path.name} has {what}, so there is no ground truth to draw")
        return set()
    lacking = [picture for picture in pictures if any(key in without for key in picture.keys)]
    if lacking:
        objects = sum(without[key] for picture in lacking for key in picture.keys)
        notes.append(
            f"objects without an outline (a box at most): {objects}, so their images have no ground truth: "
            f"{len(lacking)} of {len(pictures)} ({listing([picture.file for picture in lacking])})"
        )
    return {picture.name for picture in pictures} - {picture.name for picture in lacking}
