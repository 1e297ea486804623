"""Test time: one picture through a network at several scales, mirrored, whole or by windows; huge pictures by tiles.

A network here is any callable from pictures (B, 3, h, w) float32, RGB, 0-255 to logits (B, K, h', w'), in eval mode;
it standardises by itself. Every picture is treated alone and never padded to the size of another one, so its result
does not depend on which pictures are in the same run or how many go through the network at once.

What the papers do is in ``PRESETS``: DeepLabV2's three scales with a maximum are part of the network
(``models.deeplab.MultiScale``), so ``TestTime()`` suffices. SEAM and CCT average logits, enlarged with align_corners;
MCTformer takes the maximum of probabilities; WeakCLIP averages probabilities over 12 views with windows of 512 at a
stride of 341.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.ops.image import shrink_images
from tag2mask.types import MAX_CLASSES, UserError
from tag2mask.words import named

Network = Callable[[Tensor], Tensor]
Refine = Callable[[Tensor, Tensor], Tensor]

_GRID = 32  # tiles begin at multiples of it, so that the cells of a network fall where they fall in the whole picture


@dataclass(frozen=True)
class TestTime:
    """How a picture is shown to a network.

    scales: of the picture. flip: each one mirrored too.
    fuse: the mean of "logits", the mean of "probs", or their largest "max", normalised again.
    window, stride: side and step of the windows that a view larger than a window is cut into, in pixels; their
        logits are enlarged to pixels and averaged where they overlap. A smaller view is one window. None: views go in
        whole.
    multiple: views are padded by reflection to a multiple of so many pixels (CCT: 8).
    longest: a picture with a longer side is shrunk to it first, and its result enlarged.
    tile, margin: a picture with a longer side is cut into tiles of this side, each seen with so many pixels around
        it; the memory needed depends on them and not on the picture. Their sum should be a multiple of the network's
        stride: the cells of a tile are stretched over its pixels.
    batch: windows and mirrored views in the network at once.
    align_input, align_output: align_corners when the picture is scaled, and when logits are enlarged.
    fit: (longest, shortest) side in pixels: the view of scale 1 is as large as fits both, keeping its proportions;
        None: the picture as it is.
    first_grid: logits of further views are brought to the grid of the first one's before they are enlarged (WeCLIP).
    """

    __test__ = False  # pytest takes it for a test by its name

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fuse: Literal["logits", "probs", "max"] = "probs"
    window: int | None = None
    stride: int | None = None
    multiple: int = 1
    longest: int | None = None
    tile: int = 2048
    margin: int = 256
    batch: int = 1
    align_input: bool = False
    align_output: bool = False
    fit: tuple[int, int] | None = None
    first_grid: bool = False

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):  # NaN is no scale either
            raise UserError(f"test time: got scales={self.scales}, expected one or more above 0; change it")
        low = {"tile": self.tile, "batch": self.batch, "multiple": self.multiple, "margin": self.margin + 1}
        low |= {"window": self.window or 1, "longest": self.longest or 1, "fit": min(self.fit or (1,))}
        if min(low.values()) < 1:
            raise UserError(f"test time: got {min(low, key=lambda n: low[n])} below its least value; make it larger")
        if self.stride is not None and not 1 <= self.stride <= (self.window or 0):
            raise UserError(
                f"test time: got stride={self.stride} and window={self.window}, expected 1 <= stride <= window: "
                "pixels between windows would have no result; make the stride smaller"
            )


@dataclass(frozen=True)
class Preset:
    """How a paper's released code tests: the views, and the name of its refiner in ``ops.refiners``, or None."""

    test: TestTime
    refiner: str | None = None

    @classmethod
    def from_plain(cls, kept: Mapping[str, Any]) -> Preset:
        """From what ``run.settings.plain`` made of it. Raises KeyError, TypeError or UserError for anything else."""
        test: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in kept["test"].items()
        }
        return cls(TestTime(**test), kept["refiner"])


