"""storybook-resnet: a narrow ResNet-50 trained on the tags of drawn scenes, the embedded world's ImageNet weights.

The parts of it that need no Trainer; ``train_classifier`` runs it. Masks are read only by ``measure``, which says how
good the result is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tag2mask.models.backbone import Layout
from tag2mask.models.classifier import SCALES, Classifier, class_maps
from tag2mask.ops.image import MEAN, STD, standardise
from tag2mask.ops.masks import upsample
from tag2mask.ops.metrics import BackgroundSweep, average_precision, metrics
from tag2mask.run.progress import Advance, no_progress
from tag2mask.storybook.render import check_render, kind_of, scene_seed
from tag2mask.storybook.scenes import CLASSES, Scene, draw_scene
from tag2mask.types import Constant, UserError

DICE = 9
"""Random numbers that decide how one picture is seen."""

THRESHOLDS = tuple(round(0.02 * step, 2) for step in range(1, 50))
"""Background scores that ``measure`` tries."""


@dataclass(frozen=True)
class ClassifierRecipe:
    """How storybook-resnet is made.

    width: of the ResNet-50. scenes: how many different ones are drawn, at ``size`` (H, W). crop: (H, W) that the
    network sees: a window of the scene whose sides are ``zoom`` times the scene's, brought to this size.
    steps: of ``batch`` pictures each. warmup: steps until the rate is ``lr`` (a tenth of all at most), from where it
    falls as a cosine.
    jitter: how far brightness, contrast and each colour may go from 1.
    init: a classifier of the same classes, a folder or "storybook-resnet", to begin with; None draws weights.
    """

    width: int = 16
    scenes: int = 20_000
    size: tuple[int, int] = (144, 192)
    crop: tuple[int, int] = (96, 128)
    zoom: tuple[float, float] = (0.7, 1.0)
    jitter: float = 0.3
    batch: int = 64
    steps: int = 1600
    warmup: int = 100
    lr: float = 2e-3
    weight_decay: float = 0.05
    seed: int = 0
    classes: tuple[str, ...] = CLASSES
    init: str | None = None


def check(recipe: ClassifierRecipe) -> None:
    """Refuse a recipe that cannot be run, before anything is drawn.

    Raises:
        UserError: naming what does not fit.
    """
    check_render(recipe.scenes, recipe.seed, "train", recipe.size, recipe.classes, None)
    low, high = recipe.zoom
    fits = {
        "width and steps of at least 1": min(recipe.width, recipe.steps) >= 1,
        "a batch of at least 2": recipe.batch >= 2,  # whose norms one picture does not give
        "a crop of at least 16 pixels a side": min(recipe.crop) >= 16,
        "0 < zoom <= 1, the lower end first": 0 < low <= high <= 1,
        "0 <= jitter < 1": 0 <= recipe.jitter < 1,
        "a finite lr above 0": 0 < recipe.lr < math.inf,
        "a finite weight_decay of at least 0": 0 <= recipe.weight_decay < math.inf,
        "a warmup of at least 0": recipe.warmup >= 0,
    }
    wrong = [expected for expected, kept in fits.items() if not kept]
    if wrong:
        raise UserError(f"{recipe}: expected {'; '.join(wrong)}")


def make_classifier(recipe: ClassifierRecipe) -> Classifier:
    """The untrained network of a recipe; its weights depend on the recipe's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = Classifier(recipe.classes, Layout(width=recipe.width, strides=(1, 2, 2, 1)))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # quicker on a processor
    return model


