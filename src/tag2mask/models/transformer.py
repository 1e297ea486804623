"""The transformer of CLIP's two towers: blocks whose attention can be had, with or without gradients.

Modules and parameters carry the names of OpenAI's checkpoints.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["quick_gelu", "gelu"]


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


def drop_path(branch: Tensor, rate: float) -> Tensor:
    """Leave out a branch of some samples of (B, ...), each with this probability; the others make up for it."""
    if not rate:
        return branch
    kept = torch.rand(len(branch), *[1] * (branch.ndim - 1), device=branch.device) >= rate
    return branch * kept.to(branch.dtype) / (1 - rate)


class Block(nn.Module):
    """A pre-norm transformer block.

    drop_path: how often, while training, each of its two branches is left out of a sample.
    """

    def __init__(self, width: int, heads: int, activation: Activation, eps: float = 1e-5) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps)
        self.mlp = MLP(width, activation)
        self.drop_path = 0.0

    def forward(
        self, x: Tensor, *, need_weights: bool = False, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) -> (B, T, D), in the block's own precision, and head-mean attention (B, T, T) or None."""
        x = x.to(self.ln_1.weight.dtype)
        attended, weights = self.attn(self.ln_1(x), need_weights=need_weights, mask=mask)
        rate = self.drop_path if self.training else 0.0
        x = x + drop_path(attended, rate)
        return x + drop_path(self.mlp(self.ln_2(x)), rate), weights


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, width: int, layers: int, heads: int, activation: Activation, eps: float = 1e-5) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, activation, eps) for _ in range(layers))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks, first to last."""
        return tuple(cast(Block, block) for block in self.resblocks)
