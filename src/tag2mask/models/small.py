"""A small segmentation network: a narrow ResNet, a light pyramid of dilations, and a decoder that looks back.

After DeepLabV3+ (Chen et al. 2018), much reduced: the last stage says what there is, at stride 16, and the first
stage, at stride 4, says where its edges are. Made for storybook-resnet and two processor cores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.backbone import Layout, ResNet
from tag2mask.models.classifier import Classifier

RATES = (3, 6)
"""Dilations of its 3x3 convolutions: at stride 16 and with 256 pixels a side, wider ones see padding alone."""


def _conv(inputs: int, outputs: int, side: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (side // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class SmallHead(nn.Module):
    """Last stage and first stage to logits.

    There is no pooling over the whole picture: a tile of it would see another mean than the whole. ``coarse`` reads
    the last stage directly: a classifier's weights go there, so that training starts from its class maps.

    first, last: channels of the two stages. channels: of all that is between them and the logits.
    """

    def __init__(self, first: int, last: int, classes: int, channels: int) -> None:
        super().__init__()
        self.reduce = _conv(last, channels, 1)
        self.pyramid = nn.ModuleList(_conv(channels, channels, 3, rate) for rate in RATES)
        self.merge = _conv(channels * (1 + len(RATES)), channels, 1)
        self.edges = _conv(first, channels // 3, 1)
        self.refine = _conv(channels + channels // 3, channels, 3)
        self.classify = nn.Conv2d(channels, classes, 1)
        self.coarse = nn.Conv2d(last, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for layer in (self.classify, self.coarse):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, first: Tensor, last: Tensor) -> Tensor:
        """(B, C, h, w) and (B, C', h / 4, w / 4) -> logits (B, K, h, w)."""
        reduced = self.reduce(last)  # (B, channels, h / 4, w / 4)
        what = self.merge(torch.cat([reduced, *(branch(reduced) for branch in self.pyramid)], 1))
        what = F.interpolate(what, first.shape[2:], mode="bilinear", align_corners=False)  # (B, channels, h, w)
        fine = self.classify(self.refine(torch.cat([what, self.edges(first)], 1)))  # (B, K, h, w)
        return fine + F.interpolate(self.coarse(last), first.shape[2:], mode="bilinear", align_corners=False)


class SmallNet(nn.Module):
    """A ResNet with ``SmallHead``.

    classes: K, background included. layout: of the ResNet. channels: of the head.
    """

    def __init__(self, classes: int, layout: Layout, channels: int) -> None:
        super().__init__()
        self.backbone = ResNet(layout)
        self.head = SmallHead(layout.channels[1], layout.channels[-1], classes, channels)

    def start_from(self, classifier: Classifier, names: Sequence[str]) -> None:
        """Begin with the class maps of a classifier on the same backbone, where it knows a class of ``names``."""
        rows = classifier.head.weight.detach()  # (C, channels, 1, 1)
        with torch.no_grad():
            for value, name in enumerate(names):
                if name in classifier.names:
                    self.head.coarse.weight[value] = rows[classifier.names.index(name)]

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) standardised -> logits (B, K, ceil(H / 4), ceil(W / 4))."""
        _, first, _, _, last = self.backbone.features(pixels)
        return self.head(first, last)
