"""AffinityNet's head over the features of a wide ResNet-38 (PSA).

J. Ahn and S. Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised
Semantic Segmentation" (2018). Pixels of one class get like features: ``ops.random_walk.feature_links``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
