"""Several runs measured on the same images against the same ground truth, and against each other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, zip_longest
from pathlib import Path

import torch
from torch import Tensor

from tag2mask.data.image import BadImage
from tag2mask.data.truth import read_truth
from tag2mask.data.truth_turn import Read
from tag2mask.ops.metrics import confusion_matrix, metrics
from tag2mask.run.about import check_classes, stored_classes
from tag2mask.run.ahead import ahead
from tag2mask.run.corrected import counting
from tag2mask.run.current import Current
from tag2mask.run.files import write_atomic
from tag2mask.run.folder import Run
from tag2mask.run.progress import progress as show_progress
from tag2mask.segment.counting_masks import BadCorrection, read_counting
from tag2mask.stages.comparison import Compared, Pair, SideBySide
from tag2mask.stages.evaluate import MOST_WRONG, settle_truth, supervision_of
from tag2mask.stages.export import refuse_foreign_file
from tag2mask.stages.pages import GENERATOR, render
from tag2mask.stages.report_parts import css
from tag2mask.stages.tally import Tally
from tag2mask.types import ClassSet, Dataset, Sample, UserError
from tag2mask.words import listing, many

JSON_MARK = '"generator": "tag2mask"'
"""By this a JSON file is known as one of ours, which may be replaced."""


def compare(
    runs: Sequence[Run], data: Sequence[Dataset], *, boundary: bool = True, progress: bool = True
) -> SideBySide:
    """Score runs side by side on the images of which all have a mask, and compare their masks pixel by pixel.

    Nothing is written: ``metrics.json`` of a run is of all its images, and this is of those that all have.

    Args:
        runs: two or more.
        data: of each run, its images; at least one knows the ground truth.
        boundary: also compute boundary IoU.
        progress: show it on stderr.

    Raises:
        UserError: a run is given twice, the class sets or the ground truths differ, no image has a mask in every run,
            or masks and truth do not fit.
    """
    _refuse_what_cannot_be_compared(runs)
    entries = [_Entry(run, each, boundary) for run, each in zip(runs, data, strict=True)]
    known = set[str]().union(*(entry.true for entry in entries))
    if not known:
        roots = listing(list(dict.fromkeys(str(each.root) for each in data)))
        raise UserError(f"{roots}: no ground truth, so nothing can be scored; give --truth")
    some = known & set[str]().union(*(entry.has for entry in entries))
    every = sorted(known.intersection(*(entry.has for entry in entries)))
    if not every:
        counts = ", ".join(f"{entry.run.path} of {len(known & entry.has.keys()):,}" for entry in entries)
        raise UserError(
            f"no image has a mask in every run, so they cannot be compared. Of the {many(len(known), 'image')} with "
            f"ground truth there are masks in {counts}; are these runs of the same images?"
        )
    pairs = [_PairTally(*places, len(data[0].classes)) for places in combinations(range(len(entries)), 2)]
    _count(entries, pairs, every, progress)
    for entry in entries:
        entry.tally.refuse_other_numbers()
    return SideBySide(
        images=len(every),
        runs=tuple(entry.result(sorted(some - entry.has.keys())) for entry in entries),
        pairs=tuple(pair.result() for pair in pairs),
    )


def refuse_foreign(json_file: Path | None, page: Path | None) -> None:
    """Raises UserError where something else would be replaced."""
    if json_file is not None:
        refuse_foreign_file(json_file, JSON_MARK, "comparison of tag2mask", "compare.json")
    if page is not None:
        refuse_foreign_file(page, GENERATOR, "page of tag2mask", "compare.html")


def write_json(found: SideBySide, path: Path) -> None:
    """Write the figures as ``SideBySide.as_dict`` has them."""
    text = json.dumps({"generator": "tag2mask", **found.as_dict()}, indent=2, allow_nan=False)
    write_atomic(path, text.encode("utf-8", "replace"))


def write_page(found: SideBySide, classes: ClassSet, path: Path) -> None:
    """Write one HTML file that opens without a network."""
    names = found.names
    page = render(
        "compare.html.j2",
        names=names,
        images=found.images,
        runs=found.runs,
        pairs=found.pairs,
        notes=found.notes(names),
        boundary=found.has_boundary,
        undecided=found.has_undecided,
        supervision=any(run.supervision for run in found.runs),
        classes=[*zip(*(run.evaluation.per_class for run in found.runs), strict=True)],
        colours=[css(colour) for colour in classes.palette],
    )
    write_atomic(path, page)


def _refuse_what_cannot_be_compared(runs: Sequence[Run]) -> None:
    paths = [run.path.resolve() for run in runs]
    twice = [str(run.path) for place, run in enumerate(runs) if paths[place] in paths[:place]]
    if twice:
        raise UserError(f"{listing(twice)}: given twice; compare different runs")
    first, *others = ((run, stored_classes(run).names) for run in runs)
    for run, names in others:
        if names == first[1]:
            continue
        place, (one, other) = next(
            (place, pair) for place, pair in enumerate(zip_longest(first[1], names)) if pair[0] != pair[1]
        )
        raise UserError(
            f"{first[0].path} has masks of {many(len(first[1]), 'class')} and {run.path} of {len(names)}: value "
            f"{place} is {_called(one)} in the one and {_called(other)} in the other. Masks of other classes cannot "
            "be compared; make both with the same --classes"
        )


def _called(name: str | None) -> str:
    return "nothing" if name is None else repr(name)


class _Entry:
    """One run while it is counted: which images it has a mask of, and which its data has truth of, by place there."""

    def __init__(self, run: Run, data: Dataset, boundary: bool) -> None:
        check_classes(run, data)
        self.run = run = counting(run)
        self.data, notes = settle_truth(run, data)
        self.tally = Tally(self.data, boundary, None)
        self.tally.notes += notes
        current = Current(run)
        self.has: dict[str, int] = {}
        self.true: dict[str, int] = {}
        for place, sample in enumerate(self.data):
            if current.why_none(sample) not in ("absent", "picture"):  # the truth is of what is there now
                self.has[sample.id] = place
            if sample.truth is not None:
                self.true[sample.id] = place
        self.stale = tuple(f"not compared: {line}" for line in current.stale.lines(("picture",)))

    def sample(self, id: str) -> Sample:
        return self.data[self.has[id]]

    def result(self, lacking: list[str]) -> Compared:
        settings = self.run.settings
        return Compared(
            path=str(self.run.path),
            evaluation=self.tally.result(),
            supervision=supervision_of(self.run),
            use_tags=bool(settings.get("use_tags")),
            lacks=len(lacking),
            lacking=tuple(lacking[:10]),
            stale=self.stale,
        )


@dataclass
class _PairTally:
    """What two runs, by their places, have in common, counted while images pass."""

    one: int
    other: int
    classes: int
    equal: int = 0
    pixels: int = 0
    confusion: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.confusion = torch.zeros(2, self.classes, self.classes + 1, dtype=torch.int64)

    def add(self, one: Tensor, other: Tensor) -> None:
        """Count one image: two masks (H, W) uint8."""
        self.equal += int((one == other).sum())
        self.pixels += one.numel()
        self.confusion[0] += confusion_matrix(one, other, self.classes)
        self.confusion[1] += confusion_matrix(other, one, self.classes)

    def result(self) -> Pair:
        there, back = (metrics(counts).miou for counts in self.confusion)
        return Pair(self.one, self.other, self.equal / self.pixels, there, back)


def _count(entries: Sequence[_Entry], pairs: Sequence[_PairTally], ids: Sequence[str], progress: bool) -> None:
    wrong: list[str] = []
    for id, truths, masks in ahead(_load(entries, show_progress(ids, "compare", enabled=progress))):
        wrong += _differing(id, truths)
        odd = [
            f"{id}: {entry.run.path} {_size(mask)}, ground truth {_size(truths[0][1])}"
            for entry, mask in zip(entries, masks, strict=True)
            if mask.shape != truths[0][1].shape
        ]
        wrong += odd
        if len(wrong) >= MOST_WRONG:
            break
        if wrong:
            continue
        for entry, mask in zip(entries, masks, strict=True):
            _add(entry, id, truths, mask)
        for pair in pairs:
            pair.add(masks[pair.one], masks[pair.other])
    if wrong:
        raise UserError(
            f"the runs cannot be compared, {many(len(wrong), 'image')} differ: {'; '.join(wrong[:3])}. Give --data "
            "and --truth that hold for all of them, or compare runs of the same images"
        )


def _add(entry: _Entry, id: str, truths: Sequence[tuple[_Entry, Tensor, Read]], mask: Tensor) -> None:
    _, truth, read = next((each for each in truths if each[0] is entry), truths[0])
    entry.tally.turned += read.turned
    entry.tally.read_by.update([read.by] if read.by else [])
    try:
        if entry.tally.agreement.add(id, truth.numpy(), entry.sample(id).tags):
            entry.tally.add(id, truth, mask, None)
    except ValueError as error:
        raise UserError(
            f"{id}: {error}; are {entry.run.path}, ground truth and class set of the same data?"
        ) from error


def _differing(id: str, truths: Sequence[tuple[_Entry, Tensor, Read]]) -> list[str]:
    """What to say where the data of two runs have another truth of the same image."""
    (first, one, _), *others = truths
    for entry, other, _ in others:
        where = f"{id}: the ground truth of {first.run.path} and of {entry.run.path}"
        if one.shape != other.shape:
            return [f"{where}: {_size(one)} and {_size(other)}"]
        if not torch.equal(one, other):
            return [f"{where} differs in {int((one != other).sum()):,} of {one.numel():,} pixels"]
    return []


def _load(
    entries: Sequence[_Entry], ids: Iterable[str]
) -> Iterator[tuple[str, list[tuple[_Entry, Tensor, Read]], list[Tensor]]]:
    for id in ids:
        try:
            masks = [torch.from_numpy(read_counting(entry.run, id)) for entry in entries]
            truths = []
            for entry in entries:
                if id in entry.true:
                    read = read_truth(entry.data[entry.true[id]])
                    truths.append((entry, torch.from_numpy(read.mask), read))
        except BadCorrection as error:
            raise UserError(f"{id} cannot be compared: {error}") from error
        except (BadImage, OSError) as error:
            # leaving it out would change the figures in silence
            raise UserError(f"{id} cannot be compared: {error}; fix or remove that file") from error
        yield id, truths, masks


def _size(mask: Tensor) -> str:
    return f"{mask.shape[1]}x{mask.shape[0]}"
