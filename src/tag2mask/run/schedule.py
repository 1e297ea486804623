"""The optimiser of the embedded world's networks, and how its rate goes over a training."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn


class Paced(Protocol):
    """A recipe that says how fast its weights are learned; for ``adamw``."""

    @property
    def lr(self) -> float: ...  # noqa: D102
    @property
    def weight_decay(self) -> float: ...  # noqa: D102
    @property
    def steps(self) -> int: ...  # noqa: D102
    @property
    def warmup(self) -> int: ...  # noqa: D102


def adamw(recipe: Paced, parameters: Iterable[nn.Parameter], **how: Any) -> dict[str, Any]:
    """AdamW under ``warm_cosine``, by the step, as Lightning's ``configure_optimizers`` gives it.

    Matrices and kernels decay; norms, biases and single numbers do not.

    how: more of AdamW's (betas, eps).
    """
    own = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in own if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in own if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, **how)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_cosine(step, recipe.steps, recipe.warmup)
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def warm_cosine(step: int, steps: int, warmup: int) -> float:
    """Up in a line over ``warmup`` steps, a tenth of all at most, then down to nothing as a cosine.

    ``step`` counts from 0. A short training under a long one's warm-up would never come to its rate.
    """
    warmup = min(warmup, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup)))
