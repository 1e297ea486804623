"""What an evaluation found, as values, as JSON and as text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tag2mask.ops.metrics import Metrics
from tag2mask.stages.confidence import ConfidenceTable
from tag2mask.types import Background

CHOSEN_WITH_TRUTH = (
    "The best setting of a curve was chosen with the ground truth of these very images; "
    "a run without pixel labels could not have chosen it."
)


MAP_NAMES = {"maps": "refined maps", "initial": "initial CAM"}
"""What people call a curve's source."""

OTHERS = {"never": "", "ignore": ", untagged classes ignored", "keep": ", untagged classes kept"}
"""What a curve's line says of pixels where an untagged class wins."""


@dataclass(frozen=True)
class ClassRow:
    """One line of the table; fractions, NaN where nothing was there to be counted.

    value: the mask value. images: how many ground-truth masks hold the class.
    """

    value: int
    name: str
    iou: float
    precision: float
    recall: float
    boundary_iou: float
    images: int


@dataclass(frozen=True)
class ImageScore:
    """miou: mean IoU over the classes in this image's ground truth. foreground: whether it holds any."""

    id: str
    miou: float
    foreground: bool


@dataclass(frozen=True)
class Curve:
    """mIoU of score maps for every background rule, without refiner.

    source: "maps" for the maps that the masks are made of, "initial" for those before refinement.
    used: the run's own rule. others: what became of untagged classes that win ("never": they could not), which of the
    initial maps is not known.
    """

    source: str
    images: int
    points: tuple[tuple[Background, float], ...]
    used: Background
    others: str = "never"

    @property
    def best(self) -> tuple[Background, float]:
        """The rule of the greatest mIoU: chosen with ground truth."""
        return max(self.points, key=lambda point: point[1])

    @property
    def at_used(self) -> float:
        """mIoU with the run's own rule."""
        return dict(self.points)[self.used]


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found. Fractions, not per cent.

    images: how many were scored. missing: how many with ground truth have no mask (``missing_ids`` names the
    first). without_truth: how many could not be scored. worst, best: by the mIoU of the single image. confidence:
    pixels by how sure they are, where asked for. supervision: what people gave to the masks ("tags+pixels(100)"),
    where that is known. truth_notes: how the truth was read, and how it fits the tags, where there is something to
    say. use_tags: a network was given the tags of these images, too. stale: which masks are of what was there
    before, and what became of them, a line each.
    """

    metrics: Metrics
    boundary: float
    per_class: tuple[ClassRow, ...]
    images: int
    missing: int
    missing_ids: tuple[str, ...]
    without_truth: int
    curves: tuple[Curve, ...] = ()
    worst: tuple[ImageScore, ...] = ()
    best: tuple[ImageScore, ...] = ()
    confidence: ConfidenceTable | None = None
    supervision: str | None = None
    use_tags: bool = False
    truth_notes: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()

    @property
    def miou(self) -> float:
        """Mean IoU of the masks over the classes in the ground truth, pixels pooled over the data set."""
        return self.metrics.miou

    def text(self) -> str:
        """The figures as a plain table, in per cent."""
        width = max(len(row.name) for row in self.per_class)
        lines = [f"{'class':{width}}    IoU  precision  recall  boundary  images"]
        for row in self.per_class:
            cells = (percent(row.iou), percent(row.precision), percent(row.recall), percent(row.boundary_iou))
            lines.append("{:{}} {:>6} {:>10} {:>7} {:>9} {:>7}".format(row.name, width, *cells, row.images))
        m = self.metrics
        lines += [
            "",
            f"mIoU {percent(self.miou)} %, boundary IoU {percent(self.boundary)}, pixel accuracy "
            f"{percent(m.pixel_accuracy)}, mean accuracy {percent(m.mean_accuracy)}, "
            f"frequency-weighted IoU {percent(m.fw_iou)}, on {self.images} images",
        ]
        if self.supervision is not None:
            given = "; the network was given these images' tags, so this is no test of it" if self.use_tags else ""
            lines.append(f"supervision: {self.supervision}{given}")
        if m.ignored > 0:
            lines.append(
                f"{percent(m.ignored)} % of the pixels are undecided and count as missed; "
                f"mIoU of the others {percent(m.miou_kept)} %"
            )
        if self.missing:
            first = ", ".join(self.missing_ids[:3])
            more = f" and {self.missing - 3} more" if self.missing > 3 else ""
            lines.append(f"NOT COUNTED: {self.missing} images with ground truth have no mask ({first}{more})")
        lines += self.stale
        if self.without_truth:
            lines.append(f"{self.without_truth} images have no ground truth")
        lines += [f"truth: {note}" for note in self.truth_notes]
        if self.confidence is not None:
            lines.append(self.confidence.text())
        for curve in self.curves:
            rule, miou = curve.best
            lines.append(
                f"{MAP_NAMES[curve.source]}, without refiner{OTHERS[curve.others]}: "
                f"mIoU {percent(curve.at_used)} % with {describe_rule(curve.used)}, "
                f"{percent(miou)} % with {describe_rule(rule)} (best, chosen with ground truth)"
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers for JSON; NaN becomes None."""
        m = self.metrics
        out: dict[str, Any] = {
            "supervision": self.supervision,
            "use_tags": self.use_tags,
            "images": self.images,
            "missing": self.missing,
            "missing_ids": list(self.missing_ids),
            "without_truth": self.without_truth,
            "truth_notes": list(self.truth_notes),
            "stale": list(self.stale),
            "miou": m.miou,
            "boundary_iou": self.boundary,
            "pixel_accuracy": m.pixel_accuracy,
            "mean_accuracy": m.mean_accuracy,
            "fw_iou": m.fw_iou,
            "ignored": m.ignored,
            "miou_kept": m.miou_kept,
            "per_class": [vars(row) for row in self.per_class],
            "worst": [vars(score) for score in self.worst],
            "thresholds": {},
        }
        for curve in self.curves:
            rule, miou = curve.best
            out["thresholds"][curve.source] = {
                "images": curve.images,
                "refiner": None,
                "others": curve.others,
                "used": {**_rule_dict(curve.used), "miou": curve.at_used},
                "best": {**_rule_dict(rule), "miou": miou, "chosen_with_ground_truth": True},
                "points": [{**_rule_dict(rule), "miou": miou} for rule, miou in curve.points],
            }
        if self.confidence is not None:
            out["confidence"] = self.confidence.as_dict()
        if self.curves:
            out["thresholds"]["note"] = CHOSEN_WITH_TRUTH
        return without_nan(out)


def _rule_dict(rule: Background) -> dict[str, Any]:
    return {"background": rule.kind, "value": rule.number}  # not a number: see without_nan


def describe_rule(rule: Background) -> str:
    """A background rule in words."""
    return "the method's own background" if math.isnan(rule.number) else f"{rule.kind} {rule.number:g}"


def percent(share: float | None) -> str:
    """A fraction as per cent with one digit; a dash where there is none."""
    return "–" if share is None or share != share else f"{100 * share:.1f}"


def without_nan(value: Any) -> Any:
    """The same with None for every NaN, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
