"""Whether true masks number the classes as the run does: what they hold is compared with the tags of the images.

Masks from elsewhere may number the classes otherwise: 0 and 255, from 0 on, in another order, with gaps. Scores
would be silently wrong. Tags say which classes an image holds, so the two are compared, with counts.
Memory does not grow with the number of images.

Where truth and tags are of one numbering, they still differ a little: an object is tagged and too small for a mask,
or drawn and not tagged. Tags that name but one class an image differ to one side alone: nothing tagged is missing
from the truth. Another numbering misses on both sides, and there the limit is a quarter (:data:`BOTH_SIDES`): more
than tags of which one in five is wrong, and less than any numbering that moves most classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize

from tag2mask.data.public_numbers import PublicNumbers, public_numbers
from tag2mask.data.truth_values import COCO_IDS
from tag2mask.types import IGNORE, ClassSet

__all__ = ["Agreement", "Finding"]

BOTH_SIDES = 0.25
"""Refused: so large a share of the tags is in no truth, and so large a share of the truth's classes is not tagged."""

MISSING = 0.5
"""Refused: so large a share of the tags is in no truth."""

MOVED_IMAGES = 3
"""A class counts as renumbered where another value is in so many more of its images than its own."""

THIN = 0.25
"""Refused: so large a share of true masks has values that stand only between a lower and a higher one."""

_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """What does not fit: ``text`` says how much, ``cause`` why and what to do. refuse: scores would be wrong.

    outside: some values are no class at all, so that nothing can be scored.
    """

    text: str
    cause: str
    refuse: bool
    outside: bool = False

    def __str__(self) -> str:
        return f"{self.text}. {self.cause}" if self.cause else self.text


