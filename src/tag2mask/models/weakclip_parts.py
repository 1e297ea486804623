"""The learning parts of WeakCLIP's network: pyramid adapter, co-attention, and the text-guided decoder.

Modules carry the names of the released checkpoints. Where an activation, an order or a start is not in the paper it
is the released code's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.types import UserError

LEVELS = (4, 8, 16, 32)
"""Pixels on a side of a cell of the pyramid, finest first, for a patch of 16 (of 14: 3.5, 7, 14 and 28)."""

_NOMINAL = {8: 8, 14: 16, 16: 16, 32: 32}
"""Patch -> the patch whose pyramid it has."""


def coarsest(patch: int) -> int:
    """Pixels on a side of a cell of the coarsest level; pictures that are multiples of it fit all levels.

    Raises:
        UserError: no pyramid is known for such patches.
    """
    if patch not in _NOMINAL:
        raise UserError(
            f"weakclip: got an image tower with patches of {patch} pixels, expected {', '.join(map(str, _NOMINAL))}; "
            "take another CLIP, such as openai/clip-vit-base-patch16"
        )
    return LEVELS[-1] * patch // _NOMINAL[patch]


def _doubling(width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(width, width, 2, stride=2)


def _level(width: int, patch: int, stride: int) -> nn.Module:
    """One level: a norm over all channels, then up or down by powers of two."""
    norm = nn.GroupNorm(1, width)
    if patch == stride:
        return norm
    if patch < stride:
        return nn.Sequential(norm, nn.MaxPool2d(stride // patch))
    layers: list[nn.Module] = [norm, _doubling(width)]
    while patch > 2 * stride:
        layers += [nn.BatchNorm2d(width), nn.GELU(), _doubling(width)]
        patch //= 2
    return nn.Sequential(*layers)


class PyramidAdapter(nn.Module):
    """Section 3.3.2: four taps of the image tower, all on its grid, to four sizes.

    Patches of 32 are not in the released code: there the finest level is enlarged once more, as the others are.

    width: of the tower. patch: of the tower, 8, 14, 16 or 32.

    Raises:
        UserError: another patch.
    """

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        coarsest(patch)
        self.fpn1, self.fpn2, self.fpn3, self.fpn4 = (_level(width, _NOMINAL[patch], each) for each in LEVELS)

    def forward(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """Four of (B, D, h, w) -> (B, D, h', w') of the four levels, finest first."""
        levels = (self.fpn1, self.fpn2, self.fpn3, self.fpn4)
        return [level(tap) for level, tap in zip(levels, taps, strict=True)]


class CrossAttention(nn.Module):
    """Multi-head attention with queries from one side and keys and values from another."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """(B, N, C) and (B, M, C) -> (B, N, C)."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N or M, C / heads)
            for part in (self.q_proj(x), self.k_proj(memory), self.v_proj(memory))
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.drop(self.proj(out.transpose(1, 2).flatten(2)))


class MatchingLayer(nn.Module):
    """Self-attention, attention to the other modality, which is not normalised here, and an MLP; all pre-norm."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = CrossAttention(width, heads, dropout)
        self.cross_attn = CrossAttention(width, heads, dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """(B, N, C) and (B, M, C) -> (B, N, C)."""
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed)
        x = x + self.cross_attn(self.norm2(x), memory)
        return x + self.drop(self.mlp(self.norm3(x)))


class CoAttention(nn.Module):
    """Section 3.3.3: what pixels add to texts and texts add to pixels (Eq. 7 and 8, before alpha and beta).

    embed: E of the CLIP. width, heads: of the attention. layers: declared in each direction. chained: they follow one
    another; else only the last one is used, as in the released code, where the others get no gradient.
    """

    def __init__(self, embed: int, width: int, heads: int, layers: int, chained: bool, dropout: float) -> None:
        super().__init__()
        self.chained = chained
        self.memory_proj = nn.Sequential(nn.LayerNorm(embed), nn.Linear(embed, width), nn.LayerNorm(width))
        self.text_proj = nn.Sequential(nn.LayerNorm(embed), nn.Linear(embed, width))
        self.decoder, self.anti_decoder = (
            nn.ModuleList(MatchingLayer(width, heads, dropout) for _ in range(layers)) for _ in range(2)
        )
        self.out_proj, self.anti_out_proj = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, embed)) for _ in range(2)
        )
        for layers_of in (self.decoder, self.anti_decoder):
            for idle in list(layers_of)[: -len(self._used(layers_of))]:
                idle.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, texts: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Texts (B, K, E), and the class token with the cells (B, 1 + N, E) -> what is added to each, as shaped."""
        text, visual = self.text_proj(texts), self.memory_proj(pixels)  # (B, K, C), (B, 1 + N, C)
        to_text, to_visual = text, visual
        for own, other in zip(self._used(self.decoder), self._used(self.anti_decoder), strict=True):
            # both directions see the other side as it came in
            to_text, to_visual = own(to_text, visual), other(to_visual, text)
        return self.out_proj(to_text), self.anti_out_proj(to_visual)

    def _used(self, layers: nn.ModuleList) -> list[nn.Module]:
        return list(layers) if self.chained else list(layers)[-1:]


