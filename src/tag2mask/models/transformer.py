"""The transformer of CLIP's two towers: blocks whose attention can be had, with or without gradients.

Modules and parameters carry the names of OpenAI's checkpoints.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.packed import Fused, Linear, Packing, linear, mlp
from tag2mask.run.device import cpu_has_bfloat16

Activation = Literal["quick_gelu", "gelu"]

_FUSED = {"quick_gelu": Fused("swish", "", 1.702), "gelu": Fused("gelu", "none", 1.0)}


class MLP(nn.Module):
    """Two linear layers, four times as wide in between."""

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.c_fc = Linear(width, 4 * width)
        self.c_proj = Linear(4 * width, width)
        self.activation = activation

    def act(self, x: Tensor) -> Tensor:
        """The activation that the weights were trained with; another one silently gives wrong numbers."""
        if self.activation == "gelu":
            return F.gelu(x)
        # x sigmoid(1.702 x) by one fused pass: as written it takes nine times as long, a tenth of the tower
        return F.silu(1.702 * x).div_(1.702)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        packed = mlp(x, self.c_fc, self.c_proj)
        return self.c_proj(self.act(self.c_fc(x))) if packed is None else packed


class Attention(nn.Module):
    """Multi-head self-attention that can also return its head-mean attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)
        nn.init.normal_(self.in_proj_weight, std=width**-0.5)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> three of (B, heads, T, D / heads)."""
        parts = linear(x, self.in_proj_weight, self.in_proj_bias)  # (B, T, 3D)
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
        if mask is None and _head_by_head_is_quicker(q, need_weights):
            weights = _room_for_mean(q) if need_weights else None
            out = _head_by_head(q, k, v, mean=weights)
        elif need_weights:
            out, _, weights = self.attend(q, k, v, mask)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2)), weights

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Each head's output (B, heads, T, dh), its attention (B, heads, T, T), and the heads' mean (B, T, T)."""
        if mask is not None or not _head_by_head_is_quicker(q, need_weights=True):
            p = self.probabilities(q, k, mask)
            return p @ v, p, p.mean(1, dtype=torch.float32)
        p, mean = q.new_empty(*q.shape[:3], q.shape[2]), _room_for_mean(q)
        return _head_by_head(q, k, v, each=p, mean=mean), p, mean

    def value(self, x: Tensor) -> Tensor:
        """The value path alone, as if every token attended only to itself (MaskCLIP): (B, T, D) -> (B, T, D)."""
        width = x.shape[-1]
        v = F.linear(x, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :])
        return self.out_proj(v)


def _head_by_head_is_quicker(q: Tensor, need_weights: bool) -> bool:
    """Than all heads of (B, heads, T, dh) together, or than torch's own attention where it is not asked for."""
    if q.device.type != "cpu" or torch.is_grad_enabled():
        return False
    # torch's own took 1.7 times as long on two cores with avx512_bf16, and a tenth on one without bfloat16
    return need_weights or (q.dtype == torch.bfloat16 and q.shape[2] >= 512 and cpu_has_bfloat16())


def _room_for_mean(q: Tensor) -> Tensor:
    """Room for the mean attention (B, T, T) of q (B, heads, T, dh)."""
    batch, _, tokens, _ = q.shape
    return q.new_zeros(batch, tokens, tokens, dtype=torch.float32)


def _head_by_head(
    q: Tensor, k: Tensor, v: Tensor, *, each: Tensor | None = None, mean: Tensor | None = None
) -> Tensor:
    """Each head's output (B, heads, T, dh) of q, k, v (B, heads, T, dh); scores are rounded to their precision.

    On a processor the attention of one head, in the memory of the one before, stays in the cache, and that of all
    takes much memory of a large image: 800 MB at 4,096 tokens. Where it is wanted, it is written to ``each``
    (B, heads, T, T), and the average of all heads to ``mean`` (B, T, T), which holds zeros before.
    """
    batch, heads, tokens, width = v.shape
    out = v.new_empty(batch, tokens, heads, width).transpose(1, 2)  # in memory as it is projected
    p = q.new_empty(tokens, tokens if each is None else 0)
    for i in range(batch):
        for j, (of_q, of_k, of_v, to) in enumerate(zip(q[i], k[i], v[i], out[i], strict=True)):
            p = p if each is None else each[i, j]
            torch.addmm(p, of_q, of_k.T, beta=0, alpha=width**-0.5, out=p)  # beta=0: what p held is not read
            torch.softmax(p, -1, out=p)
            torch.mm(p, of_v, out=to)
            if mean is not None:
                mean[i] += p
    if mean is not None:
        mean.div_(heads)
    return out


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

    def pack(self, packing: Packing, *, both_ways: bool = False) -> None:
        """Have the weights ordered for the processor.

        both_ways: for a block that ``models.vjp`` goes through, part by part and back.
        """
        attn, layers = self.attn, (self.mlp.c_fc, self.mlp.c_proj)
        packing.add(attn.in_proj_weight, attn.in_proj_bias)
        packing.add(attn.out_proj.weight, attn.out_proj.bias)
        if not both_ways:
            packing.add_mlp(*layers, self.mlp.act, _FUSED[self.mlp.activation])
            return
        for layer in layers:
            packing.add(layer.weight, layer.bias)
        for layer in (*layers, attn.out_proj):
            packing.add_back(layer.weight)

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
