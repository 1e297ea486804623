"""From settings to the things that stages take: a data set, a method, a mask rule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tag2mask.config import DataConfig, LabelConfig, dump_config, parse_config
from tag2mask.data import read_dataset
from tag2mask.data.columns import Columns
from tag2mask.methods import make_method, make_options, method_class
from tag2mask.ops.crf import preset
from tag2mask.run.folder import Run
from tag2mask.stages.work import place
from tag2mask.types import MaskRule, Method, Own, UserError


@dataclass(frozen=True)
class Recipe:
    """What one LabelConfig stands for, ready for ``stages.label``."""

    data: Columns
    method: Method
    rule: MaskRule
    config: LabelConfig

    @property
    def noted(self) -> dict[str, Any]:
        """The config as given, for run.yaml: later stages find the data again by it."""
        return {"config": dump_config(self.config)}


def open_data(config: DataConfig) -> Columns:
    """The data set that the settings describe. Raises UserError where there is none."""
    if config.path is None:
        raise UserError("no data: give a folder of images, a VOC devkit, or COCO instances JSON")
    return read_dataset(
        config.path,
        kind=config.kind,
        split=config.split,
        tags=config.tags,
        images=config.images,
        truth=config.truth,
        classes=config.classes,
        unknown=config.unknown,
    )


def prepare(config: LabelConfig, *, device: str = "auto") -> Recipe:
    """Read the data, load the weights, make the method. Cheap checks come first, so bad settings stop at once."""
    make_options(config.method, config.options)
    if config.masks.crf not in (None, "none"):
        preset(str(config.masks.crf))
    config = absolute(config)
    data = open_data(config.data)
    clip = None
    if method_class(config.method).needs_clip:
        from tag2mask.models.weights import load_clip

        clip = load_clip(config.clip, device=device, precision=config.precision, tokenizer=config.tokenizer)
    method = make_method(config.method, data.classes, clip=clip, **config.options)
    place(method, device)
    rule = config.masks.rule(method.mask_rule)
    if isinstance(rule.background, Own) and not isinstance(method.mask_rule.background, Own):
        raise UserError(f"{config.method} scores no background of its own; give power:A or constant:T instead of own")
    return Recipe(data, method, rule, config)


def absolute(config: LabelConfig) -> LabelConfig:
    """The same settings with every path of the data made absolute."""
    paths = {
        key: str(Path(value).absolute())
        for key in ("path", "tags", "images", "truth")
        if (value := getattr(config.data, key)) is not None
    }
    if config.data.classes is not None and config.data.classes.endswith((".yaml", ".yml")):
        paths["classes"] = str(Path(config.data.classes).absolute())
    return config.model_copy(update={"data": config.data.model_copy(update=paths)})


def data_for(
    run: Run,
    data: Path | None = None,
    split: str | None = None,
    truth: Path | None = None,
    classes: str | None = None,
) -> Columns:
    """The data of a run, as its settings say, with whatever is given in its place.

    Raises:
        UserError: it is not known, or no longer there.
    """
    flags = {"path": data, "split": split, "truth": truth, "classes": classes}
    given = {key: str(value) for key, value in flags.items() if value is not None}
    before = {} if data is not None and "config" not in run.noted else data_of(run).model_dump()
    if data is not None:  # what belonged to the old place
        before |= {"kind": None, "tags": None, "images": None, "truth": None}
    return open_data(DataConfig(**{**before, **given}))


def data_of(run: Run) -> DataConfig:
    """Where a run's data was. Raises UserError for a run made from Python, whose data has no path on record."""
    config = run.noted.get("config")
    if config is None:
        raise UserError(f"{run.path} does not say where its images are; name the data with --data")
    return parse_config(config, str(run.path / "run.yaml")).data
