"""Images without tags in, a table of suggested tags out, for a person to look over.

NAME.csv      a row an image: which classes CLIP takes to be in it, and how sure it is
.NAME.jsonl   the scores of every image as they are made, from which a stopped call resumes

The table is no tag file: its column is called ``suggested``, and reading it as tags is refused until a person has
called that column ``labels``.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tag2mask.data.pixels import read_pixels
from tag2mask.data.tag_columns import DRAFT, SUGGESTED
from tag2mask.data.truth import read_truth
from tag2mask.methods.zero_shot import ZeroShot
from tag2mask.ops.metrics import average_precision, chosen_right
from tag2mask.run.ahead import ahead
from tag2mask.run.files import atomic_path, cannot_write, file_sha256, write_atomic
from tag2mask.run.lock import Lock
from tag2mask.run.progress import Bar
from tag2mask.run.progress import progress as show_progress
from tag2mask.run.settings import describe_differences
from tag2mask.stages.machinery.errors import describe
from tag2mask.types import IGNORE, ClassSet, Dataset, Sample, UserError
from tag2mask.words import listing, many


@dataclass(frozen=True)
class SuggestSettings:
    """How ``suggest`` goes about its work.

    least: a class with this score or more is suggested. top: so many scores are shown, best first.
    batch_size: images at a time. overwrite: replace scores that were made otherwise, and a table that was edited.
    progress: show it on stderr.
    """

    least: float = 0.1
    top: int = 5
    batch_size: int = 1
    overwrite: bool = False
    progress: bool = True


@dataclass(frozen=True)
class Quality:
    """How good the scores are, where it is known what is in the images.

    known_by: by what ("true masks", "tags"), and for how many images. unread: true masks that could not be read.
    ap: average precision of each class by its name, NaN for those in no image. mean: over the others (mAP).
    precision: the share of suggested tags that are right. recall: the share of right ones that are suggested.
    """

    known_by: Mapping[str, int]
    unread: int
    ap: Mapping[str, float]
    mean: float
    precision: float
    recall: float

    def lines(self) -> list[str]:
        """For people."""
        by = " and ".join(f"the {what} of {many(count, 'image')}" for what, count in self.known_by.items())
        width = max(map(len, self.ap))
        each = [f"  {name:{width}}  {100 * value:5.1f}" for name, value in self.ap.items() if value == value]
        return [
            f"measured against {by}: mAP {100 * self.mean:.1f} % (average precision of each class, then their mean)",
            *each,
            "no class is suggested: a lower --least suggests some"
            if math.isnan(self.precision)
            else f"of the tags suggested {100 * self.precision:.0f} % are right; {100 * self.recall:.0f} % of the "
            "right ones are suggested",
            *([f"true masks that could not be read, not measured: {self.unread}"] if self.unread else []),
        ]


@dataclass(frozen=True)
class Suggested:
    """What a call of ``suggest`` left: the table, how many images it has, why others failed, how good it is."""

    path: Path
    images: int
    failed: Mapping[str, str]
    quality: Quality | None

    def text(self) -> str:
        """For people."""
        lines = [f"{self.path}: suggestions for {many(self.images, 'image')}, not confirmed by anybody"]
        if self.failed:
            shown = listing([f"{id} ({why})" for id, why in self.failed.items()], 3)
            lines.append(f"failed, not in the table: {many(len(self.failed), 'image')}: {shown}")
        lines += [] if self.quality is None else self.quality.lines()
        lines.append(
            f"next: look it over and correct the column '{SUGGESTED}' ('background' for an image of no class); then "
            f"call that column 'labels' in the first line, save the file as tags.csv, and label"
        )
        return "\n".join(lines)


def suggest(
    data: Dataset, scorer: ZeroShot, out: Path | str, settings: SuggestSettings | None = None, **changes: Any
) -> Suggested:
    """Score every class in every image, and write the table of suggestions.

    Tags and ground truth, where there are any, are read after all is scored, to say how good the scores are. A call
    that was stopped resumes; images that failed, or were replaced, are tried again.

    Args:
        data: the images.
        scorer: of the data's classes.
        out: the table, a CSV file.
        settings: default: ``SuggestSettings()``. changes: fields that take the place of those in it.

    Raises:
        UserError: settings that cannot work, scores there that were made otherwise, a table that somebody edited, or
            a place that cannot be written.
    """
    settings = replace(settings or SuggestSettings(), **changes)
    out = Path(out)
    if not 0 <= settings.least <= 1 or settings.top < 1 or settings.batch_size < 1:
        raise UserError(
            f"least {settings.least}, top {settings.top}, batch {settings.batch_size}: expected a score from 0 to 1, "
            "and numbers of at least 1"
        )
    if out.suffix.lower() != ".csv" or out.name.startswith("."):
        raise UserError(f"--out {out}: expected the name of a CSV file, such as {DRAFT}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(out.with_name(f".{out.stem}.lock"), str(out))
        try:
            return _suggest(data, scorer, out, settings)
        finally:
            lock.release()
    except OSError as error:
        raise cannot_write(f"--out {out}", error) from error


def _suggest(data: Dataset, scorer: ZeroShot, out: Path, settings: SuggestSettings) -> Suggested:
    done = _Scores(out.with_name(f".{out.stem}.jsonl"), _deciding(data.classes, scorer))
    done.begin(out, settings.overwrite)
    failed: dict[str, str] = {}
    with show_progress(len(data), "suggest", enabled=settings.progress) as bar:
        todo = _todo(data, done, bar)
        for batch in ahead(_decoded(todo, settings.batch_size)):
            for sample, stamp, found in _scored(scorer, batch):
                if isinstance(found, str):
                    failed[sample.id] = found
                else:
                    done.add(sample.id, stamp, found)
                bar.advance()
    done.close()
    count = _write_table(out, data, done, settings)
    done.wrote(out)
    return Suggested(out, count, failed, _quality(data, done, settings.least))


def _deciding(classes: ClassSet, scorer: ZeroShot) -> dict[str, Any]:
    """What decides the scores, as the first line of their file keeps it."""
    return {
        "clip": scorer.clip.sha256,
        "precision": str(scorer.clip.dtype).removeprefix("torch."),
        "classes": list(classes.foreground),
        "texts": list(scorer.names),
        "others": list(scorer.background),
        "templates": list(scorer.templates),
    }


class _Scores:
    """The scores of images by id, on disk; in memory is only where each is."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self._where: dict[str, int] = {}
        self._table: str | None = None  # the digest of the table that was written from them

    def begin(self, out: Path, overwrite: bool) -> None:
        """Load what is there. Raises UserError where that was made otherwise, or the table was edited."""
        there: Any = None
        if self.path.is_file() and not overwrite:
            there = self._read()
        if there is not None and (differences := describe_differences(there, self.settings)):
            raise UserError(f"{self.path} holds other scores: {differences}; choose another --out, or --overwrite")
        if out.exists() and not overwrite and (self._table is None or file_sha256(out) != self._table):
            raise UserError(
                f"{out} was edited after it was written, or is not of `tag2mask suggest`, and is not overwritten: "
                "rename it, choose another --out, or --overwrite"
            )
        if there is None:
            write_atomic(self.path, json.dumps(self.settings).encode() + b"\n")
            self._where, self._table = {}, None
        self._file = self.path.open("r+b")
        end = self._file.seek(0, 2)
        self._file.seek(max(0, end - 1))
        if end and self._file.read(1) != b"\n":
            self._file.write(b"\n")  # half a line, which a killed call left, is a line of its own

    def _read(self) -> Any:
        first = None
        with self.path.open("rb") as file:
            at = 0
            for number, line in enumerate(file):
                try:
                    said = json.loads(line)
                    if number == 0:
                        first = said if isinstance(said, dict) else None
                    elif "table" in said:
                        self._table = str(said["table"])
                    elif len(said["scores"]) == len(self.settings["classes"]):
                        self._where[str(said["id"])] = at
                except (ValueError, KeyError, TypeError):
                    pass  # torn by a kill or a full disk
                at += len(line)
        return first

    def find(self, id: str) -> tuple[list[int], list[float]] | None:
        """The stamp of the file and the scores of an image, or None."""
        if id not in self._where:
            return None
        with self.path.open("rb") as file:
            file.seek(self._where[id])
            said = json.loads(file.readline())
        return said["stamp"], said["scores"]

    def add(self, id: str, stamp: list[int], scores: Tensor) -> None:
        """Keep the scores (C,) of an image; they are in the file when this returns."""
        self._where[id] = self._append({"id": id, "stamp": stamp, "scores": [round(s, 5) for s in scores.tolist()]})

    def wrote(self, out: Path) -> None:
        """Remember the table as it was written."""
        self._file = self.path.open("r+b")
        self._append({"table": file_sha256(out)})
        self._file.close()

    def _append(self, line: dict[str, Any]) -> int:
        at = self._file.seek(0, 2)
        self._file.write(json.dumps(line).encode("ascii") + b"\n")
        self._file.flush()
        return at

    def close(self) -> None:
        self._file.close()


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _todo(data: Dataset, done: _Scores, bar: Bar[None]) -> Iterator[Sample]:
    for sample in data:
        known = done.find(sample.id)
        try:
            same = known is not None and known[0] == _stamp(sample.image)
        except OSError:
            same = False  # decoding will say why
        if same:
            bar.advance(worked=False)
        else:
            yield sample


