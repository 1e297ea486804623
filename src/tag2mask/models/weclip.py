"""WeCLIP's network: a light decoder over the frozen blocks of a CLIP (Zhang et al., CVPR 2024).

The patch tokens after every block but the last are brought to one width and fused; three transformer blocks and a 1x1
convolution make logits of them. Modules of the decoder carry the names of the released code. CD-CLIP uses the same
decoder. WeCLIP+ takes CLIP's last of these tokens alone, puts a second fuse layer beside, over a
DINO's, and shares the rest: its logits are the mean of both, its affinity is made of both together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.clip import VisionTransformer
from tag2mask.models.tower import BILINEAR, Each, Positions
from tag2mask.models.transformer import Block
from tag2mask.models.vjp import LastBlock, channel_weights, read_out, run_last_block
from tag2mask.ops.cam import gradcam, score_cotangents


class _Linear(nn.Module):
    """Two linear layers with ReLU in between, on tokens."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, width)
        self.proj_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, E)."""
        return self.proj_2(F.relu(self.proj(x)))


class Fuse(nn.Module):
    """Tokens of several blocks, each brought to one width, as one feature map."""

    def __init__(self, inputs: int, blocks: int, width: int, dropout: float) -> None:
        super().__init__()
        self.linears_modulelist = nn.ModuleList(_Linear(inputs, width) for _ in range(blocks))
        self.linear_fuse = nn.Conv2d(blocks * width, width, 1)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Patch tokens (B, N, D) of each block -> (B, E, h, w)."""
        parts = [
            linear(each.float()).transpose(1, 2).unflatten(2, grid)
            for linear, each in zip(self.linears_modulelist, tokens, strict=True)
        ]
        return self.dropout(self.linear_fuse(torch.cat(parts, 1)))


class _Transformer(nn.Module):
    def __init__(self, width: int, blocks: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, "quick_gelu") for _ in range(blocks))


class Decoder(nn.Module):
    """Transformer blocks without positions over a feature map, then a 1x1 convolution to the classes."""

    def __init__(self, width: int, blocks: int, heads: int, classes: int) -> None:
        super().__init__()
        self.transformer = _Transformer(width, blocks, heads)
        self.linear_pred = nn.Conv2d(width, classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, E, h, w) -> logits (B, K, h, w)."""
        x = features.flatten(2).transpose(1, 2)  # (B, N, E)
        for block in self.transformer.resblocks:
            x, _ = block(x)
        logits: Tensor = self.linear_pred(x.transpose(1, 2).reshape_as(features))
        return logits


@dataclass(frozen=True)
class Structure:
    """What a DINO sees of a batch: patch tokens (B, N, D) after its last norm, and their grid (h, w)."""

    tokens: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class Decoded:
    """What a decoder makes of CLIP's tokens and, where there is a DINO, of its: one or two of everything.

    fused: (B, E, h, w) each, on CLIP's grid. parts: logits (B, K, h, w) of each.
    """

    fused: tuple[Tensor, ...]
    parts: tuple[Tensor, ...]

    @property
    def features(self) -> Tensor:
        """What the decoder's affinity is made of: (B, E, h, w), or (B, 2 E, h, w)."""
        return self.fused[0] if len(self.fused) == 1 else torch.cat(self.fused, 1)

    @property
    def logits(self) -> Tensor:
        """The mean of the parts."""
        return self.parts[0] if len(self.parts) == 1 else sum(self.parts[1:], self.parts[0]) / len(self.parts)


def decode(
    decoder: Decoder,
    fuse: Fuse,
    taps: Sequence[Tensor],
    grid: tuple[int, int],
    dino_fuse: Fuse | None = None,
    structure: Structure | None = None,
) -> Decoded:
    """The decoder over the last of CLIP's tokens, as many as ``fuse`` takes, and over a DINO's where there is one.

    Args:
        decoder, fuse, dino_fuse: of one network.
        taps: patch tokens (B, N, D) after blocks of CLIP.
        grid: theirs. What is fused of a DINO's tokens is brought to it.
        structure: what the DINO sees; ``dino_fuse`` needs it.
    """
    fused = [fuse(taps[-len(fuse.linears_modulelist) :], grid)]
    if dino_fuse is not None:
        if structure is None:
            raise ValueError("a decoder over CLIP and a DINO was given nothing of the DINO")
        own = dino_fuse([structure.tokens], structure.grid)
        fused.append(F.interpolate(own, grid, mode="bilinear", align_corners=False))
    return Decoded(tuple(fused), tuple(decoder(each) for each in fused))


@dataclass(frozen=True)
class Seen:
    """What the frozen tower leaves of a batch, without gradients.

    taps: patch tokens (B, N, D) after each block but the last. attentions: (B, k, N, N) between patches, of the last
    k layers. last: the last block's forward. embedding: (B, E), mean of the patches, not normalised. grid: (h, w).
    """

    taps: tuple[Tensor, ...]
    attentions: Tensor
    last: LastBlock
    embedding: Tensor
    grid: tuple[int, int]


