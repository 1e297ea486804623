"""The wide ResNet-38 (Wu et al. 2016) and DeepLabV1 on it: PSA's network, and the one MCTformer and WeakCLIP retrain.

Norm and ReLU come before each convolution; output stride 8. Parameters have the names of the public checkpoints
(``conv1a``, ``b2.conv_branch2a``, ...), so these load as they are; ``models.mxnet`` reads the original file.

The published heads, all on the 4096 channels of the last stage, dilation 12:

- ``"mctformer"``: 3x3 to 512 with bias, ReLU, 3x3 to the classes; logits are enlarged with align_corners=False.
- ``"seam"``: 3x3 to 512, norm, ReLU, 1x1, norm, ReLU, dropout, 1x1 to the classes; align_corners=True. It is that of
  SEAM's retraining code and of WeakCLIP's, which is the same code with another recipe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.backbone import FrozenBatchNorm2d
from tag2mask.models.containers import prefix_of
from tag2mask.models.mxnet import read_params, wideresnet_state
from tag2mask.models.state import fit_state, read_state
from tag2mask.types import UserError

Norm = type[nn.BatchNorm2d]


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    The shortcut is the input itself, or where channels or stride change a 1x1 convolution of its norm and ReLU.
    """

    def __init__(
        self, inputs: int, middle: int, outputs: int, norm: Norm, stride: int = 1, dilations: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        first, second = dilations
        self.bn_branch2a = norm(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, middle, 3, stride, padding=first, dilation=first, bias=False)
        self.bn_branch2b1 = norm(middle)
        self.conv_branch2b1 = nn.Conv2d(middle, outputs, 3, padding=second, dilation=second, bias=False)
        self.conv_branch1: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) -> the output (B, C', h', w'), and the input after norm and ReLU, a tap of AffinityNet."""
        active = F.relu(self.bn_branch2a(x))
        shortcut = x if self.conv_branch1 is None else self.conv_branch1(active)
        y = self.conv_branch2a(active)
        y = self.conv_branch2b1(F.relu(self.bn_branch2b1(y)))
        return shortcut + y, active


class Bottleneck(nn.Module):
    """1x1, dilated 3x3 and 1x1 convolutions with dropout of whole channels; the shortcut is always a 1x1."""

    def __init__(self, inputs: int, outputs: int, norm: Norm, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn_branch2a = norm(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, outputs // 4, 1, bias=False)
        self.bn_branch2b1 = norm(outputs // 4)
        self.conv_branch2b1 = nn.Conv2d(
            outputs // 4, outputs // 2, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.bn_branch2b2 = norm(outputs // 2)
        self.conv_branch2b2 = nn.Conv2d(outputs // 2, outputs, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) -> as ``Block.forward``."""
        active = F.relu(self.bn_branch2a(x))
        y = F.relu(self.bn_branch2b1(self.conv_branch2a(active)))
        y = self.conv_branch2b1(F.dropout2d(y, self.dropout, self.training))
        y = F.relu(self.bn_branch2b2(y))
        y = self.conv_branch2b2(F.dropout2d(y, self.dropout, self.training))
        return self.conv_branch1(active) + y, active


UNITS = {"b2": 3, "b3": 3, "b4": 6, "b5": 3}
"""Blocks in each stage before the two bottlenecks, as in ResNet-38."""


class WideResNet(nn.Module):
    """ResNet-38 without its classifier.

    width: channels of the first convolution, 64 in the published network; the output has 64 times as many.
    frozen_norm: batch norms use their running statistics in training and do not learn, as all the papers train it.
        False for training from random weights.
    freeze: stages that do not learn: "conv1a" everywhere; PSA and AffinityNet freeze "b2" too.
    """

    def __init__(self, width: int = 64, *, frozen_norm: bool = True, freeze: Sequence[str] = ("conv1a",)) -> None:
        super().__init__()
        norm: Norm = FrozenBatchNorm2d if frozen_norm else nn.BatchNorm2d
        self.channels = 64 * width
        self.conv1a = nn.Conv2d(3, width, 3, padding=1, bias=False)
        inputs = width
        self._order: list[str] = []
        for stage, (name, units) in enumerate(UNITS.items()):
            middle = width * 2 ** (min(stage, 2) + 1)  # 128, 256, 512, 512
            outputs = width * 2 ** (stage + 1)  # 128, 256, 512, 1024
            for unit in range(units):
                dilations = (1, 1)
                if name == "b5":  # what was a stride became a dilation, from the convolution after it on
                    dilations = (2 if unit else 1, 2)
                stride = 2 if unit == 0 and name != "b5" else 1
                self._add(f"{name}_{unit}" if unit else name, Block(inputs, middle, outputs, norm, stride, dilations))
                inputs = outputs
        self._add("b6", Bottleneck(inputs, 32 * width, norm, dilation=4, dropout=0.3))
        self._add("b7", Bottleneck(32 * width, 64 * width, norm, dilation=4, dropout=0.5))
        self.bn7 = norm(64 * width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, FrozenBatchNorm2d):
                module.requires_grad_(False)
        for name in freeze:
            for part in [self.conv1a] if name == "conv1a" else [m for n, m in self.named_children() if _of(n, name)]:
                part.requires_grad_(False)

    def _add(self, name: str, block: nn.Module) -> None:
        self.add_module(name, block)
        self._order.append(name)

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What AffinityNet looks at, all at stride 8 (each side ceil(H / 8)).

        Args:
            pixels: (B, 3, H, W) standardised.

        Returns:
            (B, 8 width, h, w), (B, 16 width, h, w) and (B, 64 width, h, w): 512, 1024 and 4096 channels.
        """
        x = self.conv1a(pixels)
        taps: dict[str, Tensor] = {}
        for name in self._order:
            x, taps[name] = getattr(self, name)(x)
            if name not in ("b5", "b6"):
                del taps[name]  # the early ones are large
        return taps["b5"], taps["b6"], F.relu(self.bn7(x))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) standardised -> (B, 64 width, ceil(H / 8), ceil(W / 8))."""
        return self.features(pixels)[-1]


def _of(name: str, stage: str) -> bool:
    """Whether the module ``b4_2`` belongs to the stage ``b4``."""
    return name == stage or name.startswith(f"{stage}_")


class MCTformerHead(nn.Module):
    """Two dilated 3x3 convolutions."""

    align_corners = False

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.fc8_seg_conv1 = nn.Conv2d(inputs, 512, 3, padding=12, dilation=12)
        self.fc8_seg_conv2 = nn.Conv2d(512, classes, 3, padding=12, dilation=12)
        nn.init.xavier_uniform_(self.fc8_seg_conv1.weight)
        nn.init.xavier_uniform_(self.fc8_seg_conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> logits (B, K, h, w)."""
        return self.fc8_seg_conv2(F.relu(self.fc8_seg_conv1(x)))


class SEAMHead(nn.Module):
    """A dilated 3x3 and two 1x1 convolutions with norms and dropout."""

    align_corners = True

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv_fov = nn.Conv2d(inputs, 512, 3, padding=12, dilation=12, bias=False)
        self.bn_fov = nn.BatchNorm2d(512, momentum=3e-4)
        self.conv_fov2 = nn.Conv2d(512, 512, 1, bias=False)
        self.bn_fov2 = nn.BatchNorm2d(512, momentum=3e-4)
        self.cls_conv = nn.Conv2d(512, classes, 1)
        for conv in (self.conv_fov, self.conv_fov2, self.cls_conv):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> logits (B, K, h, w)."""
        x = F.relu(self.bn_fov(self.conv_fov(x)))  # (B, 512, h, w)
        x = F.relu(self.bn_fov2(self.conv_fov2(x)))
        return self.cls_conv(F.dropout(x, 0.5, self.training))


HEADS: Mapping[str, type[MCTformerHead] | type[SEAMHead]] = {"mctformer": MCTformerHead, "seam": SEAMHead}


class DeepLabV1(nn.Module):
    """A WideResNet with one of the published heads. ``align_corners`` says how its logits are to be enlarged.

    classes: K, background included. head: a name in ``HEADS``.
    """

    def __init__(
        self,
        classes: int,
        head: Literal["mctformer", "seam"] = "seam",
        *,
        width: int = 64,
        frozen_norm: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = WideResNet(width, frozen_norm=frozen_norm)
        self.head: MCTformerHead | SEAMHead = HEADS[head](self.backbone.channels, classes)
        self.align_corners = self.head.align_corners

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) standardised -> logits (B, K, ceil(H / 8), ceil(W / 8))."""
        return self.head(self.backbone(pixels))


_HEAD = re.compile(r"(fc8_seg_conv|conv_fov|bn_fov|cls_conv)")


def load_wideresnet(network: WideResNet | DeepLabV1, path: Path, *, head: bool = False) -> None:
    """Load a public checkpoint of ResNet-38 or of DeepLabV1 on it; the file is never run.

    Understood: PSA's and MCTformer's (flat names), SEAM's and WeakCLIP's ("backbone." before the stages), with
    anything before either, our own, and the original ImageNet weights in MXNet's format. Classifiers of images are
    left out.

    Args:
        network: to fill.
        path: .pth, .safetensors or .params.
        head: also take the head, which must be of the network's kind and classes.

    Raises:
        UserError: if a tensor is missing or of another shape, or a head is asked of a bare WideResNet.
    """
    if head and not isinstance(network, DeepLabV1):
        raise UserError(f"{path}: got a ResNet-38 without a head, expected a DeepLabV1 to load a head into")
    given = wideresnet_state(read_params(path)) if path.suffix == ".params" else read_state(path)
    around = prefix_of(given, "b2.conv_branch2a.weight", path) or ""
    outer = around.removesuffix("backbone.")  # a head is beside the backbone, or in a part of that name
    state = {name.removeprefix(around).removeprefix(outer).removeprefix("head."): v for name, v in given.items()}
    stages = {name: v for name, v in state.items() if re.match(r"(conv1a|b[2-7](_\d)?|bn7)\.", name)}
    fit_state(network.backbone if isinstance(network, DeepLabV1) else network, stages, path)
    if head and isinstance(network, DeepLabV1):
        fit_state(network.head, {name: v for name, v in state.items() if _HEAD.match(name)}, path)
