"""POT's maps of all classes of a batch at once, from what the network sees; see ``ops.pot`` for the maps themselves.

Labels are (B, C) bool. Maps of all classes are (B, C, h, w), with background before them (B, C + 1, h, w).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.ops.pot import Activation, Prototypes, activate, max_scaled, mean_activation, with_background
from tag2mask.ops.prototypes import draw_members

__all__ = ["Groups", "classifier_maps", "mean_prototype_maps", "transported_maps", "with_rest"]


@dataclass(frozen=True)
class Groups:
    """The classes that each image of a batch has, side by side: G of the most, others filled up.

    index: (B, G) int64, of the classes, all different. there: (B, G) bool, False where an image has fewer.
    """

    index: Tensor
    there: Tensor

    @classmethod
    def of(cls, labels: Tensor) -> Groups:
        """labels: (B, C) bool."""
        most = max(1, int(labels.sum(1).max()))
        index = (~labels).int().argsort(dim=1, stable=True)[:, :most]
        return cls(index, labels.gather(1, index))

    def pick(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, G, h, w), zeros where an image has fewer classes."""
        rows = self.index[:, :, None, None].expand(-1, -1, *maps.shape[2:])
        return maps.gather(1, rows) * self.there[:, :, None, None]

    def place(self, maps: Tensor, classes: int) -> Tensor:
        """(B, G, h, w) -> (B, C, h, w), zeros for classes that an image does not have."""
        rows = self.index[:, :, None, None].expand(-1, -1, *maps.shape[2:])
        empty = maps.new_zeros(len(maps), classes, *maps.shape[2:])
        return empty.scatter(1, rows, maps * self.there[:, :, None, None])


def with_rest(maps: Tensor) -> Tensor:
    """Maps in [0, 1] with their background, 1 - the highest class: (B, C, h, w) -> (B, C + 1, h, w)."""
    return torch.cat([1 - maps.amax(1, keepdim=True), maps], 1)


def classifier_maps(logits: Tensor, labels: Tensor, *, absent: bool) -> Tensor:
    """The classifier's maps of an image's own classes, and background: (B, C, h, w) -> (B, C + 1, h, w) in [0, 1].

    absent: classes that an image does not have count in the background, each with a maximum of 1 however low its
        logits are, as in the released code. The more classes there are, the less background is left.
    """
    own = labels[:, :, None, None]
    maps = with_background(logits if absent else logits * own)
    return torch.cat([maps[:, :1], maps[:, 1:] * own], 1)


def transported_maps(
    features: Tensor,
    seeds: Tensor,
    classifier: Tensor,
    labels: Tensor,
    generators: Sequence[torch.Generator],
    settings: Prototypes,
    valid: Tensor | None = None,
) -> tuple[Tensor, Activation, Groups]:
    """The paper's maps of all classes, without background: (B, C, h, w).

    Args:
        features: (B, D, h, w), with gradients.
        seeds: (B, C, h, w), 0 or more; each is divided by its maximum.
        classifier: (B, C, h, w) in [0, 1].
        labels: (B, C) bool.
        generators: one for each image.
        settings: see there.
        valid: (B, 1, h, w) bool, False on padding; None: there is none.

    Returns:
        The maps, and how they came about, by groups of each image's classes.

    Raises:
        ValueError: features that are not finite.
    """
    groups = Groups.of(labels)
    found = activate(features, groups.pick(max_scaled(seeds)), groups.pick(classifier), generators, settings, valid)
    return groups.place(found.maps, labels.shape[1]), found, groups


def mean_prototype_maps(
    features: Tensor,
    maps: Tensor,
    labels: Tensor,
    generators: Sequence[torch.Generator],
    clusters: int,
    valid: Tensor | None = None,
) -> Tensor:
    """The released code's maps, background among the classes: (B, C + 1, h, w) up to 1.

    Args:
        features: (B, D, h, w), with gradients.
        maps: (B, C + 1, h, w), background first; the class that wins a pixel owns it, if the image has that class.
        labels: (B, C) bool.
        generators, valid: as in :func:`transported_maps`.
        clusters: K; a class that owns fewer pixels has a map of zeros.

    Raises:
        ValueError: features that are not finite.
    """
    all_labels = torch.cat([torch.ones_like(labels[:, :1]), labels], 1)  # (B, C + 1), background first
    groups = Groups.of(all_labels)
    won = F.one_hot(maps.argmax(1), maps.shape[1]).permute(0, 3, 1, 2)  # (B, C + 1, h, w)
    if valid is not None:
        won = won * valid
    members = groups.pick(won).bool()  # (B, G, h, w)
    start = draw_members(members.flatten(2), clusters, generators)
    return groups.place(mean_activation(features, members, start), maps.shape[1])
