"""Photometric distortion as mmsegmentation does it for WeakCLIP: each move by a coin, in 8-bit steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distort:
    """Each of four moves is made with probability 1/2, and grey levels are cut to whole ones after it.

    brightness: the farthest sum, in grey levels. contrast, saturation: the factor is within [1 - value, 1 + value].
    hue: the farthest turn, in steps of 2 degrees. Contrast comes before or after saturation and hue by another coin.
    """

    brightness: float = 32
    contrast: float = 0.5
    saturation: float = 0.5
    hue: int = 18


def distort(image: Tensor, how: Distort, coins: Sequence[float], amounts: Sequence[float]) -> Tensor:
    """Distort a picture.

    Args:
        image: (3, H, W) float32, RGB, 0-255.
        how: how far.
        coins: five numbers in [0, 1): below 1/2, the move is made (brightness, contrast, saturation, hue); the last,
            contrast comes first.
        amounts: four numbers in [0, 1): how far, from down to up.

    Returns:
        (3, H, W) float32, whole grey levels.
    """
    made = [coin < 0.5 for coin in coins]

    def brighter(x: Tensor) -> Tensor:
        return x + how.brightness * (2 * amounts[0] - 1)

    def contrast(x: Tensor) -> Tensor:
        return x * (1 + how.contrast * (2 * amounts[1] - 1))

    def saturate(x: Tensor) -> Tensor:
        # as in HSV: the largest stays, and the others keep their share of the distance to it
        top, low = x.amax(0), x.amin(0)  # (H, W)
        most = torch.where(top > low, top / (top - low).clamp_min(1e-6), 1)  # where the lowest would be 0
        factor = torch.minimum(torch.full_like(top, 1 + how.saturation * (2 * amounts[2] - 1)), most)
        return top - (top - x) * factor

    def turn(x: Tensor) -> Tensor:
        return shift_hue(x, int(how.hue * (2 * amounts[3] - 1) // 1) / 180)

    moves = [(made[0], brighter), (made[2], saturate), (made[3], turn)]
    moves.insert(1 if made[4] else 3, (made[1], contrast))
    image = image.round().clamp(0, 255)
    for wanted, move in moves:
        if wanted:
            image = move(image).clamp(0, 255).floor()
    return image


def shift_hue(image: Tensor, turns: float) -> Tensor:
    """Turn the hue of every pixel, its HSV value and saturation kept.

    Args:
        image: (3, H, W) float32, RGB, 0-255.
        turns: 1 is once around.

    Returns:
        (3, H, W) float32.
    """
    high, low = image.amax(0), image.amin(0)  # (H, W)
    spread = high - low
    safe = torch.where(spread > 0, spread, 1)
    r, g, b = image
    hue = torch.where(high == r, (g - b) / safe, torch.where(high == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    hue = hue + 6 * turns  # (H, W) in sixths of a turn
    # each colour falls from the value where its own hue is to the lowest, two sixths away from it
    steps = torch.tensor([5.0, 3.0, 1.0])[:, None, None] + hue  # (3, H, W)
    away = steps.remainder(6)
    return high - spread * torch.minimum(away, 4 - away).clamp(0, 1)
