"""Masks that a person corrected, beside those that were made and never over them.

::

    corrected/<id>.png                   the mask that counts now
    corrected/corrected.jsonl            a line a change: id, picture (its digest), mask (its stamp), classes, source
    corrected-before/<id>.<number>.png   masks that later corrections replaced

A correction is of the picture that it was drawn on and of the classes of that time. Where the picture was replaced
since, the classes are others, or the file was removed, the made mask counts again. An image without a made mask may
have one, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tag2mask.run.about import stored_classes
from tag2mask.run.artefacts import check_id
from tag2mask.run.files import write_atomic
from tag2mask.run.folder import Run
from tag2mask.run.inputs import Stamp, content_of, stamp_from, stamp_plain
from tag2mask.run.json_lines import JsonLines, read_lines
from tag2mask.run.warn import warn
from tag2mask.types import Sample, Scores, UserError
from tag2mask.words import listing, many

__all__ = ["CORRECTED", "Corrected", "Counting", "corrections_in", "counting"]

CORRECTED, BEFORE = "corrected", "corrected-before"
_LOG = "corrected.jsonl"


class Corrected:
    """The corrected masks of a run."""

    def __init__(self, run: Run) -> None:
        """Raises UserError where the list of corrections, or run.yaml, is damaged."""
        self._run, self._folder = run, run.path / CORRECTED
        self._rows: dict[str, _Row] = {}
        other: set[str] = set()
        torn: list[int] = []
        log = self._folder / _LOG
        if log.exists():
            names = list(stored_classes(run).names)
            for number, line in enumerate(read_lines(log), start=1):
                if line is None:
                    torn.append(number)
                    continue
                try:
                    id, row, classes = _read_row(line)
                except (KeyError, OverflowError, TypeError, ValueError) as error:
                    raise UserError(f"{log}, line {number} is damaged ({error}); remove that line") from error
                if classes == names[: len(classes)]:  # classes may be added at the end
                    self._rows[id] = row
                    other.discard(id)
                else:
                    self._rows.pop(id, None)
                    other.add(id)
        if torn:
            warn(
                f"{log}: passed over {many(len(torn), 'line')} written by half ({listing(torn)}), as where a disk is "
                "full or an import is stopped; import again what was not stored"
            )
        if other:
            warn(f"{self._folder}: {many(len(other), 'corrected mask')} of other classes than the run's, not used")
        self._known = run.inputs() if self._rows else None

    def __len__(self) -> int:
        """How many count."""
        return sum(1 for _ in self.ids())

    def ids(self) -> Iterator[str]:
        """The images whose corrected mask counts, in the order of their first corrections."""
        return (id for id in self._rows if self.path(id) is not None)

    def path(self, id: str) -> Path | None:
        """The corrected mask of an image, None where the made one counts."""
        row = self._rows.get(id)
        if row is None or self._picture(id) not in (None, row.picture):
            return None
        place = self._place(id)
        return place if place.exists() else None

    def digest(self, id: str) -> str | None:
        """Stands for the content of an image's corrected mask; only a file that changed since it was stored is read.

        None where there is no such file.
        """
        row = self._rows.get(id)
        return content_of(self._place(id), None if row is None else row.mask)

    def shows(self, sample: Sample) -> bool:
        """Whether a sample's picture is the one that its corrected mask was drawn on, as far as that is known."""
        row = self._rows.get(sample.id)
        drawn_on = None if row is None else row.picture
        found = None if self._known is None else self._known.find(sample.id)
        now = content_of(sample.image, None if found is None else found.inputs_of[0])
        return drawn_on is None or now is None or now == drawn_on

    def store(self, id: str, mask: bytes, source: str, picture: Path | None = None) -> bool:
        """Keep a corrected mask (an indexed PNG); one that it replaces is kept, too. Whether it replaced one.

        picture: the image, whose digest is noted where no made mask of it says what it was made of.

        Raises:
            OSError: the disk is full or read-only.
        """
        place, replaced = self._place(id), False
        if place.exists() and place.read_bytes() != mask:
            before, number = self._run.path / BEFORE, 1
            while (kept := before / f"{id}.{number}.png").exists():
                number += 1
            write_atomic(kept, place.read_bytes(), sync=True)
            replaced = True
        write_atomic(place, mask, sync=True)
        self._known = self._known or self._run.inputs()
        names = list(stored_classes(self._run).names)
        drawn_on = self._picture(id) or (None if picture is None else content_of(picture, None))
        stamp = Stamp.of(place)
        line = {"id": id, "picture": drawn_on, "mask": stamp_plain(stamp), "classes": names, "source": source}
        with JsonLines(self._folder / _LOG) as log:
            log.append(line, sync=True)
        self._rows[id] = _Row(drawn_on, stamp)
        return replaced

    def _place(self, id: str) -> Path:
        return self._folder / f"{check_id(id)}.png"

    def _picture(self, id: str) -> str | None:
        """The digest of the picture that the made mask is of, None where there is none, or nothing is known of it."""
        found = None if self._known is None else self._known.find(id)
        if found is None or not self._run.mask_path(id).exists():
            return None
        return found.inputs_of[0].digest


@dataclass(frozen=True)
class _Row:
    """picture: the digest of what was drawn on, if known. mask: the file as it was stored; None in older lists."""

    picture: str | None
    mask: Stamp | None


def _read_row(line: Any) -> tuple[str, _Row, list[str]]:
    """The id, what is known of its correction, and the classes. Raises KeyError, TypeError, ... for anything else."""
    id, picture, classes, mask = line["id"], line["picture"], line["classes"], line.get("mask")
    if not isinstance(id, str) or not isinstance(picture, str | None) or not isinstance(classes, list):
        raise TypeError("expected text as id, text or null as picture, a list as classes")
    return id, _Row(picture, None if mask is None else stamp_from(mask)), classes


class Counting(Run):
    """A run, to read, whose masks are those that count: the corrected ones in the place of those that were made.

    Confidence and scores are those of the made masks; a corrected mask has none of its own.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run.path, run.settings, run.noted, run.images)
        self.made = run
        self.corrected = Corrected(run)

    def mask_path(self, id: str) -> Path:
        """The corrected mask, else the one that was made."""
        return self.corrected.path(id) or self.made.mask_path(id)

    def mask_ids(self) -> Iterator[str]:
        """The ids that have a mask, made or corrected, in no order."""
        yield from self.made.mask_ids()
        yield from (id for id in self.corrected.ids() if not self.made.mask_path(id).exists())

    def ids(self) -> list[str]:
        """The ids that have a mask, made or corrected, sorted."""
        return sorted(self.mask_ids())

    def scores(self, id: str) -> Scores:
        """The stored maps of an image, of which the made mask is."""
        return self.made.scores(id)


def counting(run: Run) -> Counting:
    """The run, to read, with corrected masks in the place of those that were made."""
    return run if isinstance(run, Counting) else Counting(run)


def corrections_in(run: Run) -> str | None:
    """What a user should know of a run with corrected masks; None where it has none."""
    count = len(counting(run).corrected)
    if not count:
        return None
    return (
        f"{many(count, 'mask')} of {run.path} {'is' if count == 1 else 'are'} corrected by a person and used as such"
    )
