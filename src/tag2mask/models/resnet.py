"""CLIP's convolutional image tower: OpenAI's modified ResNet (RN50, RN101) with attention pooling.

Source: Radford et al. 2021, section 2.4. Three differences from a ResNet: a stem of three convolutions, an average
pool before every strided convolution, and a query-key-value attention in the place of the global average pool.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.clip import Cotangents
from tag2mask.models.packed import Packing
from tag2mask.models.shapes import drawn
from tag2mask.models.tower import BILINEAR, Mean, Positions, first_asked, resample_positions, walk
from tag2mask.models.vjp import Readout
from tag2mask.ops.cam import gradcam

STRIDE = 32


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the stride is an average pool, on both paths."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            layers: list[tuple[str, nn.Module]] = [
                ("-1", nn.AvgPool2d(stride)),
                ("0", nn.Conv2d(inputs, outputs, 1, bias=False)),
                ("1", nn.BatchNorm2d(outputs)),
            ]
            self.downsample = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 4 planes, h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.avgpool(y)))
        return F.relu(y + self.downsample(x))


class AttentionPool(nn.Module):
    """One attention whose query is the mean of all cells: (B, C, h, w) -> (B, E)."""

    def __init__(self, native_grid: tuple[int, int], width: int, heads: int, embed: int) -> None:
        super().__init__()
        self.native_grid = native_grid
        self.heads = heads
        count = 1 + native_grid[0] * native_grid[1]
        self.positional_embedding = drawn(count, width, std=width**-0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed)

    def positions(self, grid: tuple[int, int], how: Positions) -> Tensor:
        """Position embeddings for a grid (h, w): (1 + h w, C)."""
        return resample_positions(self.positional_embedding, self.native_grid, grid, how)

    def tokens(self, x: Tensor, positions: Positions) -> Tensor:
        """What attends: features (B, C, h, w) -> (B, 1 + N, C), their mean first, with positions."""
        x = x.to(self.c_proj.weight.dtype)
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)  # (B, N, C), row-major
        x = torch.cat([x.mean(1, keepdim=True), x], 1)  # (B, 1 + N, C)
        return x + self.positions(grid, positions)

    def forward(self, x: Tensor) -> Tensor:
        """Pool tokens (B, 1 + N, C) into (B, E), not normalised."""
        q, k, v = (
            proj(some).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, 1 or 1 + N, C / heads)
            for proj, some in ((self.q_proj, x[:, :1]), (self.k_proj, x), (self.v_proj, x))
        )
        pooled = F.scaled_dot_product_attention(q, k, v)  # (B, heads, 1, C / heads)
        return self.c_proj(pooled.transpose(1, 2).flatten(1))


class ModifiedResNet(nn.Module):
    """CLIP's ResNet tower. ``features`` and ``pool`` are apart, so that a CAM can be taken in between.

    layers: blocks in each of the four stages. width: channels after the stem; the last stage has 32 times as many.
    native_grid: the grid that the pool's positions were learned on (7x7 at 224 pixels).
    """

    def __init__(
        self, *, layers: Sequence[int], width: int, heads: int, native_grid: tuple[int, int], embed: int
    ) -> None:
        super().__init__()
        self.patch = STRIDE
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        inputs = width
        stages = []
        for stage, blocks in enumerate(layers):
            planes = width * 2**stage
            stride = 1 if stage == 0 else 2
            first = Bottleneck(inputs, planes, stride)
            inputs = planes * Bottleneck.expansion
            rest = (Bottleneck(inputs, planes, 1) for _ in range(blocks - 1))
            stages.append(nn.Sequential(first, *rest))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.attnpool = AttentionPool(native_grid, inputs, heads, embed)

    @property
    def native_grid(self) -> tuple[int, int]:
        """The grid that the pool's positions were learned on."""
        return self.attnpool.native_grid

    @property
    def blocks(self) -> tuple[()]:
        """None: cells meet in convolutions, and attend to each other nowhere."""
        return ()

    def pack(self) -> Packing:
        """Nothing: convolutions order their weights themselves."""
        return Packing()

    @property
    def trunk(self) -> tuple[nn.Module, ...]:
        """What comes before the pool."""
        return tuple(part for name, part in self.named_children() if name != "attnpool")

    def positions(self, grid: tuple[int, int], how: Positions) -> Tensor:
        """The pool's position embeddings for a grid (h, w): (1 + h w, C)."""
        return self.attnpool.positions(grid, how)

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) standardised -> the last stage's features (B, C, H / 32, W / 32).

        Raises:
            ValueError: where H or W is no multiple of 32.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % STRIDE or pixels.shape[3] % STRIDE:
            raise ValueError(
                f"pixels are {tuple(pixels.shape)}, expected (B, 3, H, W) with H and W multiples of {STRIDE}; "
                "resize the image first"
            )
        x = pixels.to(self.conv1.weight.dtype)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))  # (B, width, H / 2, W / 2) after the third
        x = F.avg_pool2d(x, 2)  # (B, width, H / 4, W / 4)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x

    def pool(self, features: Tensor, *, positions: Positions = BILINEAR) -> Tensor:
        """Features (B, C, h, w) -> image embedding (B, E), not normalised."""
        return self.attnpool(self.attnpool.tokens(features, positions))

    def embed(self, pixels: Tensor, positions: Positions) -> tuple[Tensor, tuple[int, int]]:
        """(B, 3, H, W) standardised -> tokens (B, 1 + N, C) entering the pool, their mean first, and their grid."""
        features = self.features(pixels)
        return self.attnpool.tokens(features, positions), (features.shape[2], features.shape[3])

    forward = walk

    def embedding(self, pixels: Tensor, *, readout: Readout, positions: Positions = BILINEAR) -> Tensor:
        """(B, 3, H, W) standardised -> (B, E), not normalised; the pool is the only readout."""
        return self.pool(self.features(pixels), positions=positions)

    def gradcams(
        self,
        pixels: Tensor,
        cotangents: Sequence[Cotangents],
        *,
        readout: Readout,
        attention: Mean | None = None,
        positions: Positions = BILINEAR,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """GradCAM at the last stage; only the attention pool is differentiated. As ``ImageTower.gradcams``."""
        first_asked(attention, len(self.blocks))
        features = self.features(pixels)  # (B, C, h, w)
        for feature, gradients in zip(features, cotangents, strict=True):
            with torch.inference_mode(False), torch.enable_grad():
                fed = feature[None].clone().requires_grad_(True)  # (1, C, h, w)
                embedding = self.pool(fed, positions=positions)[0]  # (E,)
                (grads,) = torch.autograd.grad(
                    embedding, fed, gradients(embedding.detach()), is_grads_batched=True
                )  # (K, 1, C, h, w)
            yield gradcam(feature.flatten(1).T, grads[:, 0].mean((2, 3))), None
