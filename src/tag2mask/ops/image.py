"""Images as tensors: resizing as the papers do it, and pixel statistics."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def resize_bicubic(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (3, H, W) uint8 to ``size`` (h, w) with Pillow's antialiased bicubic filter.

    Pillow works on rounded 8-bit values between its two passes; torch's own filter does not, and the released
    code of every method here uses Pillow.
    """
    if tuple(image.shape[1:]) == tuple(size):
        return image
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    resized = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)  # (3, h, w)


def shrink_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, 3, H, W) uint8 to a smaller ``size`` (h, w): bilinear, antialiased, rounded."""
    small = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, of red, green and blue in 0..1."""


def standardise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(B, 3, H, W) uint8 -> float32 with the given mean and standard deviation of values in [0, 1]."""
    centre = torch.tensor(mean, device=images.device).view(1, 3, 1, 1)
    spread = torch.tensor(std, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - centre) / spread


def working_size(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """``size``, or its largest shrunk form of at most ``max_pixels``."""
    shrink = math.sqrt(max_pixels / (size[0] * size[1]))
    return size if shrink >= 1 else (max(1, int(size[0] * shrink)), max(1, int(size[1] * shrink)))
