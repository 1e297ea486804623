"""Classifier CAM: the baseline of the field, and the start of CLIMS, IRN and PSA.

A ResNet-50 trained on image tags (Zhou et al. 2016 in the form of IRN: Ahn et al., "Weakly Supervised Learning of
Instance Segmentation with Inter-pixel Relations", CVPR 2019). IRN reports 48.3 mIoU on VOC 2012 train (not measured
here).

Where ours differs from IRN's and CLIMS's code: they store the summed maps twice, at every fourth pixel and at every
pixel. Here there is one grid with ``map_stride`` pixels a cell, and it spans whole cells of the network, so that it
lies exactly where the full-size maps of their code lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from tag2mask.models.classifier import SCALES, STORYBOOK_RESNET, class_maps, load_classifier
from tag2mask.ops.cam_fusion import strided_size
from tag2mask.ops.image import resize_bicubic
from tag2mask.types import ClassSet, Constant, Item, MaskRule, Scores, UserError


class ClassifierCAMOptions(BaseModel):
    """What the class maps are made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: str = Field(STORYBOOK_RESNET, description="folder of a classifier trained on tags, or storybook-resnet")
    scales: tuple[float, ...] = Field(SCALES, min_length=1, description="image scales whose maps are summed")
    flip: bool = Field(True, description="add the mirrored image at every scale")
    map_stride: int = Field(
        4, ge=1, description="pixels a cell of the stored maps, a divisor of the network's stride (16)"
    )
    max_pixels: int = Field(4_000_000, ge=1, description="an image with more is shrunk to this many, at every scale")

    @field_validator("scales")
    @classmethod
    def _positive(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0.05 <= s <= 20 for s in scales):  # NaN too
            raise ValueError(f"scales are between 0.05 and 20, got {scales}")
        return scales


class ClassifierCAM:
    """Class activation maps of a trained classifier as a tag2mask method.

    The classifier's classes are matched by name, so one that knows more than the class set will do.
    """

    Options = ClassifierCAMOptions
    needs_clip = False
    needs_prior = False
    mask_rule = MaskRule(background=Constant(0.15))  # IRN's and CLIMS's threshold

    def __init__(self, classes: ClassSet, clip: None = None, options: ClassifierCAMOptions | None = None) -> None:
        self.options = options = options or ClassifierCAMOptions()
        self.classifier, self.sha256 = load_classifier(options.weights)
        self.device = torch.device("cpu")
        known = self.classifier.names
        unknown = [name for name in classes.foreground if name not in known]
        if unknown:
            raise UserError(
                f"the classifier {options.weights} does not know {', '.join(unknown[:5])} of {classes.id}; it knows "
                f"{', '.join(known)}; take weights that were trained on your classes"
            )
        self.channels = torch.tensor([known.index(name) for name in classes.foreground])  # (C,)
        self.stride = self.classifier.backbone.layout.stride
        if self.stride % options.map_stride:
            raise UserError(
                f"map_stride {options.map_stride} does not divide the network's stride, {self.stride}; "
                f"take one of {', '.join(str(n) for n in range(1, self.stride + 1) if self.stride % n == 0)}"
            )

    @property
    def resolved(self) -> dict[str, object]:
        """What decides the results beside the options."""
        return {"weights_sha256": self.sha256}

    def to(self, device: torch.device) -> ClassifierCAM:
        """Compute on that device."""
        self.classifier.to(device)
        self.device = device
        return self

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) in pixels -> (h, w): whole cells of the network, each cut into cells of ``map_stride``."""
        h, w = strided_size(self._within(size), self.stride)
        fine = self.stride // self.options.map_stride
        return h * fine, w * fine

    def scores(self, items: Sequence[Item]) -> list[Scores]:
        """Class maps of the items' tags, each divided by its maximum, one image at a time."""
        return [self._one(item) for item in items]

    @torch.inference_mode()
    def _one(self, item: Item) -> Scores:
        tags = [] if item.tags is None else item.tags.tolist()
        if item.tags is None or not tags or not all(1 <= tag <= len(self.channels) for tag in tags):
            most = len(self.channels)
            raise ValueError(f"{item.id} has tags {tags}; classifier CAM needs at least one of 1..{most}")
        size = (item.image.shape[1], item.image.shape[2])
        within = self._within(size)
        maps = class_maps(
            self.classifier,
            resize_bicubic(item.image.cpu(), within),
            self.channels[item.tags.cpu() - 1],
            scales=self._scales(within),
            flip=self.options.flip,
            grid=self.grid(size),
        )
        h, w = strided_size(within, self.stride)
        frame = (
            math.ceil(h * self.stride * size[0] / within[0]),
            math.ceil(w * self.stride * size[1] / within[1]),
        )
        return Scores(item.tags.cpu(), maps.cpu(), size, frame=frame)

    def _within(self, size: tuple[int, int]) -> tuple[int, int]:
        """``size``, or its largest shrunk form of at most ``max_pixels``."""
        shrink = math.sqrt(self.options.max_pixels / (size[0] * size[1]))
        return size if shrink >= 1 else (max(1, int(size[0] * shrink)), max(1, int(size[1] * shrink)))

    def _scales(self, size: tuple[int, int]) -> tuple[float, ...]:
        """The scales, none of which makes more than ``max_pixels`` of an image of ``size``."""
        most = math.sqrt(self.options.max_pixels / (size[0] * size[1]))
        return tuple(min(scale, most) for scale in self.options.scales)
