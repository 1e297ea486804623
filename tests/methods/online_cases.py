"""Small WeCLIPs and CD-CLIPs, a batch, and a training of a step."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from methods.toys import CLASSES
from tag2mask.methods import make_method
from tag2mask.methods.cd_clip import SETTINGS
from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.methods.online.training import OnlineTraining
from tag2mask.types import TextSet

WORDS = TextSet(names=("red", "cat", "dog"), templates=("a photo of the {}.",), background=("photo", "the"))
GROUPS = {"kind": {"cat": ("red",), "dog": ("green", "blue")}}
WORLD = replace(CLASSES, texts={"clip-es": WORDS}, superclasses=GROUPS)
SMALL = {"steps": 4, "batch": 2, "crop": 32, "width": 16}
PLUS = {
    "setting": 2,
    "decoder": "clip+dino",
    "boxes": False,
    "choose": "signed",
    "feedback": True,
    "dice_weight": 1.0,
}


def weclip(clip, **options):
    return make_method("weclip", WORLD, clip=clip, **{**SMALL, **options})


def cd_clip(clip, **options):
    taught = SETTINGS[options.get("setting", 6)][1] and options.get("boundary_gate") != "never"
    return make_method(
        "cd-clip", WORLD, clip=clip, **{**SMALL, **({"structure": "clip"} if taught else {}), **options}
    )


def batch(tags=((1,), (2, 3)), seed=0):
    pictures = torch.rand(len(tags), 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 255
    pictures[0, :, 24:] = float("nan")  # what the crop has beyond its picture
    return pictures, [torch.tensor(own, dtype=torch.int64) for own in tags]


def training(method, at=0, folder=None):
    """The module of a fit, at a step, without a Trainer."""
    net = method.new_network()

    class Alone(OnlineTraining):
        global_step = at

        def log_dict(self, values, **how):
            self.terms = {name: float(value) for name, value in values.items()}

    settings = FitSettings.of(method, steps=method.recipe.steps, batch=2, lr=method.recipe.lr)
    lessons, weight = method.lessons(net.network, folder)
    return Alone(net.network, lessons, method.recipe, settings, weight)


def plus(clip, dino, **options):
    return make_method("cd-clip", WORLD, clip=clip, dino=dino, **{**SMALL, **PLUS, **options})


def changed(network, copy, about):
    """A copy of a network's folder with other options in it."""
    copy.mkdir()
    for file in network.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    config["options"] |= about
    (copy / "config.json").write_text(json.dumps(config))
    return copy
