"""CLIP's image and text transformers, and what methods ask of CLIP's image towers.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision". Modules and
parameters carry the names of OpenAI's checkpoints, under ``vision.`` and ``text.``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from tag2mask.models.packed import Packing
from tag2mask.models.shapes import drawn
from tag2mask.models.tower import BILINEAR, Mean, Positions, Tower, patch_tokens, resample_positions, walk
from tag2mask.models.transformer import Activation, Block, Transformer
from tag2mask.models.vjp import Readout, channel_weights, read_out, run_last_block
from tag2mask.ops.cam import gradcam

Cotangents = Callable[[Tensor], Tensor]
"""From an image's embedding (E,), not normalised, to the gradients of K scores with respect to it (K, E)."""


class ImageTower(Tower, Protocol):
    """An image tower of CLIP: its images have a place among the texts."""

    @property
    def blocks(self) -> Sequence[Block]:
        """As ``Tower`` has it; all are CLIP's own."""
        ...

    @property
    def native_grid(self) -> tuple[int, int]:
        """The grid (h, w) that it was trained on."""
        ...

    def pack(self) -> Packing:
        """What it multiplies by in ``gradcams``, ordered for the processor."""
        ...

    def embedding(self, pixels: Tensor, *, readout: Readout, positions: Positions = BILINEAR) -> Tensor:
        """(B, 3, H, W) standardised -> image embeddings (B, E), not normalised.

        readout: of which tokens. A ResNet is always read out by its pool.
        """
        ...

    def gradcams(
        self,
        pixels: Tensor,
        cotangents: Sequence[Cotangents],
        *,
        readout: Readout,
        attention: Mean | None = None,
        positions: Positions = BILINEAR,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """GradCAM of each image, and the attention between its patches.

        pixels: (B, 3, H, W) standardised. cotangents: one of each image.

        Yields, image by image, the maps of its K scores (K, N), not normalised, and the mean attention of the last
        layers between patches (N, N), or None where no attention is asked for.

        Raises:
            ValueError: attention was asked for of layers that the tower does not have.
        """
        ...


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
        self.class_embedding = drawn(width, std=width**-0.5)
        count = 1 + native_grid[0] * native_grid[1]
        self.positional_embedding = drawn(count, width, std=width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = drawn(width, embed, std=width**-0.5)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The transformer blocks, first to last."""
        return self.transformer.blocks

    @property
    def trunk(self) -> tuple[nn.Module, ...]:
        """What comes before the last block."""
        return (self.conv1, self.ln_pre, *self.blocks[:-1])

    def positions(self, grid: tuple[int, int], how: Positions) -> Tensor:
        """Position embeddings for a grid (h, w): (1 + h w, D)."""
        table = resample_positions(self.positional_embedding, self.native_grid, grid, how)
        if how.class_twice:
            table = torch.cat([table[:1] + self.class_embedding, table[1:]])
        return table

    def embed(self, pixels: Tensor, positions: Positions) -> tuple[Tensor, tuple[int, int]]:
        """(B, 3, H, W) standardised -> tokens (B, 1 + N, D) entering the first block, and their grid."""
        x, grid = patch_tokens(self.conv1, pixels)  # (B, N, D)
        cls = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)  # not len(x), which a trace takes for fixed
        x = torch.cat([cls, x], 1) + self.positions(grid, positions).to(x.dtype)  # (B, 1 + N, D)
        return self.ln_pre(x), grid

    forward = walk

    def last_block(
        self, x: Tensor, *, mode: Literal["full", "value"] = "full", need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The last block alone: (B, 1 + N, D) -> (B, 1 + N, D) and its head-mean attention where asked for.

        mode "value" (MaskCLIP) sends each token through the value and output projections only, without
        attention, residual path or MLP.

        Raises:
            ValueError: attention is asked for in that mode.
        """
        block = self.blocks[-1]
        if mode == "value":
            if need_weights:
                raise ValueError('mode "value" has no attention to return')
            return block.attn.value(block.ln_1(x.to(block.ln_1.weight.dtype))), None
        return block(x, need_weights=need_weights)

    def project(self, tokens: Tensor) -> Tensor:
        """Final norm and projection of any tokens: (..., D) -> (..., E), not normalised."""
        return self.ln_post(tokens.to(self.ln_post.weight.dtype)) @ self.proj

    def embedding(self, pixels: Tensor, *, readout: Readout, positions: Positions = BILINEAR) -> Tensor:
        """(B, 3, H, W) standardised -> (B, E), not normalised."""
        return read_out(self, self(pixels, positions=positions).tokens, readout)

    def gradcams(
        self,
        pixels: Tensor,
        cotangents: Sequence[Cotangents],
        *,
        readout: Readout,
        attention: Mean | None = None,
        positions: Positions = BILINEAR,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """GradCAM at the last block's first norm, all K scores of an image in one pass without autograd.

        Args and what it yields: as ``ImageTower.gradcams``. Before the last block the numbers are those of ``trunk``.
        The products of the last one are of bfloat16 where these are; float16 would lose small gradients, so it has
        float32 there.
        """
        seen = self(pixels, attention=attention, stop_before_last=True, positions=positions)
        with self._products(pixels.device):
            last = run_last_block(self, seen.tokens)
        embeddings = read_out(self, last.tokens, readout)  # (B, E)
        for i, (embedding, gradients) in enumerate(zip(embeddings, cotangents, strict=True)):
            score = gradients(embedding)  # (K, E)
            with self._products(pixels.device):
                weights = channel_weights(self, last, i, score, readout).float()  # (K, D)
            cams = gradcam(last.activation[i, 1:], weights)  # (K, N)
            if attention is None:
                yield cams, None
                continue
            mean = last.mean_attention[i] / attention.layers  # (1 + N, 1 + N), the last block's share
            if seen.attention is not None:
                mean = mean + seen.attention[i]
            yield cams, mean[1:, 1:]

    def pack(self) -> Packing:
        """What it multiplies by in ``gradcams``, ordered for the processor."""
        packing = Packing()
        for block in self.blocks[:-1]:
            block.pack(packing)
        if self.conv1.weight.dtype == torch.float32:  # else ``_products`` are of another precision than the weights
            self.blocks[-1].pack(packing, both_ways=True)
        return packing

    def _products(self, device: torch.device) -> AbstractContextManager[object]:
        """How the last block multiplies."""
        half = self.conv1.weight.dtype == torch.bfloat16
        return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()


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
        self.positional_embedding = drawn(context, width, std=0.01)
        self.transformer = Transformer(width, layers, heads, activation)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = drawn(width, embed, std=width**-0.5)

    @property
    def context(self) -> int:
        """The most tokens a text may have."""
        return self.positional_embedding.shape[0]

    def forward(self, ids: Tensor, eot: Tensor) -> Tensor:
        """ids (T, L) int64 with end-of-text at positions eot (T,) -> (T, E), not normalised."""
        return self.from_embeddings(self.token_embedding(ids), eot)

    def from_embeddings(self, embeddings: Tensor, eot: Tensor) -> Tensor:
        """As forward, from token embeddings (T, L, width), which may hold learned ones and need gradients.

        Raises:
            ValueError: more tokens than this CLIP reads.
        """
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
    """Both towers and the temperature.

    vision: a module, a VisionTransformer or a ModifiedResNet.
    """

    def __init__(self, vision: ImageTower, text: TextTransformer) -> None:
        super().__init__()
        self.vision = vision
        self.text = text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
