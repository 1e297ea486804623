"""CD-CLIP's class distributions: how alike two patches are, judged by all texts at once (its CDA).

Each patch gets a distribution over the texts of classes and super-classes; patches whose distributions are close by
Jensen-Shannon divergence belong together. What is published gives the formulas (S_a = min-max of cosines, softmax,
S_d = (1 - D) / tau, softmax of S_d, product with the initial affinity) but neither tau, nor over what the min-max
goes, nor whether the product is one of entries or of matrices. These are options here. The defaults are ours:

- min-max per text over the patches, as class maps are scaled; it takes away that some texts fit everything.
- entries are multiplied, before the normaliser: "suppress other classes" then means what it says, and the factor
  exp(-D / tau) is symmetric, as the supplement asks of the affinity. Read literally (rows of a softmax, a product of
  matrices, tau 0.1) the formula blurs maps: distributions over 25 texts of values in [0, 1] are nearly uniform, and
  D is a few thousandths of a nat.
- tau follows the image: a quarter of the median of D over all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tag2mask.ops.divergences import CONTROLS, distances

__all__ = ["ClassDistributions", "class_shares", "distribution_factor"]


@dataclass(frozen=True)
class ClassDistributions:
    """How class distributions rectify an affinity.

    distance: a name in ``divergences.DISTANCES``; the controls "cos" and "l2" compare the patch features themselves.
    scale: over what cosines are brought to [0, 1]: each "text" over the patches, each "patch" over the texts, "all".
    temperature: of the softmax over the texts.
    tau, tau_of: D is divided by ``tau`` times the "median" of D over the image's pairs, or by ``tau`` ("one").
    combine: "mul": exp(-D / tau) times the affinity, entry by entry; "mul-rows": softmax rows times it; "matmul":
        softmax rows @ affinity; "replace": softmax rows in its place.
    """

    distance: str = "js"
    scale: Literal["text", "patch", "all"] = "text"
    temperature: float = 1.0
    tau: float = 0.25
    tau_of: Literal["median", "one"] = "median"
    combine: Literal["mul", "mul-rows", "matmul", "replace"] = "mul"


def class_shares(features: Tensor, texts: Tensor, settings: ClassDistributions) -> Tensor:
    """The distribution of each patch over the texts.

    Args:
        features: (..., N, E) unit rows, of patches.
        texts: (T, E) unit rows.
        settings: ``scale`` and ``temperature``.

    Returns:
        (..., N, T) float32, rows sum to 1.
    """
    cosines = features.float() @ texts.float().T  # (..., N, T)
    dims = {"text": (-2,), "patch": (-1,), "all": (-2, -1)}[settings.scale]
    low, high = cosines.amin(dims, keepdim=True), cosines.amax(dims, keepdim=True)
    scaled = (cosines - low) / (high - low).clamp_min(1e-12)
    return (scaled / settings.temperature).softmax(-1)


def distribution_factor(features: Tensor, texts: Tensor, settings: ClassDistributions) -> Tensor:
    """What multiplies, or replaces, an affinity: (..., N, N) float32.

    Args:
        features: (N, E) or (B, N, E) unit rows, of patches.
        texts: (T, E) unit rows, of classes and super-classes.
        settings: all of them.
    """
    with torch.no_grad():
        control = settings.distance in CONTROLS
        rows = features if control else class_shares(features, texts, settings)
        apart = distances(settings.distance, rows, texts)  # (..., N, N)
        scaled = apart / _tau(apart, settings)
        if settings.combine == "mul":
            return torch.exp(-scaled)
        return (-scaled).softmax(-1)  # the 1 of (1 - D) / tau is the same in a whole row, and drops out


def _tau(apart: Tensor, settings: ClassDistributions) -> Tensor:
    """(..., 1, 1), above 0. Of an image whose patches are all alike any tau will do."""
    if settings.tau_of == "one":
        return apart.new_full((1, 1), settings.tau)
    count = apart.shape[-1]
    outside = ~torch.eye(count, dtype=torch.bool, device=apart.device)
    pairs = apart[..., outside]  # (..., N (N - 1))
    if not pairs.shape[-1]:
        return apart.new_full((1, 1), settings.tau)
    # of an even count, the mean of the two in the middle
    middle = (pairs.sort(-1).values[..., [(pairs.shape[-1] - 1) // 2, pairs.shape[-1] // 2]]).mean(-1)
    return (settings.tau * middle).clamp_min(1e-12)[..., None, None]
