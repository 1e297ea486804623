"""A network of class maps trained on tags: classifier CAM's fit, and the start of CLIMS.

The step itself is ``run.tag_training``, which storybook-resnet's training shares. Import this module only where
training is done: it loads Lightning, which takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.methods.fitting.tagged import PictureBatch, tag_targets
from tag2mask.models.classifier import Classifier
from tag2mask.models.clims import CLIMSNetwork
from tag2mask.ops.image import MEAN, STD, standardise
from tag2mask.run.tag_training import TagBatch, TagTraining
from tag2mask.segment.schedule import conv_groups


@dataclass(frozen=True)
class Descent:
    """How a network of class maps learns: by ``settings``, whose rate is the backbone's, the head at 10 times it.

    frozen_norm: norms of the backbone keep their statistics; their weights learn.
    frozen_parts: first parts of the backbone that do not learn: the stem, then each stage. Norms in them still count
    what they see.
    """

    settings: FitSettings
    frozen_norm: bool = False
    frozen_parts: int = 1

    def prepare(self, network: Classifier | CLIMSNetwork) -> None:
        """Put the parts of a network into training or not; Lightning leaves modes as they are."""
        network.train().requires_grad_(True)
        backbone = network.backbone
        if self.frozen_norm:
            for module in backbone.modules():  # a new head's norms have no statistics to keep
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        stages = [backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4]
        for part in [nn.ModuleList((backbone.conv1, backbone.bn1)), *stages][: self.frozen_parts]:
            part.requires_grad_(False)

    def optimizer(self, network: Classifier | CLIMSNetwork) -> dict[str, Any]:
        """The papers' groups and rates, as Lightning's ``configure_optimizers`` gives them."""
        lr, decay = self.settings.lr, self.settings.weight_decay
        return self.settings.optimizer(conv_groups(network.backbone, network.head, lr, decay))


def tag_training(network: Classifier | CLIMSNetwork, classes: int, descent: Descent) -> TagTraining:
    """The training of a network with so many classes on batches of ``TaggedImages``."""

    def look(batch: PictureBatch) -> TagBatch:
        pictures, tags = batch
        return standardise(pictures, MEAN, STD), *tag_targets(tags, classes)

    descent.prepare(network)
    return TagTraining(network, look, lambda: descent.optimizer(network))
