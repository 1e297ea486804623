"""WeCLIP's affinity of decoder features, A_f, and the loss that teaches it (Zhang et al. 2024, Eq. 9 to 11).

Two cells belong together where their pseudo labels are equal. Only cells near each other are compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tag2mask.types import IGNORE

RADIUS = 8
"""Cells, along either axis, between which pairs are compared."""


def decoder_affinity(features: Tensor) -> Tensor:
    """sigmoid(F^T F) of features (B, E, h, w), without scaling: (B, N, N) in (0, 1), symmetric."""
    flat = features.flatten(2)  # (B, E, N)
    return (flat.transpose(1, 2) @ flat).sigmoid()


def near_cells(grid: tuple[int, int], radius: int = RADIUS) -> Tensor:
    """Which cells of a grid (h, w) are compared: (N, N) bool, at most ``radius`` apart along both axes."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    apart = [(axis.flatten()[:, None] - axis.flatten()[None]).abs() for axis in (rows, columns)]
    return torch.maximum(*apart) <= radius


def affinity_targets(labels: Tensor, grid: tuple[int, int], radius: int = RADIUS) -> Tensor:
    """What the affinity of each pair should be.

    Args:
        labels: (B, H, W) of mask values and IGNORE. A cell has the label of its upper left pixel, as in the released
            code.
        grid: (h, w) of the features.
        radius: see there.

    Returns:
        (B, N, N) uint8: 1 of equal labels, 0 of others, IGNORE where a label is IGNORE or cells are too far apart.
    """
    rows, columns = (
        torch.arange(cells, device=labels.device) * side // cells
        for cells, side in zip(grid, labels.shape[1:], strict=True)
    )
    flat = labels[:, rows][:, :, columns].flatten(1)  # (B, N)
    known = flat != IGNORE
    compared = known[:, :, None] & known[:, None] & near_cells(grid, radius).to(flat.device)
    equal = (flat[:, :, None] == flat[:, None]).to(torch.uint8)
    return torch.where(compared, equal, IGNORE)


def affinity_loss(affinity: Tensor, targets: Tensor) -> Tensor:
    """Half the mean of 1 - A over pairs of one label plus half the mean of A over pairs of two.

    Args:
        affinity: (B, N, N) in [0, 1].
        targets: (B, N, N), as ``affinity_targets`` gives them.

    Returns:
        a scalar; a kind of pairs that does not occur adds 0.
    """
    affinity = affinity.float()
    together, apart = targets == 1, targets == 0
    first = torch.where(together, 1 - affinity, 0).sum() / (together.sum() + 1)
    second = torch.where(apart, affinity, 0).sum() / (apart.sum() + 1)
    return (first + second) / 2
