"""Small POTs: options, a fit, a network, examples."""

from __future__ import annotations

from dataclasses import replace

import safetensors.torch
import torch

from methods.toys import CLASSES
from tag2mask.methods import make_method
from tag2mask.methods.fitting.pot import POTExamples
from tag2mask.methods.pot import POT_FILE
from tag2mask.methods.pot_options import POTOptions, make_recipe
from tag2mask.models.backbone import ResNet
from tag2mask.models.pot import POTNetwork
from tag2mask.run.folder import Run
from tag2mask.stages.label import label
from tiny_classifiers import LAYOUT

SMALL = {"steps": 2, "batch": 3, "size": 48, "lr": 0.01}


def method_of(weights, **options):
    """Quick: one scale where nothing else is asked."""
    return make_method("pot", CLASSES, weights=weights, **{**SMALL, "scales": (1.0,), **options})


def learned(run: Run) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run.checkpoints / POT_FILE)


def fitted(weights, data, out, earlier=None, **options) -> Run:
    label(data, method_of(weights, **options), out, prior=earlier, fit_only=True, progress=False)
    return Run.open(out)


def recipe_of(**options):
    return make_recipe(POTOptions(weights="resnet50.pth", **options))


# --- the training step of the paper


def small_network(classes=3):
    torch.manual_seed(0)
    return POTNetwork(ResNet(replace(LAYOUT, frozen_norm=True)), classes)


# --- what is learned from


def examples_of(data, earlier, **options):
    recipe = recipe_of(size=32, **options)
    return POTExamples.of(data, earlier, recipe, 0)
