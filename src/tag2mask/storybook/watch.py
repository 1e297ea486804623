"""Looking at a training from outside, now and then: is there anything yet of *where*?"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch

from tag2mask.models.clip import CLIPModel
from tag2mask.run.files import write_atomic
from tag2mask.storybook.pretrain import ContrastiveCLIP

Measure = Callable[[CLIPModel], Mapping[str, float]]


class Watch(lightning.Callback):
    """Measures the weights every so many steps, keeps the figures in a CSV file, and the weights that were best.

    A training that goes on from an earlier checkpoint forgets the rows after it, and measures them again.

    Args:
        path: the CSV file: step, samples, and the figures of ``measure``.
        every: steps.
        measure: the figures of a network; it must leave the network as it is.
        by: the figure by which weights are the best so far.
        keep: called with such weights.
        say: called with a line about every measurement.
    """

    def __init__(
        self,
        path: Path,
        every: int,
        measure: Measure,
        *,
        by: str,
        keep: Callable[[CLIPModel], None],
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.path, self.every, self.measure, self.by, self.keep, self.say = path, every, measure, by, keep, say

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Forget what was measured after the checkpoint."""
        rows = read_watch(self.path)
        self._write([row for row in rows if row["step"] <= trainer.global_step])

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
        rows = read_watch(self.path)
        with torch.no_grad():
            found = {name: float(value) for name, value in self.measure(pl_module.weights).items()}
        if all(row[self.by] < found[self.by] for row in rows):
            self.keep(pl_module.weights)
        row = {"step": float(step), "samples": float(step * recipe.accumulate * recipe.batch), **found}
        self._write([*rows, row])
        self.say(f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))

    def _write(self, rows: list[dict[str, float]]) -> None:
        if not rows:
            self.path.unlink(missing_ok=True)
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.10g}" for name, value in row.items()} for row in rows)
        write_atomic(self.path, text.getvalue().encode())


def read_watch(path: Path) -> list[dict[str, float]]:
    """The rows of a watch file, earliest first; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
