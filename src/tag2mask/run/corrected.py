"""Masks that a person corrected, beside those that were made and never over them.

::

    corrected/<id>.png                   the mask that counts now
    corrected/corrected.jsonl            a line a change: id, picture (its digest), classes, source
    corrected-before/<id>.<number>.png   masks that later corrections replaced

A correction is of the picture that it was drawn on and of the classes of that time. Where the picture was replaced
since, or the classes are others, the made mask counts again. An image without a made mask may have one, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tag2mask.run.about import stored_classes
from tag2mask.run.artefacts import check_id
from tag2mask.run.files import write_atomic
from tag2mask.run.folder import Run
from tag2mask.run.inputs import content_of
from tag2mask.run.warn import warn
from tag2mask.types import Sample, Scores, UserError
from tag2mask.words import many

__all__ = ["CORRECTED", "Corrected", "Counting", "corrections_in", "counting"]

CORRECTED, BEFORE = "corrected", "corrected-before"
_LOG = "corrected.jsonl"


class Corrected:
    """The corrected masks of a run."""

    def __init__(self, run: Run) -> None:
        """Raises UserError where the list of corrections, or run.yaml, is damaged."""
        self._run, self._folder = run, run.path / CORRECTED
        self._drawn_on: dict[str, str | None] = {}
        other: set[str] = set()
        log = self._folder / _LOG
        if log.exists():
            names = list(stored_classes(run).names)
            for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(), start=1):
                try:
                    row = json.loads(line)
                    id, picture, classes = row["id"], row["picture"], row["classes"]
                except (KeyError, TypeError, ValueError) as error:
                    raise UserError(f"{log}, line {number} is damaged ({error}); remove that line") from error
                if classes == names[: len(classes)]:  # classes may be added at the end
                    self._drawn_on[id] = picture
                    other.discard(id)
                else:
                    self._drawn_on.pop(id, None)
                    other.add(id)
        if other:
            warn(f"{self._folder}: {many(len(other), 'corrected mask')} of other classes than the run's, not used")
        self._known = run.inputs() if self._drawn_on else None

    def __len__(self) -> int:
        """How many count."""
        return sum(1 for _ in self.ids())

    def ids(self) -> Iterator[str]:
        """The images whose corrected mask counts, in the order of their first corrections."""
        return (id for id in self._drawn_on if self.path(id) is not None)

    def path(self, id: str) -> Path | None:
        """The corrected mask of an image, None where the made one counts."""
        if id not in self._drawn_on or self._picture(id) not in (None, self._drawn_on[id]):
            return None
        return self._place(id)

    def shows(self, sample: Sample) -> bool:
        """Whether a sample's picture is the one that its corrected mask was drawn on, as far as that is known."""
        drawn_on = self._drawn_on.get(sample.id)
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
        row = {"id": id, "picture": drawn_on, "classes": names, "source": source}
        with (self._folder / _LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._drawn_on[id] = drawn_on
        return replaced

    def _place(self, id: str) -> Path:
        return self._folder / f"{check_id(id)}.png"

    def _picture(self, id: str) -> str | None:
        """The digest of the picture that the made mask is of, None where nothing is known of it."""
        found = None if self._known is None else self._known.find(id)
        return None if found is None else found.inputs_of[0].digest


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
        f"{many(count, 'mask')} of {run.path} {'is' if count == 1 else 'are'} corrected by a person and count as such"
    )