@torch.no_grad()
def look(vision: VisionTransformer, pixels: Tensor, layers: int, positions: Positions = BILINEAR) -> Seen:
    """One pass of a CLIP over (B, 3, H, W) standardised, sides multiples of the patch; for labels and decoder both.

    layers: the attention of so many last ones is kept.
    """
    total = len(vision.blocks)
    seen = vision(pixels, taps=range(total - 1), attention=Each(layers), stop_before_last=True, positions=positions)
    last = run_last_block(vision, seen.tokens)
    attentions = last.mean_attention[:, None]  # (B, 1, T, T)
    if seen.attention is not None:
        attentions = torch.cat([seen.attention, attentions], 1)
    taps = tuple(seen.taps[i][:, 1:] for i in range(total - 1))
    return Seen(taps, attentions[..., 1:, 1:], last, read_out(vision, last.tokens, "patches"), seen.grid)


@torch.no_grad()
def class_cams(vision: VisionTransformer, seen: Seen, image: int, texts: Tensor, count: int, scale: float) -> Tensor:
    """GradCAM of one image for all its classes in one closed form: (K, N), not normalised.

    texts: (T, E) unit rows, the K = ``count`` classes first, then what they compete with.
    """
    gradients = score_cotangents(seen.embedding[image], texts, count, scale, "softmax")  # (K, E)
    return gradcam(seen.last.activation[image, 1:], channel_weights(vision, seen.last, image, gradients, "patches"))


class WeCLIPNet(nn.Module):
    """The decoder with its frozen towers: pixels to logits.

    Args:
        tower: CLIP's image transformer; it never learns, and is no part of what is saved.
        dino: a DINO's tower (``models.dino.PatchTower``), likewise; None: WeCLIP's decoder, over CLIP alone.
        classes: K, background included.
        width, blocks, heads: of the decoder.
        dropout: of whole channels of the fused features, in training.
        positions: how the tower's are brought to the picture's grid.
    """

    def __init__(
        self,
        tower: VisionTransformer,
        classes: int,
        *,
        width: int = 256,
        blocks: int = 3,
        heads: int = 8,
        dropout: float = 0.1,
        positions: Positions = BILINEAR,
        dino: Any = None,
    ) -> None:
        super().__init__()
        self.tower = tower.requires_grad_(False)
        self.dino = None if dino is None else dino.requires_grad_(False)
        self.positions = positions
        inputs = tower.ln_post.normalized_shape[0]
        self.decoder_fts_fuse = Fuse(inputs, len(tower.blocks) - 1 if dino is None else 1, width, dropout)
        self.decoder = Decoder(width, blocks, heads, classes)
        self.dino_decoder_fts_fuse = None if dino is None else Fuse(dino.width, 1, width, dropout)

    @property
    def backbone(self) -> nn.ModuleList:
        """What is pretrained and learns at a lower rate: nothing."""
        return nn.ModuleList()

    @torch.no_grad()
    def structure(self, pixels: Tensor) -> Structure | None:
        """What the DINO sees of (B, 3, H, W) standardised with ImageNet's statistics; None where there is none.

        Sides are brought down to its whole patches (320 -> 308 pixels of a patch of 14): its grid then spans the same
        picture as CLIP's, of other cells.
        """
        if self.dino is None:
            return None
        patch = self.dino.patch
        grid = (max(pixels.shape[2] // patch, 1), max(pixels.shape[3] // patch, 1))
        size = (grid[0] * patch, grid[1] * patch)
        if tuple(pixels.shape[2:]) != size:
            pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
        return Structure(self.dino.patches(pixels).float(), grid)

    def decode(self, taps: Sequence[Tensor], grid: tuple[int, int], structure: Structure | None = None) -> Decoded:
        """``decode`` with this network's parts."""
        return decode(self.decoder, self.decoder_fts_fuse, taps, grid, self.dino_decoder_fts_fuse, structure)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) standardised -> logits (B, K, H // patch, W // patch); what is no whole patch is cut off."""
        patch = self.tower.patch
        short = [max(patch - side, 0) for side in pixels.shape[2:]]
        if any(short):  # less than a patch: repeat its border
            pixels = F.pad(pixels, (0, short[1], 0, short[0]), mode="replicate")
        pixels = pixels[..., : pixels.shape[2] // patch * patch, : pixels.shape[3] // patch * patch]
        total = len(self.tower.blocks)
        with torch.no_grad():
            seen = self.tower(pixels, taps=range(total - 1), stop_before_last=True, positions=self.positions)
        taps = [seen.taps[i][:, 1:] for i in range(total - 1)]
        return self.decode(taps, seen.grid, self.structure(pixels)).logits
