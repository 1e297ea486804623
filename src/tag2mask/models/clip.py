"""CLIP's two towers with a dense forward: every block's tokens and attention can be had, with or without gradients.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision". Modules and
parameters carry the names of OpenAI's checkpoints, under ``vision.`` and ``text.``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["quick_gelu", "gelu"]


@dataclass(frozen=True)
class Positions:
    """How the learned grid of position embeddings is brought to an image's grid. The class row is untouched.

    mode: "bilinear" (CLIP-ES, WeakCLIP) or "bicubic" (transformers); half-pixel centres, no antialiasing.
    round_fp16: round the result to float16, as CLIP-ES's released code does on every device.
    via: go through this grid first (WeakCLIP: 32x32, then the image's).
    """

    mode: Literal["bilinear", "bicubic"] = "bilinear"
    round_fp16: bool = False
    via: tuple[int, int] | None = None


def resample_positions(table: Tensor, native: tuple[int, int], grid: tuple[int, int], how: Positions) -> Tensor:
    """Bring a learned table of a ``native`` grid (h0, w0) to ``grid``: (1 + h0 w0, D) -> (1 + h w, D)."""
    here, patches = native, table[1:]
    for step in (how.via, grid):
        if step is not None and step != here:
            square = patches.T.reshape(1, -1, *here)  # (1, D, h0, w0)
            square = F.interpolate(square.float(), size=step, mode=how.mode, align_corners=False)
            patches = square[0].flatten(1).T.to(table.dtype)  # (h w, D)
            here = step
    table = torch.cat([table[:1], patches])
    return table.half().to(table.dtype) if how.round_fp16 else table


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

    tokens: (B, 1 + N, D), class token first, without the final norm. taps: {i: (B, 1 + N, D)}, the tokens after
    block i, counted from 0. attention: (B, 1 + N, 1 + N) for Mean, (B, layers, 1 + N, 1 + N) for Each, float32;
    where the last block was left out, Mean lacks its share (divide it by ``layers`` and add it) and Each its entry.
    grid: (h, w), with N = h * w.
    """

    tokens: Tensor
    grid: tuple[int, int]
    taps: dict[int, Tensor] = field(default_factory=dict)
    attention: Tensor | None = None


class MLP(nn.Module):
    """Two linear layers, four times as wide in between."""

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)
        self.activation = activation

    def act(self, x: Tensor) -> Tensor:
        """The activation that the weights were trained with; another one silently gives wrong numbers."""
        if self.activation == "gelu":
            return F.gelu(x)
        # x sigmoid(1.702 x) by one fused pass: as written it takes nine times as long, a tenth of the tower
        return F.silu(1.702 * x).div_(1.702)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.c_proj(self.act(self.c_fc(x)))


