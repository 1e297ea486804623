"""What a comparison of runs found, as values, as JSON and as text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tag2mask.stages.evaluation import Evaluation, percent, without_nan
from tag2mask.words import listing


@dataclass(frozen=True)
class Compared:
    """One run, on the images that all runs have a mask of.

    path: its folder, as it was given. evaluation: as of a single run, of these images alone, without curves.
    supervision, use_tags: as ``Evaluation`` has them. lacks: of how many images it has no mask though another run
    has one, ``lacking`` names the first. stale: which masks are of older pictures, a line each.
    """

    path: str
    evaluation: Evaluation
    supervision: str | None
    use_tags: bool
    lacks: int
    lacking: tuple[str, ...]
    stale: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """Two runs, by their places, against each other; fractions, over all pixels, also where the truth is 255.

    equal: the share of pixels with the same value (255 too). second_by_first: mIoU of the second run's masks with the
    first's as the truth, first_by_second the other way round; they differ where a class or 255 is in one run alone.
    """

    first: int
    second: int
    equal: float
    second_by_first: float
    first_by_second: float


@dataclass(frozen=True)
class SideBySide:
    """What ``compare`` found. images: how many were compared, the same of every run."""

    images: int
    runs: tuple[Compared, ...]
    pairs: tuple[Pair, ...]

    @property
    def names(self) -> list[str]:
        """Of the runs: the folders' names, or their paths where two are called the same."""
        names = [Path(run.path).resolve().name for run in self.runs]
        return names if len(set(names)) == len(names) else [run.path for run in self.runs]

    @property
    def has_boundary(self) -> bool:
        """Whether boundary IoU was computed."""
        return any(run.evaluation.boundary == run.evaluation.boundary for run in self.runs)

    @property
    def has_undecided(self) -> bool:
        """Whether a mask holds 255."""
        return any(run.evaluation.metrics.ignored > 0 for run in self.runs)

    def text(self) -> str:
        """The figures as plain tables, in per cent."""
        names = self.names
        lines = [*self._table(names), "", *self._classes(names), "", *self._agreement(names)]
        return "\n".join([*lines, *(f"{name}: {note}" for name, note in self.notes(names))])

    def notes(self, names: list[str]) -> list[tuple[str, str]]:
        """(run, what one should know of it)."""
        found = []
        for name, run in zip(names, self.runs, strict=True):
            if run.lacks:
                more = listing([*run.lacking, *[""] * (run.lacks - len(run.lacking))])
                found.append((name, f"lacks a mask of {run.lacks} images that another run has, not compared: {more}"))
            if run.use_tags:
                found.append((name, "the network was given these images' tags, so this is no test of it"))
            found += [(name, line) for line in (*run.stale, *(f"truth: {n}" for n in run.evaluation.truth_notes))]
        return found

    def _table(self, names: list[str]) -> list[str]:
        width = max(map(len, ["run", *names]))
        heads = ["mIoU", *(["boundary"] if self.has_boundary else []), "accuracy"]
        heads += ["undecided", "mIoU of the rest"] if self.has_undecided else []
        lines = [f"{'run':{width}}" + "".join(f"  {head:>8}" for head in heads) + self._supervision(None)]
        for name, run in zip(names, self.runs, strict=True):
            found = run.evaluation
            cells = [found.miou, *([found.boundary] if self.has_boundary else []), found.metrics.pixel_accuracy]
            cells += [found.metrics.ignored, found.metrics.miou_kept] if self.has_undecided else []
            row = "".join(f"  {percent(c):>{max(8, len(h))}}" for c, h in zip(cells, heads, strict=True))
            lines.append(f"{name:{width}}{row}{self._supervision(run)}")
        return [*lines, f"in %, on {self.images} images, the same for all"]

    def _supervision(self, run: Compared | None) -> str:
        if not any(each.supervision for each in self.runs):
            return ""
        return "  supervision" if run is None else f"  {run.supervision or 'not known'}"

    def _classes(self, names: list[str]) -> list[str]:
        rows = [run.evaluation.per_class for run in self.runs]
        width = max(len("IoU of class"), *(len(row.name) for row in rows[0]))
        heads = [f"{name:>7}" for name in names]
        lines = [f"{'IoU of class':{width}}  " + "  ".join(heads)]
        for each in zip(*rows, strict=True):
            cells = (f"{percent(row.iou):>{len(head)}}" for row, head in zip(each, heads, strict=True))
            lines.append(f"{each[0].name:{width}}  " + "  ".join(cells))
        if not self.has_boundary:
            return lines
        lines += ["", f"{'boundary IoU':{width}}  " + "  ".join(heads)]
        for each in zip(*rows, strict=True):
            cells = (f"{percent(row.boundary_iou):>{len(head)}}" for row, head in zip(each, heads, strict=True))
            lines.append(f"{each[0].name:{width}}  " + "  ".join(cells))
        return lines

    def _agreement(self, names: list[str]) -> list[str]:
        return [
            f"{names[pair.first]} and {names[pair.second]}: {percent(pair.equal)} % of the pixels equal; mIoU of "
            f"{names[pair.second]} against {names[pair.first]} {percent(pair.second_by_first)} %, the other way "
            f"round {percent(pair.first_by_second)} %"
            for pair in self.pairs
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers for JSON; NaN becomes None."""
        names = self.names
        runs = []
        for name, run in zip(names, self.runs, strict=True):
            found = run.evaluation.as_dict()
            kept = ("miou", "boundary_iou", "pixel_accuracy", "mean_accuracy", "fw_iou", "ignored", "miou_kept")
            runs.append(
                {
                    "name": name,
                    "path": run.path,
                    "supervision": run.supervision,
                    "use_tags": run.use_tags,
                    **{key: found[key] for key in kept},
                    "per_class": found["per_class"],
                    "lacks": run.lacks,
                    "lacking": list(run.lacking),
                    "stale": list(run.stale),
                    "truth_notes": found["truth_notes"],
                }
            )
        agreement = [
            {
                "first": names[pair.first],
                "second": names[pair.second],
                "equal": pair.equal,
                "miou_of_second_against_first": pair.second_by_first,
                "miou_of_first_against_second": pair.first_by_second,
            }
            for pair in self.pairs
        ]
        return without_nan({"images": self.images, "runs": runs, "agreement": agreement})