def augment(images: Tensor, dice: Tensor, recipe: ClassifierRecipe) -> Tensor:
    """Windows of the pictures, mirrored or not, in shifted colours.

    A window keeps most of the scene, and the tags stay those of the whole scene: without masks nobody knows what has
    left it.

    Args:
        images: (B, 3, H, W) uint8.
        dice: (B, DICE) uniform in [0, 1): side and place (x, y) of the window, mirror, brightness, contrast, colours.

    Returns:
        (B, 3, h, w) float32, standardised; h and w are the recipe's crop.
    """
    count = len(images)
    low, high = recipe.zoom
    zoom = low + (high - low) * dice[:, 0]
    centre = (1 - zoom)[:, None] * (2 * dice[:, 1:3] - 1)  # (B, 2) in -1..1
    mirror = torch.where(dice[:, 3] < 0.5, -1.0, 1.0)
    window = torch.zeros(count, 2, 3, device=images.device)  # from the window's coordinates to the scene's
    window[:, 0, 0], window[:, 1, 1], window[:, :, 2] = zoom * mirror, zoom, centre
    where = F.affine_grid(window, [count, 3, *recipe.crop], align_corners=False)  # (B, h, w, 2)
    pixels = images.to(torch.float32, memory_format=torch.channels_last)
    pixels = F.grid_sample(pixels, where, padding_mode="border", align_corners=False)  # (B, 3, h, w)
    shift = 1 + recipe.jitter * (2 * dice[:, 4:, None, None] - 1)  # (B, 5, 1, 1)
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = mean * shift[:, :1] + (pixels - mean) * shift[:, 1:2]
    pixels = pixels * (1 + (shift[:, 2:] - 1) / 2)
    return standardise(pixels.clamp(0, 255), MEAN, STD).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Measured:
    """What a classifier knows of scenes it has not seen, in [0, 1].

    tag_map: mean average precision of the tags. miou: of its class maps at the best threshold, chosen with ground
    truth. everything: mIoU where every pixel belongs to the image's first tag. chance: the mean share of images that
    show a class, which is the average precision of a guess.
    """

    tag_map: float
    miou: float
    threshold: float
    everything: float
    chance: float
    scenes: int


@torch.inference_mode()
def measure(
    classifier: Classifier,
    n: int = 200,
    *,
    size: tuple[int, int] = (192, 256),
    split: str = "val",
    scales: Sequence[float] = SCALES,
    flip: bool = True,
    progress: Advance = no_progress,
) -> Measured:
    """Tag mAP and class-map mIoU on the first ``n`` scenes of a split; masks are read here and nowhere else."""
    classifier.eval()
    device = classifier.head.weight.device
    classes = len(classifier.names) + 1
    maps_sweep = BackgroundSweep([Constant(t) for t in THRESHOLDS], classes)
    floor = BackgroundSweep([Constant(0.0)], classes)
    logits, shown = torch.empty(n, classes - 1), torch.zeros(n, classes - 1, dtype=torch.bool)
    for i in range(n):
        scene: Scene = draw_scene(scene_seed(split, 0, i), size, classifier.names, kind_of(split))
        image = torch.from_numpy(scene.image).permute(2, 0, 1).contiguous()  # (3, H, W)
        logits[i] = classifier(standardise(image[None].to(device), MEAN, STD))[0].cpu()
        progress()
        if not scene.tags:
            continue
        tags = torch.tensor(scene.tags)
        shown[i, tags - 1] = True
        grid = (-(-size[0] // 4), -(-size[1] // 4))
        maps = class_maps(classifier, image, tags - 1, scales=scales, flip=flip, grid=grid).cpu()
        truth = torch.from_numpy(scene.mask)
        maps_sweep.update(truth, upsample(maps, size).clamp(0, 1), tags)
        floor.update(truth, torch.ones(len(tags), *size), tags)
    mious = [metrics(counts).miou for counts in maps_sweep.confusion()]
    best = int(np.argmax(mious))
    return Measured(
        tag_map=float(average_precision(logits, shown).nanmean()),
        miou=mious[best],
        threshold=THRESHOLDS[best],
        everything=metrics(floor.confusion()[0]).miou,
        chance=float(shown.double().mean(0)[shown.any(0)].mean()),
        scenes=n,
    )
