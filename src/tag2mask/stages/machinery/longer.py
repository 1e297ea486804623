"""A training's folder that is to hold more steps than it was made for, or another training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from tag2mask.run.checkpoint import LAST, steps_done
from tag2mask.run.files import write_atomic
from tag2mask.run.settings import describe_differences
from tag2mask.run.warn import warn
from tag2mask.segment.recipe import TrainRecipe
from tag2mask.segment.saved import INSIDE
from tag2mask.segment.supervised import rate
from tag2mask.types import UserError

RECIPE, SUMMARY = "recipe.json", "train.json"
_KEY = "lengthened"


def lengthened(out: Path) -> dict[str, list[int]]:
    """{"lengthened": [the steps that the training in a folder was to end at before]}, or {} where it never changed.

    It is written down only where the weights are not those of a training that was asked for at once.
    """
    there = _read(out)
    return {_KEY: there[_KEY]} if there is not None and _KEY in there else {}


def may_lengthen(out: Path, settings: dict[str, Any], recipe: TrainRecipe) -> bool:
    """Whether ``settings`` are the training in a folder but for the number of steps, of which they have more.

    settings: of the training that is asked for, as recipe.json keeps them.
    """
    there = _read(out)
    if there is None or not steps_done(out):
        return False
    before = there.get("steps")
    known = {key: value for key, value in there.items() if key != _KEY}
    if not isinstance(before, int) or before >= recipe.steps:
        return False
    return not describe_differences({**known, "steps": recipe.steps}, settings)


def lengthen(out: Path, settings: dict[str, Any], recipe: TrainRecipe) -> None:
    """Let the training in a folder have the steps of ``settings``, where it may (:func:`may_lengthen`)."""
    there = _read(out)
    if there is None or not may_lengthen(out, settings, recipe):
        return
    more, before, done = dict(lengthened(out)), int(there["steps"]), steps_done(out)
    if why := _depends_on_steps(recipe, before, done):
        more[_KEY] = [*more.get(_KEY, []), before]
        warn(
            f"{out} goes on from step {done} to {recipe.steps} instead of {before}: {why}. So the weights will "
            f"differ from those of {recipe.steps} steps asked for at once; network/config.json says so"
        )
    write_atomic(out / RECIPE, (json.dumps({**settings, **more}, indent=2) + "\n").encode())


def _depends_on_steps(recipe: TrainRecipe, before: int, done: int) -> str:
    """What of the steps that were taken was set by how many there were to be; empty where nothing was."""
    parts = []
    if recipe.schedule_steps is None:
        old = replace(recipe, steps=before)
        parts.append(
            f"its learning rate fell towards step {before}, to {rate(done - 1, old):.2g} of its height, and goes on "
            f"at {rate(done, recipe):.2g}, falling towards step {recipe.steps} (it would not depend on the number of "
            "steps, had schedule_steps been set from the start)"
        )
    if recipe.loss == "bootstrapped":
        parts.append("its loss left out what was sure by a threshold that rose with the share of all steps")
    if recipe.semi is not None:
        parts.append(f"the weight of CCT's losses rose over a share of {before} steps")
    return ", and ".join(parts)


def refuse_other_examples(recipe_file: Path, now: dict[str, Any]) -> None:
    """See that a training is of the same images and corrections.

    now: ``Targets.examples``.

    Raises:
        UserError: it is of others.
    """
    try:
        before = json.loads(recipe_file.read_text(encoding="utf-8"))["examples"]
        same = before == now
        count = int(before["images"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # ``claim`` has its own words for these
    if same:
        return
    if _uncorrected(before) == _uncorrected(now):
        by_hand, by_hand_now = before.get("corrected", 0), now.get("corrected", 0)
        why = (
            f"these {count} images, but with other corrected masks ({by_hand} then, {by_hand_now} now): some were "
            "corrected, corrected again or taken back since"
        )
    else:
        why = (
            f"{count} images, and now {now['images']} have a mask: others were added, left out, corrected or put on "
            "the list"
        )
    raise UserError(
        f"{recipe_file.parent} is trained on {why}. Choose another --out for a new training; predict goes on using "
        "the network there"
    )


def _uncorrected(examples: dict[str, Any]) -> object:
    """What would stand for the examples if no mask were corrected."""
    return examples.get("without_corrections", examples.get("fingerprint"))


def clear(out: Path) -> None:
    """Remove the training in a folder, and nothing else there.

    Raises:
        UserError: the folder holds something that is no training.
    """
    if _read(out) is None:
        if (out / RECIPE).exists() or (out / LAST).exists() or (out / INSIDE).exists():
            raise UserError(f"--out {out}: holds no training of tag2mask that is safe to remove; remove it by hand")
        return
    for name in (LAST, RECIPE, SUMMARY):
        (out / name).unlink(missing_ok=True)
    for name in (INSIDE, "log", "tensorboard"):
        shutil.rmtree(out / name, ignore_errors=True)


def _read(out: Path) -> dict[str, Any] | None:
    """The settings of the training in a folder; None where there is none, or it is of another kind or damaged."""
    try:
        there = json.loads((out / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return there if isinstance(there, dict) and "examples" in there else None
