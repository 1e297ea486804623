"""What ``check`` finds in a data set, as figures and as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from tag2mask.stages.machinery.estimate import Estimate
from tag2mask.stages.machinery.work import LACKS_END
from tag2mask.words import in_line, listing, many, some

__all__ = ["Check", "ClassCount", "Fault", "Few", "Sizes", "TruthCheck", "Twins"]

_SHOWN = 10


@dataclass(frozen=True)
class Few:
    """How many there are, and the first of them by name."""

    count: int = 0
    first: tuple[str, ...] = ()

    def __str__(self) -> str:
        return some(self.count, self.first)


@dataclass(frozen=True)
class Fault:
    """A file that cannot be used, by the id of its image, and why."""

    id: str
    why: str


@dataclass(frozen=True)
class ClassCount:
    """One class: its mask value and name, and in how many images it is.

    tagged: images with this tag. Of images whose tags are known and whose truth was read: in_truth: those whose truth
    holds it; both: those that are also tagged with it.
    """

    value: int
    name: str
    tagged: int
    in_truth: int
    both: int


@dataclass(frozen=True)
class Sizes:
    """(width, height, id) of the image with the fewest pixels, of the median one and of that with the most."""

    smallest: tuple[int, int, str]
    median: tuple[int, int, str]
    largest: tuple[int, int, str]


@dataclass(frozen=True)
class Twins:
    """The same picture, pixel for pixel, under several names.

    pictures: how many there are of which there is more than one. images: under so many names in all.
    tagged_otherwise: those pictures whose names have different tags. first: the first of them, each by its ids.
    """

    pictures: int = 0
    images: int = 0
    tagged_otherwise: int = 0
    first: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class TruthCheck:
    """Ground truth against images and tags.

    images: those that have some. read: those whose truth could be read; faults: the first of the others (count:
    ``images - read``). other_size: those whose truth has another size than the image. checked: those with known tags
    and truth; tags: of these, all together; in_truth: those tags whose class the truth of their image holds.
    untagged: images whose truth holds a class that is not tagged. finding: what does not fit, and the likely cause.
    refused: whether ``eval`` would score nothing. notes: how truth is read.
    """

    images: int
    read: int
    faults: tuple[Fault, ...]
    other_size: Few
    checked: int
    tags: int
    in_truth: int
    untagged: int
    finding: str | None
    refused: bool
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """For people."""
        lines = [
            f"truth: {many(self.images, 'image')} have some; of {self.tags} tags in {self.checked} of them "
            f"{self.in_truth} are in their truth, and {many(self.untagged, 'image')} hold a class that is not tagged"
        ]
        if self.other_size.count:
            lines.append(f"  truth of another size than its image: {self.other_size}")
        if self.images > self.read:
            lines.append(f"  true masks that cannot be read: {self.images - self.read}")
            lines += [f"    {in_line(fault.id)}: {fault.why}" for fault in self.faults[:_SHOWN]]
        if self.finding is not None:
            lines.append(f"  {'eval would refuse this: ' if self.refused else ''}{self.finding}")
        return [*lines, *(f"  note: {note}" for note in self.notes)]


@dataclass(frozen=True)
class Check:
    """What a data set holds, as ``label`` would find it, and what to do next.

    data: its folder. images: how many. notes: what the reader says of it, as ``label`` does.
    tagged: images with at least one class. background: images that are known to hold none. untagged: images whose
    tags are not known, which ``label`` skips. classes: without background.
    missing: images that are named but not there. unreadable: how many others cannot be read, and faults: the first
    thousand of both. lacks_end: JPEGs whose last bytes are missing, which are read. turned: images by their EXIF
    orientation, where it is not 1. sizes: None where no image can be read. twins: the same picture under several
    names. same_name: images that are called alike but for the suffix ("a.jpg", "a.png"), which keep it in their ids.
    truth: None where there is none. estimate: what ``label`` would take on this machine; else no_estimate says why
    that is not known. next: what to do, a line each; the last is the command, unless label would stop. stops: why
    ``label`` would stop before it begins, in its words; then the tags are counted as far as they could be read.
    """

    data: str
    images: int
    notes: tuple[str, ...]
    tagged: int
    background: int
    untagged: Few
    classes: tuple[ClassCount, ...]
    missing: Few
    unreadable: int
    faults: tuple[Fault, ...]
    lacks_end: Few
    turned: Mapping[int, int]
    sizes: Sizes | None
    twins: Twins
    same_name: Few
    truth: TruthCheck | None
    estimate: Estimate | None
    no_estimate: str | None
    next: tuple[str, ...]
    stops: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether there are images that ``label`` could not do."""
        return bool(self.missing.count or self.unreadable)

    def as_json(self) -> str:
        """All of it."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def text(self) -> str:
        """For people."""
        lines = [f"{self.data}: {many(self.images, 'image')}", *(f"  note: {note}" for note in self.notes)]
        if self.classes or not self.stops:
            lines.append(
                f"tags: {many(self.tagged, 'image')} with a class, {self.background} with background alone, "
                f"{self.untagged if self.untagged.count else 0} not tagged"
            )
            lines += self._classes()
        lines += self._files()
        lines += self._pictures()
        lines += [] if self.truth is None else self.truth.lines()
        known = self.no_estimate if self.estimate is None else self.estimate.text()
        lines.append(f"label on this machine: {known}")
        lines += [f"label would stop: {each}" for each in self.stops]
        return "\n".join([*lines, *(f"next: {line}" for line in self.next)])

    def _classes(self) -> list[str]:
        lines = [f"classes: {len(self.classes)}"]
        some = [each for each in self.classes if each.tagged or each.in_truth]
        width = max((len(each.name) for each in some), default=0)
        for each in some:
            truth = "" if self.truth is None else f", in the truth of {each.in_truth}, both {each.both}"
            lines.append(f"  {each.value:3} {each.name:{width}}  {many(each.tagged, 'image')}{truth}")
        none = [each.name for each in self.classes if not each.tagged and not each.in_truth]
        lines += [f"  without an image: {len(none)} ({listing(none)})"] if none else []
        once = [each.name for each in self.classes if each.tagged == 1]
        if once and self.tagged > len(once):
            lines.append(f"  with a single image, which may be a slip, and is too few to learn from: {listing(once)}")
        return lines

    def _files(self) -> list[str]:
        lines, count = [], self.missing.count + self.unreadable
        if count:
            kinds = ((self.missing.count, "missing"), (self.unreadable, "that cannot be read"))
            said = ", ".join(f"{number} {kind}" for number, kind in kinds if number)
            lines.append(f"images that cannot be used: {count} ({said})")
        lines += [f"  {in_line(fault.id)}: {fault.why}" for fault in self.faults[:_SHOWN]]
        more = count - _SHOWN
        lines += [f"  and {more} more; --json names them"] if more > 0 else []
        return lines + ([f"{LACKS_END}: {self.lacks_end}"] if self.lacks_end.count else [])

    def _pictures(self) -> list[str]:
        lines = []
        if self.sizes is not None:
            said = ", ".join(
                f"{what} {width} x {height} ({in_line(id)})" for what, (width, height, id) in vars(self.sizes).items()
            )
            lines.append(f"sizes (width x height): {said}")
        if self.turned:
            kinds = ", ".join(f"orientation {kind}: {count}" for kind, count in sorted(self.turned.items()))
            lines.append(f"turned upright as EXIF says: {sum(self.turned.values())} ({kinds})")
        twins = self.twins
        if twins.pictures:
            other = f", {twins.tagged_otherwise} of them tagged otherwise each time" if twins.tagged_otherwise else ""
            shown = listing([" = ".join(ids) for ids in twins.first])
            count = f"{many(twins.pictures, 'picture')} under {twins.images} names{other}"
            lines.append(f"the same picture more than once: {count} ({shown})")
        if self.same_name.count:
            lines.append(f"called alike but for the suffix: {self.same_name}")
        return lines
