"""Score maps from a network with one map a class, over several scales: what classifier CAM and CLIMS label with.

Where ours differs from IRN's and CLIMS's code: they store the summed maps twice, at every fourth pixel and at every
pixel. Here there is one grid with ``map_stride`` pixels a cell, and it spans whole cells of the network, so that it
lies exactly where the full-size maps of their code lie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field, field_validator
from torch import Tensor

from tag2mask.methods.protocol import MethodOptions
from tag2mask.methods.scales import check_scales
from tag2mask.models.classifier import SCALES, MapNetwork, class_maps
from tag2mask.ops.cam_fusion import strided_size
from tag2mask.ops.image import resize_bicubic, working_size
from tag2mask.types import Item, Scores, UserError

_TINY = 1e-30


class CAMOptions(MethodOptions):
    """How maps are read from a trained network."""

    scales: tuple[float, ...] = Field(SCALES, min_length=1, description="image scales whose maps are summed")
    flip: bool = Field(True, description="add the mirrored image at every scale")
    map_stride: int = Field(
        4, ge=1, description="pixels a cell of the stored maps, a divisor of the network's stride (16)"
    )
    max_pixels: int = Field(4_000_000, ge=1, description="an image with more is shrunk to this many, at every scale")

    _scales = field_validator("scales")(check_scales)


def tags_of(item: Item, classes: int) -> Tensor:
    """An item's tags, (K,) on the processor, of which class maps can be made.

    Raises:
        ValueError: it has none, or one that is not of 1 .. ``classes``.
    """
    tags = [] if item.tags is None else item.tags.tolist()
    if item.tags is None or not tags or not all(1 <= tag <= classes for tag in tags):
        raise ValueError(f"{item.id} has tags {tags}; class maps need at least one of 1..{classes}")
    return item.tags.cpu()


@dataclass(frozen=True)
class CAMReader:
    """Reads score maps of single images.

    network: in evaluation mode. channels: (C,), the network's channel of each class of the class set.
    """

    network: MapNetwork
    channels: Tensor
    options: CAMOptions

    def __post_init__(self) -> None:
        stride, wanted = self.network.backbone.layout.stride, self.options.map_stride
        if stride % wanted:
            raise UserError(
                f"map_stride {wanted} does not divide the network's stride, {stride}; "
                f"take one of {', '.join(str(n) for n in range(1, stride + 1) if stride % n == 0)}"
            )

    @property
    def stride(self) -> int:
        """Pixels a cell of the network."""
        return self.network.backbone.layout.stride

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) in pixels -> (h, w): whole cells of the network, each cut into cells of ``map_stride``."""
        h, w = strided_size(self._within(size), self.stride)
        fine = self.stride // self.options.map_stride
        return h * fine, w * fine

    @torch.inference_mode()
    def scores(self, item: Item) -> Scores:
        """Class maps of the item's tags, each divided by its maximum.

        Raises:
            ValueError: it has no tags, or one that is no class.
        """
        tags = tags_of(item, len(self.channels))
        size = (item.image.shape[1], item.image.shape[2])
        within = self._within(size)
        maps = class_maps(
            self.network,
            resize_bicubic(item.image.cpu(), within),
            self.channels[tags - 1],
            scales=self._scales(within),
            flip=self.options.flip,
            grid=self.grid(size),
        )
        # the released code divides after it has cut the maps to the image; its largest pixel is our largest cell
        inside = strided_size(within, self.options.map_stride)
        highest = maps[:, : inside[0], : inside[1]].amax((1, 2), keepdim=True)
        maps = (maps / highest.clamp_min(_TINY)).clamp(max=1) * (highest > 0)
        h, w = strided_size(within, self.stride)
        frame = (
            math.ceil(h * self.stride * size[0] / within[0]),
            math.ceil(w * self.stride * size[1] / within[1]),
        )
        return Scores(tags, maps.cpu(), size, frame=frame)

    def _within(self, size: tuple[int, int]) -> tuple[int, int]:
        return working_size(size, self.options.max_pixels)

    def _scales(self, size: tuple[int, int]) -> tuple[float, ...]:
        """The scales, none of which makes more than ``max_pixels`` of an image of ``size``."""
        most = math.sqrt(self.options.max_pixels / (size[0] * size[1]))
        return tuple(min(scale, most) for scale in self.options.scales)
