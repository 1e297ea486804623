"""From settings to the things that stages take: a data set, a method, a mask rule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tag2mask.config import LabelConfig, MaskConfig, RefineConfig, dump_config
from tag2mask.data.columns import Columns
from tag2mask.methods import make_method, make_options, method_class
from tag2mask.methods.protocol import Method, Trainable
from tag2mask.ops.refiners import find_refiner
from tag2mask.run.artefacts import SEEDS
from tag2mask.run.device import find_device, find_precision
from tag2mask.run.folder import Run
from tag2mask.stages.machinery.predictor import rule_of
from tag2mask.stages.run_data import absolute, in_run_order, open_data, with_its_truth
from tag2mask.types import MaskRule, Own, UserError


@dataclass(frozen=True)
class Refine:
    """The refiner of a recipe."""

    method: Method
    rule: MaskRule


@dataclass(frozen=True)
class Recipe:
    """What one LabelConfig stands for, ready for ``stages.label``, or with a refiner for ``stages.refine``."""

    data: Columns
    method: Method
    rule: MaskRule
    config: LabelConfig
    refine: Refine | None = None

    @property
    def noted(self) -> dict[str, Any]:
        """The config as given, for run.yaml: later stages find the data again by it."""
        return {"config": dump_config(self.config)}


def prepare(
    config: LabelConfig,
    *,
    device: str = "auto",
    out: Path | None = None,
    masks_of: Literal["maps", "network"] = "maps",
) -> Recipe:
    """Read the data, load the weights, make the method. Cheap checks come first, so bad settings stop at once.

    out: the run folder that is to be resumed, whose classes keep their order; None: a new one.
    masks_of: as ``LabelSettings`` has it.

    Raises:
        UserError: settings that cannot work, data that cannot be read, or weights that are not there.
    """
    steps: list[LabelConfig | RefineConfig] = [config] if config.refine is None else [config, config.refine]
    for step in steps:
        make_options(step.method, step.options)
        if step.masks.refiner not in (None, "none"):
            find_refiner(str(step.masks.refiner))
    if config.refine is not None:
        chosen = make_options(config.refine.method, config.refine.options)
        if not method_class(config.refine.method).earlier_run(chosen).label:
            raise UserError(
                f"{config.refine.method} does not start from an earlier run, so it refines nothing; take irn, psa or "
                "pot"
            )
    config = absolute(config)
    before = None if out is None else _begun(out)
    if before is not None:
        config = config.model_copy(update={"data": with_its_truth(config.data, before)})
    data = open_data(config.data)
    if before is not None:
        data = in_run_order(data, config.data, before)
    find_precision(config.precision, find_device(device))
    clip = None
    if any("clip" in method_class(step.method).needs for step in steps):
        from tag2mask.models.weights import load_clip

        clip = load_clip(
            config.clip,
            device=device,
            precision=config.precision,
            tokenizer=config.tokenizer,
            activation=config.activation,
        )
    towers: dict[str, Any] = {"clip": clip, "dino": config.dino, "device": device}
    made = [make_method(step.method, data.classes, **towers, **step.options) for step in steps]
    takers = [method for method in made if method.towers or method.learns]
    if config.precision != "float32" and not takers:
        raise UserError(
            f"precision {config.precision}: {config.method} has no CLIP and learns nothing here, and labels in "
            "float32; leave it out"
        )
    for method in takers:
        if isinstance(method, Trainable):
            method.precision = config.precision
    rules = [_rule(step.method, method, step.masks, masks_of) for step, method in zip(steps, made, strict=True)]
    refine = None if config.refine is None else Refine(made[1], rules[1])
    return Recipe(data, made[0], rules[0], config, refine)


def _begun(out: Path) -> Run | None:
    """The run in a folder, or the one whose maps were to be refined there; None where there is none."""
    return next((Run.open(folder) for folder in (out, out / SEEDS) if (folder / "run.yaml").is_file()), None)


def _rule(name: str, method: Method, masks: MaskConfig, masks_of: Literal["maps", "network"]) -> MaskRule:
    rule = masks.rule(rule_of(method, masks_of))
    if isinstance(rule.background, Own) and not isinstance(method.mask_rule.background, Own):
        raise UserError(f"{name} scores no background of its own; give power:A or constant:T instead of own")
    if masks.refiner_on is not None and rule.refiner is None:
        raise UserError(
            f"masks.refiner_on is {masks.refiner_on!r}, but there is no refiner; name one (--mask-refiner), or leave "
            "refiner_on out"
        )
    return rule
