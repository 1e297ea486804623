"""One self-contained HTML page about a run: what was done, how good it is, where it fails, what it cost."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np
import torch
import yaml

from tag2mask.data.image import BadImage, read_image
from tag2mask.data.png import read_confidence, read_mask
from tag2mask.ops.crf import PRESETS
from tag2mask.run.about import check_classes, is_predicted, stored_classes
from tag2mask.run.current import Current
from tag2mask.run.files import write_atomic
from tag2mask.run.folder import Run
from tag2mask.run.progress import progress as show_progress
from tag2mask.stages import report_parts as parts
from tag2mask.stages.confidence import span
from tag2mask.stages.evaluate import evaluate, settle_truth
from tag2mask.stages.evaluation import CHOSEN_WITH_TRUTH, Evaluation, percent
from tag2mask.stages.export import refuse_foreign_file
from tag2mask.stages.report_weights import weights_of
from tag2mask.types import BACKGROUND, IGNORE, ClassSet, Dataset, Sample, Scores, UserError

STRIP = 6
SHOWN_FAILURES = 50
GENERATOR = '<meta name="generator" content="tag2mask">'
"""By this a page is known as one of ours, which may be replaced."""


@dataclass(frozen=True)
class Picture:
    """One thumbnail with its name."""

    name: str
    uri: str


@dataclass(frozen=True)
class Card:
    """One image of the report. legend: (class name, CSS colour). score: mIoU or mean confidence."""

    id: str
    score: float
    legend: tuple[tuple[str, str], ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Tile:
    """A big number of the first screen."""

    value: str
    name: str
    note: str = ""


def report(
    run: Run | Path | str,
    data: Dataset | None = None,
    out: Path | str | None = None,
    worst: int = 24,
    *,
    evaluation: Evaluation | None = None,
    floors: Mapping[str, float] | None = None,
    title: str | None = None,
    progress: bool = True,
) -> Path:
    """Write the report of a run and return its path.

    The page opens without a network: pictures, styles and the few lines of script are inside, and its policy
    forbids the browser to load anything else.

    Args:
        run: the run, or its folder.
        data: the images and, where there is any, the ground truth; without it, no photographs are shown.
        out: the HTML file; default ``report.html`` in the run folder.
        worst: how many images are shown at full length; the page grows by about 80 kB each.
        evaluation: what ``evaluate`` found for this run; by default it is called where there is truth.
        floors: mIoU (a fraction) of what needs no skill, by name, to be read beside the run's own.
        title: the headline; default: the run folder's name.
        progress: show it on stderr.

    Raises:
        UserError: the run is of other classes than ``data``, has no mask, or a damaged run.yaml; the truth has no
            pixel to score, or numbers the classes otherwise; ``out`` is a file that is no report.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    path = run.path / "report.html" if out is None else Path(out)
    if out is not None:
        refuse_foreign_file(path, GENERATOR, "report of tag2mask", "report.html")
    ids, stale = _current_masks(run, data)
    if data is not None and _has_truth(data):
        if evaluation is None:
            evaluation = evaluate(run, data, confidence=True, progress=progress)
        data, _ = settle_truth(run, data)
    best, listed, confidence = _by_confidence(run, ids, worst, progress)
    if evaluation is not None:
        best, listed = _by_miou(evaluation, worst)
    classes = data.classes if data is not None else stored_classes(run)
    page = _template().render(
        **_about_the_run(run),
        title=title or run.path.resolve().name,
        unfinished=_unfinished(run, data),
        stale=stale,
        classes=classes,
        colours=[parts.css(colour) for colour in classes.palette],
        images=len(ids),
        tiles=_tiles(run, ids, evaluation, confidence, floors or {}),
        strip=_cards(run, best, data, classes, full=False),
        cards=_cards(run, listed, data, classes, full=True),
        evaluation=evaluation,
        panels=parts.panels(evaluation.curves) if evaluation else (),
    )
    # a file name that is no Unicode arrives as lone surrogates
    write_atomic(path, page.encode("utf-8", "replace"))
    return path


def _has_truth(data: Dataset) -> bool:
    # the first samples tell: a data set either has truth or has not
    return any(sample.truth for sample in islice(data, 1000))


def _about_the_run(run: Run) -> dict[str, Any]:
    """What the template shows of a run, whatever its images are."""
    return {
        # a method that was handed over as an object is noted as "module:Class"
        "method": str(run.settings.get("method", "A method")).rpartition(":")[2],
        "settings": run.settings,
        "weights": weights_of(run),
        "predicted": is_predicted(run),
        "stages": _stages(run),
        "peak_memory": _peak_memory(run),
        "failures": _failures(run),
        "yaml": yaml.safe_dump({"settings": run.settings, "noted": run.noted}, sort_keys=False, allow_unicode=True),
    }


