"""The step of every training on image tags: of classifier CAM, of what CLIMS starts from, and of storybook-resnet.

Its callers say how a batch is looked at and how weights move, so it lies below all who train on tags. It loads
Lightning; import it only to train.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.run.sampling import step_dice

TagBatch = tuple[Tensor, Tensor, Tensor | None]
"""What a network sees, (B, 3, H, W) standardised; tags (B, C), 0 or 1; which pictures teach, (B,) bool, None: all."""


def tag_loss(network: nn.Module, pixels: Tensor, tags: Tensor, known: Tensor | None) -> Tensor:
    """Multi-label soft margin loss, a scalar: the mean over the pictures that teach, 0 of none."""
    losses = F.multilabel_soft_margin_loss(network(pixels), tags, reduction="none")  # (B,)
    if known is None:
        return losses.mean()
    return losses[known].sum() / known.sum().clamp_min(1)


class TagTraining(lightning.LightningModule):
    """Lightning's side of a training on tags.

    network: pixels (B, 3, H, W) to what ``loss`` takes; its modes, and which parts of it learn, are the caller's.
    look: a batch of the data set to what the network sees. optimizer: see Lightning's ``configure_optimizers``.
    loss: of the network and what it sees; ``tag_loss`` is of logits (B, C).
    seed: of what is random in the network itself, the same whenever a step is taken; None: nothing is.
    compiled: compile the network; names in the checkpoint stay, as a compiled function is no module.
    """

    def __init__(
        self,
        network: nn.Module,
        look: Callable[[Any], TagBatch],
        optimizer: Callable[[], Any],
        *,
        loss: Callable[..., Tensor] = tag_loss,
        seed: int | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.look, self.optimizer, self.seed = network, look, optimizer, seed
        self.loss_of: Callable[..., Tensor] = torch.compile(loss) if compiled else loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        with (
            nullcontext()
            if self.seed is None
            else step_dice(self.seed, self.global_step, self.device, self.global_rank)
        ):
            loss = self.loss_of(self.network, *self.look(batch))
        self.log("loss", loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        """As the caller has it."""
        return self.optimizer()
