"""A data set before ``label``: what is in it, what cannot be used and why, and how long it would take.

One pass decodes every image as ``label`` would, in a few threads; 24 bytes are kept of each.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tag2mask.data.agreement import Agreement
from tag2mask.data.columns import Columns
from tag2mask.data.image import BadImage, decode_image, is_image, stored_form
from tag2mask.data.truth import read_truth, reading_notes, refuses
from tag2mask.data.truth_turn import Read, settle_turn
from tag2mask.methods import make_method
from tag2mask.models.weights import DEFAULT_CLIP, cached_clip, load_clip
from tag2mask.run.ahead import side_by_side
from tag2mask.run.progress import progress as show_progress
from tag2mask.stages.checked import Check, ClassCount, Fault, Few, Sizes, TruthCheck, Twins
from tag2mask.stages.label import label
from tag2mask.stages.machinery.errors import describe
from tag2mask.stages.machinery.estimate import Estimate, estimate
from tag2mask.types import Dataset, Sample, UserError
from tag2mask.words import Some

KEPT_FAULTS = 1000
"""So many files that cannot be used are named, each with its reason."""

_FIRST = 20
_METHOD = "clip-es"
_ROW = np.dtype([("digest", "<u8", 2), ("height", "<u4"), ("width", "<u4")])


def check(
    data: Dataset,
    *,
    clip: str | Path | None = None,
    device: str = "auto",
    measure: bool = True,
    command: str | None = None,
    stops: Sequence[str] = (),
    progress: bool = True,
    **clip_options: Any,
) -> Check:
    """Look through a data set as ``label`` would, without labelling it. Nothing is written, and no file stops it.

    Args:
        data: what a reader gives.
        clip: as ``label`` takes it; two images are labelled by it, with clip-es, to tell how long all would take.
        device: where.
        measure: False: do not measure that.
        command: that labels these data; default: for a folder that is read without options.
        stops: what ``label`` would refuse in them, where they were read all the same (``check_reading``).
        progress: show it on stderr.
        clip_options: tokenizer, activation: as ``load_clip`` has them.

    Raises:
        UserError: there is no such device. All that is wrong with the data is in the Check.
    """
    command = command or shlex.join(["tag2mask", "label", str(data.root), "-o", f"runs/{Path(data.root).name}"])
    data, turn_problem, turn_notes = _settled(data)
    count = _Count(data)
    with show_progress(len(data), "check", enabled=progress) as bar:
        samples = (data[index] for index in range(len(data)))
        for index, seen in enumerate(side_by_side(_look, samples, min(8, os.cpu_count() or 1))):
            count.add(index, seen)
            bar.advance()
    found: Estimate | None = None
    why: str | None = "not measured, since label would stop" if measure else "not measured, as asked"
    if measure and not stops:
        found, why, stop = _measured(data, clip, device, clip_options)
        stops = [] if stop is None else [stop]
    truth = count.truth_check(turn_problem, turn_notes)
    return Check(
        data=str(data.root),
        images=len(data),
        notes=tuple(getattr(data, "notes", ())),
        tagged=count.tagged,
        background=count.background,
        untagged=_few(count.untagged),
        classes=count.classes(),
        missing=_few(count.missing),
        unreadable=count.unreadable,
        faults=tuple(count.faults),
        lacks_end=_few(count.lacks_end),
        turned=dict(count.turned),
        sizes=count.sizes(),
        twins=_twins(data, count.rows),
        same_name=_few(count.same_name),
        truth=truth,
        estimate=found,
        no_estimate=why,
        next=_next(count, truth, command, clip, stops),
        stops=tuple(stops),
    )


def _settled(data: Dataset) -> tuple[Dataset, str | None, tuple[str, ...]]:
    """The data with its truth turned as ``eval`` would; or why that is not known; notes."""
    if not isinstance(data, Columns) or data.truth is None:
        return data, None, ()
    try:
        settled = settle_turn(data)
    except (UserError, BadImage) as error:
        return data, str(error), ()
    return replace(data, truth_turn=settled.turn), None, settled.notes


@dataclass(frozen=True)
class _Seen:
    """One image as it was found: size, digest of its pixels and orientation, or why not; its truth, or why not."""

    sample: Sample
    size: tuple[int, int] | None = None
    digest: bytes = b""
    orientation: int = 1
    lacks_end: bool = False
    missing: bool = False
    fault: str | None = None
    truth: Read | None = None
    truth_fault: str | None = None


def _look(sample: Sample) -> _Seen:
    seen = _Seen(sample)
    try:
        pixels, lacks_end = decode_image(sample.image)  # (H, W, 3)
        size = (pixels.shape[0], pixels.shape[1])
        digest = hashlib.blake2b(repr(size).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(pixels).data)
        seen = _Seen(sample, size, digest.digest(), stored_form(sample.image)[0], lacks_end)
    except Exception as error:  # one bad file never stops it
        missing = isinstance(error, BadImage) and not sample.image.exists()
        seen = _Seen(sample, missing=missing, fault=error.reason if isinstance(error, BadImage) else describe(error))
    if sample.truth is None:
        return seen
    try:
        return replace(seen, truth=read_truth(sample))
    except Exception as error:  # nor does a bad true mask
        return replace(seen, truth_fault=describe(error))


@dataclass
class _Count:
    """All that is counted while images pass."""

    data: Dataset
    rows: NDArray[Any] = field(init=False)
    tags: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    tagged: int = 0
    background: int = 0
    unreadable: int = 0
    with_truth: int = 0
    truth_read: int = 0
    turned_truth: int = 0
    untagged: Some = field(default_factory=Some)
    missing: Some = field(default_factory=Some)
    same_name: Some = field(default_factory=Some)
    lacks_end: Some = field(default_factory=Some)
    other_size: Some = field(default_factory=Some)
    faults: list[Fault] = field(default_factory=list)
    truth_faults: list[Fault] = field(default_factory=list)
    turned: Counter[int] = field(default_factory=Counter)
    read_by: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.rows = np.zeros(len(self.data), _ROW)
        self.agreement = Agreement(self.data.classes)

    def add(self, index: int, seen: _Seen) -> None:
        """Count one image."""
        sample = seen.sample
        if sample.tags is None:
            self.untagged.add(sample.id)
        else:
            self.tagged += bool(sample.tags)
            self.background += not sample.tags
            self.tags[list(sample.tags)] += 1
        if is_image(sample.id) and sample.image.name == sample.id.rpartition("/")[2]:
            self.same_name.add(sample.id)
        if seen.size is None:
            self.unreadable += not seen.missing
            if seen.missing:
                self.missing.add(sample.id)
            _keep(self.faults, sample.id, seen.fault)
        else:
            self.rows[index] = (np.frombuffer(seen.digest, "<u8"), *seen.size)
            if seen.lacks_end:
                self.lacks_end.add(sample.id)
            if seen.orientation != 1:
                self.turned[seen.orientation] += 1
        if sample.truth is not None:
            self._add_truth(seen)

    def _add_truth(self, seen: _Seen) -> None:
        self.with_truth += 1
        if seen.truth is None:
            _keep(self.truth_faults, seen.sample.id, seen.truth_fault)
            return
        self.truth_read += 1
        self.turned_truth += seen.truth.turned
        self.read_by.update([seen.truth.by] if seen.truth.by else [])
        if seen.size is not None and seen.truth.mask.shape != seen.size:
            (height, width), (high, wide) = seen.truth.mask.shape, seen.size
            self.other_size.add(f"{seen.sample.id}: {width} x {height}, the image {wide} x {high}")
        self.agreement.add(seen.sample.id, seen.truth.mask, seen.sample.tags)

    def classes(self) -> tuple[ClassCount, ...]:
        """Each class but background."""
        found = self.agreement
        return tuple(
            ClassCount(value, name, int(self.tags[value]), int(found.held[value]), int(found.together[value, value]))
            for value, name in enumerate(self.data.classes.names)
            if value
        )

    def sizes(self) -> Sizes | None:
        """By the number of pixels; of equals, the first."""
        pixels = self.rows["height"].astype(np.int64) * self.rows["width"]
        order = np.argsort(pixels, kind="stable")[int((pixels == 0).sum()) :]
        if not len(order):
            return None
        largest = int(pixels.argmax())
        chosen = (int(order[0]), int(order[(len(order) - 1) // 2]), largest)
        one, two, three = (
            (int(self.rows["width"][index]), int(self.rows["height"][index]), self.data[index].id) for index in chosen
        )
        return Sizes(one, two, three)

    def truth_check(self, problem: str | None, notes: tuple[str, ...]) -> TruthCheck | None:
        """Truth against tags, or None where there is no truth."""
        if not self.with_truth:
            return None
        found = self.agreement.finding()
        finding = ". ".join([*([] if problem is None else [problem]), *([] if found is None else [str(found)])])
        return TruthCheck(
            images=self.with_truth,
            read=self.truth_read,
            faults=tuple(self.truth_faults),
            other_size=_few(self.other_size),
            checked=self.agreement.checked,
            tags=int(self.agreement.tagged.sum()),
            in_truth=int(np.diagonal(self.agreement.together)[1 : len(self.data.classes)].sum()),
            untagged=self.agreement.untagged_images,
            finding=finding or None,
            refused=problem is not None or refuses(found, self.data),
            notes=(*notes, *reading_notes(self.read_by, self.turned_truth)),
        )


def _few(some: Some) -> Few:
    return Few(some.count, tuple(some.first))


def _keep(faults: list[Fault], id: str, why: str | None) -> None:
    if len(faults) < KEPT_FAULTS:
        faults.append(Fault(id, why or "unknown"))


def _twins(data: Dataset, rows: NDArray[Any]) -> Twins:
    """The images whose pixels are the same."""
    read = np.flatnonzero(rows["height"])
    digests = rows["digest"][read]  # (M, 2)
    if not len(read):
        return Twins()
    order = np.lexsort((read, digests[:, 1], digests[:, 0]))
    other = (digests[order][1:] != digests[order][:-1]).any(axis=1)  # (M - 1,) than the one before
    starts = np.flatnonzero(np.concatenate([[True], other]))
    lengths = np.diff(starts, append=len(read))
    groups = [read[order[at : at + count]] for at, count in zip(starts, lengths, strict=True) if count > 1]
    groups.sort(key=lambda group: int(group[0]))
    otherwise = sum(len({data[int(index)].tags for index in group}) > 1 for group in groups)
    first = tuple(tuple(data[int(index)].id for index in group[:_FIRST]) for group in groups[:_FIRST])
    return Twins(len(groups), sum(map(len, groups)), otherwise, first)


def _measured(
    data: Dataset, clip: str | Path | None, device: str, options: dict[str, Any]
) -> tuple[Estimate | None, str | None, str | None]:
    """What labelling would take, or why that is not known; and why label would stop, where it would."""
    todo = np.fromiter((index for index in range(len(data)) if data[index].tags), np.int64)
    if not len(todo):
        return None, "not measured: no image is tagged with a class", None
    if clip is None and cached_clip(DEFAULT_CLIP) is None:
        why = (
            f"not measured: {DEFAULT_CLIP} is not at hand; `tag2mask fetch {DEFAULT_CLIP}` brings it (about 600 MB), "
            "or name another by --clip"
        )
        return None, why, None
    try:
        loaded = load_clip(clip, device=device, **options)
        method = make_method(_METHOD, data.classes, clip=loaded)
        make: Callable[..., Any] = partial(_label, method)
        found = estimate(data, todo, make, method.device)
    except UserError as error:
        return None, "not measured, since label would stop", str(error)
    return found, None if found else "not measured: no tagged image can be read", None


def _label(method: Any, data: Dataset, out: Path) -> Any:
    return label(data, method, out, progress=False)


def _next(
    count: _Count, truth: TruthCheck | None, command: str, clip: str | Path | None, stops: Sequence[str]
) -> tuple[str, ...]:
    """What to do, the command last; where that would stop, it waits for the next check."""
    lines = ["settle what stops label, as above, and check again"] if stops else []
    broken = count.missing.count + count.unreadable
    if broken:
        which = "the file" if broken == 1 else f"the {broken} files"
        lines.append(f"replace or remove {which} that cannot be used; label leaves them out, and says so")
    if truth is not None and truth.refused:
        lines.append("say what the true masks stand for, as above, and check again: a run keeps the classes it has")
    if stops or (truth is not None and truth.refused):
        return tuple(lines)
    if not count.tagged:
        lines.append(
            "tag the images: a tags.csv beside them, image,labels; label makes no mask of a class without tags"
        )
    elif clip is None and cached_clip(DEFAULT_CLIP) is None:
        lines.append(f"tag2mask fetch {DEFAULT_CLIP}")
    return (*lines, command)
