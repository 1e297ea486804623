"""What makes a mask follow the edges of its picture, by name: the dense CRF with a paper's settings, and others.

``MaskRule.refiner`` names one. A refiner is a function of the picture and of scores, and a line in ``REFINERS``;
docs/add-a-refiner.md shows it. Hard labels are scores, too: 0.7 where a label is, the rest shared by the others
(``ops.masks.refine``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from tag2mask.ops.crf import CRF, PRESETS, dense_crf, engine, unary_from_probs
from tag2mask.ops.image import MEAN, STD, standardise
from tag2mask.ops.par import par
from tag2mask.words import named

Refiner = Callable[[Tensor, Tensor], Tensor]
"""(picture (3, H, W) uint8 RGB, scores (C, H, W) in [0, 1], background first) -> posteriors (C, H, W) float32.

Scores need not sum to 1 over C; posteriors do. Both tensors are on one device, and neither is changed.
"""


def _dense_crf(crf: CRF, image: Tensor, scores: Tensor) -> Tensor:
    return dense_crf(image, unary_from_probs(scores), crf)


def _par(image: Tensor, scores: Tensor) -> Tensor:
    refined = par(standardise(image[None], MEAN, STD), scores[None])[0]  # as WeCLIP does
    total = refined.sum(0)
    return torch.where(total > 0, refined / total.clamp_min(torch.finfo(total.dtype).tiny), 1 / len(refined))


REFINERS: Mapping[str, Refiner] = MappingProxyType(
    {
        **{name: partial(_dense_crf, crf) for name, crf in PRESETS.items()},
        "par": _par,
    }
)
"""All refiners of masks."""


def find_refiner(name: str) -> Refiner:
    """The refiner called ``name`` in ``REFINERS``.

    Raises:
        UserError: if there is none, with the known names and the nearest.
    """
    return named(REFINERS, name, "refiner of masks")


def crf_engine(name: str | None, device: torch.device | str) -> str | None:
    """Which of the CRF's engines (``ops.crf.engine``) a refiner uses there; None: it is no dense CRF."""
    return engine(device) if name in PRESETS else None
