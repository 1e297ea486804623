"""How a learning rate goes over a training, as a share of its height."""

from __future__ import annotations

import math


def warm_cosine(step: int, steps: int, warmup: int) -> float:
    """Up in a line over ``warmup`` steps, then down to nothing as a cosine; ``step`` counts from 0."""
    warmup = min(warmup, steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup)))
