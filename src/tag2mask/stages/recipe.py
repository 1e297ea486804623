"""From settings to the things that stages take: a data set, a method, a mask rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tag2mask.config import LabelConfig, MaskConfig, dump_config
from tag2mask.data.columns import Columns
from tag2mask.methods import make_method, make_options, method_class
from tag2mask.ops.crf import preset
from tag2mask.run.folder import SEEDS, Run
from tag2mask.stages.run_data import absolute, in_run_order, open_data
from tag2mask.stages.work import place
from tag2mask.types import ClassSet, MaskRule, Method, Own, UserError

if TYPE_CHECKING:
    from tag2mask.models.weights import CLIP


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


def prepare(config: LabelConfig, *, device: str = "auto", out: Path | None = None) -> Recipe:
    """Read the data, load the weights, make the method. Cheap checks come first, so bad settings stop at once.

    out: the run folder that is to be gone on with, whose classes keep their order; None: a new one.
    """
    _check(config.method, config.options, config.masks)
    if config.refine is not None:
        _check(config.refine.method, config.refine.options, config.refine.masks)
        if not method_class(config.refine.method).needs_prior:
            raise UserError(
                f"{config.refine.method} does not start from an earlier run, so it refines nothing; take irn or psa"
            )
    config = absolute(config)
    data = open_data(config.data)
    before = None if out is None else _begun(out)
    if before is not None:
        data = in_run_order(data, config.data, before)
    clip = None
    names = [config.method] if config.refine is None else [config.method, config.refine.method]
    if any(method_class(name).needs_clip for name in names):
        from tag2mask.models.weights import load_clip

        clip = load_clip(
            config.clip,
            device=device,
            precision=config.precision,
            tokenizer=config.tokenizer,
            activation=config.activation,
        )
    method = _make(config.method, data.classes, clip, config.options)
    place(method, device)
    rule = _rule(config.method, method, config.masks)
    if config.refine is None:
        return Recipe(data, method, rule, config)
    refiner = _make(config.refine.method, data.classes, clip, config.refine.options)
    place(refiner, device)
    refine = Refine(refiner, _rule(config.refine.method, refiner, config.refine.masks))
    return Recipe(data, method, rule, config, refine)


def _begun(out: Path) -> Run | None:
    """The run in a folder, or the one whose maps were to be refined there; None where there is none."""
    return next((Run.open(folder) for folder in (out, out / SEEDS) if (folder / "run.yaml").is_file()), None)


def _make(name: str, classes: ClassSet, clip: CLIP | None, options: Mapping[str, Any]) -> Method:
    return make_method(name, classes, clip=clip if method_class(name).needs_clip else None, **options)


def _check(method: str, options: Mapping[str, Any], masks: MaskConfig) -> None:
    make_options(method, options)
    if masks.crf not in (None, "none"):
        preset(str(masks.crf))


def _rule(name: str, method: Method, masks: MaskConfig) -> MaskRule:
    rule = masks.rule(method.mask_rule)
    if isinstance(rule.background, Own) and not isinstance(method.mask_rule.background, Own):
        raise UserError(f"{name} scores no background of its own; give power:A or constant:T instead of own")
    return rule
