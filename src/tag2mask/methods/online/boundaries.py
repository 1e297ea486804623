"""CD-CLIP's boundary labels between super-classes (its SBE), and the loss that holds a network against them.

Where what is published leaves something open, ``BoundarySettings`` has the readings; the defaults are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tag2mask.methods.online.teacher import Maps, Teacher
from tag2mask.models.weclip import Seen
from tag2mask.ops.affinity import Affinity
from tag2mask.ops.masks import upsample, winner
from tag2mask.ops.superclasses import (
    Gate,
    boundary_scores,
    gate_open,
    present_groups,
    superclass_dice,
    superclass_probabilities,
)
from tag2mask.types import IGNORE

Structure = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) RGB 0-255 to features (B, D, h, w), unit length over D."""


@dataclass(frozen=True)
class BoundarySettings:
    """How boundaries are taught.

    gate: the images that have them, by how many super-classes their tags have: "several" (2 or more), "one", "all",
        "never".
    source: the map of a super-class is the highest of its "members", or GradCAM of its own "texts".
    background: see ``ops.superclasses.boundary_scores``.
    weight: of the loss.
    """

    gate: Gate = "several"
    source: Literal["members", "texts"] = "members"
    background: Literal["maps", "prototypes", "none"] = "maps"
    weight: float = 0.6


@dataclass(frozen=True)
class BoundaryLabel:
    """Of one image of a batch: its number, its super-classes' mask values, and labels (H, W) of 0 .. S and IGNORE."""

    image: int
    groups: tuple[tuple[int, ...], ...]
    labels: Tensor


class Boundaries:
    """Makes boundary labels.

    Args:
        teacher: whose maps and PAR they are made with.
        settings: see there.
        groups: mask values of each super-class.
        texts: (S, E) unit rows of the super-classes' names, in the order of ``groups``.
        structure: the features that tell super-classes apart.
    """

    def __init__(
        self,
        teacher: Teacher,
        settings: BoundarySettings,
        groups: Mapping[str, tuple[int, ...]],
        texts: Tensor,
        structure: Structure,
    ) -> None:
        self.teacher, self.settings, self.groups = teacher, settings, groups
        self.texts = dict(zip(groups, texts, strict=True))
        self.structure = structure

    @torch.no_grad()
    def labels(
        self,
        images: Tensor,
        seen: Seen,
        maps: Sequence[Maps],
        tags: Sequence[Tensor],
        affinity: Affinity,
        known: Tensor | None,
    ) -> list[BoundaryLabel]:
        """Of those images (B, 3, H, W) RGB 0-255 that the gate lets through; known as ``Teacher.labels`` has it."""
        found = [present_groups(self.groups, own.tolist()) for own in tags]
        chosen = [i for i, here in enumerate(found) if gate_open(len(here), self.settings.gate)]
        if not chosen:
            return []
        features = self.structure(images[chosen])  # (b, D, h, w)
        grid, size = (features.shape[2], features.shape[3]), (images.shape[2], images.shape[3])
        scores = []
        for own, i in zip(features, chosen, strict=True):
            coarse = upsample(self._maps(seen, i, maps[i], tags[i], found[i], affinity), grid)  # (S, h, w)
            near = boundary_scores(own.flatten(1), coarse.flatten(1), self.settings.background)
            scores.append(upsample(near.view(-1, *grid), size))
        refined = self.teacher.refine(self.teacher.pixels(images[chosen]), scores)
        out = []
        for i, each in zip(chosen, refined, strict=True):
            labels = winner(each)
            if known is not None:
                labels = torch.where(known[i], labels, IGNORE)
            out.append(BoundaryLabel(i, tuple(found[i].values()), labels))
        return out

    def _maps(
        self,
        seen: Seen,
        image: int,
        maps: Maps,
        tags: Tensor,
        groups: Mapping[str, tuple[int, ...]],
        affinity: Affinity,
    ) -> Tensor:
        """The map of each super-class of an image: (S, h, w) in [0, 1]."""
        if self.settings.source == "texts":
            cams = self.teacher.cams(seen, image, torch.stack([self.texts[name] for name in groups]))
            return self.teacher.spread(cams, maps.affinity, affinity)
        rows = [[k for k, tag in enumerate(tags.tolist()) if tag in values] for values in groups.values()]
        return torch.stack([maps.refined[own].amax(0) for own in rows])


def boundary_loss(logits: Tensor, labels: Sequence[BoundaryLabel]) -> Tensor:
    """The mean of ``superclass_dice`` over the images that have labels; 0, without gradient, where none has.

    logits: (B, C + 1, H, W).
    """
    if not labels:
        return logits.new_zeros(())
    terms = [superclass_dice(superclass_probabilities(logits[one.image], one.groups), one.labels) for one in labels]
    return torch.stack(terms).mean()
