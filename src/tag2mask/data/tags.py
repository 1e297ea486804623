"""Tags of images from a tag file: names as mask values, and the classes that they name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from tag2mask.classes import BUILT_IN, class_index, fold, load_classes
from tag2mask.data.own_classes import classes_of_tags
from tag2mask.data.tag_images import match_images, names_of
from tag2mask.data.tag_list import FOLDERS, TagList, find_tag_file, folder_tags, read_tag_file
from tag2mask.data.tag_nothing import is_background, says_absent, says_nothing
from tag2mask.data.tag_words import TagReading, settle
from tag2mask.types import ClassSet, UserError
from tag2mask.words import counted, listing, many, nearest

__all__ = [
    "FOLDERS",
    "TagFile",
    "TagReading",
    "Unknown",
    "Vocabulary",
    "choose_classes",
    "class_list",
    "find_tag_file",
    "folder_tags",
    "match_images",
    "read_tags",
    "row_notes",
    "settled_tags",
]

Unknown = Literal["error", "skip"]
"""What becomes of a name that is no class: all are reported at once, or left out."""

TagFile = Mapping[str, tuple[str, ...] | None]
"""Labels by image, both as written; None = not tagged."""


def choose_classes(classes: ClassSet | str | Path | None, root: Path) -> ClassSet | None:
    """The class set that was asked for, else the one that the data set brings along as ``classes.yaml``."""
    if isinstance(classes, ClassSet):
        return classes
    if classes is not None:
        return load_classes(classes)
    own = root / "classes.yaml"
    return load_classes(own) if own.is_file() else None


def class_list(classes: ClassSet | str | Path | None, root: Path, chosen: ClassSet) -> str:
    """What messages call the class list that names are compared with: its file, where it has one.

    Args:
        classes, root: as for :func:`choose_classes`. chosen: what that gave.
    """
    if classes is None and (root / "classes.yaml").is_file():
        classes = root / "classes.yaml"
    if isinstance(classes, ClassSet) or classes is None:
        return f"the class list {chosen.id!r}"
    return f"the built-in class list {classes}" if str(classes) in BUILT_IN else f"the class list in {classes}"


def read_tags(
    tags: Path | TagList,
    source: Path,
    images: Sequence[str],
    root: Path,
    classes: ClassSet | None,
    unknown: Unknown = "error",
    reading: TagReading | None = None,
) -> tuple[dict[int, tuple[str, ...] | None], ClassSet, list[str]]:
    """The labels of each image one by one, the classes that they are of, and notes.

    Args:
        tags: a tag file, or what was read already: a row for each of ``images``, by its path.
        source: the file or folder, for messages.
        images: paths relative to ``root``.
        root: the folder of the images.
        classes: what the labels are to name; None makes classes of the labels themselves, also of rows whose image
            is not there.
        unknown: with ``skip``, words for nothing are left out of such classes.
        reading: what was decided about labels that could mean two things.

    Returns:
        The labels by index into ``images``; the classes; notes.

    Raises:
        UserError: the file cannot be read, labels could mean two things, or rows do not fit the images.
    """
    reading = reading or TagReading()
    listed = tags if isinstance(tags, TagList) else read_tag_file(tags, names_of(images))
    rows, notes = settle(listed, classes, reading, source.name)
    notes = [*listed.notes, *notes]
    if isinstance(tags, TagList):
        labels, found = {place: rows[image] for place, image in enumerate(images)}, list[str]()
    else:
        labels, found = match_images(rows, images, source, root)
    if classes is None:
        classes, said = classes_of_tags(
            rows,
            source.stem,
            source.name,
            images=labels.values(),
            listed=listed.listed,
            twins=reading.twins,
            skip=unknown == "skip",
        )
        notes += said
    return labels, classes, [*notes, *found]


def settled_tags(
    source: Path, images: Sequence[str], classes: ClassSet | None, reading: TagReading | None = None
) -> tuple[TagFile, list[str]]:
    """The labels by image as written, and notes, for a reader that has its own way to images and classes.

    Raises:
        UserError: the file cannot be read, or labels could mean two things.
    """
    listed = read_tag_file(source, names_of(images))
    rows, notes = settle(listed, classes, reading or TagReading(), source.name)
    return rows, [*listed.notes, *notes]


class Vocabulary:
    """Turns names into mask values, and remembers those that are no class.

    called: what messages call the class list.
    """

    def __init__(self, classes: ClassSet, unknown: Unknown, called: str | None = None) -> None:
        self.classes = classes
        self.called = called or f"the class list {classes.id!r}"
        self.unknown = unknown
        self._index = class_index(classes)
        self._known: dict[str, int | None] = {}
        self._missed: Counter[str] = Counter()
        self._beside = 0
        self._emptied = 0

    def tags(self, words: Sequence[str]) -> list[int] | None:
        """The mask values of names, without those that are no class. None where that leaves nothing: not tagged.

        No names, and "background" alone, are background only: [].
        """
        found = []
        background = missed = False
        for word in words:
            if word not in self._known:
                self._known[word] = 0 if is_background(word) else self._index.get(fold(word))
            tag = self._known[word]
            if tag is None:
                self._missed[word] += 1
                missed = True
            elif tag:
                found.append(tag)
            else:
                background = True
        self._beside += background and bool(found)
        if missed and not found:
            self._emptied += 1
            return None
        return found

    def check(self, source: object) -> list[str]:
        """To be called at the end: notes on what was left out.

        Raises:
            UserError: there were unknown names, and they are not to be skipped; all are listed.
        """
        notes = []
        if self._beside:
            notes.append(f"'background' beside other labels, left out: {many(self._beside, 'image')}")
        if not self._missed:
            return notes
        spellings = (*self.classes.foreground, *self.classes.aliases)
        listed = []
        for word, count in sorted(self._missed.items(), key=lambda item: (-item[1], item[0])):
            near = nearest(word, spellings)
            listed.append(f"{word!r} ({count}x{f', nearest: {near!r}' if near else ''})")
        known = listing([repr(name) for name in self.classes.foreground])
        what = f"{source} has names that are not in {self.called} ({known}): {', '.join(listed)}"
        if self.unknown == "skip":
            notes.append(f"left out: {what}")
            if self._emptied:
                notes.append(f"images whose labels were all left out, not tagged: {self._emptied}")
            return notes
        nothing = any(says_nothing(word) for word in self._missed)
        hint = ", write 'background' for images that hold no class, leave the cell of untagged ones empty"
        hint = hint if nothing else ""
        hint += ", write only what is there" if any(says_absent(word) for word in self._missed) else ""
        raise UserError(
            f"{what}; correct them{hint}, name another class list by --classes, or leave them out with --unknown skip"
        )


def row_notes(source: Path, images: Sequence[str], labels: Mapping[int, tuple[str, ...] | None]) -> list[str]:
    """What a user should know of images that a tag file does not tag, or tags as background only."""
    rowless = [image for position, image in enumerate(images) if position not in labels]
    unsaid = [images[position] for position, said in labels.items() if said is None]
    empty = [images[position] for position, said in labels.items() if said and all(map(is_background, said))]
    return [
        *counted(f"images without a row in {source.name}, tags unknown", rowless),
        *counted(f"images that {source.name} leaves without labels, not tagged yet", unsaid),
        *counted("images tagged as background only", empty),
    ]
