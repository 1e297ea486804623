"""What decides POT's fit, nothing left open, and how it reads an earlier run's maps. Loads no Lightning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tag2mask.methods.fitting.affinity import PriorMaps
from tag2mask.ops.pot import Prototypes
from tag2mask.run.folder import Run


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
