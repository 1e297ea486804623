"""Masks and score maps against the ground truth: one pass over the run, one ``metrics.json``."""

from __future__ import annotations

import heapq
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tag2mask.classes import color_map
from tag2mask.data.agreement import Agreement
from tag2mask.data.columns import Columns
from tag2mask.data.image import BadImage
from tag2mask.data.png import read_confidence, read_mask
from tag2mask.data.truth import read_truth, reading_notes, values_are_chosen
from tag2mask.data.truth_turn import settle_turn
from tag2mask.ops.masks import class_probabilities, normalise_maps, to_labels, upsample
from tag2mask.ops.metrics import (
    BackgroundSweep,
    boundary_counts,
    boundary_iou,
    confusion_matrix,
    metrics,
)
from tag2mask.run.ahead import ahead
from tag2mask.run.files import write_atomic
from tag2mask.run.folder import Run
from tag2mask.run.progress import progress as show_progress
from tag2mask.stages.confidence import ConfidenceTally
from tag2mask.stages.evaluation import ClassRow, Curve, Evaluation, ImageScore
from tag2mask.types import IGNORE, Background, ClassSet, Constant, Dataset, MaskRule, Own, Power, Scores, UserError

POWERS = (0.25, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
CONSTANTS = tuple(round(0.05 * step, 2) for step in range(1, 20))
KEPT_WORST = 200
KEPT_BEST = 12
MOST_WRONG = 100
"""So many images of another size are enough to stop."""


def evaluate(
    run: Run | Path | str,
    data: Dataset,
    *,
    thresholds: bool = True,
    boundary: bool = True,
    confidence: bool = False,
    check_truth: bool = True,
    progress: bool = True,
) -> Evaluation:
    """Score a run's masks, and its score maps for every background rule, against ``data``'s ground truth.

    Writes ``metrics.json`` into the run folder.

    Args:
        run: the run, or its folder.
        data: the images' ground truth; samples without any are counted and left out.
        thresholds: also sweep powers and constants over the stored maps, before and after refinement.
        boundary: also compute boundary IoU.
        confidence: also count pixels by confidence, and score those that mu would keep (``stages.confidence``).
        check_truth: refuse truth that does not fit the tags (``data.agreement``); else that is a note. Truth whose
            values were chosen (``read_dataset(truth_values=...)``) is never refused for that.
        progress: show it on stderr.

    Raises:
        UserError: no ground truth or none but ignored pixels, no mask, other classes than the run's, masks of another
            size, truth that numbers the classes otherwise, or a damaged run.yaml.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    check_classes(run, data)
    thresholds = thresholds and bool(run.settings.get("keep_scores", True))
    data, notes = settle_truth(run, data)
    tally = _Tally(data, boundary, rule_of(run) if thresholds else None, check_truth)
    tally.notes += notes
    tally.sure = ConfidenceTally(len(data.classes)) if confidence else None
    source = _Source(
        str(run.path),
        run.mask_path,
        lambda id: _stored(run, id) if thresholds else None,
        progress,
        run.confidence_path if confidence else None,
    )
    told = run.settings.get("supervision")
    result = replace(_score(data, source, tally), supervision=told, use_tags=bool(run.settings.get("use_tags")))
    text = json.dumps(result.as_dict(), indent=2, allow_nan=False)
    write_atomic(run.path / "metrics.json", text.encode())
    return result


def settle_truth(run: Run, data: Dataset) -> tuple[Dataset, list[str]]:
    """The data with its truth upright also where a mask's size does not tell, and what a user should know of that.

    Raises:
        UserError: nothing tells (``data.truth_turn.settle_turn``).
    """
    return _settled(data, run.mask_path)


def _settled(data: Dataset, mask_path: Callable[[str], Path]) -> tuple[Dataset, list[str]]:
    if not isinstance(data, Columns):
        return data, []

    def mask(id: str) -> NDArray[np.uint8] | None:
        try:
            return read_mask(mask_path(id))
        except BadImage:
            return None

    settled = settle_turn(data, mask)
    return replace(data, truth_turn=settled.turn), list(settled.notes)


def evaluate_folder(
    masks: Path | str, data: Dataset, *, boundary: bool = True, check_truth: bool = True, progress: bool = True
) -> Evaluation:
    """Score a plain folder of PNG masks (``<id>.png``); writes nothing. Arguments as in ``evaluate``.

    Raises:
        UserError: as ``evaluate``.
    """
    folder = Path(masks)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder that holds the masks, <image id>.png each")
    source = _Source(str(folder), lambda id: folder / f"{id}.png", lambda id: None, progress)
    data, notes = _settled(data, source.mask_path)
    tally = _Tally(data, boundary, None, check_truth)
    tally.notes += notes
    return _score(data, source, tally)


def check_classes(run: Run, data: Dataset) -> None:
    """Mask values mean nothing across class sets.

    Raises:
        UserError: the run has other classes than ``data``, or a damaged run.yaml.
    """
    names = stored_classes(run).names
    if names != data.classes.names:
        raise UserError(
            f"{run.path} holds masks of {len(names)} classes ({', '.join(names[:4])}, …), but the data has "
            f"{len(data.classes)} ({', '.join(data.classes.names[:4])}, …). "
            "Masks of other classes cannot be compared: give --classes as in the run, or make masks of the truth's "
            "classes, and evaluate those"
        )


def stored_classes(run: Run) -> ClassSet:
    """The classes that run.yaml holds, with their colours.

    Raises:
        UserError: run.yaml is damaged.
    """
    try:
        stored = run.settings["classes"]
        names = tuple(str(name) for name in stored["names"])
        colours = stored.get("palette") or color_map(len(names))
        palette = tuple((int(red), int(green), int(blue)) for red, green, blue in colours)
        if not names or len(palette) < len(names) or not all(0 <= c <= 255 for colour in palette for c in colour):
            raise ValueError(f"{len(names)} names and {len(palette)} colours of 0..255")
        return ClassSet(str(stored.get("id", "")), names, palette)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(run, "classes", error) from error


def is_predicted(run: Run) -> bool:
    """Whether a network made the masks, and not a method from tags."""
    return run.settings.get("stage") == "predict"


def rule_of(run: Run) -> MaskRule:
    """The mask rule that run.yaml holds.

    Raises:
        UserError: run.yaml is damaged.
    """
    try:
        stored = dict(run.settings["mask_rule"])
        background = stored.pop("background")
        rule: Background = Own()
        if background != "own":
            power = "power" in background
            rule = Power(float(background["power"])) if power else Constant(float(background["constant"]))
        return MaskRule(background=rule, **stored)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(run, "mask_rule", error) from error


def _damaged(run: Run, setting: str, error: Exception) -> UserError:
    return UserError(
        f"{run.path / 'run.yaml'} is damaged: settings.{setting} is not as label wrote it "
        f"({type(error).__name__}: {error}); bring the file back, or label again into another folder"
    )


@dataclass(frozen=True)
class _Source:
    """Where masks and, if any, score maps come from."""

    name: str
    mask_path: Callable[[str], Path]
    scores: Callable[[str], Scores | None]
    progress: bool
    confidence_path: Callable[[str], Path] | None = None


@dataclass
class _Tally:
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

    def __post_init__(self) -> None:
        self.agreement = Agreement(self.data.classes)
        classes = len(self.data.classes)
        self.confusion = torch.zeros(classes, classes + 1, dtype=torch.int64)
        self.boundaries = torch.zeros(3, classes, dtype=torch.int64)
        self.per_class_images = torch.zeros(classes, dtype=torch.int64)

    def add(self, id: str, truth: Tensor, mask: Tensor, scores: Scores | None) -> None:
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
            for source, maps in (("maps", scores.maps), ("initial", scores.initial)):
                if maps is not None:
                    sweep = self.sweeps.setdefault(source, _Sweep(self.rule, classes, source))
                    sweep.add(truth, maps, scores)

    def result(self) -> Evaluation:
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
            # where only some images have maps, those may have no scored pixel
            curves=tuple(curve for curve in curves if not math.isnan(curve.at_used)),
            worst=tuple(ImageScore(id, -miou, fg) for miou, id, fg in sorted(self.worst, reverse=True)),
            best=tuple(ImageScore(id, miou, fg) for miou, id, fg in sorted(self.best, reverse=True)),
            confidence=None if self.sure is None else self.sure.table(),
            truth_notes=self._truth_notes(),
        )

    def _truth_notes(self) -> tuple[str, ...]:
        found = self.agreement.finding()
        read = reading_notes(self.read_by, self.turned)
        return (*self.notes, *read, *([] if found is None else [str(found)]))

    def refuse_other_numbers(self) -> None:
        """Raises UserError where the truth numbers the classes otherwise than the run."""
        found = self.agreement.finding()
        if found is None or not found.refuse:
            return
        if found.outside or (self.check_truth and not values_are_chosen(self.data)):
            raise UserError(f"nothing is scored: {found}")


class _Sweep:
    """All background rules over one kind of maps; the method's own background is one more confusion matrix."""

    def __init__(self, rule: MaskRule, classes: int, source: str) -> None:
        self.rule, self.source, self.images = rule, source, 0
        rules: list[Power | Constant] = [*map(Power, POWERS), *map(Constant, CONSTANTS)]
        if not isinstance(rule.background, Own) and rule.background not in rules:
            rules.append(rule.background)
        self.sweep = BackgroundSweep(rules, classes)
        self.own = torch.zeros(classes, classes + 1, dtype=torch.int64)

    def add(self, truth: Tensor, maps: Tensor, scores: Scores) -> None:
        self.images += 1
        if not len(scores.tags):  # nothing but background, whatever the rule
            self.sweep.update(truth, maps.new_zeros(0, *truth.shape), scores.tags)
            self.own += confusion_matrix(truth, torch.zeros_like(truth), len(self.own))
            return
        full = normalise_maps(upsample(maps, scores.size, scores.frame), self.rule.normalise)  # (K, H, W)
        self.sweep.update(truth, full, scores.tags)
        if isinstance(self.rule.background, Own):
            whole = Scores(scores.tags, maps, scores.size, scores.background, scores.frame)
            labels = to_labels(class_probabilities(whole, self.rule), scores.tags)
            self.own += confusion_matrix(truth, labels, len(self.own))

    def curve(self) -> Curve:
        found = zip(self.sweep.rules, self.sweep.confusion(), strict=True)
        points: list[tuple[Background, float]] = [(rule, metrics(counts).miou) for rule, counts in found]
        if isinstance(self.rule.background, Own):
            points.append((self.rule.background, metrics(self.own).miou))
        return Curve(self.source, self.images, tuple(points), self.rule.background)


class _Loaded(NamedTuple):
    """One image with truth and mask."""

    id: str
    tags: tuple[int, ...] | None
    truth: Tensor
    mask: Tensor
    maps: Scores | None
    confidence: NDArray[np.float32] | None
    by: str
    turned: bool


def _score(data: Dataset, source: _Source, tally: _Tally) -> Evaluation:
    """Pass over ``data`` once: read in one thread, count in this one."""
    wrong: list[str] = []
    for id, tags, truth, mask, maps, confidence, by, turned in ahead(_load(data, source, tally)):
        sizes = {"mask": mask.shape} if maps is None else {"mask": mask.shape, "scores": maps.size}
        odd = [f"{what} {_size(shape)}" for what, shape in sizes.items() if tuple(shape) != tuple(truth.shape)]
        if odd:
            wrong.append(f"{id}: {', '.join(odd)}, ground truth {_size(truth.shape)}")
            if len(wrong) == MOST_WRONG:
                break
            continue
        tally.turned += turned
        tally.read_by.update([by] if by else [])
        if not tally.agreement.add(id, truth.numpy(), tags):
            continue
        try:
            tally.add(id, truth, mask, maps)
            if tally.sure is not None and confidence is not None:
                tally.sure.add(truth, mask, confidence)
        except ValueError as error:
            raise UserError(f"{id}: {error}; are mask, ground truth and class set of the same data?") from error
    if wrong:
        more = " or more" if len(wrong) == MOST_WRONG else ""
        raise UserError(
            f"sizes differ (width x height) for {len(wrong)}{more} images, so these cannot be compared: "
            f"{'; '.join(wrong[:5])}. Are {source.name} and the ground truth of the same images? Scale these true "
            "masks to their images (nearest neighbour), or take them away: images without truth are counted, not "
            "scored"
        )
    tally.refuse_other_numbers()
    if not tally.images:
        if tally.missing_count:
            raise UserError(
                f"{source.name} has no mask for any of the {tally.missing_count} images with ground truth "
                f"(first: {tally.missing[0]}); label them first, or give the folder that holds <image id>.png"
            )
        raise UserError(
            f"{data.root} has no ground truth for any of its {len(data)} images, so nothing can be scored; "
            f"a report without scores is still possible: tag2mask report"
        )
    if not tally.confusion.any():
        raise UserError(
            f"no pixel of the ground truth is scored: all {tally.images} true masks of {data.root} hold nothing "
            f"but {IGNORE}, which is left out; are these the masks with the classes?"
        )
    return tally.result()


def _load(data: Dataset, source: _Source, tally: _Tally) -> Iterator[_Loaded]:
    for sample in show_progress(data, "evaluate", enabled=source.progress):
        if sample.truth is None:
            tally.without_truth += 1
            continue
        path = source.mask_path(sample.id)
        if not path.exists():
            tally.missing_count += 1
            if len(tally.missing) < 10:
                tally.missing.append(sample.id)
            continue
        try:
            mask, true = torch.from_numpy(read_mask(path)), read_truth(sample)
            sure = None if source.confidence_path is None else read_confidence(source.confidence_path(sample.id))
        except (BadImage, OSError) as error:
            # leaving it out would change the figures in silence
            raise UserError(f"{sample.id} cannot be scored: {error}; mend or remove that file") from error
        truth = torch.from_numpy(true.mask)
        yield _Loaded(
            sample.id, sample.tags, truth, mask, source.scores(sample.id), sure, true.by, true.turned
        )


def _stored(run: Run, id: str) -> Scores | None:
    """The stored maps, or None where the run kept none."""
    return run.scores(id) if run.scores_path(id).exists() else None


def _keep(heap: list[tuple[float, str, bool]], entry: tuple[float, str, bool], most: int) -> None:
    """Keep the ``most`` greatest entries."""
    (heapq.heappush if len(heap) < most else heapq.heappushpop)(heap, entry)


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"
