"""What every image tower offers, whatever its make: patches in, tokens out, block by block.

A tower is any module that has what ``Tower`` names: CLIP's transformer and ResNet do, and so can DINO's or a
transformer with one class token for each class. ``walk`` runs any of them; methods ask the tower and need not know
which one it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Positions:
    """How the learned grid of position embeddings is brought to an image's grid. Rows of class tokens are untouched.

    mode: "bilinear" (CLIP-ES, WeakCLIP) or "bicubic" (transformers, DINOv2); half-pixel centres.
    round_fp16: round the result to float16, as CLIP-ES's and WeCLIP's released codes do on every device.
    via: go through this grid first (WeakCLIP: 32x32, then the image's).
    class_twice: CLIP's class embedding is added once more to the row of its token (WeakCLIP's released code).
    antialias: smooth where the grid becomes coarser (DINOv2 with registers).
    offset: sample as if the new sides were so much longer (MCTformer, and DINOv2's own code without registers: 0.1),
        which shifts cells by up to that much.
    """

    mode: Literal["bilinear", "bicubic"] = "bilinear"
    round_fp16: bool = False
    via: tuple[int, int] | None = None
    class_twice: bool = False
    antialias: bool = False
    offset: float = 0.0


BILINEAR = Positions()


def resample_positions(table: Tensor, native: tuple[int, int], grid: tuple[int, int], how: Positions) -> Tensor:
    """Bring a learned table of a ``native`` grid (h0, w0) to ``grid``: (S + h0 w0, D) -> (S + h w, D).

    The first S rows are those of class tokens: one in CLIP.
    """
    special = len(table) - native[0] * native[1]
    here, patches = native, table[special:]
    for step in (how.via, grid):
        if step is not None and step != here:
            square = patches.T.reshape(1, -1, *here)  # (1, D, h0, w0)
            square = _resample(square.float(), step, how)
            patches = square[0].flatten(1).T.to(table.dtype)  # (h w, D)
            here = step
    table = torch.cat([table[:special], patches])
    return table.half().to(table.dtype) if how.round_fp16 else table


def _resample(square: Tensor, size: tuple[int, int], how: Positions) -> Tensor:
    """(1, D, h0, w0) -> (1, D, h, w)."""
    if not how.offset:
        return F.interpolate(square, size=size, mode=how.mode, align_corners=False, antialias=how.antialias)
    factors = [(new + how.offset) / old for new, old in zip(size, square.shape[2:], strict=True)]
    return F.interpolate(square, scale_factor=factors, mode=how.mode, align_corners=False, antialias=how.antialias)


@dataclass(frozen=True)
class Mean:
    """Ask for the mean of the head-mean attentions of the last ``layers`` layers, kept in one buffer."""

    layers: int


@dataclass(frozen=True)
class Each:
    """Ask for the head-mean attention of each of the last ``layers`` layers."""

    layers: int


@dataclass(frozen=True)
class VisionOutput:
    """What the vision tower saw.

    tokens: (B, T, D), without the final norm: the N = h * w patches of the grid come last, row-major, and before them
    what is no patch (CLIP: one class token). taps: {i: (B, T, D)}, the tokens after block i, counted from 0.
    attention: (B, T, T) for Mean, (B, layers, T, T) for Each, float32; where the last block was left out, Mean lacks
    its share (divide it by ``layers`` and add it) and Each its entry. grid: (h, w).
    """

    tokens: Tensor
    grid: tuple[int, int]
    taps: dict[int, Tensor] = field(default_factory=dict)
    attention: Tensor | None = None


class TowerBlock(Protocol):
    """One block of a tower. It brings what comes in to its own precision."""

    def __call__(self, x: Tensor, *, need_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) -> (B, T, D) and, where asked for, the head-mean attention (B, T, T), float32."""
        ...


class Tower(Protocol):
    """An image tower: a module that offers this.

    Pixels come standardised; their statistics are the caller's (``ops.image.standardise``), never the model's.
    """

    @property
    def patch(self) -> int:
        """Pixels on a side of one cell of the grid; images must be multiples of it."""
        ...

    @property
    def native_grid(self) -> tuple[int, int]:
        """The grid (h, w) that the positions were learned on."""
        ...

    @property
    def blocks(self) -> Sequence[TowerBlock]:
        """Where tokens attend to each other, first to last; a convolutional tower has none."""
        ...

    @property
    def trunk(self) -> Sequence[nn.Module]:
        """What may be computed in a lower precision: all that comes before the last block."""
        ...

    def positions(self, grid: tuple[int, int], how: Positions) -> Tensor:
        """Position embeddings for a grid (h, w), a row for each token: (T, D)."""
        ...

    def embed(self, pixels: Tensor, positions: Positions) -> tuple[Tensor, tuple[int, int]]:
        """(B, 3, H, W) standardised -> tokens (B, T, D) entering the first block, patches last, and their grid.

        Raises:
            ValueError: where H or W is no multiple of the patch.
        """
        ...

    def __call__(
        self,
        pixels: Tensor,
        *,
        taps: Sequence[int] = (),
        attention: Mean | Each | None = None,
        stop_before_last: bool = False,
        positions: Positions = BILINEAR,
    ) -> VisionOutput:
        """Run the tower: ``walk``."""
        ...


def walk(
    tower: Tower,
    pixels: Tensor,
    *,
    taps: Sequence[int] = (),
    attention: Mean | Each | None = None,
    stop_before_last: bool = False,
    positions: Positions = BILINEAR,
) -> VisionOutput:
    """Run a tower over (B, 3, H, W): what it embeds, then its blocks; see VisionOutput for what comes back.

    Raises:
        ValueError: blocks were asked for that the tower does not have or that were not run.
    """
    x, grid = tower.embed(pixels, positions)
    total = len(tower.blocks)
    first = first_asked(attention, total)
    kept: dict[int, Tensor] = {}
    mean: Tensor | None = None
    each: list[Tensor] = []
    for i, block in enumerate(tower.blocks[: total - 1] if stop_before_last else tower.blocks):
        x, weights = block(x, need_weights=i >= first)
        if weights is not None and isinstance(attention, Mean):
            share = 1 / attention.layers
            mean = weights * share if mean is None else mean.add_(weights, alpha=share)
        elif weights is not None:
            each.append(weights)
        if i in taps:
            kept[i] = x
    if len(kept) < len(set(taps)):
        raise ValueError(f"taps {sorted(set(taps))} were asked for, only {sorted(kept)} were run")
    if attention is not None and mean is None and not each:
        # only the last block's attention was asked for, and it was left out
        return VisionOutput(x, grid, kept, None)
    return VisionOutput(x, grid, kept, torch.stack(each, 1) if each else mean)


def first_asked(attention: Mean | Each | None, total: int) -> int:
    """The first of ``total`` blocks whose attention is asked for; ``total`` where none is.

    Raises:
        ValueError: more layers than there are.
    """
    if attention is None:
        return total
    if not 1 <= attention.layers <= total:
        raise ValueError(f"attention of the last {attention.layers} layers was asked for; this tower has {total}")
    return total - attention.layers


def patch_tokens(conv: nn.Conv2d, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The patches of pictures by a convolution that steps from patch to patch: tokens (B, N, D), row-major, and grid.

    Args:
        conv: of equal kernel and stride, the patch.
        pixels: (B, 3, H, W) standardised.

    Raises:
        ValueError: ``pixels`` have another shape, or sides that are no multiples of the patch.
    """
    patch = conv.stride[0]
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % patch or pixels.shape[3] % patch:
        raise ValueError(
            f"pixels are {tuple(pixels.shape)}, expected (B, 3, H, W) with H and W multiples of the patch, "
            f"{patch}; resize the image first"
        )
    x = conv(pixels.to(conv.weight.dtype))  # (B, D, h, w)
    return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])
