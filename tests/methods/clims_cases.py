"""Small CLIMS: its classes, its options, a fit."""

from __future__ import annotations

import safetensors.torch
import torch

from methods.toys import TinyData, make_data
from tag2mask.methods import make_method
from tag2mask.methods.clims import CLIMS_FILE
from tag2mask.run.folder import Run
from tag2mask.stages.machinery.fit import fit
from tag2mask.types import ClassSet, TextSet
from tiny_classifiers import write_classifier

TEXTS = TextSet(("red", "cat", "dog"), ("a photo of {}",), ("photo", "the"), {"cat": ("photo", "the dog")})
CLASSES = ClassSet(
    "three", ("background", "red", "cat", "dog"), ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)), {"clims": TEXTS}
)


SMALL = {"batch": 3, "crop": 32, "long_side": (24, 40), "steps": 5, "lr": 0.01}


def write_weights(folder) -> str:
    """A classifier of the classes, in another order, and of one more; its norms have seen pictures."""
    return write_classifier(folder, ("dog", "emu", "red", "cat"), seed=1)


def seven_images(folder) -> TinyData:
    made = make_data(folder, count=7)
    made.classes = CLASSES
    return made


def method_of(clip, weights, **options):
    return make_method("clims", CLASSES, clip=clip, weights=weights, **{**SMALL, **options})


def fitted(method, data, out) -> dict[str, torch.Tensor]:
    with Run.create(out, {"method": "clims"}) as run:
        fit(method, data, run, progress=False)
    return safetensors.torch.load_file(run.checkpoints / CLIMS_FILE)


def pictures_and_maps(count):
    g = torch.Generator().manual_seed(3)
    return 255 * torch.rand(count, 3, 32, 32, generator=g), torch.rand(count, 3, 2, 2, generator=g)