_Decoded = tuple[Sample, list[int], Tensor | str]


def _decoded(samples: Iterable[Sample], size: int) -> Iterator[list[_Decoded]]:
    samples = iter(samples)
    while few := list(islice(samples, size)):
        batch: list[_Decoded] = []
        for sample in few:
            try:
                batch.append((sample, _stamp(sample.image), read_pixels(sample.image)))
            except Exception as error:  # one bad image never stops the others
                batch.append((sample, [], describe(error)))
        yield batch


def _scored(scorer: ZeroShot, batch: Sequence[_Decoded]) -> Iterator[_Decoded]:
    """The same with scores (C,) in place of images; where a batch is too much, one by one."""
    good = [(sample, stamp, image) for sample, stamp, image in batch if isinstance(image, Tensor)]
    yield from (each for each in batch if isinstance(each[2], str))
    if not good:
        return
    try:
        found = scorer.scores([image for _, _, image in good])
    except Exception as error:
        if len(good) > 1:
            for each in good:
                yield from _scored(scorer, [each])
        else:
            yield good[0][0], [], describe(error)
        return
    for (sample, stamp, _), scores in zip(good, found, strict=True):
        yield sample, stamp, scores


def _write_table(out: Path, data: Dataset, done: _Scores, settings: SuggestSettings) -> int:
    """Write the table, and say how many images it has."""
    names, count = data.classes.foreground, 0
    with atomic_path(out) as partial, partial.open("wb") as file:
        file.write(_row(["image", SUGGESTED, "scores"]))
        for sample in data:
            known = done.find(sample.id)
            if known is None:
                continue
            order = sorted(range(len(names)), key=lambda index: -known[1][index])
            good = [names[index] for index in order if known[1][index] >= settings.least]
            best = [f"{names[index]} {known[1][index]:.2f}" for index in order[: settings.top]]
            place = sample.image
            image = place.relative_to(data.root) if place.is_relative_to(data.root) else place
            file.write(_row([image.as_posix(), ";".join(good), "; ".join(best)]))
            count += 1
    return count


