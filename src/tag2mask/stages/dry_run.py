"""What ``label``, ``train`` or ``predict`` would do, without doing it: nothing is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tag2mask.methods.protocol import Method
from tag2mask.run.artefacts import SEEDS
from tag2mask.run.current import Comparison
from tag2mask.run.device import find_device
from tag2mask.run.folder import Run
from tag2mask.run.progress import say
from tag2mask.run.settings import plain
from tag2mask.run.shard import Shard, in_shard
from tag2mask.segment.recipe import TrainRecipe, check
from tag2mask.stages.label import label
from tag2mask.stages.machinery.asked import LabelSettings, ask, name_of
from tag2mask.stages.machinery.estimate import estimate
from tag2mask.stages.machinery.limit import first_images
from tag2mask.stages.machinery.longer import SUMMARY
from tag2mask.stages.machinery.predictor import rule_of
from tag2mask.stages.machinery.watch import held_out
from tag2mask.stages.predict import PredictSettings, ask_network, predict
from tag2mask.stages.recipe import Recipe
from tag2mask.stages.refine import check_refined, first_of
from tag2mask.stages.train import find_masks, find_out
from tag2mask.types import Dataset, MaskRule, Sample, UserError
from tag2mask.words import duration, in_line, listing

__all__ = ["DryRun", "DryTraining", "dry_label", "dry_predict", "dry_refined", "dry_train"]


Changed = Mapping[str, tuple[Any, Any]]
"""Settings that are not as they are where nobody says otherwise: the value by name, and what it would be."""


@dataclass(frozen=True)
class DryRun:
    """What a call would do.

    verb: "label" or "predict". out: the run folder; begun: whether there is a run, which is resumed. images: of the
    data, of this shard and within the limit. todo: would be done; finished: are done; skipped: have no tags.
    classes: what masks may hold besides background. by: what makes the masks, and where. changed: settings that are
    not the defaults. settings: all that decides the masks. time: how long it would take, or why that is not known.
    """

    verb: str
    out: str
    begun: bool
    images: int
    todo: int
    finished: int
    skipped: int
    classes: Sequence[str]
    by: str
    changed: Changed
    settings: Mapping[str, Any]
    time: str

    def text(self) -> str:
        """For people."""
        parts = [f"{self.todo} to {self.verb}", f"{self.finished} finished before"]
        parts += [f"{self.skipped} without tags, which are skipped"] if self.skipped else []
        lines = [
            f"dry run, nothing is written: {self.verb} would {'resume' if self.begun else 'create'} {self.out}",
            f"  images: {self.images}: {', '.join(parts)}",
            f"  classes: {len(self.classes)}: {listing(self.classes, most=20)}",
            f"  {self.by}",
            *_lines(self.changed),
            f"  time: {self.time}",
        ]
        return "\n".join(lines)


def _lines(changed: Changed) -> list[str]:
    if not changed:
        return ["  settings: the defaults"]
    width = max(map(len, changed))
    shown = [
        f"    {name:{width}}  {_say(now)} ({'not set by default' if usual is None else f'default {_say(usual)}'})"
        for name, (now, usual) in changed.items()
    ]
    return ["  settings that are not the defaults:", *shown]


def _say(value: Any) -> str:
    """A plain value for people."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_say(each)}" for name, each in value.items()) or "none"
    if isinstance(value, list):
        return listing([_say(each) for each in value], most=10) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else in_line(value)


def _picked(of: Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(of, name) for name in names}


