"""Segmentation networks as small as they come."""

from __future__ import annotations

from typing import Any

from tag2mask.segment.network import SegmentationNet, build_network
from tag2mask.segment.saved import NetworkConfig
from tag2mask.types import ClassSet

TOYS = ClassSet("toys", ("background", "cat", "dog"), ((0, 0, 0), (200, 30, 30), (30, 160, 30)))
TINY: dict[str, dict[str, Any]] = {
    "small": {"width": 4, "blocks": (1, 1, 1, 1), "channels": 6},
    "deeplabv2-resnet101": {"width": 4, "blocks": (1, 1, 1, 1), "frozen_norm": False},
    "deeplabv1-resnet38": {"width": 2, "frozen_norm": False},
}


def tiny(name: str = "small", seed: int = 0, **options: Any) -> SegmentationNet:
    return build_network(NetworkConfig.of(name, TOYS, **{**TINY.get(name, {}), **options}), seed=seed)
