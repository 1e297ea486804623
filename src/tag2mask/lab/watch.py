"""Looking at a training from outside, now and then: is there anything yet of *where*?"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch

from tag2mask.lab.contrastive import ContrastiveCLIP
from tag2mask.models.clip import CLIPModel
from tag2mask.run.files import write_atomic
from tag2mask.types import UserError

Measure = Callable[[CLIPModel], Mapping[str, float]]


class Watch(lightning.Callback):
    """Measures the weights every so many steps, keeps the figures in a CSV file, and the weights that were best.

    A training that resumes from an earlier checkpoint forgets the rows after it, and measures them again. Only the
    row of the best weights stays, as these are still there: the row that ``best`` holds is always in the CSV file.

    Args:
        path: the CSV file: step, samples, scenes, and the figures of ``measure``.
        every: steps.
        measure: the figures of a network; it must leave the network as it is.
        scenes: how many it is measured on; weights that were best on another number are no rivals.
        by: the figure by which weights are the best so far.
        best: a JSON file with the row of the best weights, beside them.
        keep: called with such weights.
        say: called with a line about every measurement.
    """

    def __init__(
        self,
        path: Path,
        every: int,
        measure: Measure,
        *,
        scenes: int,
        by: str,
        best: Path,
        keep: Callable[[CLIPModel], None],
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.path, self.every, self.measure, self.scenes = path, every, measure, scenes
        self.by, self.best, self.keep, self.say = by, best, keep, say

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Forget what was measured after the checkpoint, but for the weights that were kept."""
        best = read_best(self.best)
        rows = [row for row in read_watch(self.path) if row["step"] <= trainer.global_step and row != best]
        self._write(rows if best is None else [*rows, best])

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measure, where it is time."""
        if not isinstance(pl_module, ContrastiveCLIP):
            raise TypeError(f"{type(pl_module).__name__} cannot be watched, expected ContrastiveCLIP")
        recipe, step = pl_module.recipe, trainer.global_step
        if (batch_idx + 1) % recipe.accumulate or (step % self.every and step != recipe.steps):
            return
        if not all(bool(each.isfinite().all()) for each in pl_module.weights.parameters()):
            return  # nothing to measure; at the next checkpoint the training is refused, with a reason
        with torch.no_grad():
            found = {name: _rounded(value) for name, value in self.measure(pl_module.weights).items()}
        samples = step * recipe.accumulate * recipe.batch
        row = {"step": float(step), "samples": float(samples), "scenes": float(self.scenes), **found}
        best = read_best(self.best)
        if best is None or best["scenes"] != row["scenes"] or best.get(self.by, -math.inf) < row[self.by]:
            self.best.unlink(missing_ok=True)  # killed before both are written, neither says what the other is not
            self.keep(pl_module.weights)
            write_atomic(self.best, (json.dumps(row, indent=2) + "\n").encode())
            best = row
        # of this step there may be one row more, of weights that were kept and then left by a resumption
        rows = [each for each in read_watch(self.path) if each["step"] != step]
        self._write([*rows, row] if best == row or best["step"] != step else [*rows, best, row])
        self.say(f"step {step}: " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()))

    def _write(self, rows: list[dict[str, float]]) -> None:
        if not rows:
            self.path.unlink(missing_ok=True)
            return
        text = io.StringIO()
        names = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(text, list(names), lineterminator="\n")
        writer.writeheader()
        ordered = sorted(rows, key=lambda row: row["step"])
        writer.writerows({name: f"{value:.10g}" for name, value in row.items()} for row in ordered)
        write_atomic(self.path, text.getvalue().encode())


def read_watch(path: Path) -> list[dict[str, float]]:
    """The rows of a watch file, earliest first; none where there is no file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
        return sorted(rows, key=lambda row: row["step"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it, and what is measured from now on is kept"
        ) from error


def read_best(path: Path) -> dict[str, float] | None:
    """The row of the weights that were best, or None where none were kept whole.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        row = {str(name): float(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}
        if not all(math.isfinite(value) for value in row.values()):
            raise ValueError("figures that are not finite")
        if lost := {"step", "scenes"}.difference(row):
            raise ValueError(f"no {' and no '.join(sorted(lost))}")
        return row
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); remove {path.parent}, and the next best is kept") from error


def _rounded(value: float) -> float:
    """As the CSV file keeps it, so that what is read equals what was written."""
    return float(f"{float(value):.10g}")
