"""A training of a few steps, watched or killed."""

from __future__ import annotations

from pathlib import Path

from tag2mask.segment.recipe import TrainRecipe
from tag2mask.segment.supervised import SupervisedTraining

RECIPE = TrainRecipe(
    options={"width": 4, "blocks": (1, 1, 1, 1), "channels": 8},
    init="random",
    steps=4,
    batch=2,
    accumulate=3,
    crop=32,
    warmup=2,
    ema=0.9,
    seed=3,
)
HOW = {"device": "cpu", "progress": False, "save_steps": 1, "log_steps": 1}


class Killed(BaseException):
    """As good as kill -9."""


def watch(monkeypatch, kill_at=None):
    """What each batch held, and a death in the middle of a step."""
    seen, step = [], SupervisedTraining.training_step

    def spied(self, batch, batch_idx):
        seen.append((batch.step, *batch.samples.tolist()))
        if len(seen) == kill_at:
            raise Killed
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SupervisedTraining, "training_step", spied)
    return seen


def weights(out: Path) -> bytes:
    return (out / "network" / "model.safetensors").read_bytes()
