"""Images with tags in, a run folder with masks, confidence and scores out.

It can be killed at any moment and started again; it then resumes, and the folder ends up with the same bytes as
if nothing had happened. One bad image never stops it. A disk that is full or read-only does, and loses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tag2mask.methods import make_method
from tag2mask.methods.protocol import Method, Trainable
from tag2mask.ops.refiners import crf_engine
from tag2mask.run.ahead import ahead
from tag2mask.run.current import earlier_file
from tag2mask.run.folder import Run
from tag2mask.run.inputs import KnownInputs
from tag2mask.run.processes import helping
from tag2mask.run.progress import minutes_left
from tag2mask.run.progress import progress as show_progress
from tag2mask.run.shard import in_shard
from tag2mask.segment.saved import find_network
from tag2mask.stages.machinery.asked import LabelSettings, ask, circumstances, name_of
from tag2mask.stages.machinery.changes import Changes, left_over
from tag2mask.stages.machinery.fit import help_to_fit, make_ready
from tag2mask.stages.machinery.labeller import Labeller
from tag2mask.stages.machinery.limit import first_images
from tag2mask.stages.machinery.plan import load, plan, survey
from tag2mask.stages.machinery.predictor import Predictor, tested_by
from tag2mask.stages.machinery.work import Summary, Work
from tag2mask.types import Dataset, MaskRule, Sample, UserError

__all__ = ["LabelSettings", "label"]


def label(
    data: Dataset, method: Method | str, out: Path | str, settings: LabelSettings | None = None, **changes: Any
) -> Summary:
    """Make a pseudo mask for every image that has tags.

    Samples with unknown tags are skipped and counted; those with none at all (``()``) get a mask of background. In a
    folder with masks, those of images that were replaced or are tagged otherwise now are made again, and no others
    (of batches of several, whose last bits may depend on neighbours, the others keep those they had).
    A method that learns is fitted first, in the folder's checkpoints, on all of the data (``stages.machinery.fit``).

    Args:
        data: images and tags. Ground truth, if it has any, is never read.
        method: what ``methods.make_method`` makes; of a name alone, with its defaults.
        out: the run folder; see :mod:`tag2mask.run.folder`.
        settings: default: ``LabelSettings()``.
        changes: fields of ``LabelSettings`` that take the place of those in ``settings``.

    Raises:
        UserError: settings that cannot work (before any work), or a disk that cannot be written.
        KeyboardInterrupt: as the user asked, or the minutes of a fit are over; the message says what is saved.
    """
    began = time.monotonic()
    settings = replace(settings or LabelSettings(), **changes)
    if isinstance(method, str):
        method = make_method(method, data.classes)
    asked = ask(data, method, Path(out), settings)
    rule, use, before, fit = asked.rule, asked.use, asked.before, asked.fit
    if settings.machine.devices > 1 and helping():
        help_to_fit(method, data, Path(out), before, settings.machine)
        return Summary(str(out), "labelled", 0)
    files = _fit_files(before, use.fit) if fit.here else None
    surveyed = survey(data, settings.shard, files=files, known=_known(Path(out)) if fit.here else None)
    by = crf_engine(rule.refiner, method.device)
    run = Run.create(
        out,
        asked.deciding,
        noted={
            "data_root": Path(data.root).absolute(),
            **circumstances(method, before, fit, by),
            "batch_size": asked.batch_size,
            **settings.noted,
        },
        images=len(data),
        shard=settings.shard,
        overwrite=settings.overwrite,
        refit=settings.refit,
        may_grow=not fit.here,
    )
    with run:
        if isinstance(method, Trainable) and method.learns:
            if fit.elsewhere is not None:
                method.load(fit.elsewhere.checkpoints, before)
            else:
                method.machine = replace(settings.machine, minutes=minutes_left(settings.machine.minutes, began))
                shown = settings.progress
                make_ready(method, data, run, before, surveyed=surveyed, shard=settings.shard, progress=shown)
            if settings.fit_only:
                return Summary(str(run.path), "labelled", surveyed.total)
        elif isinstance(method, Trainable) and use.label is not None:  # weights of others, on an earlier run's maps
            method.load(run.checkpoints, before)
        seen = before if use.label is not None else None
        renewed = Changes(run, seen, use.label)
        left = left_over(run, data, settings.shard, settings.removed)
        limit = first_images(data, settings.shard, settings.limit, surveyed.total)
        samples = (sample for sample in data if in_shard(sample.id, settings.shard))
        batches = plan(samples, method.grid, asked.batch_size, renewed.finished, most=limit.images)
        worker = _worker(method, rule, seen, settings, fit.elsewhere or run)
        work = Work(
            *(run, data.classes, worker, limit.images),
            did="labelled",
            beside=asked.beside,
            threads=asked.threads,
            made=renewed.made,
            notes=lambda: [*renewed.notes(), *left, *limit.notes(run)],
        )
        loaded = ahead(load(batches, renewed.inputs))
        return work.through(loaded, show_progress(limit.images, "label", enabled=settings.progress))


def _worker(
    method: Method, rule: MaskRule, seen: Run | None, settings: LabelSettings, fitted: Run
) -> Labeller | Predictor:
    """What makes the masks: the method's maps, or the network that its fit has left."""
    if settings.masks_of == "maps":
        most = settings.refine_max_pixels
        return Labeller(method, rule, seen, refine_max_pixels=most, keep_scores=settings.keep_scores)
    from tag2mask.segment.network import load_network  # a tenth of a second that masks of maps need not wait for

    if find_network(fitted.path) is None:
        raise UserError(f"{name_of(method)} trains no network; make the masks of its maps (--masks-of maps)")
    net = load_network(fitted.path, str(method.device))
    test = tested_by(method).test
    test = replace(test, align_output=test.align_output or net.align_corners)
    smaller = f"`tag2mask predict {fitted.path} IMAGES --use-tags` with --tile 1024 or --longest 2000 can do it"
    return Predictor(net, method.device, test, rule, settings.refine_max_pixels, use_tags=True, smaller=smaller)


def _fit_files(before: Run | None, found: str | None) -> Callable[[Sample], tuple[Path, ...]]:
    """The files that a fit reads of a sample."""
    if before is None or found is None:
        return lambda sample: (sample.image,)
    return lambda sample: (sample.image, earlier_file(before, sample.id, found))


def _known(out: Path) -> KnownInputs | None:
    """What the run in a folder, if there is one, knows of its images' files."""
    try:
        return Run.open(out).inputs()
    except UserError:  # none yet, or one that is damaged: ``Run.create`` will say so
        return None
