"""The whole recipe of a segmentation network's training, as YAML under ``recipes/train_*.yaml`` says it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from tag2mask.run.sampling import Training
from tag2mask.segment.architectures import HUB, find_architecture, read_options
from tag2mask.segment.augment import IMAGENET_MEAN, Augment, Choice, Colour, FitSide, LongSide, Uniform
from tag2mask.segment.cct import PUBLISHED, Kind, kinds
from tag2mask.segment.distort import Distort
from tag2mask.segment.options import RANDOM, WITH_HEAD
from tag2mask.segment.saved import find_network
from tag2mask.types import UserError

PIXEL_SETS = ("ade", "ade20k", "cityscapes", "coco", "cocostuff", "voc")
"""Data sets of pixel labels that the names of weights mention."""


@dataclass(frozen=True)
class CCT:
    """How CCT learns from unlabelled images; the defaults are the published settings.

    decoders: how many auxiliary decoders of each kind (``segment.cct.PUBLISHED``).
    weak: "masks": these decoders learn the pseudo masks, too ("CCT + masks"); "none": plain CCT.
    agreement: "mse", "kl" or "js", between each of them and the main decoder. sure: the least probability of the main
    decoder's first class at pixels that count for it; None counts all.
    consistency_weight, weak_weight: of these two losses after their ramp, which is ``ramp`` of all steps long.
    pairwise_weight: of the variance among the auxiliary decoders (the paper's supplement).
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    decoders: Mapping[Kind, int] = field(default_factory=lambda: dict(PUBLISHED))
    weak: Literal["masks", "none"] = "masks"
    agreement: Literal["mse", "kl", "js"] = "mse"
    sure: float | None = None
    consistency_weight: float = 30.0
    weak_weight: float = 0.4
    ramp: float = 0.1
    pairwise_weight: float = 0.0


@dataclass(frozen=True)
class TrainRecipe:
    """Equal recipes on equal masks and one machine's processor give equal weights.

    architecture, options: which network, and its options. init: where its weights come from; None: the architecture's
    own choice.
    init_pixels: the data set whose pixel labels those weights were trained on ("coco"), if they were: it is
    supervision, and is said wherever the network's numbers are shown. None: weights with a decoder are taken for
    such; "": for these, too, nobody drew masks.
    steps: optimiser steps. batch: images a forward pass; a step takes the mean gradient of ``accumulate`` of them.
    crop: side of the training images, pixels. scale: "choice:0.5,0.75,1", "uniform:0.5,1.5" (times the image's size),
    "long-side:200,800" (pixels), "fit:2048,512,0.5,2" (as large as fits longest and shortest side, times a factor),
    or None. flip: how often an image is mirrored.
    colour: the largest changes of brightness, contrast, saturation and hue, or "distort": WeakCLIP's.
    share: a crop of which one label fills this share or more is drawn again. place: where an image lies that is
    smaller than the crop. resample: how images are scaled. fill: RGB of what lies beside them.
    optimiser, lr, weight_decay, momentum: momentum is SGD's. decay_as_momentum: the fault of IRN's optimiser, which
    puts the weight decay in the momentum's place.
    schedule: "poly", or "cosine", which falls to ``lr_floor``. power, hold: of "poly", its exponent and
    the steps after which the rate changes. warmup: steps over which the rate rises.
    schedule_steps: the step at which the schedule ends; None: the last one.
    loss: "seed+boundary" is WeakCLIP's; "bootstrapped" leaves out more and less of what is sure already (CCT's ab-CE,
    for few true masks). loss_stride: side in pixels of the cells on which seed+boundary is computed (WeakCLIP: 8);
    None: as ``resize`` says. auxiliary: weight of the cross-entropy of weakclip's matching scores.
    mu: labels whose confidence is lower are ignored (the confidence-guided loss of CLIP-ES); None trusts all.
    divide: "all": the mean of cross-entropy is over ignored pixels, too.
    resize: what is resized to match the other: "labels" (nearest) or "logits" (bilinear).
    clip_norm: the largest norm of the gradient. ema: decay of averaged weights, which are then kept; 0: none.
    precision: float32, bfloat16 or float16. seed: of all random choices.
    semi: "cct": true masks train the main decoder, and all other images the auxiliary ones, as ``cct`` says; batch is
    then the number of each kind in a forward pass. None: all masks are treated alike.
    """

    architecture: str = "small"
    options: Mapping[str, Any] = field(default_factory=dict)
    init: str | None = None
    init_pixels: str | None = None
    steps: int = 600
    batch: int = 8
    accumulate: int = 1
    crop: int = 160
    scale: str | None = "uniform:0.7,1.4"
    flip: float = 0.5
    colour: tuple[float, float, float, float] | Literal["distort"] | None = (0.2, 0.2, 0.2, 0.05)
    share: float | None = None
    place: Literal["corner", "anywhere"] = "anywhere"
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    fill: tuple[float, float, float] = IMAGENET_MEAN
    optimiser: Literal["sgd", "adamw"] = "adamw"
    lr: float = 5e-4
    weight_decay: float = 0.01
    momentum: float = 0.9
    decay_as_momentum: bool = False
    schedule: Literal["poly", "cosine"] = "poly"
    lr_floor: float = 0.0
    power: float = 0.9
    hold: int = 1
    warmup: int = 100
    schedule_steps: int | None = None
    loss: Literal["cross-entropy", "balanced", "bootstrapped", "seed+boundary"] = "cross-entropy"
    loss_stride: int | None = None
    auxiliary: float = 0.0
    mu: float | None = None
    divide: Literal["valid", "all"] = "valid"
    resize: Literal["labels", "logits"] = "logits"
    clip_norm: float | None = 1.0
    ema: float = 0.0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0
    semi: Literal["cct"] | None = None
    cct: CCT = CCT()

    @property
    def start(self) -> str:
        """Where the weights come from: ``init``, or the architecture's own choice."""
        return find_architecture(self.architecture).init if self.init is None else self.init

    @property
    def augment(self) -> Augment:
        """What happens to images and masks."""
        return Augment(
            crop=self.crop,
            scale=parse_scale(self.scale),
            flip=self.flip,
            colour=_colour(self.colour),
            share=self.share,
            place=self.place,
            resample=self.resample,
            fill=self.fill,
        )

    def training(self, **how: Any) -> Training:
        """Steps, batch and seed of this recipe for the Trainer; ``how`` says the rest."""
        return Training(
            steps=self.steps,
            batch=self.batch,
            accumulate=self.accumulate,
            seed=self.seed,
            precision=self.precision,
            clip_norm=self.clip_norm,
            **how,
        )


GROUPS: Mapping[str, tuple[str, ...]] = {
    "network": ("architecture", "options", "init", "init_pixels"),
    "how much": ("steps", "batch", "accumulate", "precision", "seed"),
    "images": ("crop", "scale", "flip", "colour", "share", "place", "resample", "fill"),
    "optimiser": ("optimiser", "lr", "weight_decay", "momentum", "decay_as_momentum", "clip_norm", "ema"),
    "learning rate": ("schedule", "lr_floor", "power", "hold", "warmup", "schedule_steps"),
    "loss": ("loss", "loss_stride", "auxiliary", "mu", "divide", "resize"),
    "unlabelled images": ("semi", "cct"),
}
"""The settings of ``TrainRecipe`` by what they are about, as `train --list` shows them."""


def _colour(given: tuple[float, float, float, float] | str | None) -> Colour | Distort | None:
    if given is None:
        return None
    return Distort() if isinstance(given, str) else Colour(*given)


def parse_scale(text: str | None) -> Choice | Uniform | LongSide | FitSide | None:
    """How an image's size is drawn, from "choice:0.5,1", "uniform:0.5,1.5", "long-side:200,800" or "fit:…".

    Raises:
        UserError: none of these, or numbers that are no sizes.
    """
    if text is None or text == "none":
        return None
    kind, _, rest = text.partition(":")
    try:
        numbers = [float(number) for number in rest.split(",")]
        good = all(0 < number < math.inf for number in numbers) and numbers == sorted(numbers)
        if kind == "fit" and len(numbers) == 4 and all(0 < number < math.inf for number in numbers):
            longest, shortest, low, high = numbers
            if longest.is_integer() and shortest.is_integer() and shortest <= longest and low <= high:
                return FitSide(int(longest), int(shortest), low, high)
        if kind == "choice" and good:
            return Choice(tuple(numbers))
        if kind == "uniform" and good and len(numbers) == 2:
            return Uniform(*numbers)
        if kind == "long-side" and good and len(numbers) == 2 and all(number.is_integer() for number in numbers):
            return LongSide(int(numbers[0]), int(numbers[1]))
    except ValueError:
        pass
    raise UserError(
        f"scale {text!r}: expected choice:0.5,0.75,1 or uniform:0.5,1.5 (factors) or long-side:200,800 (pixels), "
        "ascending and above 0, or fit:2048,512,0.5,2 (longest and shortest side, factors), or none"
    )


def check(recipe: TrainRecipe) -> None:
    """Refuse a recipe that cannot be run, before anything is read or written.

    Raises:
        UserError: naming what does not fit.
    """
    find_architecture(recipe.architecture)
    read_options(recipe.architecture, recipe.options)
    parse_scale(recipe.scale)
    counts = ["steps", "batch", "accumulate", "crop", "hold"]
    counts += [name for name in ("schedule_steps", "loss_stride") if getattr(recipe, name) is not None]
    _refuse(recipe, [name for name in counts if getattr(recipe, name) < 1], "at least 1")
    above = ["lr", "power"] + (["clip_norm"] if recipe.clip_norm is not None else [])
    _refuse(recipe, [name for name in above if not 0 < getattr(recipe, name) < math.inf], "a finite number above 0")
    _refuse(recipe, [] if 0 <= recipe.weight_decay < math.inf else ["weight_decay"], "a finite number of at least 0")
    whole = [name for name in ("seed", "warmup") if not 0 <= getattr(recipe, name) < 2**63]
    _refuse(recipe, whole, "at least 0")  # and what torch takes
    _refuse(recipe, [name for name in ("flip", "mu") if not 0 <= (getattr(recipe, name) or 0) <= 1], "within 0 and 1")
    _refuse(recipe, [name for name in ("ema", "momentum") if not 0 <= getattr(recipe, name) < 1], "from 0 to below 1")
    if recipe.share is not None and not 0 < recipe.share <= 1:
        raise UserError(f"share {recipe.share}: expected above 0 to 1")
    if isinstance(recipe.colour, tuple) and not (all(0 <= x <= 1 for x in recipe.colour) and recipe.colour[3] <= 0.5):
        raise UserError(f"colour {list(recipe.colour)}: expected four numbers from 0 to 1, hue to 0.5")
    if not all(0 <= x <= 255 for x in recipe.fill):
        raise UserError(f"fill {list(recipe.fill)}: expected red, green and blue from 0 to 255")
    if recipe.decay_as_momentum and recipe.optimiser != "sgd":
        raise UserError("decay_as_momentum is a fault of an SGD; set optimiser=sgd, or leave it out")
    if recipe.divide == "all" and recipe.loss != "cross-entropy":
        raise UserError(f"divide=all belongs to loss=cross-entropy, not to {recipe.loss}; leave it out")
    _check_weakclip(recipe)
    if recipe.semi:
        _check_cct(recipe)
    if recipe.semi is None and recipe.cct != CCT():
        raise UserError("cct.* are settings of semi=cct; set that too (--semi cct), or leave them out")
    _check_start(recipe)


def _check_weakclip(recipe: TrainRecipe) -> None:
    if recipe.lr_floor and recipe.schedule != "cosine":
        raise UserError("lr_floor belongs to schedule=cosine; leave it out")
    if recipe.schedule == "cosine" and recipe.hold != 1:
        raise UserError("hold belongs to schedule=poly; leave it out")
    _refuse(recipe, [] if 0 <= recipe.lr_floor < math.inf else ["lr_floor"], "a finite number of at least 0")
    _refuse(recipe, [] if 0 <= recipe.auxiliary < math.inf else ["auxiliary"], "a finite number of at least 0")
    if recipe.loss_stride is not None and (recipe.loss != "seed+boundary" or recipe.crop % recipe.loss_stride):
        raise UserError(
            f"loss_stride {recipe.loss_stride} with loss={recipe.loss} and crop {recipe.crop}: expected "
            "loss=seed+boundary and a number that divides the crop"
        )
    if recipe.auxiliary and not find_architecture(recipe.architecture).matches:
        raise UserError("auxiliary is a loss of architecture=weakclip, which has matching scores; leave it out")


def _check_cct(recipe: TrainRecipe) -> None:
    settings = recipe.cct
    if find_architecture(recipe.architecture).groups != "tenfold":
        raise UserError(f"semi=cct: got architecture {recipe.architecture}, expected cct-small or cct-resnet50")
    if recipe.crop % 8 or recipe.batch < 2:
        raise UserError(
            f"semi=cct: got crop {recipe.crop} and batch {recipe.batch}, expected a multiple of 8 (pixel shuffles) "
            "and at least 2 (norms)"
        )
    counts = settings.decoders.values()
    if not kinds(settings.decoders) or min(counts) < 0:
        raise UserError(f"cct.decoders {dict(settings.decoders)}: expected numbers from 0, and at least one decoder")
    weights = (settings.consistency_weight, settings.weak_weight, settings.pairwise_weight)
    if not all(0 <= weight < math.inf for weight in weights) or not 0 <= settings.ramp <= 1:
        raise UserError(
            f"cct: got weights {', '.join(map(str, weights))} and ramp {settings.ramp}, expected finite weights "
            "from 0 and a ramp from 0 to 1, the share of all steps"
        )
    if settings.sure is not None and (not 0 <= settings.sure < 1 or settings.agreement == "js"):
        raise UserError(
            f"cct.sure {settings.sure} with cct.agreement {settings.agreement}: expected a probability from 0 to "
            "below 1, with mse or kl"
        )


def _refuse(recipe: TrainRecipe, names: list[str], expected: str) -> None:
    if names:
        got = ", ".join(f"{name} {getattr(recipe, name)}" for name in names)
        raise UserError(f"{got}: expected {expected}")


def _check_start(recipe: TrainRecipe) -> None:
    """Weights that were trained on masks must be called so."""
    start = recipe.start
    if start == RANDOM and recipe.init_pixels:
        raise UserError(f"init_pixels {recipe.init_pixels!r}: random weights were trained on nothing; leave it out")
    if start != RANDOM and find_network(start) is not None:
        return  # one of our own says itself what it was trained on, whatever its folder is called
    name = Path(start.removeprefix(WITH_HEAD)).name
    if start == "pretrained":
        name = recipe.architecture.removeprefix(HUB)
    found = sorted(set(re.split(r"[^a-z0-9]+", name.lower())) & set(PIXEL_SETS))
    if found and recipe.init_pixels is None:
        raise UserError(
            f"init {name}: these weights seem to be trained on pixel labels ({found[0]}), which is supervision; set "
            f'init_pixels={found[0]}, which is then shown with every number, or init_pixels="" if they are not'
        )
