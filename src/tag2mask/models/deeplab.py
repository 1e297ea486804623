"""DeepLabV2 on a ResNet-101, as the papers retrain it (Chen et al. 2017; deeplab-pytorch; CLIP-ES, CLIMS, POT).

The ResNet is Caffe's: a stage's stride is on its first 1x1 convolution and the stem's pooling rounds up, so the
public ImageNet weights of other ResNets have the same shapes and compute something else; ``load_deeplab`` refuses
them. The two initialisations of the papers differ by more than they seem: ``deeplabv1_resnet101-coco`` was trained
on COCO's *pixel labels* (+2.7 mIoU in CLIP-ES), ``deeplabv1_resnet101-imagenet`` on image labels.

Output stride 8: 321 pixels give 41 cells. Pixels come in as Caffe wants them, see ``caffe_pixels``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.backbone import Layout, ResNet
from tag2mask.models.public_resnet import PublicResNet, read_resnet
from tag2mask.models.state import fit_state

CAFFE_MEAN = (122.675, 116.669, 104.008)
"""Of red, green and blue, in grey levels: what Caffe's networks subtract, and what their images are padded with."""

CAFFE_RESNET101 = Layout(
    blocks=(3, 4, 23, 3),
    strides=(1, 2, 1, 1),
    dilations=(1, 1, 2, 4),
    stride_at="1x1",
    ceil_pool=True,
    frozen_norm=True,
)
"""ResNet-101 of DeepLabV2: output stride 8, batch norms frozen."""

RATES = (6, 12, 18, 24)
SCALES = (0.5, 0.75)


def caffe_pixels(images: Tensor) -> Tensor:
    """Pictures as Caffe's networks want them: blue first, minus the mean, in grey levels.

    Args:
        images: (B, 3, H, W) RGB, 0-255, of any dtype.

    Returns:
        (B, 3, H, W) float32, BGR.
    """
    mean = torch.tensor(CAFFE_MEAN, device=images.device)[:, None, None]
    return (images.float() - mean).flip(1)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 3x3 convolutions of several dilations side by side, summed."""

    def __init__(self, inputs: int, classes: int, rates: Sequence[int] = RATES) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(inputs, classes, 3, padding=r, dilation=r) for r in rates)
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(branch.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> logits (B, K, h, w)."""
        logits = self.branches[0](x)
        for branch in self.branches[1:]:
            logits = logits + branch(x)
        return logits


class DeepLabV2(nn.Module):
    """A ResNet with the summed ASPP as its head.

    classes: K, background included. layout: of the ResNet; a narrower one makes a small network. Where its norms are
    frozen, their weights and biases get no gradient either (they are in no parameter group of the papers).
    """

    def __init__(self, classes: int, layout: Layout = CAFFE_RESNET101, rates: Sequence[int] = RATES) -> None:
        super().__init__()
        self.backbone = ResNet(layout)
        self.head = ASPP(layout.channels[-1], classes, rates)
        if layout.frozen_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, K, h, w) at the stride of the layout."""
        return self.head(self.backbone(pixels))


class MultiScale(nn.Module):
    """A network seen at several scales of its input; the largest logit of every cell counts.

    In training the output is the list [scale 1, the other scales in order, maximum], each at its own size; the papers
    add up a loss of each. Otherwise it is the maximum alone, at the size of scale 1.

    An input of another scale has floor(side * scale) pixels a side, 1 / scale of the whole input apart: where a side
    is no multiple, what is left over at its far end is cut off, not squeezed in. Logits are brought back to the size
    of scale 1 from edge to edge.
    """

    def __init__(self, network: nn.Module, scales: Sequence[float] = SCALES) -> None:
        super().__init__()
        self.network = network
        self.scales = tuple(scales)

    def forward(self, pixels: Tensor) -> Tensor | list[Tensor]:
        """(B, 3, H, W) -> logits (B, K, h, w), or the list of them in training."""
        logits = [self.network(pixels)]
        for scale in self.scales:
            # not to a size: that is another step between pixels, and an export to ONNX would fix it
            smaller = F.interpolate(pixels, scale_factor=scale, mode="bilinear", align_corners=False)
            logits.append(self.network(smaller))
        largest = logits[0]
        for other in logits[1:]:
            same = F.interpolate(other, largest.shape[2:], mode="bilinear", align_corners=False)  # (B, K, h, w)
            largest = torch.maximum(largest, same)
        return [*logits, largest] if self.training else largest


_ASPP = re.compile(r"aspp\.(?:stages\.)?c(\d)\.(\w+)")


def load_deeplab(network: DeepLabV2, path: Path, *, head: bool) -> None:
    """Load a public checkpoint, which is never run.

    Understood: deeplab-pytorch's layout (also of CLIP-ES, CLIMS and POT), ResNets in torchvision's names, and files
    of ours; see ``public_resnet.read_resnet``.

    Args:
        network: with or without weights of its own.
        path: of the file.
        head: True: the file is a trained DeepLabV2 of the same classes. False: only the ResNet is taken, the head
            stays as it is (the papers' initialisation).

    Raises:
        UserError: if the file is of no known layout, its strides are elsewhere than ours, or a tensor is missing or
            of another shape.
    """
    found = read_resnet(path, network.backbone.layout.stride_at)
    fit_state(network.backbone, found.state, path)
    if head:
        fit_state(network.head, dict(_head_of(found)), path)


def _head_of(found: PublicResNet) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the summed ASPP beside a ResNet, by the names of ``ASPP``."""
    own = f"{found.around.removesuffix('backbone.')}head."
    for name, value in found.rest.items():
        if name.startswith(own):
            yield name.removeprefix(own), value
        elif match := _ASPP.fullmatch(name.removeprefix(found.around)):
            yield f"branches.{match[1]}.{match[2]}", value
