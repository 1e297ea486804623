"""Attention as an affinity between patches, and the spreading of maps along it (CLIP-ES, section 3.3).

Four pieces that compose: where the attention comes from is the caller's; ``symmetric_affinity`` normalises it;
``ops.boxes`` makes the class-aware mask; ``propagate`` takes the steps. CAA, plain MHSA, RFM and CDA are settings.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sinkhorn(attention: Tensor, rounds: int = 3) -> Tensor:
    """Bring non-negative (..., N, N) close to doubly stochastic: columns, then rows, ``rounds`` times.

    The alternation only rescales rows and columns, so it runs on the two scaling vectors: six matrix-vector
    products instead of six passes that write the matrix.
    """
    if attention.shape[-1] != attention.shape[-2]:
        raise ValueError(f"an attention is square, got {tuple(attention.shape)}")
    row = torch.ones_like(attention[..., 0])  # (..., N), scales rows
    column = row
    for _ in range(rounds):
        column = 1 / (row[..., None, :] @ attention)[..., 0, :]  # (..., N): every column sums to 1
        row = 1 / (attention @ column[..., None])[..., 0]  # (..., N): every row sums to 1
    return row[..., :, None] * attention * column[..., None, :]


def symmetric_affinity(attention: Tensor, rounds: int = 3) -> Tensor:
    """Eq. 6: A = (D + D^T) / 2 with D = Sinkhorn(attention); (..., N, N)."""
    d = sinkhorn(attention, rounds)
    return (d + d.transpose(-2, -1)) / 2


def propagate(affinity: Tensor, maps: Tensor, mask: Tensor | None, steps: int) -> Tensor:
    """Eq. 7: spread maps ``steps`` times; affinity (N, N), maps (K, N), mask (K, N) or None -> (K, N).

    The mask keeps only what lies inside it as a source; where it spreads to is not restricted. A^t is never
    formed: t products with K columns cost N^2 K each, not N^3.
    """
    out = maps if mask is None else maps * mask  # (K, N)
    for _ in range(steps):
        out = out @ affinity.T  # (K, N)
    return out