def _current_masks(run: Run, data: Dataset | None) -> tuple[list[str], str]:
    """The ids of the masks that the report is of, sorted, and what it says of the others.

    Raises:
        UserError: there is none, or the run is of other classes than the data.
    """
    if data is None:
        ids, stale = run.ids(), ""
    else:
        check_classes(run, data)
        current = Current(run)
        ids = sorted(sample.id for sample in data if current.why_none(sample) is None)
        others = sum(1 for _ in run.mask_ids()) - len(ids) - current.stale.counts.total()
        notes = [f"masks of images that are not in {data.root} ({others:,})"] if others else []
        stale = "; ".join([*notes, *([current.note() or ""] if current.stale.counts else [])])
    if not ids:
        why = f"of these images: {stale}" if stale else "yet; label images first, then make the report"
        raise UserError(f"{run.path} has no mask {why}")
    return ids, stale


def _unfinished(run: Run, data: Dataset | None) -> int:
    """Images that the run has not come to yet."""
    records = run.records()
    if data is None:
        return max(0, (run.images or 0) - len(records))
    return sum(sample.id not in records and not run.mask_path(sample.id).exists() for sample in data)


def _template() -> jinja2.Template:
    text = resources.files(__package__).joinpath("templates/report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = percent
    environment.globals |= {
        "span": span,
        "chosen_with_truth": CHOSEN_WITH_TRUTH,
        "confidence_css": parts.confidence_css(),
        "shown_failures": SHOWN_FAILURES,
        "generator": markupsafe.Markup(GENERATOR),
    }
    return environment.from_string(text)


def _by_confidence(
    run: Run, ids: Sequence[str], worst: int, progress: bool
) -> tuple[list[tuple[str, float]], list[tuple[str, float]], float]:
    """The surest images that hold a class, the least sure of all, and the mean confidence of the run."""

    def means() -> Iterator[tuple[str, float, bool]]:
        for id in show_progress(ids, "report", enabled=progress):
            try:
                confidence = float(read_confidence(run.confidence_path(id)).mean())
                mask = read_mask(run.mask_path(id))
            except BadImage:
                continue
            yield id, confidence, bool(((mask != BACKGROUND) & (mask != IGNORE)).any())

    sure: list[tuple[float, str]] = []
    unsure: list[tuple[float, str]] = []
    total, count = 0.0, 0
    for id, confidence, foreground in means():
        total, count = total + confidence, count + 1
        for heap, key, most in ((sure, confidence, STRIP if foreground else 0), (unsure, -confidence, worst)):
            if most:
                heapq.heappush(heap, (key, id))
            if len(heap) > max(most, 1) and most:
                heapq.heappop(heap)
    return (
        [(id, key) for key, id in sorted(sure, reverse=True)],
        [(id, -key) for key, id in sorted(unsure, reverse=True)],
        total / count if count else float("nan"),
    )


def _by_miou(evaluation: Evaluation, worst: int) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The best images and the worst."""
    best = [(score.id, score.miou) for score in evaluation.best[:STRIP]]
    return best, [(score.id, score.miou) for score in evaluation.worst[:worst]]


def _cards(
    run: Run, chosen: Sequence[tuple[str, float]], data: Dataset | None, classes: ClassSet, full: bool
) -> list[Card]:
    """Those of some images (id, score), in their order."""
    wanted = {id for id, _ in chosen}
    samples = {sample.id: sample for sample in data or () if sample.id in wanted}
    return [_card(run, id, samples.get(id), score, classes, full) for id, score in chosen]


def _card(run: Run, id: str, sample: Sample | None, score: float, classes: ClassSet, full: bool) -> Card:
    """The pictures of one image; what cannot be read is left out."""
    mask = read_mask(run.mask_path(id))
    small = parts.label_thumbnail(mask)
    photo = _photo(sample, small.shape)
    blank = np.full((*small.shape, 3), 110, np.uint8)
    ground = blank if photo is None else photo
    present = {int(value) for value in np.unique(mask)}
    overlay = parts.mask_overlay(ground, small, classes)
    if not full:
        pictures = [("mask", overlay)]
    else:
        pictures = [] if photo is None else [("photograph", photo)]
        scores = _scores(run, id)
        if scores is not None:
            present |= set(scores.tags.tolist())
            for name, maps in (("initial CAM", scores.initial), ("refined map", scores.maps)):
                if maps is not None and (name == "refined map" or scores.initial is not None):
                    name = name if scores.initial is not None else "map"
                    pictures.append((name, _map(ground, maps, scores, classes)))
        pictures.append(("mask", overlay))
        pictures.append(("confidence", parts.confidence_thumbnail(read_confidence(run.confidence_path(id)))))
        if sample is not None and sample.truth is not None:
            truth = sample.truth()
            present |= {int(value) for value in np.unique(truth)}
            pictures.append(("ground truth", parts.mask_overlay(ground, parts.label_thumbnail(truth), classes)))
    legend = tuple(
        (classes.names[value], parts.css(classes.palette[value])) for value in sorted(present - {BACKGROUND, IGNORE})
    )
    return Card(id, score, legend, tuple(Picture(name, parts.data_uri(pixels)) for name, pixels in pictures))


def _photo(sample: Sample | None, shape: tuple[int, ...]) -> parts.Pixels | None:
    """The photograph as a thumbnail, or None if it is gone or no longer the one that was labelled."""
    if sample is None:
        return None
    try:
        photo = parts.photo_thumbnail(read_image(sample.image))
    except BadImage:
        return None
    return photo if photo.shape[:2] == shape else None


def _scores(run: Run, id: str) -> Scores | None:
    try:
        return run.scores(id)
    except UserError:
        return None


def _map(ground: parts.Pixels, maps: torch.Tensor, scores: Scores, classes: ClassSet) -> parts.Pixels:
    if scores.frame is not None and scores.frame != scores.size and len(scores.tags):
        # the grid spans more than the image: cut the rest, to the nearest cell
        rows = round(maps.shape[1] * scores.size[0] / scores.frame[0])
        columns = round(maps.shape[2] * scores.size[1] / scores.frame[1])
        maps = maps[:, : max(1, rows), : max(1, columns)]
    return parts.map_overlay(ground, maps, scores.tags, classes)


# --- figures


def _tiles(
    run: Run,
    ids: Sequence[str],
    evaluation: Evaluation | None,
    confidence: float,
    floors: Mapping[str, float],
) -> list[Tile]:
    failed = len(_failures(run))
    done = "images predicted" if is_predicted(run) else "images labelled"
    tiles = [Tile(f"{len(ids):,}", done, f"{failed} failed" if failed else "none failed")]
    if evaluation is not None:
        note = ", ".join(f"{name} {percent(value)}" for name, value in floors.items())
        left_out = f"on {evaluation.images:,} images" if evaluation.images != len(ids) else "100 is perfect"
        tiles.append(Tile(percent(evaluation.miou), "mIoU", f"floor: {note}" if note else left_out))
        if evaluation.boundary == evaluation.boundary:
            tiles.append(Tile(percent(evaluation.boundary), "boundary IoU", "how well outlines fit"))
        if evaluation.metrics.ignored > 0:
            kept = f"mIoU {percent(evaluation.metrics.miou_kept)} on the rest"
            tiles.append(Tile(percent(evaluation.metrics.ignored) + " %", "left undecided", kept))
        else:
            tiles.append(Tile(percent(evaluation.metrics.pixel_accuracy), "pixel accuracy", "per cent"))
    else:
        predicted = is_predicted(run)
        rule = run.settings if predicted else run.settings.get("mask_rule") or {}
        who = "network" if predicted else "method"
        if rule.get("refiner") is not None:
            who = "CRF" if rule["refiner"] in PRESETS else "refiner"
        tiles.append(Tile(percent(confidence), "mean confidence", f"per cent: how sure the {who} is, not how right"))
    speed = sum(float(each.get("images_per_second") or 0) for each in _summaries(run))
    if speed:
        tiles.append(Tile(f"{speed:.3g}", "images per second", ""))
    return tiles


def _summaries(run: Run) -> list[dict[str, Any]]:
    """What the shards' last calls cost; a call that found everything finished says nothing of it."""
    found = []
    for path in sorted(run.path.glob("summary.*.json")):
        try:
            summary = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue  # half a summary says nothing, and the report is no place to stop for it
        if isinstance(summary, dict) and summary.get("done"):
            found.append(summary)
    return found


def _peak_memory(run: Run) -> float | None:
    """In GB, the greatest of all shards."""
    return max((float(each.get("peak_memory") or 0) for each in _summaries(run)), default=0) / 1e9 or None


def _stages(run: Run) -> list[tuple[str, float, float]]:
    """(stage, seconds in all, ms an image), the longest first."""
    total: dict[str, float] = {}
    count: dict[str, int] = {}
    for record in run.records().values():
        for stage, seconds in record.seconds.items():
            total[stage] = total.get(stage, 0) + seconds
            count[stage] = count.get(stage, 0) + 1
    longest = sorted(total, key=total.__getitem__, reverse=True)
    return [(stage, total[stage], 1000 * total[stage] / count[stage]) for stage in longest]


def _failures(run: Run) -> list[tuple[str, str]]:
    records = sorted(run.records().values(), key=lambda record: record.id)
    return [(record.id, record.error or "") for record in records if record.status == "failed"]
