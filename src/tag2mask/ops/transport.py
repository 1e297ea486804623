"""Entropic optimal transport (Cuturi 2013), as POT uses it to share features out to clusters.

Not the Sinkhorn of CLIP-ES: ``ops.affinity.sinkhorn`` makes a square attention doubly stochastic, three times over;
this one finds the plan that moves given masses at the least cost, blurred by an entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["transport_plan"]


@torch.no_grad()
def transport_plan(
    cost: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    epsilon: float = 0.1,
    rounds: int = 100,
    tolerance: float = 1e-2,
) -> Tensor:
    """The plan T >= 0 that minimises sum(T cost) - epsilon entropy(T), with the given sums of rows and columns.

    Row and column scalings take turns (Sinkhorn), as logarithms, so a small ``epsilon`` gives no 0 / 0. Each problem
    of a batch stops by itself: its result does not depend on its neighbours. Where it stops before it has converged,
    the sums of the columns are exact and those of the rows are not yet. No gradient passes.

    Args:
        cost: (..., N, K), finite; what it costs to move one unit from row i to column k.
        rows: (..., N) >= 0, the mass of each row. A row of no mass gets zeros.
        columns: (..., K) >= 0, the mass of each column, with the same sum as ``rows``. As for rows.
        epsilon: how much the entropy counts; the smaller, the sharper the plan and the slower it converges.
        rounds: the most turns.
        tolerance: a problem stops after a turn in which its row scalings moved by less than this on average, which is
            the rule of POT's released code; 0 takes all rounds.

    Returns:
        (..., N, K) float32.

    Raises:
        ValueError: shapes that do not fit, epsilon or rounds not above 0, a cost that is not finite, or masses that
            are negative, not finite, all zero, or of different sums.
    """
    _check(cost, rows, columns, epsilon, rounds)
    logits = -cost.float() / epsilon  # (..., N, K)
    log_rows, log_columns = rows.float().log(), columns.float().log()  # no mass is -inf, whose exponential is 0
    row = torch.zeros_like(log_rows)  # (..., N), the logarithm of the scaling
    column = torch.zeros_like(log_columns)  # (..., K)
    moving = torch.ones(cost.shape[:-2], dtype=torch.bool, device=cost.device)
    for _ in range(rounds):
        new_row = log_rows - torch.logsumexp(logits + column[..., None, :], -1)
        new_column = log_columns - torch.logsumexp(logits + new_row[..., :, None], -2)
        moved = (new_row.exp() - row.exp()).abs().mean(-1)  # NaN where both are too large: not converged
        row = torch.where(moving[..., None], new_row, row)
        column = torch.where(moving[..., None], new_column, column)
        moving = moving & ~(moved < tolerance)
        if not moving.any():
            break
    return (logits + row[..., :, None] + column[..., None, :]).exp()


def _check(cost: Tensor, rows: Tensor, columns: Tensor, epsilon: float, rounds: int) -> None:
    if cost.ndim < 2 or rows.shape != cost.shape[:-1] or columns.shape != cost.shape[:-2] + cost.shape[-1:]:
        raise ValueError(
            f"a cost of shape {tuple(cost.shape)} with rows {tuple(rows.shape)} and columns {tuple(columns.shape)}; "
            "expected (..., N, K), (..., N) and (..., K)"
        )
    if not (epsilon > 0 and rounds > 0):
        raise ValueError(f"epsilon {epsilon} and rounds {rounds}: expected both above 0")
    if not torch.isfinite(cost).all():
        raise ValueError("the cost of a transport is not finite everywhere")
    for masses in (rows, columns):
        if not (torch.isfinite(masses).all() and (masses >= 0).all() and (masses.sum(-1) > 0).all()):
            raise ValueError("masses of a transport are finite, not negative, and not all zero")
    if not torch.allclose(rows.float().sum(-1), columns.float().sum(-1), rtol=1e-4):
        raise ValueError("rows and columns of a transport hold different masses; scale them to the same sum")