def _named(**parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))


def _convolution(inputs: int, outputs: int, side: int, *, bias: bool) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=bias)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class Neck(nn.Module):
    """A feature pyramid: every level to the same channels, coarse ones added to finer ones (nearest), 3x3 after."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(_named(conv=_convolution(inputs, channels, 1, bias=True)) for _ in LEVELS)
        self.fpn_convs = nn.ModuleList(_named(conv=_convolution(channels, channels, 3, bias=True)) for _ in LEVELS)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """(B, C, h, w) of each level, finest first -> (B, channels, h, w)."""
        merged = [lateral(level) for lateral, level in zip(self.lateral_convs, levels, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], merged[i - 1].shape[2:], mode="nearest")
        return [conv(level) for conv, level in zip(self.fpn_convs, merged, strict=True)]


class Head(nn.Module):
    """Every level to the finest size by convolutions and doublings, their sum, and a 1x1 convolution to classes."""

    def __init__(self, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.scale_heads = nn.ModuleList(self._branch(channels, level) for level in range(len(LEVELS)))
        self.drop = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    @staticmethod
    def _branch(channels: int, doublings: int) -> nn.Sequential:
        parts: list[nn.Module] = []
        for _ in range(max(doublings, 1)):
            conv = _convolution(channels, channels, 3, bias=False)
            parts.append(_named(conv=conv, bn=nn.BatchNorm2d(channels), relu=nn.ReLU()))
            if doublings:
                parts.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        return nn.Sequential(*parts)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """(B, channels, h, w) of each level, finest first -> logits (B, K, h, w) at the finest."""
        total = self.scale_heads[0](levels[0])
        for branch, level in zip(list(self.scale_heads)[1:], levels[1:], strict=True):
            total = total + F.interpolate(branch(level), total.shape[2:], mode="bilinear", align_corners=False)
        return self.conv_seg(self.drop(total))


class Decoder(nn.Module):
    """Section 3.3.4: neck and head, with the matching scores beside every level of the pyramid where it is guided.

    width: of the pyramid. texts: how many matching scores there are. classes: K. guided: see above.
    """

    def __init__(self, width: int, texts: int, classes: int, channels: int, *, guided: bool, dropout: float) -> None:
        super().__init__()
        self.guided = guided
        self.neck = Neck(width + texts * guided, channels)
        self.decode_head = Head(channels, classes, dropout)

    def forward(self, levels: Sequence[Tensor], scores: Tensor) -> Tensor:
        """Pyramid (B, D, h, w) and matching scores (B, T, h', w') -> logits (B, K, h, w) of the finest level."""
        return self.decode_head(self.neck(self.beside(levels, scores)))

    def beside(self, levels: Sequence[Tensor], scores: Tensor) -> list[Tensor]:
        """What the neck takes: (B, D + T, h, w) of each level, where the decoder is guided."""
        if not self.guided:
            return list(levels)
        return [
            torch.cat([level, F.interpolate(scores, level.shape[2:], mode="bilinear", align_corners=True)], 1)
            for level in levels
        ]
