"""Which masks of a run are of what the data are now: the same pictures, tags, and maps of an earlier run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tag2mask.run.corrected import Counting
from tag2mask.run.folder import Run
from tag2mask.run.inputs import Inputs
from tag2mask.types import Sample, UserError
from tag2mask.words import many

__all__ = ["STALE", "Comparison", "Current", "Named", "earlier_file"]

STALE = {
    "picture": "whose picture was replaced",
    "tags": "whose tags changed",
    "untagged": "without tags now",
    "earlier": "whose maps or masks in the earlier run changed",
    "unknown": "without a manifest entry on what the mask was made of",
}
"""Why a mask is not of what the data are now, as it follows "3 images"."""

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
            f"{many(self.counts[reason], 'image')} {words} ({self._some(reason)})"
            for reason, words in STALE.items()
            if self.counts[reason] and reason in reasons
        ]

    def _some(self, reason: str) -> str:
        more = self.counts[reason] - len(self._shown[reason])
        return ", ".join(self._shown[reason]) + (f" and {more} more" if more else "")


class Comparison:
    """Compares what masks of a run were made of with what samples are now.

    Args:
        run: its manifest says what they were made of.
        earlier: the run that it starts from, if it does and is at hand.
        found: what it takes from there, "maps" or "masks".
        tags: whether the masks depend on tags.
        untagged: whether images without tags get a mask, too.
    """

    def __init__(self, run: Run, earlier: Run | None, found: str | None, *, tags: bool, untagged: bool) -> None:
        self._known = run.inputs()
        self._earlier, self._found, self._tags, self._untagged = earlier, found, tags, untagged

    def look(self, sample: Sample) -> tuple[str | None, Inputs | None]:
        """Why the sample's mask is stale, a key of ``STALE``, or None; and new stamps of the same content, if any."""
        if sample.tags is None and not self._untagged:
            return "untagged", None
        known = self._known.find(sample.id)
        if known is None:
            return "unknown", None
        tags = sample.tags if self._tags else None
        if not known.has_tags(tags):
            return "tags", None
        try:
            image, (same, earlier) = known.image_now(sample.image), known.earlier_now(self.earlier_file(sample.id))
        except OSError:
            return None, None  # a file that cannot be looked at now is no reason to lose its mask
        if image is None:
            return "picture", None
        if self._earlier is not None and not same:
            return "earlier", None
        if (image, earlier) == known.inputs_of:
            return None, None
        return None, Inputs(image, tags, earlier)

    def earlier_file(self, id: str) -> Path | None:
        """What the earlier run found of an image, if there is such a run."""
        if self._earlier is None or self._found is None:
            return None
        return earlier_file(self._earlier, id, self._found)


class Current:
    """Tells the masks that are of what the data are now from stale ones, for those who read a run.

    Of a mask that somebody else put into the folder nothing is known: it is taken as it is. So are those of a refined
    run whose earlier run is no longer where it was, as far as that run goes. Of a run with the masks that count
    (``run.corrected.counting``), a corrected mask is of what the data are now as long as the picture is the same.
    """

    def __init__(self, run: Run) -> None:
        predicted = run.settings.get("stage") == "predict"
        uses_tags = not predicted or bool(run.settings.get("use_tags"))
        found = str(run.noted.get("prior_found") or "maps")
        self.run, self.stale = run, Named()
        self._compare = Comparison(run, _earlier_of(run), found, tags=uses_tags, untagged=predicted)

    def why_none(self, sample: Sample) -> str | None:
        """Why the sample has no mask of what it is now: "absent", or a key of ``STALE`` (counted). None: it has."""
        by_hand = isinstance(self.run, Counting) and self.run.corrected.path(sample.id) is not None
        try:
            # what a power cut left is no mask; of a corrected one whoever reads it says that it is damaged
            if self.run.mask_path(sample.id).stat().st_size == 0 and not by_hand:
                return "absent"
        except OSError:
            return "absent"
        if isinstance(self.run, Counting) and by_hand:
            reason = None if self.run.corrected.shows(sample) else "picture"  # a person drew it, whatever the tags
        else:
            reason, _ = self._compare.look(sample)
        if reason == "unknown":
            return None
        if reason is not None:
            self.stale.add(reason, sample.id)
        return reason

    def note(self) -> str | None:
        """What a user should know of the stale masks, and do; None where there are none."""
        if not self.stale.counts:
            return None
        left_out = f"left out, since their masks in {self.run.path} are of older pictures, tags or maps: "
        parts = [left_out + "; ".join(self.stale.lines())]
        if self.stale.counts.total() > self.stale.counts["untagged"]:
            parts.append("Give the command that made the run again: it makes these masks again, and no others")
        if self.stale.counts["untagged"]:
            parts.append("Of images without tags it makes none: tag them, or remove their masks by --removed drop")
        return ". ".join(parts)


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
