"""Images in, a run folder with the masks of a trained network out. No tags are needed.

The folder is one as ``label`` writes it, without score maps, so evaluation, report and export take it. It can be
killed at any moment and started again with the same bytes in the end, and one bad image never stops it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from tag2mask.config import dump_config, parse_config
from tag2mask.data.columns import Columns
from tag2mask.ops.refiners import crf_engine, find_refiner
from tag2mask.run.ahead import ahead
from tag2mask.run.folder import Run
from tag2mask.run.progress import progress as show_progress
from tag2mask.run.settings import plain
from tag2mask.run.shard import WHOLE, Shard, in_shard
from tag2mask.run.warn import warn
from tag2mask.segment.network import SegmentationNet, load_network
from tag2mask.segment.saved import SavedNetwork, read_saved
from tag2mask.segment.test_time import TestTime
from tag2mask.stages.machinery.asked import REFINE_MAX_PIXELS, beside_by
from tag2mask.stages.machinery.changes import Changes, Removed, left_over
from tag2mask.stages.machinery.limit import first_images
from tag2mask.stages.machinery.plan import SampleBatch, load, survey
from tag2mask.stages.machinery.predictor import Predictor
from tag2mask.stages.machinery.work import Summary, Work
from tag2mask.stages.run_data import absolute, open_data
from tag2mask.types import ClassSet, Dataset, MaskRule, UserError

MOST_SCALE = 8.0
"""Larger views than that are a slip (50 for 0.5) that would fill the memory."""


@dataclass(frozen=True)
class PredictSettings:
    """How ``predict`` goes about its work.

    test: how an image is shown to the network; None: as it is noted with the network (that of a method's fit), or
        plainly. Its ``batch`` changes no result beyond rounding; logits are enlarged with ``align_corners`` also
        where the network says so itself.
    refiner: of the masks, by the picture: a name in ``ops.refiners.REFINERS``, or "none"; None: as ``test``.
    use_tags: masks of images whose tags are known are made with these; that makes better pseudo masks for another
        round of training, but such masks are no test of the network.
    others: with ``use_tags``, what becomes of pixels where an untagged class wins: as ``MaskRule.others``. The
        network scores all classes, so the refiner sees all of them unless it is "never".
    refine_max_pixels: larger images, or tiles, are refined at this size; None: at full size.
    device: where the network computes.
    shard: (index, count): the images with ``crc32(id) % count == index``.
    limit: so many images alone, from the first on, of all shards together; None: all.
    overwrite: remove an earlier run in the folder instead of resuming it.
    removed: what becomes of the masks of images that are not in the data any more.
    noted: circumstances to be kept in run.yaml, such as where the data came from.
    progress: show it on stderr.
    """

    test: TestTime | None = None
    refiner: str | None = None
    use_tags: bool = False
    others: Literal["never", "ignore", "keep"] = "never"
    refine_max_pixels: int | None = REFINE_MAX_PIXELS
    device: str = "auto"
    shard: Shard = WHOLE
    limit: int | None = None
    overwrite: bool = False
    removed: Removed = "keep"
    noted: Mapping[str, Any] = field(default_factory=dict)
    progress: bool = True


def predict(
    network: Path | str, data: Dataset, out: Path | str, settings: PredictSettings | None = None, **changes: Any
) -> Summary:
    """Make a mask of every image by a trained network.

    Args:
        network: a folder that ``train`` or ``save_network`` wrote; of an unfinished training the last weights.
        data: the images. Ground truth, if it has any, is never read; its classes need not be the network's.
        out: the run folder; see :mod:`tag2mask.run.folder`.
        settings: default: ``PredictSettings()``.
        changes: fields of ``PredictSettings`` that take the place of those in ``settings``.

    Raises:
        UserError: no network, or settings that cannot work (before any work), or a disk that cannot be written.
        KeyboardInterrupt: as the user asked; the message says what is saved.
    """
    how = replace(settings or PredictSettings(), **changes)
    asked = ask_network(network, data, how)
    how, saved, net, test = asked.how, asked.saved, asked.net, asked.test
    total = survey(data, how.shard, tags=how.use_tags).total
    where = next(net.parameters()).device
    by = crf_engine(how.refiner, where)
    run = Run.create(
        out,
        asked.deciding,
        noted={
            "data_root": Path(data.root).absolute(),
            "network": saved.path.absolute(),
            "trained": saved.noted,
            "torch": torch.__version__,
            **({} if by is None else {"crf_engine": by}),
            "threads": torch.get_num_threads(),
            "device": where.type,
            "batch_size": test.batch,
            **how.noted,
        },
        images=len(data),
        shard=how.shard,
        overwrite=how.overwrite,
    )
    rule = MaskRule(refiner=how.refiner, others=how.others)
    predictor = Predictor(net, where, test, rule, how.refine_max_pixels, how.use_tags)
    with run:
        changed = Changes(run, tags=how.use_tags, untagged=True)
        left = left_over(run, data, how.shard, how.removed, tags=False)
        limit = first_images(data, how.shard, how.limit, total, tags=False)
        samples = islice((sample for sample in data if in_shard(sample.id, how.shard)), limit.images)
        # each image alone, so that its neighbours cannot matter
        batches = (SampleBatch((each,), frozenset(() if changed.finished(each) else (each.id,))) for each in samples)
        classes = ClassSet(saved.config.classes, saved.config.names, saved.config.palette)
        work = Work(
            *(run, classes, predictor, limit.images),
            did="predicted",
            beside=beside_by(by),
            threads=torch.get_num_threads(),
            made=changed.made,
            notes=lambda: [*changed.notes(), *left, *limit.notes(run)],
        )
        loaded = ahead(load(batches, changed.inputs, untagged=True))
        return work.through(loaded, show_progress(limit.images, "predict", enabled=how.progress))


@dataclass(frozen=True)
class AskedNetwork:
    """A call of ``predict`` that can work; nothing is written yet. deciding: what decides the masks, for run.yaml.

    how: with the views and the refiner that the network says where nobody else did.
    """

    how: PredictSettings
    saved: SavedNetwork
    net: SegmentationNet
    test: TestTime
    deciding: dict[str, Any]


def ask_network(network: Path | str, data: Dataset, how: PredictSettings) -> AskedNetwork:
    """Check what is asked of ``predict`` and load the network. Raises UserError where it cannot work."""
    saved = read_saved(network)
    test = saved.test.test if how.test is None else how.test
    how = replace(how, test=test, refiner=_refiner_of(saved, how))
    _check(test, how)
    _check_network(network, saved, data, how)
    net = load_network(saved, how.device)
    test = replace(test, align_output=test.align_output or net.align_corners)
    return AskedNetwork(how, saved, net, test, _deciding(saved, test, how))


def _refiner_of(saved: SavedNetwork, how: PredictSettings) -> str | None:
    if how.refiner is None:
        return saved.test.refiner
    return None if how.refiner == "none" else how.refiner


def _check(test: TestTime, how: PredictSettings) -> None:
    """Raises UserError where settings cannot work, whatever the network is."""
    if how.refiner is not None:
        find_refiner(how.refiner)
    if how.others != "never" and not how.use_tags:
        raise UserError(
            f"others={how.others} (--others) is about classes that are not among the tags; give --use-tags too"
        )
    if how.limit is not None and how.limit < 1:
        raise UserError(f"limit {how.limit}: expected 1 or more images")
    if max(test.scales) > MOST_SCALE:
        raise UserError(f"scale {max(test.scales):g}: expected at most {MOST_SCALE:g} times an image's own size")


def _check_network(network: Path | str, saved: SavedNetwork, data: Dataset, how: PredictSettings) -> None:
    """Warns of an unfinished network. Raises UserError where the tags that are to be used are of other classes."""
    step, steps = saved.noted.get("step"), saved.noted.get("recipe", {}).get("steps")
    if step and steps and step < steps:
        warn(f"{network} is at step {step} of {steps} of its training; the masks are an unfinished network's")
    names = saved.config.names
    if how.use_tags and data.classes.names != names:
        raise UserError(
            f"the tags of {data.root} are of other classes ({_listed(data.classes.names)}) than the network "
            f"({_listed(names)}); leave out --use-tags, or give the data in the network's classes (--classes)"
        )


def _deciding(saved: SavedNetwork, test: TestTime, how: PredictSettings) -> dict[str, Any]:
    """What decides the masks, for run.yaml."""
    return {
        "stage": "predict",
        "method": saved.config.architecture,
        "network": {"options": saved.config.options, "sha256": saved.sha256},
        "test": {name: value for name, value in plain(test).items() if name != "batch"},
        "refiner": how.refiner,
        "refine_max_pixels": how.refine_max_pixels,
        "use_tags": how.use_tags,
        **({} if how.others == "never" else {"others": how.others}),
        "classes": {"id": saved.config.classes, "names": saved.config.names, "palette": saved.config.palette},
        "keep_scores": False,
        "supervision": saved.supervision,
    }


def read_images(network: Path | str, described: Mapping[str, Any]) -> tuple[Columns, dict[str, Any]]:
    """The images that a network is to look at, and what run.yaml says of where they are.

    Args:
        network: its folder.
        described: the keys of ``config.DataConfig``.

    Returns:
        The data set, with a note where its classes are not the network's; and circumstances for ``predict``.

    Raises:
        UserError: no network, or no images.
    """
    config = absolute(parse_config({"data": described}, "the command line"))
    its = read_saved(network).config
    data = open_data(config.data, ClassSet(its.classes, its.names, its.palette))
    if data.classes.names != its.names:
        data = data.with_notes(
            *data.notes,
            f"the data's classes ({_listed(data.classes.names)}) are not the network's ({_listed(its.names)}): "
            "masks hold the network's, and cannot be measured by this data",
        )
    return data, {"config": dump_config(config)}


def _listed(names: tuple[str, ...]) -> str:
    return f"{len(names)}: {', '.join(names[:4])}, …"
