"""Masks that a person corrected, beside those that were made and never over them.

::

    corrected/<id>.png                   the mask that counts now
    corrected/corrected.jsonl            a line a change: image, its picture's digest, classes, where it came from
    corrected-before/<id>.<number>.png   masks that later corrections replaced

A correction is of the picture that it was drawn on and of the classes of that time. Where the picture was replaced
since, or the classes are others, the made mask counts again.
"""

from __future__ import annotations

import json
from pathlib import Path

from tag2mask.run.artefacts import check_id
from tag2mask.run.files import write_atomic
from tag2mask.run.folder import Run
from tag2mask.run.warn import warn
from tag2mask.types import UserError
from tag2mask.words import many

__all__ = ["CORRECTED", "Corrected", "corrections_in", "counting"]

CORRECTED, BEFORE = "corrected", "corrected-before"
_LOG = "corrected.jsonl"


class Corrected:
    """The corrected masks of a run."""

    def __init__(self, run: Run) -> None:
        """Raises UserError where the list of corrections is damaged."""
        self._run, self._folder = run, run.path / CORRECTED
        self._drawn_on: dict[str, str | None] = {}
        names = list(run.settings.get("classes", {}).get("names") or ())
        other: set[str] = set()
        log = self._folder / _LOG
        if log.exists():
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
        return sum(self.path(id) is not None for id in self._drawn_on)

    def path(self, id: str) -> Path | None:
        """The corrected mask of an image, None where the made one counts."""
        if id not in self._drawn_on or self._drawn_on[id] != self._picture(id):
            return None
        return self._place(id)

    def mask_path(self, id: str) -> Path:
        """The mask that counts: the corrected one, else the one that was made."""
        return self.path(id) or self._run.mask_path(id)

    def store(self, id: str, mask: bytes, source: str) -> bool:
        """Keep a corrected mask (an indexed PNG); one that it replaces is kept, too. Whether it replaced one.

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
        names = list(self._run.settings.get("classes", {}).get("names") or ())
        picture = self._picture(id)
        row = {"id": id, "picture": picture, "classes": names, "source": source}
        with (self._folder / _LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._drawn_on[id] = picture
        return replaced

    def _place(self, id: str) -> Path:
        return self._folder / f"{check_id(id)}.png"

    def _picture(self, id: str) -> str | None:
        """The digest of the picture that the made mask is of, None where nothing is known of it."""
        found = None if self._known is None else self._known.find(id)
        return None if found is None else found.inputs_of[0].digest


class _Counting(Run):
    """A run, to read, whose masks are those that count."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.path, run.settings, run.noted, run.images)
        self._corrected = Corrected(run)

    def mask_path(self, id: str) -> Path:
        """The corrected mask, else the one that was made."""
        return self._corrected.mask_path(id)


def counting(run: Run) -> Run:
    """The run, to read, with corrected masks in the place of those that were made."""
    return _Counting(run)


def corrections_in(run: Run) -> str | None:
    """What a user should know of a run with corrected masks; None where it has none."""
    count = len(Corrected(run))
    if not count:
        return None
    return (
        f"{many(count, 'mask')} of {run.path} {'is' if count == 1 else 'are'} corrected by a person and count as such"
    )
