"""How a method's network is fitted: one set of settings for all fits. Loads no Lightning."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pydantic import Field

from tag2mask.methods.protocol import Machine, MethodOptions, Trainable
from tag2mask.run.processes import cores
from tag2mask.run.progress import minutes_left
from tag2mask.run.sampling import Training
from tag2mask.segment.schedule import poly, sgd
from tag2mask.types import UserError

SAVE_STEPS = 200
"""Steps between two checkpoints."""

ALL = ("devices", "workers", "minutes", "precision")
"""``Trainable.fit_uses`` of a fit that runs by ``FitSettings``: everything."""

_MOST_WORKERS = 8


class FitOptions(MethodOptions):
    """The options that all fits share; each method has its own defaults."""

    steps: int | None = Field(None, ge=1, description="training steps")
    batch: int | None = Field(None, ge=1, description="images a step")
    lr: float | None = Field(None, gt=0, description="learning rate of the backbone; the head's is 10 times it")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay of all convolutions")
    seed: int = Field(0, ge=0, description="seed of all that is random in the fit")


@dataclass(frozen=True)
class FitSettings:
    """How one network is fitted, nothing left open: SGD under polynomial decay, by the step.

    steps: of the whole training; 0 until ``lasting`` has found them. batch: images at a time, ``accumulate`` times a
    step. lr: of the slowest part.
    momentum, decay_as_momentum: see ``segment.schedule.sgd``. clip_norm: the greatest norm of the gradient.
    precision: the numbers of the forward pass, under autocast; weights stay float32.
    device, machine: where it runs, and what it may use; they decide nothing.
    began: when the fit was started, on the monotonic clock; the machine's minutes count from then.
    """

    steps: int
    batch: int
    lr: float
    weight_decay: float
    seed: int = 0
    momentum: float = 0.0
    decay_as_momentum: bool = False
    accumulate: int = 1
    clip_norm: float | None = None
    precision: str = "float32"
    device: str = "cpu"
    machine: Machine = field(default_factory=Machine)
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, method: Trainable, **chosen: Any) -> FitSettings:
        """As the options of a method say, and where and how it computes.

        chosen: settings that go before the options, which may leave some open.

        Raises:
            UserError: devices that cannot share a batch evenly.
        """
        options = method.options
        settings = {
            "steps": options.steps or 0,
            **{name: getattr(options, name) for name in ("batch", "lr", "weight_decay", "seed")},
            "precision": method.precision,
            "device": str(method.device),
            "machine": method.machine,
        }
        found = cls(**{**settings, **chosen})
        if found.machine.devices < 1 or found.batch % found.machine.devices:
            raise UserError(
                f"--devices {found.machine.devices} for batches of {found.batch}: expected a number that divides the "
                "batch"
            )
        return found

    def lasting(self, epochs: float, images: int) -> FitSettings:
        """The same with the steps of so many epochs, at least one, where they are not known yet."""
        return replace(self, steps=self.steps or max(1, round(epochs * images / self.batch)))

    def training(self) -> Training:
        """How the Trainer runs it."""
        workers = self.machine.workers
        if workers is None:  # on a GPU, reading pictures would be what it waits for
            workers = min(_MOST_WORKERS, cores()) if torch.device(self.device).type == "cuda" else 0
        return Training(
            self.steps,
            self.batch,
            accumulate=self.accumulate,
            seed=self.seed,
            device=self.device,
            precision=self.precision,
            clip_norm=self.clip_norm,
            save_steps=SAVE_STEPS,
            save_minutes=2.0,
            minutes=self.minutes_left(),
            log_steps=10,
            workers=workers,
            devices=self.machine.devices,
        )

    def minutes_left(self) -> float | None:
        """Until the fit is to stop; 0 where it should have, None where it runs to the end."""
        return minutes_left(self.machine.minutes, self.began)

    def optimizer(self, groups: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """SGD over parameter groups, as Lightning's ``configure_optimizers`` gives it."""
        optimizer = sgd(
            list(groups),
            self.lr,
            self.weight_decay,
            momentum=self.momentum,
            decay_as_momentum=self.decay_as_momentum,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: poly(step, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
