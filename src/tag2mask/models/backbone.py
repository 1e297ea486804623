"""The plain ResNet of He et al. 2016 with bottleneck blocks: below classifier CAM, CLIMS, IRN and DeepLab.

Parameters have the names of the public ImageNet checkpoints (``conv1``, ``layer1.0.conv1``, ...), so these load as
they are. The papers' variants are settings of ``Layout``: where the strides are, which stages are dilated, and
whether the pooling rounds up. CLIP's own ResNet is another network; see ``models.resnet``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

EXPANSION = 4
"""Channels that leave a bottleneck, in units of those within it."""

Four = tuple[int, int, int, int]


@dataclass(frozen=True)
class Layout:
    """What distinguishes one ResNet from another; the default is the public ResNet-50.

    blocks: bottlenecks in each stage; (3, 4, 23, 3) is ResNet-101.
    width: channels after the stem, 64 in the public networks; the last stage has 32 times as many.
    strides: of each stage. (1, 2, 2, 1) gives the output stride 16 of IRN and CLIMS, (1, 2, 1, 1) gives 8.
    dilations: of the 3x3 convolutions of each stage.
    first_dilations: of the first block of each stage; None: as the rest. Networks whose strides were turned into
        dilations keep the first block at the dilation before (IRN: always 1).
    stride_at: the convolution that has a stage's stride: "3x3", or the first "1x1" as in Caffe (DeepLabV2).
    ceil_pool: the stem's pooling rounds sizes up, as in Caffe: 240 pixels give 61 cells at stride 4, and not 60.
    stem: one "7x7" convolution, or three "3x3", of which the last has twice as many channels (the stem of PSPNet).
    frozen_norm: batch norms use their running statistics in training too; their weights and biases still learn.
    """

    blocks: Four = (3, 4, 6, 3)
    width: int = 64
    strides: Four = (1, 2, 2, 2)
    dilations: Four = (1, 1, 1, 1)
    first_dilations: Four | None = None
    stride_at: Literal["3x3", "1x1"] = "3x3"
    ceil_pool: bool = False
    stem: Literal["7x7", "3x3"] = "7x7"
    frozen_norm: bool = False

    def __post_init__(self) -> None:
        fours = (self.blocks, self.strides, self.dilations, self.first_dilations or self.dilations)
        if not all(len(four) == 4 and all(isinstance(n, int) and n > 0 for n in four) for four in fours):
            raise ValueError(f"blocks, strides and dilations are {fours}, expected four whole numbers above 0 each")
        if not (isinstance(self.width, int) and self.width > 0) or self.stride_at not in ("3x3", "1x1"):
            raise ValueError(f"width {self.width!r}, stride_at {self.stride_at!r}: expected 1 or more, 3x3 or 1x1")
        if self.stem not in ("7x7", "3x3"):
            raise ValueError(f"stem {self.stem!r}: expected 7x7 or 3x3")

    @property
    def stride(self) -> int:
        """Pixels from one cell of the last stage to the next."""
        return 4 * math.prod(self.strides)

    @property
    def channels(self) -> tuple[int, int, int, int, int]:
        """Of the five feature maps, stem first."""
        stem = self.width * (2 if self.stem == "3x3" else 1)
        a, b, c, d = (self.width * EXPANSION * 2**stage for stage in range(4))
        return stem, a, b, c, d


IRN = Layout(strides=(1, 2, 2, 1))
"""ResNet-50 at output stride 16 without dilation: classifier CAM, CLIMS and IRN."""


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that stays with its running statistics, in training too."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut."""

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int, layout: Layout) -> None:
        super().__init__()
        norm = FrozenBatchNorm2d if layout.frozen_norm else nn.BatchNorm2d
        outputs = planes * EXPANSION
        first, second = (stride, 1) if layout.stride_at == "1x1" else (1, stride)
        self.conv1 = nn.Conv2d(inputs, planes, 1, stride=first, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=second, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = norm(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = norm(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 4 planes, ceil(h / stride), ceil(w / stride))."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A ResNet without its classifier. Weights are drawn as the public networks' were, by torch's own dice."""

    def __init__(self, layout: Layout = IRN) -> None:
        super().__init__()
        self.layout = layout
        norm = FrozenBatchNorm2d if layout.frozen_norm else nn.BatchNorm2d
        inputs = layout.channels[0]
        self.conv1: nn.Module
        if layout.stem == "7x7":
            self.conv1 = nn.Conv2d(3, inputs, 7, stride=2, padding=3, bias=False)
        else:
            width = layout.width
            self.conv1 = nn.Sequential(
                *(nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), norm(width), nn.ReLU()),
                *(nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width), nn.ReLU()),
                nn.Conv2d(width, inputs, 3, padding=1, bias=False),
            )
        self.bn1 = norm(inputs)
        stages = []
        for stage in range(4):
            planes, dilation = layout.width * 2**stage, layout.dilations[stage]
            opening = (layout.first_dilations or layout.dilations)[stage]
            blocks = [Bottleneck(inputs, planes, layout.strides[stage], opening, layout)]
            inputs = planes * EXPANSION
            blocks += [Bottleneck(inputs, planes, 1, dilation, layout) for _ in range(layout.blocks[stage] - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Feature maps after the stem (with its pooling) and the four stages.

        Args:
            pixels: (B, 3, H, W) standardised, of any size.

        Returns:
            Five tensors (B, ``layout.channels[i]``, h, w). The first is at stride 4; without ``ceil_pool`` each side
            is ceil(H / its stride).
        """
        x = F.relu(self.bn1(self.conv1(pixels)))  # (B, width, H / 2, W / 2)
        stem = F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=self.layout.ceil_pool)  # (B, width, H / 4, W / 4)
        first = self.layer1(stem)
        second = self.layer2(first)
        third = self.layer3(second)
        return stem, first, second, third, self.layer4(third)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) standardised -> the last stage (B, 32 width, ceil(H / stride), ceil(W / stride))."""
        return self.features(pixels)[-1]
