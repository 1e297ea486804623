"""POT's network (CVPR 2025, after SIPE, CVPR 2022): a ResNet-50 at stride 16, a classifier, features of all stages.

Each stage is seen beside the picture itself, at its own size, by a 1x1 convolution; the four results, each of length
1, are joined to 768 channels at stride 16. Prototypes are made of these features. Parameters have the names of the
released checkpoint but for the ResNet's prefix: ``resnet50.`` there, ``backbone.`` here, as in our other networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.backbone import Layout, ResNet
from tag2mask.models.classifier import load_backbone, take_rows
from tag2mask.models.state import fit_state, read_state

__all__ = ["POTNetwork", "build_pot", "load_released", "released_names"]

STRIDES = (1, 2, 2, 1)
"""Of the backbone's stages; output stride 16."""

SIDES = (128, 128, 256, 256)
"""Channels that each stage is seen with; 768 together."""

FEATURE = 2
"""The stage whose grid the features have, stride 16."""

EPS = 1e-5
RELEASED_PREFIX = "resnet50."


class POTNetwork(nn.Module):
    """A backbone of ``STRIDES``, four side heads, and one map a class.

    classes: C. Stem and first norm of the backbone are frozen, as are the statistics of all norms where the layout
    says ``frozen_norm``.
    """

    def __init__(self, backbone: ResNet, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        stages = backbone.layout.channels[1:]
        self.side1, self.side2, self.side3, self.side4 = (
            nn.Conv2d(channels + 3, width, 1, bias=False) for channels, width in zip(stages, SIDES, strict=True)
        )
        self.classifier = nn.Conv2d(stages[-1], classes, 1, bias=False)
        for module in (backbone.conv1, backbone.bn1):
            module.requires_grad_(False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Class maps before ReLU, whose mean is the logit, and the features.

        Args:
            pixels: (B, 3, H, W) standardised, of any size.

        Returns:
            (B, C, h, w) and (B, 768, h, w) at stride 16. The features are four parts of length 1 each, not joined to
            length 1.
        """
        stages = self.backbone.features(pixels)[1:]
        size = stages[FEATURE].shape[-2:]
        sides = (self.side1, self.side2, self.side3, self.side4)
        seen = [_unit(side(_beside(stage, pixels))) for side, stage in zip(sides, stages, strict=True)]
        joined = [F.interpolate(part, size, mode="bilinear", align_corners=False) for part in seen]
        return self.classifier(stages[-1]), torch.cat(joined, 1)

    def maps(self, pixels: Tensor) -> Tensor:
        """Class maps alone, before ReLU: (B, 3, H, W) standardised -> (B, C, h, w)."""
        out: Tensor = self.classifier(self.backbone(pixels))
        return out

    def new_parameters(self) -> list[nn.Parameter]:
        """What learns at ten times the rate: all but the backbone."""
        return [value for name, value in self.named_parameters() if not name.startswith("backbone.")]


def build_pot(weights: str | Path, names: Sequence[str], *, seed: int = 0) -> POTNetwork:
    """The network before its training, in evaluation mode, with norms that keep their statistics.

    From a classifier of ours it takes the rows of the classes that the classifier knows; side heads and other rows
    are drawn as PyTorch draws a convolution.

    Args:
        weights: as ``load_backbone``.
        names: of the classes, without background.
        seed: of what is drawn.

    Raises:
        UserError: nothing there, or it does not fit.
    """
    backbone = load_backbone(weights, strides=STRIDES, frozen_norm=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = POTNetwork(backbone, len(names))
    take_rows(network.classifier.weight, weights, names)
    return network.eval()


def load_released(path: str | Path, classes: int) -> POTNetwork:
    """The network of a checkpoint that the released code wrote (``{"net": ...}``), in evaluation mode.

    Raises:
        UserError: it cannot be read, or is of another network or another number of classes.
    """
    path = Path(path).expanduser()
    network = POTNetwork(ResNet(Layout(strides=STRIDES, frozen_norm=True)), classes)
    fit_state(network, released_names(read_state(path)), path)
    return network.eval()


def released_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parts of a released checkpoint's ``net`` that this network has, by its names.

    Most of the 966 entries there are further names of the same tensors; ``f9`` is never used.
    """
    kept = {}
    for name, value in state.items():
        if name.startswith(RELEASED_PREFIX):
            kept["backbone." + name.removeprefix(RELEASED_PREFIX)] = value
        elif name.startswith(("side", "classifier.")):
            kept[name] = value
    return kept


def _beside(stage: Tensor, pixels: Tensor) -> Tensor:
    """A stage's features with the picture at their size: (B, D, h, w), (B, 3, H, W) -> (B, D + 3, h, w)."""
    small = F.interpolate(pixels, stage.shape[-2:], mode="bilinear", align_corners=True)
    return torch.cat([stage, small], 1)


def _unit(features: Tensor) -> Tensor:
    return features / (features.norm(dim=1, keepdim=True) + EPS)