_FIVE = (0.5, 0.75, 1.0, 1.25, 1.5)
_SEAM = TestTime((*_FIVE, 1.75), flip=True, fuse="logits", align_input=True, align_output=True)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "plain": Preset(TestTime()),  # one view, no CRF
        "deeplabv2": Preset(TestTime(), "deeplab"),  # deeplab-pytorch; CLIMS, CLIP-ES: the network has the scales
        "cct": Preset(TestTime(_FIVE, flip=True, fuse="logits", multiple=8, align_output=True)),
        "mctformer": Preset(TestTime(_FIVE, fuse="max", align_input=True), "mctformer-retrain"),
        "seam": Preset(_SEAM, "seam-retrain"),
        "weakclip": Preset(  # the network that makes WeakCLIP's masks
            TestTime((*_FIVE, 1.75), flip=True, fit=(2048, 512), window=512, stride=341), "weakclip"
        ),
        "weclip": Preset(  # WeCLIP's own network, on VOC
            TestTime((1.0, 0.75), flip=True, fuse="logits", fit=(512, 512), first_grid=True), "weclip"
        ),
        "cd-clip": Preset(  # CD-CLIP's, as WeCLIP+ does it
            TestTime((1.0, 1.5), flip=True, fuse="logits", fit=(512, 512), first_grid=True), "cd-clip"
        ),
        "weakclip-retrain": Preset(replace(_SEAM, scales=_FIVE), "weakclip-retrain"),  # the one trained on them
    }
)
"""Test time by the name of the system whose released code does it."""


def find_preset(name: str) -> Preset:
    """The settings called ``name`` in ``PRESETS``.

    Raises:
        UserError: if there are none, with the known names and the nearest.
    """
    return named(PRESETS, name, "test time")


def _fitted(settings: TestTime, size: tuple[int, int]) -> TestTime:
    """The same settings with ``fit`` turned into scales of a picture of ``size`` (H, W)."""
    if settings.fit is None:
        return settings
    longest, shortest = settings.fit
    factor = min(longest / max(size), shortest / min(size))
    return replace(settings, fit=None, scales=tuple(scale * factor for scale in settings.scales))


@torch.inference_mode()
def predict(network: Network, picture: Tensor, settings: TestTime) -> Tensor:
    """Class probabilities of one picture, in the memory of about three results.

    Args:
        network: see the module.
        picture: (3, H, W) RGB, 0-255, of any dtype, on the network's device.
        settings: ``longest`` and the tiles do not count here, see ``predict_labels``.

    Returns:
        (K, H, W) float32; sums to 1 over K.
    """
    size = (picture.shape[1], picture.shape[2])
    settings = _fitted(settings, size)
    total: Tensor | None = None
    grid: tuple[int, ...] | None = None
    for scale in settings.scales:
        for logits in _views(network, picture, scale, settings):  # (1, K, h, w)
            grid = grid or tuple(logits.shape[2:])
            if settings.first_grid and tuple(logits.shape[2:]) != grid:
                logits = F.interpolate(logits, grid, mode="bilinear", align_corners=settings.align_output)
            view = F.interpolate(logits, size, mode="bilinear", align_corners=settings.align_output)[0]  # (K, H, W)
            if settings.fuse != "logits":
                view = view.softmax(0)
            if total is None:
                total = view.clone() if view.data_ptr() == logits.data_ptr() else view
            elif settings.fuse == "max":
                torch.maximum(total, view, out=total)
            else:
                total += view
    if total is None:
        raise ValueError("no view was made")  # settings have at least one scale
    if settings.fuse == "logits":
        return total.div_(len(settings.scales) * (1 + settings.flip)).softmax(0)
    return total.div_(total.sum(0))


