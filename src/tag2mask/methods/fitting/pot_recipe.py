"""What decides POT's fit, nothing left open, and how it reads an earlier run's maps. Loads no Lightning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tag2mask.methods.fitting.affinity import PriorMaps
from tag2mask.ops.pot import Prototypes
from tag2mask.run.folder import Run
from tag2mask.types import Scores, UserError


@dataclass(frozen=True)
class POTRecipe:
    """The options of POT as they took effect; see ``methods.pot_options.POTOptions``.

    released: the variant. earlier: whether an earlier run's maps are at hand.
    """

    released: bool
    earlier: bool
    prototypes: Prototypes
    consistency: Literal["classifier", "fused"]
    consistency_weight: float
    adaptive: bool
    absent: bool
    class_weight: float
    epochs: float
    batch: int
    lr: float
    decay_as_momentum: bool
    size: int
    long_side: tuple[int, int] | None
    mirror: float


def maps_of(earlier: Run) -> PriorMaps:
    """The earlier maps as they are: POT's thresholds are of CLIP-ES's own."""
    return PriorMaps.of(earlier, threshold=None)


def finite_maps(
    maps: PriorMaps, scores: Scores, tags: Tensor, size: tuple[int, int], within: tuple[int, int], called: str = "it"
) -> Tensor:
    """The earlier maps of an image's tags, (K, H, W) at the size ``within``.

    Raises:
        UserError: they are of an image of another size than ``size``, lack a tag, or are not finite.
    """
    found = maps.of_image(scores, tags, size, within, called)
    if not torch.isfinite(found).all():
        raise UserError(f"the earlier run's maps of {called} are not finite; label it again there")
    return found
