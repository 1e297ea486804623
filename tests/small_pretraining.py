"""A small CLIP training on a few scenes, for the tests of its parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch

from tag2mask.lab.cache import Rendered, SceneCache, render_cache
from tag2mask.lab.pretrain_recipe import Pretrain
from tag2mask.lab.teacher import teach
from tag2mask.lab.views import Pairs
from tag2mask.models.backbone import Layout
from tag2mask.models.classifier import Classifier, save_classifier
from tag2mask.run.training import fit
from tag2mask.storybook import CLASSES

TINY = Pretrain(
    width=16,
    layers=2,
    heads=2,
    side=32,
    embed=16,
    text_width=16,
    text_layers=1,
    text_heads=2,
    scenes=16,
    sizes=((32, 32), (24, 32)),
    steps=4,
    batch=8,
    drop=0.5,
    warmup=2,
    accumulate=2,
    ema=0.9,
    class_weight=0.5,
    patch_weight=1.0,
    aligned_weight=0.5,
    tag_weight=0.0,
    dense_weight=0.0,
    value_weight=0.0,
    attention_weight=0.0,
)
TAUGHT = replace(TINY, tag_weight=0.5, dense_weight=1.0, value_weight=0.5, attention_weight=0.25)
"""With every loss that there is."""


def few_scenes(folder: Path) -> SceneCache:
    """Sixteen scenes of 32x32 pixels."""
    return render_cache(folder, Rendered(16, (32, 32)), workers=1)


def small_classifier(names: tuple[str, ...] = CLASSES) -> Classifier:
    """Untrained, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier(names, Layout(width=4, strides=(1, 2, 2, 1))).eval()


def pairs_of(scenes: SceneCache, recipe: Pretrain = TINY) -> Pairs:
    """What the recipe is trained on."""
    masks = None
    if recipe.dense:
        teacher = scenes.folder / "teacher"
        save_classifier(small_classifier(), teacher, "")
        masks = teach(scenes, str(teacher), CLASSES)
    return Pairs(scenes, recipe.seed, recipe.crop, recipe.colour, masks)


def train(module: Any, scenes: SceneCache, folder: Path, **how: Any) -> lightning.Trainer:
    """A training in a folder; called again, it goes on."""
    recipe: Pretrain = module.recipe
    return fit(module, pairs_of(scenes, recipe), recipe.training(device="cpu", **how), folder, show=False)
