"""AffinityNet's head over the features of a wide ResNet-38 (PSA).

J. Ahn and S. Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised
Semantic Segmentation" (2018). Pixels of one class get like features: ``ops.random_walk.feature_links``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.backbone import ResNet
from tag2mask.models.classifier import load_backbone
from tag2mask.models.wideresnet import WideResNet, load_wideresnet

CELL = 8
"""Pixels from one feature to the next."""

RESNET38 = (512, 1024, 4096)
"""Channels of the feature maps of a ResNet-38 that AffinityNet takes, all at stride 8."""


class AffinityHead(nn.Module):
    """Projects three feature maps, joins them and mixes the channels.

    channels: of the feature maps. widths: channels that each is projected to; the output has their sum.
    """

    def __init__(self, channels: Sequence[int] = RESNET38, widths: Sequence[int] = (64, 128, 256)) -> None:
        super().__init__()
        projections = [
            nn.Conv2d(inputs, outputs, 1, bias=False) for inputs, outputs in zip(channels, widths, strict=True)
        ]
        for projection in projections:
            nn.init.kaiming_normal_(projection.weight)
        self.projections = nn.ModuleList(projections)
        self.mix = nn.Conv2d(sum(widths), sum(widths), 1, bias=False)
        nn.init.xavier_uniform_(self.mix.weight, gain=4)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Three (B, C_i, h_i, w_i) -> (B, sum of widths, h, w), of the first map's size.

        In a ResNet-38 all three have that size; those of another backbone are enlarged to it, bilinearly.
        """
        size = features[0].shape[-2:]
        seen = []
        for project, x in zip(self.projections, features, strict=True):
            y = F.elu(project(x))
            if y.shape[-2:] != size:
                y = F.interpolate(y, size=size, mode="bilinear", align_corners=False)
            seen.append(y)
        return F.elu(self.mix(torch.cat(seen, 1)))


class AffinityNet(nn.Module):
    """A backbone and AffinityNet's head on three of its feature maps; norms and the first stages do not learn.

    Of a ResNet-38 the maps are the paper's, at stride 8. Of a ResNet they are those after its second, third and
    fourth stage, the latter two enlarged: a stand-in for machines on which ResNet-38 is too slow.
    """

    def __init__(self, backbone: ResNet | WideResNet) -> None:
        super().__init__()
        self.backbone = backbone
        if isinstance(backbone, ResNet):
            channels = backbone.layout.channels[2:]
            for module in backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.requires_grad_(False)
            for first in (backbone.conv1, backbone.layer1):
                first.requires_grad_(False)
        else:
            channels = (backbone.channels // 8, backbone.channels // 4, backbone.channels)
        self.head = AffinityHead(channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """Standardised (B, 3, H, W) -> features (B, C, ceil(H / 8), ceil(W / 8))."""
        return self.head(self.backbone.features(pixels)[-3:])


def load_affinity_net(weights: str, backbone: Literal["resnet", "resnet38"] = "resnet") -> AffinityNet:
    """AffinityNet over pretrained weights; its head's are drawn by torch's own dice.

    weights: "storybook-resnet", a classifier's folder or a public ResNet for "resnet"; PSA's or MCTformer's .pth, or
    the original .params, for "resnet38".

    Raises:
        UserError: nothing there, or weights of another network.
    """
    if backbone == "resnet":
        return AffinityNet(load_backbone(weights, strides=(1, 2, 2, 1), frozen_norm=True))
    network = WideResNet(freeze=("conv1a", "b2"))
    load_wideresnet(network, Path(weights).expanduser())
    return AffinityNet(network)
