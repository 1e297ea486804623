"""The heads of classifier CAM and CLIMS over the last features of a backbone (ResNet-50 at output stride 16)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.backbone import ResNet
from tag2mask.models.classifier import load_backbone, take_rows
from tag2mask.models.clip import CLIPModel


class CAMHead(nn.Module):
    """A 1x1 convolution without bias: one map a class. Also the head of CLIMS's current repository.

    As a classifier it is trained on the means of its maps; CLIMS goes on from those weights, with ``maps``.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(channels, classes, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, h, w) -> class logits at each cell (B, C, h, w)."""
        return self.classifier(features)

    def scores(self, features: Tensor) -> Tensor:
        """Logits of the image's tags: (B, D, h, w) -> (B, C), the mean over cells."""
        return self(features).mean((2, 3))


class CameraReadyHead(nn.Module):
    """The head of CLIMS's camera-ready code: a bottleneck, then a 1x1 convolution to background and the classes.

    The background channel is computed but never trained: no loss sees it. It is dropped here from all results.

    channels: D. classes: C, without background. squeeze: channels inside the bottleneck, D / 4 in CLIMS.
    """

    def __init__(self, channels: int, classes: int, squeeze: int | None = None) -> None:
        super().__init__()
        inner = squeeze or channels // 4
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.classifier = nn.Conv2d(channels, 1 + classes, 1, bias=False)
        for convolution in (self.conv1, self.conv2, self.conv3, self.classifier):
            nn.init.normal_(convolution.weight, std=0.01)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, h, w) -> class logits at each cell (B, C, h, w), without background."""
        y = F.leaky_relu(self.bn1(self.conv1(features)))
        y = F.leaky_relu(self.bn2(self.conv2(y)))
        y = F.leaky_relu(self.bn3(self.conv3(y)) + features)  # (B, D, h, w)
        return self.classifier(y)[:, 1:]

    def scores(self, features: Tensor) -> Tensor:
        """Logits of the image's tags: (B, D, h, w) -> (B, C), the mean over cells."""
        return self(features).mean((2, 3))


def activation(logits: Tensor, training: bool) -> Tensor:
    """Maps of class logits (..., C, h, w): in [0, 1] where CLIP judges them (training), max(logits, 0) as CAMs."""
    return logits.sigmoid() if training else F.relu(logits)


class CLIMSNetwork(nn.Module):
    """A backbone at stride 16 and one of the two heads."""

    def __init__(self, backbone: ResNet, head: CAMHead | CameraReadyHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of the tags: (B, 3, H, W) standardised -> (B, C)."""
        return self.head.scores(self.backbone(pixels))

    def maps(self, pixels: Tensor) -> Tensor:
        """Class logits at each cell, before sigmoid or ReLU: (B, 3, H, W) standardised -> (B, C, h, w)."""
        out: Tensor = self.head(self.backbone(pixels))
        return out


def build_clims(
    weights: str | Path, names: Sequence[str], head: Literal["cam", "camera-ready"], *, seed: int = 0
) -> tuple[CLIMSNetwork, tuple[str, ...]]:
    """CLIMS's network before its training, in evaluation mode, and the classes that it does not know yet.

    From a classifier's folder it takes the rows of the classes that the classifier knows. The camera-ready bottleneck
    then begins as the identity (the weight of its last norm is 0), so that the maps are the classifier's own to begin
    with. The rest is drawn from the seed.

    Args:
        weights: as ``load_backbone``; a public ImageNet checkpoint knows no class.
        names: of the classes, without background.
        head: "cam" is the current repository's, "camera-ready" the other.
        seed: of what is drawn.

    Raises:
        UserError: nothing there, or it does not fit.
    """
    backbone = load_backbone(weights, strides=(1, 2, 2, 1))
    channels = backbone.layout.channels[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = CAMHead(channels, len(names)) if head == "cam" else CameraReadyHead(channels, len(names))
    # the camera-ready head has background before the classes
    known = take_rows(made.classifier.weight, weights, names)
    if known and isinstance(made, CameraReadyHead):
        nn.init.zeros_(made.bn3.weight)
    network = CLIMSNetwork(backbone, made).eval()
    return network, tuple(name for name in names if name not in known)


def embed_images(clip: CLIPModel, pixels: Tensor) -> Tensor:
    """CLIP's own embeddings of standardised pictures, with gradients: (B, 3, H, W) -> (B, E), not normalised."""
    return clip.vision.embedding(pixels, readout="class")
