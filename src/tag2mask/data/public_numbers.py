"""Numbers of public class sets: masks may have them although the tags number their classes anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tag2mask.classes import BUILT_IN, class_index, fold, load_classes
from tag2mask.data.truth_values import COCO_IDS
from tag2mask.types import ClassSet

__all__ = ["PublicNumbers", "public_numbers"]


@dataclass(frozen=True)
class PublicNumbers:
    """A public class set's numbers for some classes.

    called: what they are called. options: those that read masks by them. own: the mask value by number, of these
    classes. values: all numbers that it has, but for background and 255.
    """

    called: str
    options: str
    own: Mapping[int, int]
    values: frozenset[int]


def public_numbers(classes: ClassSet) -> Iterator[PublicNumbers]:
    """The numbers of each built-in class set that has all names of ``classes`` at other places, and COCO's ids."""
    for called in BUILT_IN:
        public = load_classes(called)
        index = class_index(public)
        own = {index.get(fold(name)): value for value, name in enumerate(classes.foreground, start=1)}
        places = {number: value for number, value in own.items() if number is not None}
        if len(places) < len(classes.foreground) or classes.names == public.names:
            continue
        numbers = range(1, len(public))
        yield PublicNumbers(called, f"--classes {called}", places, frozenset(numbers))
        if called == "coco14":
            ids = {COCO_IDS[number - 1]: value for number, value in places.items()}
            options = f"--classes {called} --truth-values coco-ids"
            yield PublicNumbers("COCO's category ids", options, ids, frozenset(COCO_IDS))
