"""IRN's two heads over the five feature maps of a ResNet: class boundaries, and displacements to a thing's centre.

J. Ahn, S. Cho and S. Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations" (2019).
The backbone stays frozen and in eval mode; only the heads learn. Semantic masks need the boundary alone.

Pictures are not padded at test time: the released code pads to 512 x 512, which silently *crops* larger ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.ops.cam_fusion import strided_size

RESNET50 = (64, 256, 512, 1024, 2048)
"""Channels of the feature maps of a ResNet-50, after the stem's pooling and after each stage."""

GRID = 4
"""Pixels from one cell of both heads' output to the next; also those of the first two feature maps."""


class Project(nn.Module):
    """1x1 convolution, group norm, bilinear enlargement, ReLU, in this order."""

    def __init__(self, inputs: int, outputs: int, groups: int, enlarge: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = nn.GroupNorm(groups, outputs)
        self.enlarge = enlarge

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', enlarge h, enlarge w)."""
        x = self.norm(self.conv(x))
        if self.enlarge > 1:
            x = F.interpolate(x, scale_factor=float(self.enlarge), mode="bilinear", align_corners=False)
        return F.relu(x)


class EdgeHead(nn.Module):
    """All five feature maps, seen at stride 4, tell whether a pixel lies on a class boundary.

    channels: of the feature maps. strides: theirs, multiples of 4. width: channels that each is projected to, a
    multiple of 4.
    """

    def __init__(
        self, channels: Sequence[int] = RESNET50, strides: Sequence[int] = (4, 4, 8, 16, 16), width: int = 32
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            Project(inputs, width, 4, stride // GRID) for inputs, stride in zip(channels, strides, strict=True)
        )
        self.edge = nn.Conv2d(len(channels) * width, 1, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Five (B, C_i, h_i, w_i) -> boundary logits (B, 1, h, w) at stride 4; the features get no gradient."""
        size = features[1].shape[-2:]
        seen = [project(x.detach()) for project, x in zip(self.projections, features, strict=True)]
        return self.edge(torch.cat([_crop(x, size) for x in seen], 1))


class MeanShift(nn.Module):
    """Subtracts the mean displacement of the training set in eval mode; in training it does nothing."""

    running_mean: Tensor

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))

    @torch.no_grad()
    def measure(self, displacements: Iterable[Tensor]) -> None:
        """Set the mean to that of batches (B, 2, h, w), as they come in training mode; every batch counts the same.

        Raises:
            ValueError: if there is no batch.
        """
        total, count = torch.zeros_like(self.running_mean), 0
        for batch in displacements:
            total += batch.mean((0, 2, 3))
            count += 1
        if not count:
            raise ValueError("got no batch of displacements, expected at least one to take their mean")
        self.running_mean.copy_(total / count)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2, h, w) -> the same."""
        return x if self.training else x - self.running_mean[:, None, None]


class DisplacementHead(nn.Module):
    """The offset (dy, dx), in cells, from every pixel to the centre of its thing.

    channels: of the feature maps at strides 4, 4, 8, 16 and 16. width: channels inside, 256 in IRN, a multiple of 32.
    """

    def __init__(self, channels: Sequence[int] = RESNET50, width: int = 256) -> None:
        super().__init__()
        stem, first, second, third, fourth = channels
        half, quarter = width // 2, width // 4
        self.stem = Project(stem, quarter, 8)
        self.first = Project(first, half, 16)
        self.second = Project(second, width, 16)
        self.third = Project(third, width, 16, 2)
        self.fourth = Project(fourth, width, 16, 2)
        self.deep = Project(3 * width, width, 16, 2)
        self.all = Project(quarter + half + width, width, 16)
        self.displacement = nn.Conv2d(width, 2, 1, bias=False)
        self.mean_shift = MeanShift(2)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Five (B, C_i, h_i, w_i) -> displacements (B, 2, h, w) at stride 4; the features get no gradient."""
        stem, first, second, third, fourth = (x.detach() for x in features)
        at8 = self.second(second)  # (B, width, h / 2, w / 2)
        deep = [_crop(x, at8.shape[-2:]) for x in (self.third(third), self.fourth(fourth))]
        deep4 = self.deep(torch.cat([at8, *deep], 1))  # (B, width, about h, about w)
        shallow = self.first(first)
        joined = torch.cat([self.stem(stem), shallow, _crop(deep4, shallow.shape[-2:])], 1)
        return self.mean_shift(self.displacement(self.all(joined)))


class IRNHeads(nn.Module):
    """Both heads. Their learning rates differ (0.1 and 1.0 in IRN): take ``edge`` and ``displacement`` apart."""

    def __init__(
        self, channels: Sequence[int] = RESNET50, *, edge_width: int = 32, displacement_width: int = 256
    ) -> None:
        super().__init__()
        self.edge = EdgeHead(channels, width=edge_width)
        self.displacement = DisplacementHead(channels, displacement_width)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Five (B, C_i, h_i, w_i) -> boundary logits (B, 1, h, w) and displacements (B, 2, h, w), at stride 4."""
        return self.edge(features), self.displacement(features)


def boundary_map(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Boundary probabilities of an image from its logits and those of its mirror image: (2, 1, h, w) -> (h', w').

    The logits are averaged, not the probabilities. size: (H, W) of the image, whose grid at stride 4 is returned.

    Raises:
        ValueError: if the logits do not cover that grid.
    """
    height, width = strided_size(size, GRID)
    if logits.ndim != 4 or len(logits) != 2 or logits.shape[2] < height or logits.shape[3] < width:
        raise ValueError(
            f"logits: got {tuple(logits.shape)}, expected (2, 1, {height}, {width}) for an image of {tuple(size)}"
        )
    return (logits[0, 0] / 2 + logits[1, 0].flip(-1) / 2).sigmoid()[:height, :width]


def _crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """Take off the cell by which an enlarged map of an odd size is too large."""
    return x[..., : size[0], : size[1]]
