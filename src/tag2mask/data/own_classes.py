"""The classes of data that bring their own names: a known class set where it fits, else the names themselves."""

from __future__ import annotations

from collections.abc import Sequence

from tag2mask.classes import class_index, fold, load_classes, plain_classes
from tag2mask.data.columns import counted, listing
from tag2mask.types import ClassSet

__all__ = ["classes_of_names"]


def classes_of_names(
    names: Sequence[str], id: str, source: str, known: str | None, *, whole: bool
) -> tuple[ClassSet, list[str]]:
    """The class set of data that names its classes, and what a user should know about it.

    Args:
        names: as the data has them, in the order of the mask values to come. "background" among them is no class,
            and of several spellings of one name (case, spaces, "_" and "-" do not count) the first is taken.
        id: what a class set of these names is called.
        source: the file or folder that names them, for the notes.
        known: a built-in class set, which is taken where it fits; None for the names themselves in any case.
        whole: whether ``names`` are all the classes that the data knows, so that the known set fits only where it
            has these and no others; else ``names`` are those that occur, and it fits where it has all of them.

    Raises:
        UserError: no name at all, one that is empty, or more than 254.
    """
    classes: dict[str, str] = {}
    twins: list[str] = []
    for name in names:
        if fold(name) == "background":
            continue
        first = classes.setdefault(fold(name), name)
        if first != name:
            twins.append(f"{name!r} = {first!r}")
    notes = counted(f"spellings in {source} that are one class", twins)
    if any(fold(name) == "background" for name in names):
        notes.append(f"{source} has a class 'background': it is left out, mask value 0 is the background")
    if known is not None:
        fitting = load_classes(known)
        index = class_index(fitting)
        tags = {index[key] for key in classes if key in index}
        if classes.keys() <= index.keys() and (not whole or len(tags) == len(fitting.foreground)):
            return fitting, [f"the classes are {known}'s, which has every name in {source}", *notes]
    own = plain_classes(list(classes.values()), id)
    said = listing([repr(name) for name in own.foreground], most=10)
    return own, [f"the {len(own.foreground)} classes are those named in {source}: {said}", *notes]
