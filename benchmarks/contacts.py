"""Do prototypes of super-classes end where these touch? By maps, by CLIP's patches, by colours, by a DINO.

    python benchmarks/contacts.py [-n 60] [--seed 1] [--dino FOLDER ...]

Prints a Markdown table of the first n scenes of Storybook's val split, of which those with two super-classes or more
count: the share of their pixels whose super-class is right, near contacts and everywhere. Nothing is trained here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

from tag2mask.process import tune_process

tune_process()  # as the command line does, before torch is loaded

import torch
import torch.nn.functional as F
from page import begin, options, table
from torch import Tensor

from tag2mask.classes import load_classes
from tag2mask.lab.contacts import Features, rightness, touching_scenes
from tag2mask.lab.self_distil import make_learner
from tag2mask.lab.self_distil_recipe import SelfDistil
from tag2mask.methods.cd_clip import CDCLIP, CDCLIPOptions
from tag2mask.models.dino import DINO, load_dino
from tag2mask.models.weights import CLIP, load_clip


def clip_patches(clip: CLIP) -> Features:
    """What CD-CLIP takes where there is no DINO."""
    return CDCLIP(load_classes("voc12"), CDCLIPOptions(structure="clip"), clip=clip).structure()


def colours(patch: int) -> Callable[[Tensor], Tensor]:
    """The mean colour of each patch, around grey."""
    return lambda images: F.normalize(F.avg_pool2d(images / 255 - 0.5, patch), dim=1)


def colour_codes(patch: int, width: float = 0.05, count: int = 1024) -> Callable[[Tensor], Tensor]:
    """Mean colours in so many random directions, where only like colours are alike (Rahimi and Recht 2007)."""
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(count, 3, generator=generator) / width
    phases = 2 * math.pi * torch.rand(count, generator=generator)

    def features(images: Tensor) -> Tensor:
        seen = torch.einsum("dc,bchw->bdhw", waves, F.avg_pool2d(images / 255, patch))
        return F.normalize(torch.cos(seen + phases[None, :, None, None]), dim=1)

    return features


def untrained(recipe: SelfDistil) -> Features:
    """A DINO of the recipe's shape that has learned nothing."""
    tower = make_learner(recipe).tower.eval().requires_grad_(False)
    return DINO(tower, "untrained", "", "transformers", torch.device("cpu"), torch.float32).features


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("-n", type=int, default=60, help="scenes that are looked at")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the scenes; 1 are those that are watched in trainings"
    )
    parser.add_argument("--dino", action="append", default=[], help="a DINO: a folder; may be given again")
    arguments = parser.parse_args()
    said = begin()
    warnings.simplefilter("ignore")  # that storybook-clip knows no photographs: these are none
    clip = load_clip("storybook-clip", device="cpu")
    scenes = touching_scenes(clip, arguments.n, seed=arguments.seed)
    rows: dict[str, Features | None] = {
        "the maps that prototypes are made of": None,
        "prototypes on storybook-clip's patches": clip_patches(clip),
        "prototypes on colours of 8x8 pixels": colours(8),
        "prototypes on codes of these": colour_codes(8),
        "prototypes on codes of colours of 4x4 pixels": colour_codes(4),
        "floor: prototypes on an untrained DINO": untrained(SelfDistil()),
        **{f"prototypes on {source}": load_dino(source).features for source in arguments.dino},
    }
    found = {name: rightness(scenes, features) for name, features in rows.items()}
    print(table(["", "near contacts", "everywhere"], [[name, x.contacts, x.everywhere] for name, x in found.items()]))
    one = next(iter(found.values()))
    print(f"\n{one.scenes} of {arguments.n} scenes of val, seed {arguments.seed}; {one.pixels} pixels; {said()}")


if __name__ == "__main__":
    main()
