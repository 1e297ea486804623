"""What ``label``, ``train`` or ``predict`` would do, without doing it: nothing is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tag2mask.methods.protocol import Method
from tag2mask.run.artefacts import SEEDS
from tag2mask.run.current import Comparison
from tag2mask.run.folder import Run
from tag2mask.run.settings import plain
from tag2mask.run.shard import Shard, in_shard
from tag2mask.segment.recipe import TrainRecipe, check
from tag2mask.stages.label import label
from tag2mask.stages.machinery.asked import LabelSettings, ask
from tag2mask.stages.machinery.estimate import estimate
from tag2mask.stages.machinery.limit import first_images
from tag2mask.stages.machinery.longer import SUMMARY
from tag2mask.stages.machinery.watch import held_out
from tag2mask.stages.predict import PredictSettings, ask_network, predict
from tag2mask.stages.recipe import Recipe
from tag2mask.stages.refine import check_refined, first_of
from tag2mask.stages.train import find_masks, find_out
from tag2mask.types import Dataset, Sample, UserError
from tag2mask.words import duration, many

__all__ = ["DryRun", "DryTraining", "dry_label", "dry_predict", "dry_refined", "dry_train"]


@dataclass(frozen=True)
class DryRun:
    """What a call would do.

    verb: "label" or "predict". out: the run folder; begun: whether there is a run, which is resumed. images: of the
    data, of this shard and within the limit. todo: would be done; finished: are done; skipped: have no tags.
    settings: what decides the masks. time: how long it would take, or why that is not known.
    """

    verb: str
    out: str
    begun: bool
    images: int
    todo: int
    finished: int
    skipped: int
    settings: Mapping[str, Any]
    time: str

    def text(self) -> str:
        """For people."""
        parts = [f"{self.todo} to {self.verb}", f"{self.finished} finished before"]
        parts += [f"{self.skipped} without tags, which are skipped"] if self.skipped else []
        lines = [
            f"dry run, nothing is written: {self.verb} would {'resume' if self.begun else 'create'} {self.out}",
            f"{many(self.images, 'image')}: {', '.join(parts)}",
            *(f"  {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in self.settings.items()),
            f"time: {self.time}",
        ]
        return "\n".join(lines)


def dry_label(data: Dataset, method: Method, out: Path, settings: LabelSettings) -> DryRun:
    """What ``label`` would do with the same arguments.

    Raises:
        UserError: as ``label``, where it would stop before any work.
    """
    asked = ask(data, method, out, settings)
    run = Run.begun(out, asked.deciding, afresh=settings.overwrite or settings.refit)
    seen = asked.before if asked.use.label is not None else None
    compare = None if run is None else Comparison(run, seen, asked.use.label, tags=True, untagged=False)
    found = _count(data, settings.shard, settings.limit, run, compare, tags=True)
    alone = replace(settings, shard=(0, 1), limit=None, overwrite=False, refit=False, noted={}, progress=False)
    time = "not measured: the method learns first, and its bar says how long that takes"
    if not asked.fit.here:
        with_tags = np.array([place for place in found.todo.tolist() if data[place].tags], np.int64)
        time = _time(data, with_tags, lambda part, folder: label(part, method, folder, alone), method.device)
    return found.dry_run("label", out, run, _settings(asked.deciding), time)


def dry_refined(recipe: Recipe, out: Path, settings: LabelSettings) -> list[DryRun]:
    """What ``label_refined`` would do: the first run, and the second, which needs the first one's maps.

    Raises:
        UserError: as ``label_refined`` would before any work.
    """
    check_refined(recipe, settings)
    seeds = dry_label(recipe.data, recipe.method, out / SEEDS, first_of(recipe, settings))
    second = recipe.refine
    assert second is not None
    images = int(recipe.data.known.sum())
    named = {"method": recipe.config.refine.method if recipe.config.refine else "", "mask_rule": plain(second.rule)}
    time = "not measured: the second method learns from the first one's maps"
    begun = (out / "run.yaml").is_file()
    return [seeds, DryRun("label", str(out), begun, images, images, 0, 0, named, time)]


def dry_train(
    run: Run | None,
    out: Path,
    recipe: TrainRecipe,
    data: Dataset | None = None,
    pixel_labels: Path | None = None,
    *,
    hold_out: int = 0,
    afresh: bool = False,
) -> DryTraining:
    """What ``train`` would do with the same arguments. Raises UserError as that would before any work.

    hold_out: as ``Validation`` has it. afresh: the training in ``out`` would be removed.
    """
    check(recipe)
    targets = held_out(find_masks(run, data, pixel_labels, recipe), hold_out)
    done, supervision = find_out(out, recipe, targets, afresh=afresh)
    return DryTraining(
        str(out), len(targets), dict(targets.left_out), supervision, done, recipe.steps, plain(recipe), _speed(out)
    )


@dataclass(frozen=True)
class DryTraining:
    """What a call of ``train`` would do.

    images: to be trained on; left_out: how many are not, by reason. done, steps: of the training in ``out``.
    speed: images a second of an earlier call there, if there was one.
    """

    out: str
    images: int
    left_out: Mapping[str, int]
    supervision: str
    done: int
    steps: int
    settings: Mapping[str, Any]
    speed: float | None

    def text(self) -> str:
        """For people."""
        left = "".join(f"; left out: {count} {reason}" for reason, count in self.left_out.items())
        going = f"resume {self.out} at step {self.done}" if self.done else f"create {self.out}"
        images = (self.steps - self.done) * int(self.settings["batch"])
        time = "not measured: the bar says it after the first steps"
        if self.speed:
            time = f"about {duration(images / self.speed)}, as quick as the last call there"
        return "\n".join(
            [
                f"dry run, nothing is written: train would {going}, of {self.steps} steps",
                f"{many(self.images, 'image')}, supervision: {self.supervision}{left}",
                *(f"  {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in self.settings.items()),
                f"time: {time}",
            ]
        )


def _speed(out: Path) -> float | None:
    try:
        found = json.loads((out / SUMMARY).read_text(encoding="utf-8"))["images_per_second"]
        return float(found) or None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def dry_predict(network: Path | str, data: Dataset, out: Path, how: PredictSettings) -> DryRun:
    """What ``predict`` would do with the same arguments. Raises UserError as that would before any work."""
    asked = ask_network(network, data, how)
    run = Run.begun(out, asked.deciding, afresh=how.overwrite)
    compare = None if run is None else Comparison(run, None, None, tags=how.use_tags, untagged=True)
    found = _count(data, how.shard, how.limit, run, compare, tags=False)
    alone = replace(how, shard=(0, 1), limit=None, overwrite=False, noted={}, progress=False)
    where = next(asked.net.parameters()).device
    time = _time(data, found.todo, lambda part, folder: predict(network, part, folder, alone), where)
    return found.dry_run("predict", out, run, _settings(asked.deciding), time)


@dataclass(frozen=True)
class _Counted:
    images: int
    todo: np.ndarray
    finished: int
    skipped: int

    def dry_run(self, verb: str, out: Path, run: Run | None, settings: Mapping[str, Any], time: str) -> DryRun:
        todo = len(self.todo)
        return DryRun(verb, str(out), run is not None, self.images, todo, self.finished, self.skipped, settings, time)


def _count(
    data: Dataset, shard: Shard, limit: int | None, run: Run | None, compare: Comparison | None, *, tags: bool
) -> _Counted:
    """What is to be done, as indices into the data, and what is not."""
    total = sum(in_shard(sample.id, shard) for sample in data)
    most = first_images(data, shard, limit, total, tags=tags).images
    todo: list[int] = []
    finished = skipped = seen = 0
    for place, sample in enumerate(data):
        if not in_shard(sample.id, shard):
            continue
        seen += 1
        if seen > most:
            break
        if tags and sample.tags is None:
            skipped += 1
        elif run is not None and compare is not None and _is_finished(run, compare, sample):
            finished += 1
        else:
            todo.append(place)
    return _Counted(most, np.array(todo, np.int64), finished, skipped)


def _is_finished(run: Run, compare: Comparison, sample: Sample) -> bool:
    return run.finished(sample.id) and compare.look(sample)[0] is None


def _time(data: Dataset, todo: np.ndarray, make: Any, device: torch.device) -> str:
    if not len(todo):
        return "none: there is nothing left to do"
    try:
        found = estimate(data, todo, make, device)
    except UserError as error:
        return f"not measured: {error}"
    return "not measured: no image can be read" if found is None else found.text()


def _settings(of: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the masks, but for colours and texts, which are long."""
    classes = of["classes"]
    names = list((classes if isinstance(classes, Mapping) else {})["names"])
    return {name: value for name, value in plain(of).items() if name not in ("stage", "classes")} | {"classes": names}
