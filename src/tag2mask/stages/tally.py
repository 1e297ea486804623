"""Everything that an evaluation counts while images pass."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tag2mask.data.agreement import Agreement
from tag2mask.data.truth import reading_notes, refuses
from tag2mask.ops.masks import class_probabilities, full_maps, mask_of, other_values
from tag2mask.ops.metrics import BackgroundSweep, boundary_counts, boundary_iou, confusion_matrix, metrics
from tag2mask.stages.confidence import ConfidenceTally
from tag2mask.stages.evaluation import ClassRow, Curve, Evaluation, ImageScore
from tag2mask.types import Background, Constant, Dataset, MaskRule, Own, Power, Scores, UserError
from tag2mask.words import many

POWERS = (0.25, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
CONSTANTS = tuple(round(0.05 * step, 2) for step in range(1, 20))
KEPT_WORST = 200
KEPT_BEST = 12


@dataclass
class Tally:
    """Everything that is counted while images pass; its size does not depend on their number."""

    data: Dataset
    boundary: bool
    rule: MaskRule | None
    check_truth: bool = True
    confusion: Tensor = field(init=False)
    boundaries: Tensor = field(init=False)
    images: int = 0
    per_class_images: Tensor = field(init=False)
    missing: list[str] = field(default_factory=list)
    missing_count: int = 0
    without_truth: int = 0
    sweeps: dict[str, _Sweep] = field(default_factory=dict)
    worst: list[tuple[float, str, bool]] = field(default_factory=list)
    best: list[tuple[float, str, bool]] = field(default_factory=list)
    sure: ConfidenceTally | None = None
    agreement: Agreement = field(init=False)
    read_by: Counter[str] = field(default_factory=Counter)
    turned: int = 0
    notes: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    without_maps: int = 0

    def __post_init__(self) -> None:
        self.agreement = Agreement(self.data.classes)
        classes = len(self.data.classes)
        self.confusion = torch.zeros(classes, classes + 1, dtype=torch.int64)
        self.boundaries = torch.zeros(3, classes, dtype=torch.int64)
        self.per_class_images = torch.zeros(classes, dtype=torch.int64)

    def add(self, id: str, truth: Tensor, mask: Tensor, scores: Scores | None) -> None:
        """Count one image: truth and mask (H, W) uint8. Raises ValueError where they do not fit."""
        classes = len(self.data.classes)
        counts = confusion_matrix(truth, mask, classes)
        self.confusion += counts
        self.per_class_images += counts.sum(1) > 0
        if self.boundary:
            self.boundaries += boundary_counts(truth, mask, classes)
        self.images += 1
        foreground = bool(counts[1:].sum())
        if counts.sum() > 0:
            miou = metrics(counts).miou
            _keep(self.worst, (-miou, id, foreground), KEPT_WORST)
            if foreground:
                _keep(self.best, (miou, id, foreground), KEPT_BEST)
        if scores is not None and self.rule is not None:
            swept = {"maps": (self.rule, scores)}
            if scores.initial is not None:  # what untagged classes score is of the other maps
                before = replace(scores, maps=scores.initial, others=None)
                swept["initial"] = (replace(self.rule, others="never"), before)
            for source, (rule, each) in swept.items():
                self.sweeps.setdefault(source, _Sweep(rule, classes, source)).add(truth, each)

    def result(self) -> Evaluation:
        """All figures."""
        found = metrics(self.confusion)
        curves = [sweep.curve() for sweep in self.sweeps.values()]
        edge, mean_edge = boundary_iou(self.boundaries)
        columns = zip(found.iou, found.precision, found.recall, edge, self.per_class_images, strict=True)
        rows = []
        for value, (name, column) in enumerate(zip(self.data.classes.names, columns, strict=True)):
            iou, precision, recall, edge_iou, images = (number.item() for number in column)
            rows.append(ClassRow(value, name, iou, precision, recall, edge_iou, int(images)))
        return Evaluation(
            metrics=found,
            boundary=mean_edge if self.boundary else float("nan"),
            per_class=tuple(rows),
            images=self.images,
            missing=self.missing_count,
            missing_ids=tuple(self.missing),
            without_truth=self.without_truth,
            stale=(*self.stale, *self._without_maps()),
            # where only some images have maps, those may have no scored pixel
            curves=tuple(curve for curve in curves if not math.isnan(curve.at_used)),
            worst=tuple(ImageScore(id, -miou, fg) for miou, id, fg in sorted(self.worst, reverse=True)),
            best=tuple(ImageScore(id, miou, fg) for miou, id, fg in sorted(self.best, reverse=True)),
            confidence=None if self.sure is None else self.sure.table(),
            truth_notes=self._truth_notes(),
        )

    def _without_maps(self) -> list[str]:
        if not self.without_maps:
            return []
        return [f"{many(self.without_maps, 'corrected mask')} without score maps: not in the figures of the maps"]

    def _truth_notes(self) -> tuple[str, ...]:
        found = self.agreement.finding()
        read = reading_notes(self.read_by, self.turned)
        return (*self.notes, *read, *([] if found is None else [str(found)]))

    def refuse_other_numbers(self) -> None:
        """Raises UserError where the truth numbers the classes otherwise than the run."""
        found = self.agreement.finding()
        if found is not None and refuses(found, self.data) and (found.outside or self.check_truth):
            raise UserError(f"nothing is scored: {found}")


class _Sweep:
    """All background rules over one kind of maps; the method's own background is one more confusion matrix."""

    def __init__(self, rule: MaskRule, classes: int, source: str) -> None:
        self.rule, self.source, self.images = rule, source, 0
        rules: list[Power | Constant] = [*map(Power, POWERS), *map(Constant, CONSTANTS)]
        if isinstance(rule.background, Power | Constant) and rule.background not in rules:
            rules.append(rule.background)
        self.sweep = BackgroundSweep(rules, classes)
        self.own = torch.zeros(classes, classes + 1, dtype=torch.int64)

    def add(self, truth: Tensor, scores: Scores) -> None:
        self.images += 1
        if not len(scores.tags):  # nothing but background, whatever the rule
            self.sweep.update(truth, scores.maps.new_zeros(0, *truth.shape), scores.tags)
            self.own += confusion_matrix(truth, torch.zeros_like(truth), len(self.own))
            return
        others = None if self.rule.others == "never" else other_values(scores, self.rule)  # (H, W)
        self.sweep.update(truth, full_maps(scores, self.rule), scores.tags, others)
        if isinstance(self.rule.background, Own):
            labels = mask_of(class_probabilities(scores, self.rule), scores, self.rule)
            self.own += confusion_matrix(truth, labels, len(self.own))

    def curve(self) -> Curve:
        found = zip(self.sweep.rules, self.sweep.confusion(), strict=True)
        points: list[tuple[Background, float]] = [(rule, metrics(counts).miou) for rule, counts in found]
        if isinstance(self.rule.background, Own):
            points.append((self.rule.background, metrics(self.own).miou))
        return Curve(self.source, self.images, tuple(points), self.rule.background, self.rule.others)


def _keep(heap: list[tuple[float, str, bool]], entry: tuple[float, str, bool], most: int) -> None:
    """Keep the ``most`` greatest entries."""
    (heapq.heappush if len(heap) < most else heapq.heappushpop)(heap, entry)
