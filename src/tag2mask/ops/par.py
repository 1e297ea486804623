"""PAR, pixel-adaptive refinement (Ru et al. 2022, "Learning Affinity from Attention"), as WeCLIP uses it.

Every pixel takes, again and again, a weighted mean of its neighbours' scores; the weights follow from how like their
colours are, next to how much colours vary around that pixel. A whole batch is refined at once. WeCLIP shows it the
standardised picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PAR", "PARSettings", "par"]

_EIGHT = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)
_EPS = 1e-8


@dataclass(frozen=True)
class PARSettings:
    """The neighbours and how they count; the defaults are the released code's.

    dilations: distances in pixels; each has its eight neighbours. iterations: means taken one after the other.
    colour: a difference of so many standard deviations counts as one. place: weight of the softmax over distances
    that is added, so that a step multiplies the sum of a map by 1 + ``place``; neither is scaled back.
    """

    dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24)
    iterations: int = 20
    colour: float = 0.3
    place: float = 0.01


PAR = PARSettings()


@torch.no_grad()
def par(images: Tensor, maps: Tensor, settings: PARSettings = PAR) -> Tensor:
    """Refine score maps along the colours of their pictures; beyond a border, its pixels are repeated.

    Args:
        images: (B, 3, H, W), standardised.
        maps: (B, K, H, W), at the size of the images. Maps of an image do not touch each other: where images have
            fewer than K, any numbers may fill the rest. Means keep the sign: a map that is below 0 everywhere stays
            below one that is nowhere.
        settings: see there.

    Returns:
        (B, K, H, W) float32. Maps grow: they are to be compared, not read.

    Raises:
        ValueError: shapes that do not fit.
    """
    if images.ndim != 4 or maps.ndim != 4 or images.shape[::2] != maps.shape[::2] or images.shape[3] != maps.shape[3]:
        raise ValueError(
            f"images are {tuple(images.shape)} and maps {tuple(maps.shape)}, expected (B, 3, H, W) and (B, K, H, W)"
        )
    images, maps = images.float(), maps.float()
    if images.device.type == "cpu" and len(images) > 1:  # one image's maps stay in a processor's cache
        return torch.cat([_refined(*one, settings) for one in zip(images.split(1), maps.split(1), strict=True)])
    return _refined(images, maps, settings)


def _refined(images: Tensor, maps: Tensor, settings: PARSettings) -> Tensor:
    weights = _weights(images, settings)  # (B, n, H, W)
    for _ in range(settings.iterations):
        total = torch.zeros_like(maps)
        for i, neighbour in enumerate(_neighbours(maps, settings.dilations)):
            total.addcmul_(neighbour, weights[:, i : i + 1])
        maps = total
    return maps


def _neighbours(x: Tensor, dilations: tuple[int, ...]) -> Iterator[Tensor]:
    """(B, C, H, W) as each of its neighbours sees it, one after the other."""
    height, width = x.shape[2:]
    far = max(dilations)
    wide = F.pad(x, (far, far, far, far), mode="replicate")
    for dilation in dilations:
        for dy, dx in _EIGHT:
            top, left = far + dy * dilation, far + dx * dilation
            yield wide[..., top : top + height, left : left + width]


def _weights(images: Tensor, settings: PARSettings) -> Tensor:
    """How much each of the n neighbours counts: (B, n, H, W), summing to 1 + place over n."""
    count = 8 * len(settings.dilations)
    mean = torch.zeros_like(images)
    for neighbour in _neighbours(images, settings.dilations):
        mean += neighbour
    mean /= count
    square = torch.zeros_like(images)
    for neighbour in _neighbours(images, settings.dilations):
        square += (neighbour - mean) ** 2  # in two passes: the variance of a flat place is not lost in rounding
    spread = ((square / (count - 1)).sqrt() + _EPS) * settings.colour  # (B, 3, H, W)
    likeness = torch.stack(
        [-(((near - images) / spread) ** 2).mean(1) for near in _neighbours(images, settings.dilations)], 1
    )  # (B, n, H, W)
    return likeness.softmax(1) + settings.place * _by_place(settings).to(images)[:, None, None]


def _by_place(settings: PARSettings) -> Tensor:
    """The share of each neighbour by its distance alone: (n,), summing to 1."""
    away = torch.tensor([d * (dy * dy + dx * dx) ** 0.5 for d in settings.dilations for dy, dx in _EIGHT])
    return (-((away / (away.std() + _EPS) / settings.colour) ** 2)).softmax(0)
