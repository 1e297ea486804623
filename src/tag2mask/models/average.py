"""Weights averaged over the steps of a training."""

from __future__ import annotations

import torch
from torch import nn


def follow(average: nn.Module, now: nn.Module, decay: float, done: int) -> None:
    """Let averaged weights take their share of those in training; buffers are taken as they are.

    Args:
        average, now: two of one kind of network.
        decay: of the average once it is old; young weights are sooner forgotten.
        done: optimiser steps done.
    """
    decay = min(decay, (1 + done) / (10 + done))
    with torch.no_grad():
        for kept, new in zip(average.parameters(), now.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)
        for buffer, new_buffer in zip(average.buffers(), now.buffers(), strict=True):
            buffer.copy_(new_buffer)
