"""Boxes around the connected regions of a class activation map (CLIP-ES, section 3.3)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_EIGHT = np.ones((3, 3), dtype=bool)  # diagonal neighbours are connected, as contours see it


def region_boxes(cam: Tensor, threshold: float) -> list[tuple[int, int, int, int]]:
    """Boxes (x0, y0, x1, y1), ends exclusive, of the regions of one map (h, w) in [0, 1].

    A cell belongs to a region where trunc(255 m) > int(threshold * max trunc(255 m)): the 8-bit steps are the
    released code's and decide a few cells.
    """
    from scipy import ndimage  # a seventh of a second that only boxes cost

    levels = (cam.detach().cpu().numpy() * 255).astype(np.uint8)  # (h, w)
    regions, _ = ndimage.label(levels > int(threshold * levels.max()), structure=_EIGHT)
    slices = ndimage.find_objects(regions)
    return [(x.start, y.start, x.stop, y.stop) for y, x in slices]


def box_masks(cams: Tensor, threshold: float, *, keep_edges: bool = True) -> Tensor:
    """The union of each map's boxes: (K, h, w) in [0, 1] -> (K, h, w) float32 of 0 and 1.

    keep_edges: False loses the last row and column of the grid, a fault of the released code.
    """
    masks = torch.zeros_like(cams, device="cpu")
    h, w = cams.shape[-2:]
    for mask, cam in zip(masks, cams, strict=True):
        for x0, y0, x1, y1 in region_boxes(cam, threshold):
            if not keep_edges:
                x1, y1 = min(x1, w - 1), min(y1, h - 1)
            mask[y0:y1, x0:x1] = 1
    return masks.to(cams.device)
