"""What MCTformer and MCTformer+ compute of tokens and maps: fusion, spreading, pooling, the contrast of classes.

Shapes: B images, C classes, D channels, N = h w patches.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

MapKind = Literal["class-to-patch", "patchcam", "fused"]
"""The attention from class tokens to patches; PatchCAM, the classifier of patches; both multiplied."""

DECAY = 0.996
"""Of MCTformer+'s pooling: each patch weighs so much of the next better one."""


def seed_maps(kind: MapKind, attention: Tensor, patch_maps: Tensor | None, *, root: bool = False) -> Tensor:
    """The maps of classes, 0 or more, of one kind.

    Args:
        kind: which.
        attention: (B, C, h, w), from class tokens to patches.
        patch_maps: (B, C, h, w), PatchCAM before ReLU; needed by all kinds but "class-to-patch".
        root: take the square root of the product (MCTformer+).

    Raises:
        ValueError: no PatchCAM where one is needed.
    """
    if kind == "class-to-patch":
        return attention
    if patch_maps is None:
        raise ValueError(f"maps of kind {kind!r} need PatchCAM, which V1 does not have")
    positive = F.relu(patch_maps)
    if kind == "patchcam":
        return positive
    fused = attention * positive
    return fused.sqrt() if root else fused


def spread(affinity: Tensor, maps: Tensor) -> Tensor:
    """Each patch gets the maps of the patches that it attends to: (B, N, N) with (B, K, h, w) -> (B, K, h, w).

    affinity: a row for each patch that attends; rows need no sum of 1.
    """
    return (maps.flatten(2) @ affinity.transpose(1, 2)).unflatten(2, maps.shape[2:])


def pool_ranked(maps: Tensor, decay: float = DECAY) -> Tensor:
    """MCTformer+'s logits: (B, C, h, w) -> (B, C), a mean in which the n-th best patch weighs ``decay`` ** n."""
    ranked = maps.flatten(2).sort(-1, descending=True).values  # (B, C, N)
    weights = decay ** torch.arange(ranked.shape[2], device=maps.device, dtype=maps.dtype)  # (N,)
    return (ranked * weights).sum(-1) / weights.sum()


def contrast_classes(tokens: Tensor, tags: Tensor) -> Tensor:
    """MCTformer+'s loss that keeps class tokens apart, of each image: (B,).

    The cosines of a class's token with all class tokens are logits, and its own is the right one. The mean is over
    the layers and over the classes in the image; without any it is 0.

    Args:
        tokens: (layers, B, C, D), the class tokens after each block.
        tags: (B, C), 0 or 1.
    """
    units = F.normalize(tokens, dim=-1)
    cosines = units @ units.transpose(2, 3)  # (layers, B, C, C)
    own = -cosines.log_softmax(-1).diagonal(dim1=2, dim2=3)  # (layers, B, C)
    return (own * tags).sum(-1).mean(0) / tags.sum(-1).clamp_min(1)