def _changed(now: Mapping[str, Any], usual: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The settings that differ, by name."""
    there, here = plain(usual), plain(now)
    names = [name for name in here if here[name] != there.get(name)]
    return {prefix + name: (here[name], there.get(name)) for name in names}


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
        time = _time(
            data, with_tags, lambda part, folder: label(part, method, folder, alone), method.device, settings.progress
        )
    changed = _changed_for(method, asked.rule, settings)
    what = (data.classes.foreground, _maker(method, asked.before), changed, _settings(asked.deciding))
    return found.dry_run("label", out, run, what, time)


def _maker(method: Method, before: Run | None) -> str:
    """The method, its towers, and where it computes."""
    towers = [f"with {tower.name} ({str(tower.dtype).removeprefix('torch.')})" for tower in method.towers.values()]
    start = [] if before is None else [f"from {before.path}"]
    return ", ".join([f"method: {name_of(method)}", *towers, *start, f"on {method.device}"])


def _changed_for(method: Method, rule: MaskRule, settings: LabelSettings) -> Changed:
    """Options of the method, how maps become masks, and the other settings that decide masks."""
    fields = type(method.options).model_fields
    usual = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    names = ("keep_scores", "refine_max_pixels", "masks_of")
    return {
        **_changed(method.options.model_dump(), usual),
        **_changed(vars(rule), vars(rule_of(method, settings.masks_of)), "masks."),
        **_changed(_picked(settings, names), _picked(LabelSettings(), names)),
    }


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
    by = f"{_maker(second.method, None)}, from {out / SEEDS}"
    what = (recipe.data.classes.foreground, by, _changed_for(second.method, second.rule, settings), named)
    return [seeds, DryRun("label", str(out), begun, images, images, 0, 0, *what, time)]


def dry_train(
    run: Run | None,
    out: Path,
    recipe: TrainRecipe,
    data: Dataset | None = None,
    pixel_labels: Path | None = None,
    *,
    hold_out: int = 0,
    afresh: bool = False,
    device: str = "auto",
) -> DryTraining:
    """What ``train`` would do with the same arguments. Raises UserError as that would before any work.

    hold_out: as ``Validation`` has it. afresh: the training in ``out`` would be removed. device: where it would be.
    """
    check(recipe)
    targets = held_out(find_masks(run, data, pixel_labels, recipe), hold_out)
    done, supervision = find_out(out, recipe, targets, afresh=afresh)
    return DryTraining(
        str(out),
        len(targets),
        dict(targets.left_out),
        supervision,
        done,
        recipe.steps,
        targets.data.classes.foreground,
        recipe.start,
        str(find_device(device)),
        _changed(plain(recipe), plain(type(recipe)())),
        plain(recipe),
        _speed(out),
    )


@dataclass(frozen=True)
class DryTraining:
    """What a call of ``train`` would do.

    images: to be trained on; left_out: how many are not, by reason. done, steps: of the training in ``out``.
    classes: besides background. start: where its weights come from. device: where it learns. changed: settings of the
    recipe that are not the defaults; settings: all. speed: images a second of an earlier call there, if there is any.
    """

    out: str
    images: int
    left_out: Mapping[str, int]
    supervision: str
    done: int
    steps: int
    classes: Sequence[str]
    start: str
    device: str
    changed: Changed
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
                f"  images: {self.images}, supervision: {self.supervision}{left}",
                f"  classes: {len(self.classes)}: {listing(self.classes, most=20)}",
                f"  network: {self.settings['architecture']}, from {self.start}, on {self.device}",
                *_lines(self.changed),
                f"  time: {time}",
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
    time = _time(data, found.todo, lambda part, folder: predict(network, part, folder, alone), where, how.progress)
    usual = replace(PredictSettings(), test=asked.saved.test.test, refiner=asked.saved.test.refiner)
    names = ("refiner", "use_tags", "others", "refine_max_pixels")
    changed = {
        **_changed(plain(asked.how.test), plain(usual.test)),
        **_changed(
            {name: getattr(asked.how, name) for name in names}, {name: getattr(usual, name) for name in names}
        ),
    }
    by = f"network: {asked.saved.config.architecture} in {network}, on {where}"
    what = (asked.saved.config.names[1:], by, changed, _settings(asked.deciding))
    return found.dry_run("predict", out, run, what, time)


@dataclass(frozen=True)
class _Counted:
    images: int
    todo: np.ndarray
    finished: int
    skipped: int

    def dry_run(
        self,
        verb: str,
        out: Path,
        run: Run | None,
        what: tuple[Sequence[str], str, Changed, Mapping[str, Any]],
        time: str,
    ) -> DryRun:
        """what: classes, by, changed and settings, as DryRun has them."""
        counts = (self.images, len(self.todo), self.finished, self.skipped)
        return DryRun(verb, str(out), run is not None, *counts, *what, time)


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


def _time(data: Dataset, todo: np.ndarray, make: Any, device: torch.device, progress: bool) -> str:
    if not len(todo):
        return "none: there is nothing left to do"
    say("measuring on up to two images, to tell how long all would take", enabled=progress)
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
