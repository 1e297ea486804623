"""One self-contained HTML page about a run: what was done, how good it is, where it fails, what it cost."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from tag2mask.ops.crf import PRESETS
from tag2mask.run.about import check_classes, is_predicted, stored_classes
from tag2mask.run.corrected import counting
from tag2mask.run.current import Current
from tag2mask.run.files import write_atomic
from tag2mask.run.folder import Run
from tag2mask.run.manifest import LastWords
from tag2mask.stages import report_parts as parts
from tag2mask.stages.confidence import span
from tag2mask.stages.evaluate import evaluate, settle_truth
from tag2mask.stages.evaluation import CHOSEN_WITH_TRUTH, Evaluation, percent
from tag2mask.stages.export import refuse_foreign_file
from tag2mask.stages.pages import GENERATOR, render
from tag2mask.stages.report_cards import Chosen, cards, room_for_each, strip
from tag2mask.stages.report_gallery import Gallery
from tag2mask.stages.report_manifest import Told
from tag2mask.stages.report_survey import Images, Survey, survey
from tag2mask.stages.report_weights import weights_of
from tag2mask.types import Dataset, UserError

STRIP = 6
SHOWN_FAILURES = 50


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
    gallery: bool = True,
    progress: bool = True,
) -> Path:
    """Write the report of a run and return its path.

    The page opens without a network: pictures, styles and the few lines of script are inside, and its policy
    forbids the browser to load anything else. Beside it, in the folder ``report-images`` (named as the page), stand
    pages with a small picture of every image, which open the photographs and masks where they lie.

    Args:
        run: the run, or its folder.
        data: the images and, where there is any, the ground truth; without it, no photographs are shown.
        out: the HTML file; default ``report.html`` in the run folder.
        worst: how many images are shown large: of the least sure, and with truth as many of the worst. The page stays
            below 3 MB up to 24; each more adds about 110 kB.
        evaluation: what ``evaluate`` found for this run; by default it is called where there is truth.
        floors: mIoU (a fraction) of what needs no skill, by name, to be read beside the run's own.
        title: the headline; default: the run folder's name.
        gallery: write the pages of small pictures.
        progress: show it on stderr.

    Raises:
        UserError: the run is of other classes than ``data``, has no mask, or a damaged run.yaml; the truth has no
            pixel to score, or numbers the classes otherwise; ``out`` is a file that is no report, or the folder of
            small pictures holds what no report wrote.
    """
    run = counting(run if isinstance(run, Run) else Run.open(run))
    path = run.path / "report.html" if out is None else Path(out)
    if out is not None:
        refuse_foreign_file(path, GENERATOR, "report of tag2mask", "report.html")
    images, stale = _current_masks(run, data)
    if data is not None and _has_truth(data):
        if evaluation is None:
            evaluation = evaluate(run, data, confidence=True, progress=progress)
        data, _ = settle_truth(run, data)
    classes = data.classes if data is not None else stored_classes(run)
    title = title or run.path.resolve().name
    small = Gallery(path.with_name(f"{path.stem}-images"), run, images, classes) if gallery else None
    by_truth = () if evaluation is None else (*evaluation.best[:STRIP], *evaluation.worst[:worst])
    found = survey(
        run,
        images,
        classes,
        STRIP,
        worst,
        None if small is None else small.add,
        wanted={score.id for score in by_truth},
        progress=progress,
    )
    pages = None if small is None or not len(found) else small.write(found, title, path)
    best, listed = _chosen(found, evaluation, worst)
    records = run.last_words()
    told = Told.of(records, SHOWN_FAILURES)
    page = render(
        "report.html.j2",
        **_about_the_run(run, data, records, told),
        **_about_the_masks(found, evaluation),
        title=title,
        stale=stale,
        classes=classes,
        colours=[parts.css(colour) for colour in classes.palette],
        images=len(images),
        tiles=_tiles(run, told, len(images), found, evaluation, floors or {}),
        strip=strip(run, best, data, classes),
        cards=cards(run, listed, data, classes, room_for_each(len(listed.ids), worst)),
        gallery=None if pages is None else f"{quote(pages.parent.name)}/{pages.name}",
    )
    write_atomic(path, page)
    return path


def _has_truth(data: Dataset) -> bool:
    # the first samples tell: a data set either has truth or has not
    return any(sample.truth for sample in islice(data, 1000))


def _about_the_run(run: Run, data: Dataset | None, records: LastWords, told: Told) -> dict[str, Any]:
    """What the template shows of a run, whatever its masks are."""
    return {
        # a method that was handed over as an object is noted as "module:Class"
        "method": str(run.settings.get("method", "A method")).rpartition(":")[2],
        "settings": run.settings,
        "refiner": _refiner(run),
        "weights": weights_of(run),
        "predicted": is_predicted(run),
        "unfinished": _unfinished(run, data, records),
        "stages": told.stages(),
        "peak_memory": _peak_memory(run),
        "failures": told.failures,
        "skipped": told.left_out(),
        "shown_failures": SHOWN_FAILURES,
        "yaml": _yaml(run),
    }


def _about_the_masks(found: Survey, evaluation: Evaluation | None) -> dict[str, Any]:
    """What the template shows of the masks."""
    return {
        "rows": found.rows(),
        "nowhere": found.nowhere(),
        "unreadable": found.unreadable,
        "evaluation": evaluation,
        "columns": _columns(evaluation) if evaluation else (),
        "panels": parts.panels(evaluation.curves) if evaluation else (),
        "span": span,
        "chosen_with_truth": CHOSEN_WITH_TRUTH,
    }


def _columns(evaluation: Evaluation) -> list[tuple[str, str]]:
    """(head, attribute of a row) of the figures that some class has, after IoU."""
    known = (("Precision", "precision"), ("Recall", "recall"), ("Boundary IoU", "boundary_iou"))
    rows = evaluation.per_class
    return [(head, name) for head, name in known if any(getattr(row, name) == getattr(row, name) for row in rows)]


def _current_masks(run: Run, data: Dataset | None) -> tuple[Images, str]:
    """The images that the report is of, and what it says of the others.

    Raises:
        UserError: there is none, or the run is of other classes than the data.
    """
    if data is None:
        images, stale = Images(ids=run.ids()), ""
    else:
        check_classes(run, data)
        current = Current(run)
        kept = array("Q", (place for place, sample in enumerate(data) if current.why_none(sample) is None))
        images = Images(data, kept)
        others = sum(1 for _ in run.mask_ids()) - len(images) - current.stale.counts.total()
        notes = [f"masks of images that are not in {data.root} ({others:,})"] if others else []
        stale = "; ".join([*notes, *([current.note() or ""] if current.stale.counts else [])])
    if not len(images):
        why = f"of these images: {stale}" if stale else "yet; label images first, then make the report"
        raise UserError(f"{run.path} has no mask {why}")
    return images, stale


def _unfinished(run: Run, data: Dataset | None, records: LastWords) -> int:
    """Images that the run has not come to yet."""
    if data is None:
        return max(0, (run.images or 0) - len(records))
    return sum(sample.id not in records and not run.mask_path(sample.id).exists() for sample in data)


def _chosen(found: Survey, evaluation: Evaluation | None, worst: int) -> tuple[Chosen, Chosen]:
    """The best images, and those to look at: by mIoU where there is truth, and then the least sure; each once."""
    doubtful = [id for id, _ in found.doubtful]
    if evaluation is None:
        best, listed, miou = [id for id, _ in found.best], doubtful, {}
    else:
        best = [score.id for score in evaluation.best[:STRIP]]
        listed = [*dict.fromkeys([*(score.id for score in evaluation.worst[:worst]), *doubtful])]
        miou = {score.id: score.miou for score in (*evaluation.best, *evaluation.worst)}
    sure = found.named
    # what cannot be read is named elsewhere
    best, listed = ([id for id in ids if id in sure] for ids in (best, listed))
    return Chosen(best, sure, miou), Chosen(listed, sure, miou)


def _refiner(run: Run) -> str | None:
    """What made the masks of the scores after their maps: "CRF", "refiner", or None."""
    name = (run.settings if is_predicted(run) else run.settings.get("mask_rule") or {}).get("refiner")
    return None if name is None else "CRF" if name in PRESETS else "refiner"


def _yaml(run: Run) -> str:
    """The settings and circumstances as run.yaml has them; which CRF would have run is said where one may have."""
    noted = dict(run.noted)
    if _refiner(run) != "CRF" and "crf" not in str(run.settings.get("options")):
        noted.pop("crf_engine", None)
    return yaml.safe_dump({"settings": run.settings, "noted": noted}, sort_keys=False, allow_unicode=True)


# --- figures


def _tiles(
    run: Run,
    told: Told,
    images: int,
    found: Survey,
    evaluation: Evaluation | None,
    floors: Mapping[str, float],
) -> list[Tile]:
    failed, skipped = told.failures.count, sum(some.count for some in told.skipped.values())
    done = "images predicted" if is_predicted(run) else "images labelled"
    without = (f"{failed:,} failed" if failed else "none failed") + (f", {skipped:,} skipped" if skipped else "")
    by_hand = sum(each != each for each in found.confidences)
    without += f", {by_hand:,} corrected by a person" if by_hand else ""
    tiles = [Tile(f"{images:,}", done, without)]
    if evaluation is not None:
        note = ", ".join(f"{name} {percent(value)}" for name, value in floors.items())
        left_out = f"on {evaluation.images:,} images" if evaluation.images != images else "100 is perfect"
        tiles.append(Tile(percent(evaluation.miou), "mIoU", f"floor: {note}" if note else left_out))
        if evaluation.boundary == evaluation.boundary:
            tiles.append(Tile(percent(evaluation.boundary), "boundary IoU", "how well outlines fit"))
        if evaluation.metrics.ignored > 0:
            kept = f"mIoU {percent(evaluation.metrics.miou_kept)} on the rest"
            tiles.append(Tile(percent(evaluation.metrics.ignored) + " %", "left undecided", kept))
        else:
            tiles.append(Tile(percent(evaluation.metrics.pixel_accuracy), "pixel accuracy", "per cent"))
    else:
        who = _refiner(run) or ("network" if is_predicted(run) else "method")
        tiles.append(
            Tile(percent(found.confidence), "mean confidence", f"per cent: how sure the {who} is, not how right")
        )
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
