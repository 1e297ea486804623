"""CD-CLIP's boundaries between super-classes (its SBE), and the Dice losses of it and of WeCLIP+.

A super-class joins classes that look alike ("animal": cat, dog, ...). The map of each super-class is averaged over
DINO's features into a prototype; which prototype a patch is nearest to tells super-classes apart at their contacts.
That becomes a label, and the network's probabilities, summed over each super-class, are held against it. What is
published leaves the background of that label, the source of the maps and the sum open; see ``methods.cd_clip``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.ops.cam import min_max
from tag2mask.types import IGNORE, ClassSet, UserError
from tag2mask.words import named

Gate = Literal["never", "one", "several", "all"]


def superclass_values(classes: ClassSet, grouping: str) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """The mask values of each super-class of a grouping, in its order, and the super-classes without any class.

    Raises:
        UserError: there is no such grouping, a class is in several super-classes or in none, or none has a class.
    """
    groups = named(classes.superclasses, grouping, f"set of super-classes of {classes.id!r}")
    home: dict[str, str] = {}
    for name, members in groups.items():
        for member in members:
            if home.setdefault(member, name) != name:
                raise UserError(
                    f"super-classes {grouping!r} of {classes.id!r}: {member} is in {home[member]} and in {name}; "
                    "a class belongs to one: take it out of the other, under superclasses in the class set's YAML"
                )
    lost = [name for name in classes.foreground if name not in home]
    if lost:
        raise UserError(
            f"super-classes {grouping!r} of {classes.id!r}: {', '.join(lost)} in none of them; every class belongs "
            "to one: put it there, under superclasses in the class set's YAML"
        )
    value = {name: tag for tag, name in enumerate(classes.names)}
    found = {name: tuple(value[member] for member in members) for name, members in groups.items() if members}
    return found, tuple(name for name, members in groups.items() if not members)


def present_groups(groups: Mapping[str, tuple[int, ...]], tags: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The super-classes of an image's tags, each with all of its mask values, in the grouping's order."""
    return {name: values for name, values in groups.items() if set(values) & set(tags)}


def gate_open(count: int, gate: Gate) -> bool:
    """Whether an image of so many super-classes is taught boundaries."""
    return {"never": False, "one": count == 1, "several": count >= 2, "all": count >= 1}[gate]


def prototype_maps(features: Tensor, maps: Tensor) -> Tensor:
    """How like each cell is to each super-class's prototype.

    Args:
        features: (D, N) unit columns.
        maps: (S, N) >= 0, the map of each super-class on the same grid.

    Returns:
        (S, N): ReLU of the cosine with the mean of the features, weighted by the map.
    """
    return F.relu(F.normalize(prototypes(features, maps), dim=-1) @ F.normalize(features, dim=0))


def prototypes(features: Tensor, maps: Tensor) -> Tensor:
    """Means of features (D, N) weighted by maps (S, N): (S, D)."""
    return maps @ features.T / (maps.sum(-1, keepdim=True) + 1e-6)


def boundary_scores(
    features: Tensor, maps: Tensor, background: Literal["maps", "prototypes", "none"] = "maps"
) -> Tensor:
    """Scores of background and of each super-class: (S + 1, N) in [0, 1], background first.

    Args:
        features: (D, N) unit columns.
        maps: (S, N) in [0, 1].
        background: 1 - the largest of the "maps", or of the "prototypes"' maps, which fire on background, too; "none"
            never wins.
    """
    near = min_max(prototype_maps(features, maps))
    first = {"maps": 1 - maps.amax(0), "prototypes": 1 - near.amax(0), "none": torch.full_like(near[0], -1)}
    return torch.cat([first[background][None], near])


def superclass_probabilities(logits: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Softmax of logits (K, H, W), summed over the mask values of each group: (S + 1, H, W), background first."""
    probs = logits.float().softmax(0)
    return torch.stack([probs[0], *(probs[list(values)].sum(0) for values in groups)])


def superclass_dice(probs: Tensor, labels: Tensor) -> Tensor:
    """1 - the mean over background and S super-classes of 2 sum(P Y) / (sum(P + Y) + 1e-7), of one image.

    Args:
        probs: (S + 1, H, W).
        labels: (H, W) of 0 .. S; pixels of IGNORE count nowhere.
    """
    known = (labels != IGNORE).to(probs.dtype)
    target = F.one_hot(torch.where(labels == IGNORE, 0, labels).long(), len(probs)).permute(2, 0, 1) * known
    both = (probs * target).sum((1, 2))
    return 1 - (2 * both / ((probs * known + target).sum((1, 2)) + 1e-7)).mean()


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """WeCLIP+'s Dice: the mean over all classes of 1 - 2 sum(P Y) / sum(P + Y), over batch and pixels.

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W). Pixels of IGNORE have no target, but their probabilities count, as in the released code.
    """
    probs = logits.float().softmax(1)
    known = (labels != IGNORE)[:, None]
    target = F.one_hot(torch.where(labels == IGNORE, 0, labels).long(), logits.shape[1]).permute(0, 3, 1, 2) * known
    both, sum_ = (probs * target).sum((0, 2, 3)), (probs + target).sum((0, 2, 3))
    return (1 - 2 * both / sum_.clamp_min(1e-7)).mean()
