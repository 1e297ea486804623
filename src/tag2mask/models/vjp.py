"""GradCAM's channel weights through CLIP's last block, in closed form: no autograd, all classes in one pass.

GradCAM needs the gradient of a score with respect to the feature map A (the last block's first norm, patch tokens),
averaged over the patches: the gradient with respect to ONE vector added to every patch of A. So the products with
the projection matrices of queries, keys and values come after the sum over tokens and cost nothing, the gradients
of keys sum to minus that of the class token's key (rows of a softmax sum to one), and no token's own gradient is
ever formed. The residual path carries no gradient: A feeds only queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from tag2mask.models.packed import linear_back
from tag2mask.models.transformer import MLP, Block

Readout = Literal["patches", "class"]


class Projecting(Protocol):
    """A transformer whose tokens, one class token first, are normed and projected among the texts."""

    ln_post: nn.LayerNorm
    proj: nn.Parameter

    @property
    def blocks(self) -> Sequence[Block]:
        """First to last."""
        ...


@dataclass(frozen=True)
class LastBlock:
    """One forward of the last block, with what the weights need. T = 1 + N tokens, class token first.

    activation: (B, T, D), the block's first norm: A. attention: (B, heads, T, T). mean_attention: (B, T, T), of the
    heads, float32. q, k, v: (B, heads, T, D / heads).
    heads_out: (B, heads, T, D / heads), before the output projection. middle: (B, T, D), after attention and
    residual. hidden: (B, T, 4D), before the activation function. tokens: (B, T, D), the block's output.
    """

    activation: Tensor
    attention: Tensor
    mean_attention: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    heads_out: Tensor
    middle: Tensor
    hidden: Tensor
    tokens: Tensor


def run_last_block(vision: Projecting, x: Tensor) -> LastBlock:
    """Run the last block once, in its own precision, over tokens (B, T, D) that enter it."""
    block = vision.blocks[-1]
    x = x.to(block.ln_1.weight.dtype)
    activation = block.ln_1(x)
    q, k, v = block.attn.qkv(activation)
    heads_out, attention, mean = block.attn.attend(q, k, v)
    middle = x + block.attn.out_proj(heads_out.transpose(1, 2).flatten(2))
    hidden = block.mlp.c_fc(block.ln_2(middle))
    tokens = middle + block.mlp.c_proj(block.mlp.act(hidden))
    return LastBlock(activation, attention, mean, q, k, v, heads_out, middle, hidden, tokens)


def read_out(vision: Projecting, tokens: Tensor, readout: Readout) -> Tensor:
    """The image embedding (B, E), not normalised, from the last block's tokens (B, T, D).

    "patches" is the mean of the normed patch tokens (CLIP-ES, appendix A), "class" the class token.
    """
    if readout == "class":
        return vision.ln_post(tokens[:, 0]) @ vision.proj
    return vision.ln_post(tokens)[:, 1:].mean(1) @ vision.proj


def _standardised(x: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """(R, D) -> its standardised rows (R, D) and 1 / standard deviation (R, 1), as the norm sees them."""
    centred = x - x.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + norm.eps)
    return centred * rstd, rstd


def _act_slope(mlp: MLP, x: Tensor) -> Tensor:
    """Derivative of the MLP's activation function."""
    if mlp.activation == "quick_gelu":
        x = 1.702 * x
        s = torch.sigmoid(x)
        return x.mul_(1 - s).add_(1).mul_(s)  # s (1 + x (1 - s)), in place: it is as large as the MLP's middle
    return 0.5 * (1 + torch.erf(x * 0.5**0.5)) + x * torch.exp(-0.5 * x * x) * (2 * torch.pi) ** -0.5


def channel_weights(vision: Projecting, state: LastBlock, image: int, cotangents: Tensor, readout: Readout) -> Tensor:
    """Eq. 1: gradients of K scores with respect to A, averaged over the patches, for one image of the batch.

    cotangents: (K, E), the gradients of the scores with respect to the image embedding. Returns (K, D).
    """
    block = vision.blocks[-1]
    rows = slice(1, None) if readout == "patches" else slice(0, 1)  # the tokens that are read out: R of them
    patches = state.tokens.shape[1] - 1
    heads = block.attn.heads
    classes = len(cotangents)

    # Final norm. Its input gradient is rstd (u - z s): u depends on the class alone, z on the token alone.
    g = cotangents @ vision.proj.T * vision.ln_post.weight  # (K, D)
    if readout == "patches":
        g = g / patches
    z, rstd_post = _standardised(state.tokens[image, rows], vision.ln_post)  # (R, D), (R, 1)
    u = g - g.mean(-1, keepdim=True)  # (K, D)
    s = (g @ z.T / g.shape[-1])[..., None]  # (K, R, 1)
    d_tokens = rstd_post * (u[:, None] - s * z)  # (K, R, D)

    # MLP. Being linear in u and z, its outer product is made once for all classes.
    outer = block.mlp.c_proj.weight  # (D, 4D)
    d_hidden = torch.addcmul((u @ outer)[:, None], s, linear_back(z, outer), value=-1)  # (K, R, 4D)
    d_hidden *= _act_slope(block.mlp, state.hidden[image, rows])
    g = linear_back(d_hidden.flatten(0, 1), block.mlp.c_fc.weight)  # (K R, D)
    g = rstd_post * g.view(classes, -1, g.shape[-1]) * block.ln_2.weight  # (K, R, D)
    y, rstd = _standardised(state.middle[image, rows], block.ln_2)
    d_middle = d_tokens + rstd * (g - g.mean(-1, keepdim=True) - y * (g * y).mean(-1, keepdim=True))

    # Attention: d_out is the gradient at each head's output.
    d_out = linear_back(d_middle.flatten(0, 1), block.attn.out_proj.weight).view(
        classes, -1, heads, state.v.shape[-1]
    )
    d_out = d_out.permute(2, 1, 0, 3)  # (heads, R, K, dh)
    p = state.attention[image, :, rows]  # (heads, R, T)
    q, k, v = state.q[image], state.k[image], state.v[image]  # (heads, T, dh)
    scale = q.shape[-1] ** -0.5
    r = (d_out * state.heads_out[image, :, rows, None]).sum(-1)  # (heads, R, K)
    to_class = p[..., :1]  # (heads, R, 1), attention paid to the class token

    d_v = ((1 - to_class)[..., None] * d_out).sum(1)  # (heads, K, dh): what the patches' values receive
    d_class = to_class * (torch.einsum("hrkd,hd->hrk", d_out, v[:, 0]) - r)  # (heads, R, K)
    d_k = -scale * d_class.transpose(1, 2) @ q[:, rows]  # (heads, K, dh)
    if readout == "patches":
        back = torch.cat([d_out.flatten(2), r], -1).transpose(1, 2) @ p  # (heads, K dh + K, T), read once for both
        by_value = back[:, :-classes].view(heads, classes, -1, len(state.tokens[image]))  # (heads, K, dh, T)
        # column sums of the scores' gradients, (heads, K, T)
        by_key = (by_value * v.transpose(1, 2)[:, None]).sum(2) - back[:, -classes:]
        d_q = scale * by_key @ k  # (heads, K, dh)
    else:
        d_q = torch.zeros_like(d_v)  # only the class token asks, and it is no patch
    by_part = torch.stack([d_q, d_k, d_v])  # (3, heads, K, dh)
    return by_part.permute(2, 0, 1, 3).reshape(classes, -1) @ block.attn.in_proj_weight / patches  # (K, D)
