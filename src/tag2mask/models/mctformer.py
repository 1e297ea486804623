"""MCTformer's network: an image transformer with a class token for each class.

Source: Xu et al., "Multi-class Token Transformer for Weakly Supervised Semantic Segmentation" (CVPR 2022), its
released code for V1 and V2, and that of MCTformer+. Parameters carry the names of ``models.clip.VisionTransformer``;
``models.mctformer_files`` knows those of others. The final norm of the released networks is never computed with, and
is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tag2mask.models.tower import Positions, resample_positions, walk
from tag2mask.models.transformer import Activation, Block, Transformer
from tag2mask.ops.cam_fusion import flip_sum
from tag2mask.ops.mctformer import MapKind, pool_ranked, seed_maps, spread
from tag2mask.types import UserError

Pool = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """Of an image transformer; the defaults are DeiT-S's.

    grid: of patches that the positions were learned on. pre_norm: a norm before the first block (CLIP's).
    patch_bias: the patch convolution has one.
    """

    width: int = 384
    layers: int = 12
    heads: int = 6
    patch: int = 16
    grid: tuple[int, int] = (14, 14)
    activation: Activation = "gelu"
    eps: float = 1e-6
    pre_norm: bool = False
    patch_bias: bool = True


@dataclass(frozen=True)
class Seen:
    """What the network saw in pictures.

    class_tokens: (B, C, D), after the last block, without a norm. patch_tokens: (B, D, h, w), alike.
    attention: (B, C, h, w), from class tokens to patches, summed over the last blocks that were asked for.
    affinity: (B, N, N), from patches to patches, summed over all blocks.
    """

    class_tokens: Tensor
    patch_tokens: Tensor
    attention: Tensor
    affinity: Tensor


@dataclass(frozen=True)
class Logits:
    """What the losses are of.

    classes: (B, C), of the class tokens. patches: (B, C), of PatchCAM; None in V1. layers: (layers, B, C, D), the
    class tokens after each block.
    """

    classes: Tensor
    patches: Tensor | None
    layers: Tensor


class MCTformer(nn.Module):
    """V1 (class tokens alone), V2 (with PatchCAM) and MCTformer+ (with another pooling of it). A ``tower.Tower``.

    Args:
        classes: how many there are.
        shape: of the transformer.
        patch_cam: a 3x3 convolution on the patches scores classes, too.
        ranked: PatchCAM's logit is ``ops.mctformer.pool_ranked`` of it, not its mean.
        offset: see ``tower.Positions``; V1's and V2's is 0.1.
    """

    def __init__(
        self, classes: int, shape: Shape, *, patch_cam: bool = True, ranked: bool = False, offset: float = 0.1
    ) -> None:
        super().__init__()
        self.classes, self.shape, self.ranked = classes, shape, ranked
        self.how = Positions("bicubic", offset=offset)
        width, (h, w) = shape.width, shape.grid
        self.conv1 = nn.Conv2d(3, width, shape.patch, shape.patch, bias=shape.patch_bias)
        self.class_embedding = nn.Parameter(nn.init.trunc_normal_(torch.empty(classes, width), std=0.02))
        self.positional_embedding = nn.Parameter(nn.init.trunc_normal_(torch.empty(classes + h * w, width), std=0.02))
        self.ln_pre = nn.LayerNorm(width, shape.eps) if shape.pre_norm else nn.Identity()
        self.transformer = Transformer(width, shape.layers, shape.heads, shape.activation, shape.eps)
        self.head = nn.Conv2d(width, classes, 3, padding=1) if patch_cam else None
        if self.head is not None:
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    @property
    def patch(self) -> int:
        """Pixels on a side of one cell of the grid."""
        return self.shape.patch

    @property
    def native_grid(self) -> tuple[int, int]:
        """The grid that the positions were learned on."""
        return self.shape.grid

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The transformer blocks, first to last."""
        return self.transformer.blocks

    @property
    def trunk(self) -> tuple[nn.Module, ...]:
        """What comes before the last block."""
        return (self.conv1, self.ln_pre, *self.blocks[:-1])

    def set_drop_path(self, most: float) -> None:
        """How often a branch is left out while training: from 0 in the first block to ``most`` in the last."""
        for i, block in enumerate(self.blocks):
            block.drop_path = most * i / max(1, len(self.blocks) - 1)

    def positions(self, grid: tuple[int, int], how: Positions) -> Tensor:
        """Position embeddings for a grid (h, w): (C + h w, D)."""
        return resample_positions(self.positional_embedding, self.native_grid, grid, how)

    def embed(self, pixels: Tensor, positions: Positions) -> tuple[Tensor, tuple[int, int]]:
        """(B, 3, H, W) standardised -> tokens (B, C + N, D) entering the first block, and their grid (h, w).

        What is beyond whole patches is not seen.

        Raises:
            ValueError: the picture is smaller than a patch.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or min(pixels.shape[2:]) < self.patch:
            raise ValueError(
                f"pixels are {tuple(pixels.shape)}, expected (B, 3, H, W) with H and W of at least a patch, "
                f"{self.patch}; pad or resize the image first"
            )
        x = self.conv1(pixels)  # (B, D, h, w)
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)  # (B, N, D), row-major
        x = torch.cat([self.class_embedding.expand(len(x), -1, -1), x], 1) + self.positions(grid, positions)
        return self.ln_pre(x), grid

    forward = walk

    def logits(self, pixels: Tensor) -> Logits:
        """What the losses are of, from standardised pictures (B, 3, H, W)."""
        seen = self(pixels, taps=range(len(self.blocks)), positions=self.how)
        layers = torch.stack([seen.taps[i][:, : self.classes] for i in range(len(self.blocks))])  # (L, B, C, D)
        maps = self.patch_maps(self._patches(seen.tokens, seen.grid))
        pool: Pool = pool_ranked if self.ranked else lambda maps: maps.mean((2, 3))
        return Logits(layers[-1].mean(-1), None if maps is None else pool(maps), layers)

    def patch_maps(self, patch_tokens: Tensor) -> Tensor | None:
        """PatchCAM before ReLU: (B, D, h, w) -> (B, C, h, w); None in V1."""
        return None if self.head is None else self.head(patch_tokens)

    def see(self, pixels: Tensor, layers: int) -> Seen:
        """Tokens and attention of standardised pictures (B, 3, H, W).

        layers: how many last blocks the attention from class tokens is summed over.

        Raises:
            UserError: there are not so many blocks.
        """
        if not 1 <= layers <= len(self.blocks):
            raise UserError(
                f"attention of the last {layers} blocks was asked for; this network has {len(self.blocks)}"
            )
        x, grid = self.embed(pixels, self.how)
        to_patches: Tensor | None = None
        between: Tensor | None = None
        for i, block in enumerate(self.blocks):
            x, weights = block(x, need_weights=True)  # (B, C + N, C + N), head-mean
            rows = weights[:, :, self.classes :]  # what goes to patches
            between = rows[:, self.classes :].clone() if between is None else between.add_(rows[:, self.classes :])
            if i >= len(self.blocks) - layers:
                own = rows[:, : self.classes]
                to_patches = own.clone() if to_patches is None else to_patches + own
        assert to_patches is not None  # layers is at least 1
        assert between is not None
        patches = self._patches(x, grid)
        return Seen(x[:, : self.classes], patches, to_patches.unflatten(2, grid), between)

    def _patches(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, C + N, D) -> (B, D, h, w)."""
        return tokens[:, self.classes :].transpose(1, 2).unflatten(2, grid)


@dataclass(frozen=True)
class Reading:
    """How maps are read off the network.

    kind: which; see ``ops.mctformer``. layers: last blocks whose attention from class tokens is summed.
    affinity: spread the maps along the attention between patches. root: see ``ops.mctformer.seed_maps``.
    flip: add the maps of the mirror image.
    """

    kind: MapKind = "fused"
    layers: int = 3
    affinity: bool = True
    root: bool = False
    flip: bool = True


@torch.inference_mode()
def read_maps(network: MCTformer, pixels: Tensor, channels: Tensor, how: Reading) -> Tensor:
    """Maps of some classes, not normalised: (1, 3, H, W) standardised, (K,) classes from 0 -> (K, h, w)."""
    views = [pixels, pixels.flip(-1)] if how.flip else [pixels]
    found = []
    for view in views:  # one by one: the attention is what takes memory
        seen = network.see(view, how.layers)
        patch_maps = network.patch_maps(seen.patch_tokens)
        of_classes = None if patch_maps is None else patch_maps[:, channels]
        maps = seed_maps(how.kind, seen.attention[:, channels], of_classes, root=how.root)
        found.append((spread(seen.affinity, maps) if how.affinity else maps)[0])
    return flip_sum(torch.stack(found)) if how.flip else found[0]