def _views(network: Network, picture: Tensor, scale: float, settings: TestTime) -> Iterator[Tensor]:
    """The logits (1, K, h, w) of a picture at one scale, and of its mirror image, turned back."""
    size = [max(round(side * scale), 1) for side in picture.shape[1:]]
    view = picture[None].float()
    if size != list(picture.shape[1:]):
        view = F.interpolate(view, size, mode="bilinear", align_corners=settings.align_input)
    views = torch.cat([view, view.flip(-1)]) if settings.flip else view  # (1 or 2, 3, h, w)
    height, width = size
    padding = [-side % settings.multiple for side in (height, width)]
    if any(padding):
        # reflection needs more pixels than it makes; small pictures repeat their border
        mode = "reflect" if padding[0] < height and padding[1] < width else "replicate"
        views = F.pad(views, (0, padding[1], 0, padding[0]), mode=mode)
    window = settings.window
    if window is None:
        logits = torch.cat([network(part).float() for part in views.split(settings.batch)])  # (1 or 2, K, h', w')
    else:
        logits = torch.cat([_windows(network, one, window, settings) for one in views.split(1)])
    if any(padding):
        grid = (views.shape[2], views.shape[3])
        logits = F.interpolate(logits, grid, mode="bilinear", align_corners=settings.align_output)
        logits = logits[..., :height, :width]
    yield logits[:1]
    if settings.flip:
        yield logits[1:].flip(-1)


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin: every ``stride`` pixels, the last one flush with the border."""
    if side <= window:
        return [0]
    return [*range(0, side - window, stride), side - window]


def _windows(network: Network, view: Tensor, window: int, settings: TestTime) -> Tensor:
    """Logits (1, K, h, w) of a view (1, 3, h, w): the mean of those of its windows, enlarged to pixels."""
    height, width = view.shape[2:]
    stride = settings.stride or window
    corners = list(product(_starts(height, window, stride), _starts(width, window, stride)))
    total: Tensor | None = None
    count = view.new_zeros(1, 1, height, width)
    for first in range(0, len(corners), settings.batch):
        some = corners[first : first + settings.batch]
        parts = torch.cat([view[..., y : y + window, x : x + window] for y, x in some])
        grid = (parts.shape[2], parts.shape[3])
        logits = F.interpolate(
            network(parts).float(), grid, mode="bilinear", align_corners=settings.align_output
        )  # (n, K, window, window)
        if total is None:
            total = view.new_zeros(1, logits.shape[1], height, width)
        for (y, x), one in zip(some, logits, strict=True):
            total[0, :, y : y + window, x : x + window] += one
            count[..., y : y + window, x : x + window] += 1
    if total is None:
        raise ValueError("no window was made")  # there is always one
    return total.div_(count)


@torch.inference_mode()
def predict_labels(
    network: Network, picture: Tensor, settings: TestTime, *, refine: Refine | None = None
) -> tuple[Tensor, Tensor]:
    """The mask of one picture of any size and how sure it is, in bounded memory.

    Args:
        network: see the module.
        picture: (3, H, W) uint8, RGB, on the network's device.
        settings: how it is shown.
        refine: from (picture (3, h, w) uint8, probabilities (K, h, w)) to better ones, a dense CRF for example;
            called once for each tile, or for the shrunk picture.

    Returns:
        labels (H, W) uint8, and the largest probability (H, W) float32, on the picture's device.

    Raises:
        UserError: if the network has more classes than a mask has values.
    """
    height, width = picture.shape[1:]
    if settings.longest is not None and max(height, width) > settings.longest:
        factor = settings.longest / max(height, width)
        size = (max(round(height * factor), 1), max(round(width * factor), 1))
        small = shrink_images(picture[None], size)[0]
        whole = replace(settings, longest=None, tile=max(size))
        return _enlarged_labels(_refined(network, small, whole, refine), (height, width))
    settings = _fitted(settings, (height, width))  # by the whole picture, not by each tile
    labels = torch.empty(height, width, dtype=torch.uint8, device=picture.device)
    confidence = torch.empty(height, width, device=picture.device)
    for (y0, y1, top, bottom), (x0, x1, left, right) in product(
        _tiles(height, settings.tile, settings.margin), _tiles(width, settings.tile, settings.margin)
    ):
        probs = _refined(network, picture[:, top:bottom, left:right], settings, refine)
        best, index = probs[:, y0 - top : y1 - top, x0 - left : x1 - left].max(0)  # (h, w) each
        labels[y0:y1, x0:x1] = index
        confidence[y0:y1, x0:x1] = best
    return labels, confidence


def _refined(network: Network, picture: Tensor, settings: TestTime, refine: Refine | None) -> Tensor:
    probs = predict(network, picture, settings)
    if len(probs) > MAX_CLASSES + 1:
        raise UserError(f"got a network of {len(probs)} classes, expected at most {MAX_CLASSES + 1}: masks are 8-bit")
    return probs if refine is None else refine(picture, probs)


def _tiles(side: int, tile: int, margin: int) -> list[tuple[int, int, int, int]]:
    """(begin, end, begin with margin, end with margin) of the tiles along a side."""
    if side <= tile:
        return [(0, side, 0, side)]
    starts = range(0, side, tile)
    return [
        (start, min(start + tile, side), max(start - margin, 0) // _GRID * _GRID, min(start + tile + margin, side))
        for start in starts
    ]


def _enlarged_labels(probs: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Labels and confidence of probabilities (K, h, w) enlarged to (H, W), a class at a time: K need not fit."""
    labels = torch.zeros(size, dtype=torch.uint8, device=probs.device)
    best = torch.full(size, -1.0, device=probs.device)
    for k, one in enumerate(probs):
        large = F.interpolate(one[None, None], size, mode="bilinear", align_corners=False)[0, 0]  # (H, W)
        labels.masked_fill_(large > best, k)
        torch.maximum(best, large, out=best)
    return labels, best
