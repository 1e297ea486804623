"""Do prototypes of super-classes end where these touch? What CD-CLIP's boundaries ask of a DINO, on scenes.

A prototype is the mean of features under the map of a super-class; every pixel belongs to the super-class whose
prototype it is most like, as ``ops.superclasses`` has it. Boundaries can teach something only where prototypes are
right more often than the maps that they are made of, and that near contacts. Exact masks say what is right; nothing
here is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from tag2mask.classes import load_classes
from tag2mask.lab.bench import WATCH_SEED
from tag2mask.methods.cd_clip import CDCLIP, CDCLIPOptions
from tag2mask.models.weights import CLIP
from tag2mask.ops.masks import upsample
from tag2mask.ops.superclasses import boundary_scores, present_groups
from tag2mask.run.progress import Advance, no_progress
from tag2mask.storybook.render import scene_seed
from tag2mask.storybook.scenes import draw_scene

RADIUS = 12
"""Pixels from a contact that are near it, in scenes of 256x192."""

Features = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) RGB 0-255 to features (B, D, h, w), unit length over D, as ``DINO.features``."""


@dataclass(frozen=True)
class Touching:
    """A scene with two super-classes or more.

    image: (3, H, W) uint8. maps: (S, h, w) in [0, 1], the highest refined map of the members of each super-class that
    its tags name. truth: (H, W) int64 of 0 .. S. near: (H, W) bool, pixels of super-classes near a contact of two.
    """

    image: Tensor
    maps: Tensor
    truth: Tensor
    near: Tensor


@dataclass(frozen=True)
class Rightness:
    """Shares (%) of the pixels of super-classes that got their own: of all of them, and of those near contacts.

    everywhere, contacts: over the pixels of all scenes together. scenes: how many there were, pixels: near contacts.
    """

    everywhere: float
    contacts: float
    scenes: int
    pixels: int


def near_contacts(truth: Tensor, radius: float = RADIUS) -> Tensor:
    """Which pixels of super-classes are at most ``radius`` from one of another: (H, W) int64 of 0 .. S -> bool.

    Straight distances between centres of pixels; what is not of a super-class (0) touches nothing.
    """
    labels = truth.numpy()
    near = np.zeros(labels.shape, bool)
    for group in np.unique(labels[labels > 0]):
        others = (labels > 0) & (labels != group)
        if others.any():
            near |= (labels == group) & (distance_transform_edt(~others) <= radius)
    return torch.from_numpy(near)


def touching_scenes(
    clip: CLIP,
    n: int = 60,
    *,
    size: tuple[int, int] = (192, 256),
    split: str = "val",
    seed: int = WATCH_SEED,
    progress: Advance = no_progress,
) -> list[Touching]:
    """Those of the first ``n`` scenes of a split that show two super-classes or more, with CD-CLIP's maps.

    Args:
        clip: makes the maps, with CD-CLIP's defaults and no training.
        n: how many are drawn.
        size: (H, W), multiples of the CLIP's patch.
        split, seed: as ``render`` has them; by default the scenes that are watched in trainings.
    """
    classes = load_classes("voc12")
    method = CDCLIP(classes, CDCLIPOptions.model_validate({"structure": "clip"}), clip=clip)
    found = []
    for index in range(n):
        scene = draw_scene(scene_seed(split, seed, index), size, classes.foreground)
        progress()
        groups = present_groups(method.groups, scene.tags)
        if len(groups) < 2:
            continue
        image = torch.from_numpy(scene.image).permute(2, 0, 1).contiguous()  # (3, H, W)
        tags = torch.tensor(scene.tags)
        seen = method.teacher.look(method.teacher.pixels(image[None].to(method.device)))
        maps = method.teacher.maps(seen, [tags], method.recipe.late)[0].refined.float().cpu()
        rows = [[k for k, tag in enumerate(scene.tags) if tag in values] for values in groups.values()]
        number = np.zeros(len(classes.names), np.int64)
        for place, values in enumerate(groups.values(), 1):
            number[list(values)] = place
        truth = torch.from_numpy(number[scene.mask])
        found.append(Touching(image, torch.stack([maps[own].amax(0) for own in rows]), truth, near_contacts(truth)))
    return found


@torch.no_grad()
def prototype_scores(scene: Touching, features: Features | None) -> Tensor:
    """Which super-class each pixel is like: (S, H, W); the maps themselves where there are no features."""
    size = (scene.truth.shape[0], scene.truth.shape[1])
    if features is None:
        return upsample(scene.maps, size)
    seen = features(scene.image[None].float())[0]  # (D, h, w)
    grid = (seen.shape[1], seen.shape[2])
    coarse = upsample(scene.maps, grid).flatten(1)  # (S, N)
    scores = boundary_scores(seen.flatten(1), coarse, "none")[1:]  # without background
    return upsample(scores.unflatten(1, grid), size)


def rightness(scenes: Sequence[Touching], features: Features | None = None) -> Rightness:
    """How often prototypes on these features are right; without features, the maps that they would be made of.

    Raises:
        ValueError: no scene has a contact.
    """
    right, all_, right_near, near = 0, 0, 0, 0
    for scene in scenes:
        own = prototype_scores(scene, features).argmax(0) + 1 == scene.truth
        things = scene.truth > 0
        right, all_ = right + int(own[things].sum()), all_ + int(things.sum())
        right_near, near = right_near + int(own[scene.near].sum()), near + int(scene.near.sum())
    if not near:
        raise ValueError(f"none of {len(scenes)} scenes has super-classes that touch; take more")
    return Rightness(100 * right / all_, 100 * right_near / near, len(scenes), near)
