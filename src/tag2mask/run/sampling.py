"""Which samples each batch of a training holds, and what is random about them.

Every random choice is a function of (seed, step, sample), never of what was drawn before. So a training that was
killed and resumed sees the same samples in the same way as one that ran through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

GROUP_SEEDS = 1_000_003
"""From the seed that shuffles one group of samples to that of the next."""


class Draw(NamedTuple):
    """One sample of one batch: which batch, counted from 0 over the whole training, and which sample."""

    step: int
    sample: int


@dataclass(frozen=True)
class Training:
    """How a training runs.

    steps: optimiser steps in all. batch: samples a forward pass, of each group, over all devices together;
    ``accumulate`` of them make a step. devices: of one kind, which share every batch; what is drawn does not depend
    on how many they are.
    precision: "float32", "bfloat16" or "float16", under autocast; weights stay float32.
    clip_norm: the greatest norm of the gradient; None does not clip.
    save_steps, save_minutes: a checkpoint whenever one of them is over.
    minutes: stop after so long, with a checkpoint; the same call resumes it. None runs to the end.
    workers: processes that prepare samples; 0 prepares them in this one.
    """

    steps: int
    batch: int
    accumulate: int = 1
    seed: int = 0
    device: str = "auto"
    precision: str = "float32"
    clip_norm: float | None = 1.0
    save_steps: int = 1000
    save_minutes: float = 5.0
    minutes: float | None = None
    log_steps: int = 20
    workers: int = 0
    devices: int = 1

    @property
    def batches(self) -> int:
        """Forward passes in all."""
        return self.steps * self.accumulate


def sample_indices(seed: int, step: int, batch: int, count: int) -> NDArray[np.int64]:
    """Which of ``count`` samples batch ``step`` holds: (batch,).

    The samples come in shuffled epochs, one after the other without a gap: the first ``count`` indices are each
    sample once, and so are the next. A batch may hold the end of one epoch and the start of the next.
    """
    positions = np.arange(step * batch, (step + 1) * batch)
    epochs = positions // count
    parts = [_order(seed, int(e), count)[positions[epochs == e] - e * count] for e in np.unique(epochs)]
    return np.concatenate(parts)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 0x5EED, epoch]).permutation(count)


def sample_generator(seed: int, draw: Draw) -> np.random.Generator:
    """The source of all that is random about one sample of one batch."""
    return np.random.default_rng([seed, draw.step, draw.sample])


def sample_dice(seed: int, draw: Draw) -> torch.Generator:
    """The same for torch."""
    return torch.Generator().manual_seed(int(sample_generator(seed, draw).integers(2**63)))


def step_generator(seed: int, step: int) -> torch.Generator:
    """The source of what is random about a batch as a whole, on the processor."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step, 0xBA7C]).generate_state(1)[0]))


@contextmanager
def step_dice(seed: int, step: int, device: torch.device, rank: int = 0) -> Iterator[None]:
    """A block in which torch's dice, there and on the processor, are those of a step; outside they are as before.

    rank: of several processes in one training, each throws its own.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(step_generator(seed, step).initial_seed() + rank)
        yield


class StepSampler:
    """Batches of draws from the batch that ``start()`` names when the iteration begins, to the training's end.

    Of several devices, each (``rank()``) draws its share of every batch.

    counts: samples of each group; the samples of one group follow those of the one before. Each batch holds
        ``training.batch`` of every group, group after group, and each group has epochs of its own.
    """

    def __init__(
        self,
        training: Training,
        counts: Sequence[int],
        start: Callable[[], int] = lambda: 0,
        rank: Callable[[], int] = lambda: 0,
    ) -> None:
        self.training, self.counts, self.start, self.rank = training, tuple(counts), start, rank

    def __len__(self) -> int:
        # of the whole training: Lightning counts on from the batch where it resumes
        return self.training.batches

    def __iter__(self) -> Iterator[list[Draw]]:
        share = self.training.batch // self.training.devices
        own = slice(self.rank() * share, (self.rank() + 1) * share)
        for step in range(self.start(), self.training.batches):
            first, draws = 0, []
            for group, count in enumerate(self.counts):
                # each group is shuffled by its own seed: two of one size must not be paired the same for ever
                indices = sample_indices(self.training.seed + GROUP_SEEDS * group, step, self.training.batch, count)
                draws += [Draw(step, first + int(index)) for index in indices[own]]
                first += count
            yield draws