class Agreement:
    """Counts of one pass over the images."""

    def __init__(self, classes: ClassSet) -> None:
        self.classes = classes
        self.images = 0  # all
        self.checked = 0  # those whose tags are known
        self.tagged_images = 0  # those with a tag
        self.bare = 0  # with a tag, but no class in the truth
        self.untagged_images = 0  # with a class in the truth that is not tagged
        self.thin_images = 0
        self.thin_values = 0
        self.outside_images = 0
        self.tagged = np.zeros(256, np.int64)  # images by tag
        self.held = np.zeros(256, np.int64)  # images with known tags, by value in the truth
        self.everywhere = np.zeros(256, np.int64)  # all images, by value in the truth
        self.together = np.zeros((256, 256), np.int64)  # images by tag and by value in the truth
        self.examples: dict[str, list[str]] = {}

    def add(self, id: str, truth: NDArray[np.uint8], tags: Sequence[int] | None) -> bool:
        """Count one image.

        Args:
            id: its name.
            truth: (H, W) uint8.
            tags: the classes that it is tagged with, or None where that is not known.

        Returns:
            whether all values are classes or 255, so that it can be scored.
        """
        count = len(self.classes)
        values = np.flatnonzero(np.bincount(truth.ravel(), minlength=256))
        shapes = values[(values > 0) & (values != IGNORE)]
        outside = shapes[shapes >= count]
        self.images += 1
        self.everywhere[values] += 1
        if len(outside):
            self.outside_images += 1
            self._note("outside", f"{id} ({_numbers(outside)})")
        odd = set(shapes.tolist()) - set(tags or ())
        if odd:
            thin = _between(truth, sorted(odd))
            self.thin_values += thin
            self.thin_images += thin > 0
        if tags is not None and values.tolist() != [IGNORE]:  # where all is ignored, nothing is said of classes
            known = np.array(tags, np.intp)
            self.checked += 1
            self.tagged_images += len(known) > 0
            self.tagged[known] += 1
            self.held[values] += 1
            self.together[np.ix_(known, values)] += 1
            if len(known) and not len(shapes):
                self.bare += 1
                self._note("missing", f"{id} is tagged {self._names(known)}, its truth holds {_numbers(values)}")
            elif missing := sorted(set(tags) - set(shapes.tolist())):
                holds = self._names(shapes[shapes < count]) or "no class"
                self._note("missing", f"{id} is tagged {self._names(missing)}, its truth holds {holds}")
            untagged = [value for value in sorted(odd) if value < count]
            self.untagged_images += bool(untagged)
            if untagged:
                self._note(
                    "untagged", f"{id} holds {self._names(untagged)}, tagged {self._names(known) or 'nothing'}"
                )
        return not len(outside)

    def finding(self) -> Finding | None:
        """What does not fit, with the likely cause; None where all does."""
        if self.outside_images:
            return self._outside()
        tags, held = int(self.tagged.sum()), int(self.held[1 : len(self.classes)].sum())
        hits = self._hits(self._identity())
        missing, extra = tags - hits, held - hits
        if not missing and not extra:
            return self._thin() if self._is_thin() else None
        examples = "; ".join([*self.examples.get("missing", []), *self.examples.get("untagged", [])][:_SHOWN])
        text = (
            f"truth and tags differ (of {self.checked} images with known tags): {missing} of {tags} tags are in no "
            f"truth of their image, and {self.untagged_images} images hold a class that is not tagged ({examples})"
        )
        if self._is_thin():
            return Finding(text, self._thin().cause, refuse=True)
        far = missing >= BOTH_SIDES * tags and extra >= BOTH_SIDES * held
        few = not hits or (missing > 1 and extra > 1)  # a single image that is tagged wrongly is no numbering
        empty = missing >= MISSING * tags and (missing > 1 or not hits)
        moved = self._moved()
        refuse = bool(tags) and ((far and few) or empty or bool(moved))
        return Finding(text, self._cause(moved) if refuse else "", refuse)

    # --- causes

    def _outside(self) -> Finding:
        count = len(self.classes)
        values = [value for value in range(count, IGNORE) if self.everywhere[value]]
        text = (
            f"the truth of {self.outside_images} of {self.images} images holds values that are no class: "
            f"{_numbers(values)} ({'; '.join(self.examples['outside'])}), expected 0 to {count - 1}, or {IGNORE} for "
            "what is ignored"
        )
        cause = self._thin().cause if self._is_thin() else self._cause(self._moved())
        return Finding(text, cause, refuse=True, outside=True)

    def _is_thin(self) -> bool:
        return self.thin_images >= max(1, THIN * self.images) and self.thin_values >= 3

    def _thin(self) -> Finding:
        return Finding(
            f"the truth of {self.thin_images} of {self.images} images has {self.thin_values} values that stand only "
            "between a lower and a higher one",
            "Likely cause: the masks were resized or turned with interpolation, which invents classes at the edges; "
            f"make them again with nearest neighbour. {self._go_on()}",
            refuse=True,
        )

    def _cause(self, moved: Mapping[int, int]) -> str:
        """The likely cause and what to do."""
        shapes = [value for value in range(1, 256) if self.everywhere[value]]
        only = [int(tag) for tag in np.flatnonzero(self.tagged)]
        from_0, from_2 = self._share(self._shift(1), ()), self._share(self._shift(-1), (0, 1))
        own = self._share(self._identity())
        found = self._assigned()
        best = max(self._share(found), own)
        if (public := self._public(own, best)) is not None:
            return public
        if len(shapes) <= 1 and (self.bare or len(only) != 1 or self.outside_images):
            return self._binary(shapes, only)
        if self._coco():
            return (
                "Likely cause: the masks hold COCO's category ids, 1 to 90 with gaps: give --truth-values coco-ids. "
                f"{self._go_on()}"
            )
        for share, option, what in (
            (from_0, "from-0", f"the first class is 0 in these masks and {IGNORE} the background"),
            (from_2, "from-2", "the first class is 2 in these masks and 1 the background"),
        ):
            if share > own + 0.1 and share >= best - 0.05:
                return f"Likely cause: {what}: give --truth-values {option}. {self._go_on()}"
        pairs = found if best > own + 0.1 else {**self._identity(), **{value: tag for tag, value in moved.items()}}
        if moved or best > own + 0.1:
            return self._order(pairs)
        if self.bare >= MISSING * max(1, self.tagged_images):
            return (
                f"Likely cause: the masks are empty, or {IGNORE} stands for what they show, which is ignored. "
                f"{self._go_on()}"
            )
        return (
            "No other numbering of the classes fits better, so masks and tags may be of other images or classes. "
            f"{self._go_on()}"
        )

    def _public(self, own: float, best: float) -> str | None:
        """That the masks have the numbers of a public class set that has all names, where the tags show it.

        own, best: how well the run's numbers, and the best ones, explain the tags.
        """
        present = {value for value in range(1, IGNORE) if self.everywhere[value]}
        fits: list[tuple[float, PublicNumbers]] = []
        for public in public_numbers(self.classes):
            others = [value for value in range(IGNORE) if value not in public.own]
            share = self._share(public.own, others)  # of what is tagged: the set may have more than that
            if present <= public.values and share > own + 0.1 and share >= best - 0.05:
                fits.append((share, public))
        if not fits:
            return None
        public = max(fits, key=lambda fit: fit[0])[1]
        said = ""
        if present <= public.own.keys() and len(present) <= 20:
            pairs = ",".join(f"{value}={self.classes.names[public.own[value]]}" for value in sorted(present))
            said = f", or give --truth-values '{pairs}'"
        return (
            f"Likely cause: these are the numbers of {public.called}, which has every name in the tags: give "
            f"{public.options}. A run that has other classes keeps its own numbers: label anew{said}. {self._go_on()}"
        )

    def _binary(self, shapes: list[int], only: list[int]) -> str:
        value = shapes[0] if shapes else 0
        what = "the masks are empty"
        if shapes:
            what = f"the masks hold 0 and {value} alone, as drawing tools write one object"
        if value == IGNORE:
            what += f", but {IGNORE} means: ignored, so no class is in any truth"
        if shapes and len(only) == 1:
            name = self.classes.names[only[0]]
            return (
                f"Likely cause: {what}. If {value} is {name!r}, give --truth-values '{value}={name}'. {self._go_on()}"
            )
        if shapes and len(only) > 1:
            what += f", which cannot tell the {len(only)} tagged classes apart: give masks that number the classes"
        return f"Likely cause: {what}. {self._go_on()}"

    def _order(self, pairs: Mapping[int, int]) -> str:
        """The masks number the classes in another order; ``pairs`` is mask value by number in the file."""
        used = {number: value for number, value in sorted(pairs.items()) if self.held[number] and value}
        names = self.classes.names
        sure = {number: value for number, value in used.items() if self._is_sure(number, value)}
        said = [f"{number} is {names[value]!r}" for number, value in sure.items() if number != value]
        rising = list(used.values()) == sorted(used.values())
        what = "number the classes with gaps" if rising else "number the classes in another order"
        seen = f"{', '.join(said[:12])}{', ...' if len(said) > 12 else ''}" if said else "no single one is sure"
        option = ",".join(f"{number}={names[value]}" for number, value in used.items())
        plain = not any(sign in names[value] for value in used.values() for sign in ",='\"")
        inline = f"--truth-values '{option}', or " if plain and len(used) <= 20 and sure == used else ""
        unsure = [number for number in range(1, IGNORE) if self.held[number] and number not in sure]
        rest = f"; the tags do not show what {_numbers(unsure)} stand for" if unsure else ""
        return (
            f"Likely cause: the masks {what} (by the images in which they occur, {seen}{rest}): give {inline}"
            f"--truth-values FILE with a line `value name` for each class. {self._go_on()}"
        )

    def _is_sure(self, number: int, tag: int) -> bool:
        """Whether every numbering that explains as many tags calls this number so."""
        numbers = np.flatnonzero(self.held[1:IGNORE]) + 1
        tags = np.flatnonzero(self.tagged)
        gain = self.together[np.ix_(tags, numbers)].astype(float)
        most = gain[optimize.linear_sum_assignment(gain, maximize=True)].sum()
        gain[np.searchsorted(tags, tag), np.searchsorted(numbers, number)] = -1
        return bool(gain[optimize.linear_sum_assignment(gain, maximize=True)].sum() < most)

    def _go_on(self) -> str:
        if self.outside_images:
            return "Values that should not count: --truth-values VALUE=ignore (or VALUE=background)"
        return "If the numbers are right: --truth-values as-is"

    # --- numberings: mask value by number in the file

    def _identity(self) -> dict[int, int]:
        return {value: value for value in range(1, len(self.classes))}

    def _shift(self, by: int) -> dict[int, int]:
        return {value - by: value for value in range(1, len(self.classes)) if value - by != IGNORE}

    def _hits(self, numbering: Mapping[int, int]) -> int:
        return sum(int(self.together[value, number]) for number, value in numbering.items())

    def _share(self, numbering: Mapping[int, int], ground: Sequence[int] = (0,)) -> float:
        """How well a numbering explains the tags: F1 over pairs of image and class; ``ground``, 255 are no class."""
        held = sum(int(self.held[number]) for number in range(IGNORE) if number not in ground)
        return 2 * self._hits(numbering) / max(1, int(self.tagged.sum()) + held)

    def _assigned(self) -> dict[int, int]:
        """The numbering that explains most tags: one number a class, the background at 0, 255 ignored."""
        numbers = np.flatnonzero(self.held[1:IGNORE]) + 1
        tags = np.flatnonzero(self.tagged)
        # of equals, what is right already
        gain = self.together[np.ix_(tags, numbers)] + 0.5 * (tags[:, None] == numbers[None])
        rows, columns = optimize.linear_sum_assignment(gain, maximize=True)
        found = {int(numbers[column]): int(tags[row]) for row, column in zip(rows, columns, strict=True)}
        return {number: tag for number, tag in found.items() if self.together[tag, number]}

    def _moved(self) -> dict[int, int]:
        """Classes whose images hold another number instead of their own, so often that it is no accident."""
        out = {}
        for number, tag in self._assigned().items():
            own, other = int(self.together[tag, tag]), int(self.together[tag, number])
            often = other - own >= MOVED_IMAGES and 5 * own <= self.tagged[tag] and 2 * other >= self.tagged[tag]
            if number != tag and often and 2 * other >= self.held[number]:
                out[tag] = number
        return out

    def _coco(self) -> bool:
        """Whether the numbers are COCO's ids, by the tags; without any, by an id above 80 and no other number."""
        if len(self.classes) != len(COCO_IDS) + 1:
            return False
        if not self.tagged.any():
            values = np.flatnonzero(self.everywhere[1:IGNORE]) + 1
            return bool(values.max() > len(COCO_IDS)) and set(values.tolist()) <= set(COCO_IDS)
        ids = {id: value for value, id in enumerate(COCO_IDS, start=1)}
        return self._share(ids) > self._share(self._identity()) + 0.1 and self._share(ids) >= 0.5

    # --- words

    def _names(self, values: Sequence[int] | NDArray) -> str:
        return ", ".join(self.classes.names[int(value)] for value in values[:4])

    def _note(self, kind: str, text: str) -> None:
        kept = self.examples.setdefault(kind, [])
        if len(kept) < _SHOWN:
            kept.append(text)


def _numbers(values: Sequence[int] | NDArray) -> str:
    shown = ", ".join(str(int(value)) for value in values[:8])
    return f"{shown}, ..." if len(values) > 8 else shown


def _between(truth: NDArray[np.uint8], values: Sequence[int]) -> int:
    """How many of ``values`` stand nowhere but between a lower and a higher value, within two pixels."""
    low, high = ndimage.minimum_filter(truth, 5), ndimage.maximum_filter(truth, 5)
    free = (low == truth) | (high == truth)  # (H, W)
    alone = np.bincount(truth[free], minlength=256)
    return sum(alone[value] == 0 for value in values)
