"""Every method with options that make its fit small, and what it starts from."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mctformers import save_timm, timm_state
from methods.toys import CLASSES, TOYS
from tag2mask.data.image import read_image
from tag2mask.data.png import read_mask
from tag2mask.methods import METHODS, make_method, method_class
from tag2mask.methods.protocol import Method
from tag2mask.models.mctformer import Shape
from tag2mask.models.weights import CLIP, load_clip
from tag2mask.run.folder import Run
from tag2mask.stages.label import label
from tag2mask.types import ClassSet, Item, Prior, TextSet
from tiny_classifiers import write_classifier
from tiny_clips import write_clip

WORDS = TextSet(names=("red", "cat", "dog"), templates=("a photo of the {}.",), background=("photo", "the"))

KNOWN = replace(
    CLASSES,
    texts=dict.fromkeys((*METHODS, *TOYS), WORDS),
    superclasses={"kind": {"cat": ("red",), "dog": ("green", "blue")}},
)
"""The toys' classes with what methods say of them to CLIP."""

GIVEN = "classifier-cam given"
"""The method that may label without having learned, as it does that."""

FITS = {
    "cd-clip": {"steps": 2, "batch": 2, "crop": 32, "width": 16, "structure": "clip"},
    "classifier-cam": {"steps": 2, "batch": 2, "crop": 32, "long_side": (24, 40)},
    "clims": {"steps": 2, "batch": 2, "crop": 32, "long_side": (24, 40)},
    "irn": {"steps": 2, "batch": 2, "crop": 36, "radius": 5, "displacement_width": 32, "walk_steps": 8},
    "weakclip": {
        "steps": 2,
        "batch": 2,
        "crop": 32,
        "size": "uniform:0.7,1.4",
        "warmup": 0,
        "lr": 0.01,
        "loss_stride": 4,
        "prompts": 2,
        "width": 8,
        "heads": 2,
        "channels": 6,
        "resolution": None,
        "view": None,
        "window": None,
        "stride": None,
        "scales": (1.0,),
        "flip": False,
    },
    "mctformer": {"steps": 2, "batch": 2, "crop": 24, "drop_path": 0.3},
    "psa": {"steps": 2, "batch": 2, "crop": 72, "walk_steps": 8},
    "weclip": {"steps": 2, "batch": 2, "crop": 32, "width": 16, "accumulate": 2},
    "pot": {"steps": 2, "batch": 2, "size": 48},
}
"""Options that make a real method's fit a matter of a second."""


@dataclass
class Case:
    """A method ready for use on a small data set, with the earlier run that it starts from, if any."""

    name: str
    method: Method
    data: object
    prior: Run | None
    fitted: Run | None
    folder: Path

    def items(self) -> list[Item]:
        return [
            Item(
                sample.id,
                torch.from_numpy(read_image(sample.image)).permute(2, 0, 1).contiguous(),
                torch.tensor(sample.tags),
                self.prior
                and Prior(
                    lambda id=sample.id: self.prior.scores(id),
                    lambda id=sample.id: torch.from_numpy(read_mask(self.prior.mask_path(id))),
                ),
            )
            for sample in self.data
        ]

    def label(self, out: str, **more):
        more = {"fitted": self.fitted, **more}
        return label(self.data, self.method, self.folder / out, prior=self.prior, progress=False, **more)


@functools.cache
def clip_folder() -> tempfile.TemporaryDirectory:
    """That of ``random_clip``; a network over it finds it again."""
    folder = tempfile.TemporaryDirectory()
    write_clip(Path(folder.name))
    return folder


@functools.cache
def random_clip() -> CLIP:
    """A tiny CLIP with random weights, which knows the words of ``WORDS``."""
    return load_clip(clip_folder().name, cache=None)


@functools.cache
def random_classifier() -> tempfile.TemporaryDirectory:
    """The folder of a tiny classifier with random weights, of the toys' classes."""
    folder = tempfile.TemporaryDirectory()
    write_classifier(Path(folder.name), CLASSES.foreground, seed=0)
    return folder


@functools.cache
def random_transformer() -> tempfile.TemporaryDirectory:
    """The folder of a tiny image transformer with random weights, in a file called deit.pth."""
    folder = tempfile.TemporaryDirectory()
    save_timm(Path(folder.name) / "deit.pth", timm_state(Shape(width=64, layers=2, heads=1, patch=8, grid=(3, 3))))
    return folder


def random_weights(kind: str) -> str:
    """What a method may start from."""
    return f"{random_transformer().name}/deit.pth" if kind == "mctformer" else random_classifier().name


def build(name: str, classes: ClassSet, **how) -> Method:
    """A method with little to do, ``how`` it is asked for."""
    if name in TOYS:
        return TOYS[name](classes, TOYS[name].Options())
    kind = name.removesuffix(" given")
    made = method_class(kind)
    options = {"weights": random_weights(kind)} if "weights" in made.Options.model_fields else {}
    options |= {**FITS.get(name, {}), **how}
    return make_method(kind, classes, clip=random_clip() if "clip" in made.needs else None, device="cpu", **options)