def _row(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _quality(data: Dataset, done: _Scores, least: float) -> Quality | None:
    """How good the scores are; None where of no image it is known what is in it."""
    known_by: dict[str, int] = {}
    scores: list[Tensor] = []
    present: list[Tensor] = []
    unread = 0
    for sample in data:
        found = done.find(sample.id)
        if found is None or (sample.truth is None and sample.tags is None):
            continue
        try:
            tags = _tags_there(sample)
        except Exception:  # an odd mask costs its image's share in the figures, and is counted
            unread += 1
            continue
        what = "tags" if sample.truth is None else "true masks"
        known_by[what] = known_by.get(what, 0) + 1
        scores.append(torch.tensor(found[1]))
        row = torch.zeros(len(found[1]), dtype=torch.bool)
        row[[tag - 1 for tag in tags if tag <= len(row)]] = True
        present.append(row)
    if not scores:
        return None
    table, there = torch.stack(scores), torch.stack(present)
    ap = average_precision(table, there)
    precision, recall = chosen_right(table >= least, there)
    names = data.classes.foreground
    return Quality(
        known_by, unread, dict(zip(names, ap.tolist(), strict=True)), float(ap.nanmean()), precision, recall
    )


def _tags_there(sample: Sample) -> Sequence[int]:
    """The classes in an image, by its true mask where it has one, else by its tags."""
    if sample.truth is None:
        return sample.tags or ()
    return [
        value for value in torch.from_numpy(read_truth(sample).mask).unique().tolist() if value not in (0, IGNORE)
    ]
