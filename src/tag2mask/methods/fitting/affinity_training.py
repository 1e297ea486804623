"""Training IRN's heads and AffinityNet: Lightning's side of it. Loads Lightning; import it only to train."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.data.image import BadImage
from tag2mask.methods.fitting.affinity import AffinityExamples, open_image
from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.methods.fitting.training import train_to_end
from tag2mask.models.backbone import ResNet
from tag2mask.models.irn import IRNHeads
from tag2mask.models.psa import AffinityNet
from tag2mask.ops.affinity_losses import irn_loss, psa_loss
from tag2mask.ops.image import MEAN, STD, standardise
from tag2mask.run.sampling import step_dice
from tag2mask.segment.schedule import conv_groups


class _Training(lightning.LightningModule):
    """What both share. radius: of the cells between which pixels are compared."""

    def __init__(self, settings: FitSettings, radius: float) -> None:
        super().__init__()
        self.settings, self.radius = settings, radius

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups, each with its learning rate and weight decay."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        """As the settings say."""
        return self.settings.optimizer(self.groups())


class IRNTraining(_Training):
    """Both heads over a frozen backbone, which is no part of the checkpoints.

    settings.lr is of the edge head.
    """

    def __init__(
        self, heads: IRNHeads, backbone: ResNet, settings: FitSettings, radius: float, displacement_lr: float
    ) -> None:
        super().__init__(settings, radius)
        self.heads, self.displacement_lr = heads.train(), displacement_lr
        self._frozen = [backbone.eval()]  # in a list: not registered

    def groups(self) -> list[dict[str, Any]]:
        """The edge head, and the displacement head at its own rate."""
        return [
            {"params": list(head.parameters()), "lr": lr, "weight_decay": self.settings.weight_decay}
            for head, lr in (
                (self.heads.edge, self.settings.lr),
                (self.heads.displacement, self.displacement_lr),
            )
        ]

    def on_fit_start(self) -> None:
        """Bring the backbone to where the heads are."""
        self._frozen[0].to(self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """IRN's loss of pictures (B, 3, H, W) and labels (B, H / 4, W / 4)."""
        images, labels = batch
        with torch.no_grad():
            features = self._frozen[0].features(standardise(images, MEAN, STD))
        edge, displacement = self.heads(features)
        loss = irn_loss(edge, displacement, labels, radius=self.radius)
        affinity = loss.affinity
        self.log_dict(
            {
                "loss": loss.total.detach(),
                "background": affinity.background.detach(),
                "foreground": affinity.foreground.detach(),
                "different": affinity.different.detach(),
                "displacement": (loss.displacement_foreground + loss.displacement_background).detach(),
            }
        )
        return loss.total


class PSATraining(_Training):
    """AffinityNet, with its backbone."""

    def __init__(self, network: AffinityNet, settings: FitSettings, radius: float) -> None:
        super().__init__(settings, radius)
        self.network = network.train()

    def groups(self) -> list[dict[str, Any]]:
        """Backbone and head at 1 and 10 times the rate."""
        return conv_groups(self.network.backbone, self.network.head, self.settings.lr, self.settings.weight_decay)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """PSA's loss of pictures (B, 3, H, W) and labels (B, H / 8, W / 8)."""
        images, labels = batch
        # of the dropout; every process of several has its own
        with step_dice(self.settings.seed, self.global_step, self.device, self.global_rank):
            features = self.network(standardise(images, MEAN, STD))
        loss = psa_loss(features, labels, radius=self.radius)
        self.log_dict(
            {
                "loss": loss.total.detach(),
                "background": loss.background.detach(),
                "foreground": loss.foreground.detach(),
                "different": loss.different.detach(),
            }
        )
        return loss.total


def train(module: _Training, examples: AffinityExamples, folder: Path, label: str) -> None:
    """Train, resuming from the last checkpoint in ``folder``, and leave the module in eval mode.

    Raises:
        Stopped: Ctrl-C, or the minutes are over; the state is saved.
    """
    train_to_end(module, examples, module.settings, folder, label)
    module.to(module.settings.device).eval()


MEAN_SHIFT_IMAGES = 1464
"""As many as VOC's train list, over which IRN's code takes the mean displacement."""


@torch.no_grad()
def measure_displacement(module: IRNTraining, examples: AffinityExamples, crop: int) -> None:
    """Set the mean-shift layer to the mean over the first pictures, each cut or padded to ``crop`` from its corner.

    Batches are those of the training; the last one counts only if it is full, or the only one.
    """
    backbone, batch = module._frozen[0], module.settings.batch
    count = min(len(examples), MEAN_SHIFT_IMAGES)
    batches = range(0, max(count - batch + 1, 1), batch)

    def displacements() -> Iterator[Tensor]:
        for start in batches:
            corners = []
            for index in examples.indices[start : min(start + batch, count)]:
                try:
                    image, _ = open_image(examples.data[index], examples.max_pixels)
                except (BadImage, OSError):
                    continue  # the training has warned of it
                pixels = standardise(image[None, :, :crop, :crop], MEAN, STD)  # (1, 3, h, w)
                corners.append(F.pad(pixels, (0, crop - pixels.shape[3], 0, crop - pixels.shape[2])))
            if corners:
                yield module.heads.displacement(backbone.features(torch.cat(corners).to(module.device)))

    module.heads.train()  # in eval mode the layer would subtract its old mean first
    module.heads.displacement.mean_shift.measure(displacements())
    module.heads.eval()
