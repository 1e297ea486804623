"""Which masks of a run are of what the data are now: the same pictures, tags, and maps of an earlier run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tag2mask.run.folder import Run
from tag2mask.types import Sample, UserError

__all__ = ["AGAIN", "STALE", "Current", "Named", "earlier_file"]

STALE = {
    "picture": "whose picture is another one",
    "tags": "whose tags changed",
    "untagged": "without tags now",
    "earlier": "whose maps or masks in the earlier run changed",
    "unknown": "with no word in the manifest on what the mask was made of",
}
"""Why a mask is not of what the data are now, as it follows "3 images"."""

AGAIN = "Give the command that made the run once more: it makes these masks again, and no others"

_SHOWN = 5


class Named:
    """Counts images by a reason in ``STALE`` and keeps the first names of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._shown: dict[str, list[str]] = {}

    def add(self, reason: str, id: str) -> None:
        """Count one image."""
        self.counts[reason] += 1
        shown = self._shown.setdefault(reason, [])
        if len(shown) < _SHOWN:
            shown.append(id)

    def lines(self, reasons: Iterable[str] = tuple(STALE)) -> list[str]:
        """A line for each reason: "3 images whose tags changed (a, b, c)"."""
        return [
            f"{self.counts[reason]} image{'' if self.counts[reason] == 1 else 's'} {words} ({self._some(reason)})"
            for reason, words in STALE.items()
            if self.counts[reason] and reason in reasons
        ]

    def _some(self, reason: str) -> str:
        more = self.counts[reason] - len(self._shown[reason])
        return ", ".join(self._shown[reason]) + (f" and {more} more" if more else "")


class Current:
    """Tells the masks that are of what the data are now from stale ones, which it counts.

    Of a mask that somebody else put into the folder nothing is known: it is taken as it is.

    Args:
        run: opened to read.
        tags: whether other tags make a mask stale, where its run looked at tags.
    """

    def __init__(self, run: Run, *, tags: bool = True) -> None:
        settings = run.settings
        predicted = settings.get("stage") == "predict"
        self.run = run
        self._known = run.inputs()
        self._uses_tags = tags and (not predicted or bool(settings.get("use_tags")))
        self._needs_tags = tags and not predicted
        self._earlier = _earlier_of(run)
        self.stale = Named()

    def why_none(self, sample: Sample) -> str | None:
        """Why the sample has no mask of what it is now: "absent", or a key of ``STALE``. None: it has one."""
        try:
            if self.run.mask_path(sample.id).stat().st_size == 0:  # what a power cut left is no mask
                return "absent"
        except OSError:
            return "absent"
        reason = self._reason(sample)
        if reason is not None:
            self.stale.add(reason, sample.id)
        return reason

    def note(self) -> str | None:
        """What a user should know of the stale masks, or None where there are none."""
        if not self.stale.counts:
            return None
        return (
            f"left out, since their masks in {self.run.path} are of what was there before: "
            f"{'; '.join(self.stale.lines())}. {AGAIN}"
        )

    def _reason(self, sample: Sample) -> str | None:
        if self._needs_tags and sample.tags is None:
            return "untagged"
        known = self._known.find(sample.id)
        if known is None:
            return None
        if self._uses_tags and not known.has_tags(sample.tags):
            return "tags"
        try:
            if known.image_now(sample.image) is None:
                return "picture"
            if self._earlier is not None:
                found = str(self.run.noted.get("prior_found", "maps"))
                if not known.earlier_now(earlier_file(self._earlier, sample.id, found))[0]:
                    return "earlier"
        except OSError:
            return None  # a file that cannot be looked at now is no reason to lose its mask
        return None


def earlier_file(earlier: Run, id: str, found: str) -> Path:
    """What an earlier run found of an image and a later one starts from; found: "maps" or "masks"."""
    return earlier.scores_path(id) if found == "maps" else earlier.mask_path(id)


def _earlier_of(run: Run) -> Run | None:
    """The run that this one started from, if it is still where it was."""
    path = run.noted.get("prior_path")
    if not isinstance(path, str):
        return None
    try:
        return Run.open(path)
    except UserError:
        return None
