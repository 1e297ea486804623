"""CCT's network (Ouali et al. 2020): a dilated ResNet-50 with pyramid pooling, one main and many auxiliary decoders.

Output stride 8 in the features, 1 in the logits: a decoder enlarges eightfold by three pixel shuffles.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.backbone import Layout, ResNet
from tag2mask.models.classifier import Classifier
from tag2mask.types import UserError

CCT_RESNET50 = Layout(
    strides=(1, 2, 1, 1),
    dilations=(1, 1, 2, 4),
    first_dilations=(1, 1, 1, 2),
    stem="3x3",
)
"""CCT's ResNet-50: three convolutions in the stem, output stride 8, norms that learn."""


class PSP(nn.Module):
    """Pyramid pooling: means over grids of several sizes, enlarged beside the features, and a 3x3 convolution.

    inputs: channels; a quarter of them come out (one part for each of the bins).
    """

    def __init__(self, inputs: int, bins: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        part = inputs // len(bins)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(side), nn.Conv2d(inputs, part, 1, bias=False), nn.BatchNorm2d(part), nn.ReLU()
            )
            for side in bins
        )
        self.bottleneck = nn.Sequential(
            nn.Conv2d(inputs + part * len(bins), part, 3, padding=1, bias=False), nn.BatchNorm2d(part), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C / 4, h, w).

        Raises:
            UserError: if it is training on a single picture, whose one pooled cell has no variance.
        """
        if self.training and len(x) == 1:
            raise UserError(
                "pyramid pooling: got a batch of 1 in training, expected 2 or more: its norm sees one number for "
                "each channel; make the batch larger (on several GPUs: that of each)"
            )
        size = x.shape[2:]
        pooled = [F.interpolate(stage(x), size, mode="bilinear", align_corners=False) for stage in self.stages]
        return self.bottleneck(torch.cat([x, *pooled], 1))


def icnr_(weight: Tensor, factor: int = 2) -> Tensor:
    """Fill a pixel shuffle's weights so that at first it repeats pixels: no checkerboard (Aitken et al. 2017).

    Args:
        weight: (C factor^2, C', kh, kw); the factor^2 outputs that become one channel follow one another.
        factor: of the enlargement.

    Returns:
        ``weight``.
    """
    one = torch.empty(weight.shape[0] // factor**2, *weight.shape[1:])
    nn.init.kaiming_normal_(one)
    with torch.no_grad():
        return weight.copy_(one.repeat_interleave(factor**2, dim=0))


class Shuffle(nn.Module):
    """A 1x1 convolution, ReLU, and twice the size by moving four channels into space."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 1)
        icnr_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2 h, 2 w), nowhere negative."""
        return F.pixel_shuffle(F.relu(self.conv(x)), 2)


class Decoder(nn.Module):
    """A 1x1 convolution to the classes and pixel shuffles up to the picture; its logits are never negative."""

    def __init__(self, inputs: int, classes: int, doublings: int = 3) -> None:
        super().__init__()
        first = nn.Conv2d(inputs, classes, 1, bias=False)
        nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
        self.upsample = nn.Sequential(first, *(Shuffle(classes) for _ in range(doublings)))

    @torch.no_grad()
    def pass_on(self) -> None:
        """Become an enlargement of the first K inputs, which each shuffle repeats over its pixels."""
        convolutions = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        nn.init.eye_(convolutions[0].weight.flatten(1))
        for shuffle in convolutions[1:]:
            nn.init.eye_(shuffle.weight[::4].flatten(1))
            shuffle.weight.copy_(shuffle.weight[::4].repeat_interleave(4, dim=0))
            if shuffle.bias is not None:
                shuffle.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> logits (B, K, 8 h, 8 w)."""
        return self.upsample(x)


class CCTNet(nn.Module):
    """Encoder and main decoder: what predicts. The auxiliary decoders are of the training (``auxiliary_decoders``).

    classes: K, background included. layout: of the ResNet, at output stride 8; a narrower one makes a small network.
    """

    def __init__(self, classes: int, layout: Layout = CCT_RESNET50) -> None:
        super().__init__()
        self.backbone = ResNet(layout)
        self.psp = PSP(layout.channels[-1])
        self.shape = (layout.channels[-1] // 4, classes)
        self.main = Decoder(*self.shape)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) standardised -> shared features (B, C, ceil(H / 8), ceil(W / 8)), 512 channels."""
        return self.psp(self.backbone(pixels))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) standardised -> logits (B, K, H, W), those of the next multiples of 8 cut to size."""
        return self.main(self.encode(pixels))[..., : pixels.shape[2], : pixels.shape[3]]

    @torch.no_grad()
    def start_from(self, classifier: Classifier, names: Sequence[str]) -> None:
        """Begin with the class maps of a classifier on the same backbone, where it knows a class of ``names``.

        The first K shared features become the maps, the background's the opposite of their mean; the main decoder
        enlarges them. The other features stay random, and begin to count as the decoder learns.

        names: of the K classes, background first.
        """
        conv, norm = self.psp.bottleneck[0], self.psp.bottleneck[1]
        assert isinstance(conv, nn.Conv2d)  # for the type checker, as the next one
        assert isinstance(norm, nn.BatchNorm2d)
        rows = classifier.head.weight.detach()[..., 0, 0]  # (C, channels)
        conv.weight[: len(names)] = 0
        centre = conv.weight[:, : rows.shape[1], 1, 1]
        for value, name in enumerate(names):
            if name in classifier.names:
                centre[value] = rows[classifier.names.index(name)]
        centre[0] = -rows.mean(0)
        norm.bias[0] = 1
        self.main.pass_on()

    def auxiliary_decoders(self, count: int) -> nn.ModuleList:
        """So many new decoders like the main one, each with weights of its own."""
        return nn.ModuleList(Decoder(*self.shape) for _ in range(count))
