"""Classifier CAM: the baseline of the field, and the start of CLIMS, IRN and PSA.

A ResNet-50 trained on image tags (Zhou et al. 2016 in the form of IRN: Ahn et al., "Weakly Supervised Learning of
Instance Segmentation with Inter-pixel Relations", CVPR 2019). IRN reports 48.3 mIoU on VOC 2012 train (not measured
here).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from tag2mask.methods.cam_reader import CAMOptions, CAMReader
from tag2mask.methods.protocol import Method
from tag2mask.models.classifier import STORYBOOK_RESNET, load_classifier, warn_of_weights
from tag2mask.types import ClassSet, Constant, Item, MaskRule, Scores, UserError


class ClassifierCAMOptions(CAMOptions):
    """What the class maps are made from."""

    weights: str = Field(STORYBOOK_RESNET, description="folder of a classifier trained on tags, or storybook-resnet")


class ClassifierCAM(Method):
    """Class activation maps of a trained classifier as a tag2mask method.

    The classifier's classes are matched by name, so one that knows more than the class set will do.
    """

    Options = ClassifierCAMOptions
    options: ClassifierCAMOptions
    mask_rule = MaskRule(background=Constant(0.15))  # IRN's and CLIMS's threshold

    def __init__(self, classes: ClassSet, options: ClassifierCAMOptions | None = None) -> None:
        super().__init__(classes, options)
        warn_of_weights(self.options.weights)
        self.classifier, self.sha256 = load_classifier(self.options.weights)
        known = self.classifier.names
        unknown = [name for name in classes.foreground if name not in known]
        if unknown:
            raise UserError(
                f"the classifier {self.options.weights} does not know {', '.join(unknown[:5])} of {classes.id}; it "
                f"knows {', '.join(known)}; take weights that were trained on your classes"
            )
        channels = torch.tensor([known.index(name) for name in classes.foreground])  # (C,)
        self.reader = CAMReader(self.classifier, channels, self.options)

    @property
    def resolved(self) -> dict[str, object]:
        """What decides the results beside the options."""
        return {"weights_sha256": self.sha256}

    @property
    def weights(self) -> str:
        """The classifier's."""
        return self.options.weights

    def to(self, device: torch.device) -> None:
        """Compute on that device."""
        self.classifier.to(device)
        self.device = device

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) in pixels -> (h, w): whole cells of the network, each cut into cells of ``map_stride``."""
        return self.reader.grid(size)

    def scores(self, items: Sequence[Item]) -> list[Scores]:
        """Class maps of the items' tags, each divided by its maximum, one image at a time."""
        return [self.reader.scores(item) for item in items]