class Attention(nn.Module):
    """Multi-head self-attention that can also return its head-mean attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.normal_(self.in_proj_weight, std=width**-0.5)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> three of (B, heads, T, D / heads)."""
        parts = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # (B, T, 3D)
        q, k, v = parts.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, T, dh)
        return q, k, v

    def probabilities(self, q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
        """softmax(q k^T / sqrt(dh)): (B, heads, T, T)."""
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return (scores if mask is None else scores + mask).softmax(-1)

    def forward(
        self, x: Tensor, *, need_weights: bool = False, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) -> (B, T, D) and, where asked for, the head-mean attention (B, T, T)."""
        q, k, v = self.qkv(x)
        weights = None
        if need_weights:
            p = self.probabilities(q, k, mask)  # (B, heads, T, T)
            out = p @ v
            weights = p.mean(1, dtype=torch.float32)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2)), weights

    def value(self, x: Tensor) -> Tensor:
        """The value path alone, as if every token attended only to itself (MaskCLIP): (B, T, D) -> (B, T, D)."""
        width = x.shape[-1]
        v = F.linear(x, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :])
        return self.out_proj(v)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, activation: Activation) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, activation)

    def forward(
        self, x: Tensor, *, need_weights: bool = False, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) -> (B, T, D), head-mean attention (B, T, T) or None."""
        attended, weights = self.attn(self.ln_1(x), need_weights=need_weights, mask=mask)
        x = x + attended
        return x + self.mlp(self.ln_2(x)), weights


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, width: int, layers: int, heads: int, activation: Activation) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, activation) for _ in range(layers))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks, first to last."""
        return tuple(cast(Block, block) for block in self.resblocks)


class VisionTransformer(nn.Module):
    """CLIP's image tower (ViT).

    Pixels come standardised; their statistics are the caller's (``ops.image.standardise``), never the model's.
    """

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        patch: int,
        native_grid: tuple[int, int],
        embed: int,
        activation: Activation = "quick_gelu",
    ) -> None:
        super().__init__()
        self.patch = patch
        self.native_grid = native_grid
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        count = 1 + native_grid[0] * native_grid[1]
        self.positional_embedding = nn.Parameter(torch.randn(count, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, embed) * width**-0.5)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The transformer blocks, first to last."""
        return self.transformer.blocks

    def positions(self, grid: tuple[int, int], how: Positions) -> Tensor:
        """Position embeddings for a grid (h, w): (1 + h w, D)."""
        return resample_positions(self.positional_embedding, self.native_grid, grid, how)

    def embed(self, pixels: Tensor, positions: Positions) -> tuple[Tensor, tuple[int, int]]:
        """(B, 3, H, W) standardised -> tokens (B, 1 + N, D) entering the first block, and their grid."""
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % self.patch or pixels.shape[3] % self.patch:
            raise ValueError(
                f"pixels are {tuple(pixels.shape)}, expected (B, 3, H, W) with H and W multiples of the patch, "
                f"{self.patch}; resize the image first"
            )
        x = self.conv1(pixels.to(self.conv1.weight.dtype))  # (B, D, h, w)
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)  # (B, N, D), row-major
        cls = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([cls, x], 1) + self.positions(grid, positions).to(x.dtype)  # (B, 1 + N, D)
        return self.ln_pre(x), grid

    def forward(
        self,
        pixels: Tensor,
        *,
        taps: Sequence[int] = (),
        attention: Mean | Each | None = None,
        stop_before_last: bool = False,
        positions: Positions = Positions(),
    ) -> VisionOutput:
        """Run the tower over (B, 3, H, W); see VisionOutput for what comes back."""
        x, grid = self.embed(pixels, positions)
        total = len(self.blocks)
        if attention is not None and not 1 <= attention.layers <= total:
            raise ValueError(f"attention of the last {attention.layers} layers was asked for; this tower has {total}")
        first = total if attention is None else total - attention.layers
        kept: dict[int, Tensor] = {}
        mean: Tensor | None = None
        each: list[Tensor] = []
        for i, block in enumerate(self.blocks[: total - 1] if stop_before_last else self.blocks):
            x, weights = block(x.to(block.ln_1.weight.dtype), need_weights=i >= first)
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

    def last_block(
        self, x: Tensor, *, mode: Literal["full", "value"] = "full", need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The last block alone: (B, 1 + N, D) -> (B, 1 + N, D) and its head-mean attention where asked for.

        mode "value" (MaskCLIP) sends each token through the value and output projections only, without
        attention, residual path or MLP.
        """
        block = self.blocks[-1]
        x = x.to(block.ln_1.weight.dtype)
        if mode == "value":
            if need_weights:
                raise ValueError('mode "value" has no attention to return')
            return block.attn.value(block.ln_1(x)), None
        return block(x, need_weights=need_weights)

    def project(self, tokens: Tensor) -> Tensor:
        """Final norm and projection of any tokens: (..., D) -> (..., E), not normalised."""
        return self.ln_post(tokens.to(self.ln_post.weight.dtype)) @ self.proj


class TextTransformer(nn.Module):
    """CLIP's text tower: a causal transformer, read at the end-of-text token."""

    def __init__(
        self,
        *,
        vocabulary: int,
        context: int,
        width: int,
        layers: int,
        heads: int,
        embed: int,
        activation: Activation = "quick_gelu",
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.randn(context, width) * 0.01)
        self.transformer = Transformer(width, layers, heads, activation)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, embed) * width**-0.5)

    @property
    def context(self) -> int:
        """The most tokens a text may have."""
        return self.positional_embedding.shape[0]

    def forward(self, ids: Tensor, eot: Tensor) -> Tensor:
        """ids (T, L) int64 with end-of-text at positions eot (T,) -> (T, E), not normalised."""
        return self.from_embeddings(self.token_embedding(ids), eot)

    def from_embeddings(self, embeddings: Tensor, eot: Tensor) -> Tensor:
        """As forward, from token embeddings (T, L, width), which may hold learned ones and need gradients."""
        length = embeddings.shape[1]
        if length > self.context:
            raise ValueError(f"a text of {length} tokens was given, this CLIP reads at most {self.context}")
        x = embeddings + self.positional_embedding[:length]
        mask = torch.full((length, length), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
        for block in self.transformer.blocks:
            x, _ = block(x, mask=mask)
        rows = torch.arange(len(x), device=x.device)
        return self.ln_final(x)[rows, eot] @ self.text_projection


class CLIPModel(nn.Module):
    """Both towers and the temperature. ``vision`` is a VisionTransformer or a ModifiedResNet."""

    def __init__(self, vision: nn.Module, text: TextTransformer) -> None:
        super().__init__()
        self.vision = vision
        self.text = text
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
