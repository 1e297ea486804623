"""From settings to the things that stages take: a data set, a method, a mask rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tag2mask.config import DataConfig, LabelConfig, MaskConfig, dump_config, parse_config, parse_data
from tag2mask.data import TagReading, read_dataset
from tag2mask.data.columns import Columns
from tag2mask.data.tags import FOLDERS
from tag2mask.methods import make_method, make_options, method_class
from tag2mask.ops.crf import preset
from tag2mask.run.folder import Run
from tag2mask.stages.evaluate import is_predicted, stored_classes
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


def open_data(config: DataConfig, network: ClassSet | None = None) -> Columns:
    """The data set that the settings describe. Raises UserError where there is none.

    network: the classes of a network that shall look at the images, or has: tags are not needed then.
    """
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
        network=network,
        reading=TagReading(config.separator, config.twins, config.count_from),
        truth_values=config.truth_values,
        truth_turn=config.truth_turn,
    )


def prepare(config: LabelConfig, *, device: str = "auto") -> Recipe:
    """Read the data, load the weights, make the method. Cheap checks come first, so bad settings stop at once."""
    _check(config.method, config.options, config.masks)
    if config.refine is not None:
        _check(config.refine.method, config.refine.options, config.refine.masks)
        if not method_class(config.refine.method).needs_prior:
            raise UserError(
                f"{config.refine.method} does not start from an earlier run, so it refines nothing; take irn or psa"
            )
    config = absolute(config)
    data = open_data(config.data)
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


def absolute(config: LabelConfig) -> LabelConfig:
    """The same settings with every path of the data made absolute."""
    paths = {
        key: str(Path(value).absolute())
        for key in ("path", "tags", "images", "truth")
        if (value := getattr(config.data, key)) is not None
        and not (key == "tags" and value == FOLDERS and not Path(value).is_file())
    }
    if config.data.classes is not None and config.data.classes.endswith((".yaml", ".yml")):
        paths["classes"] = str(Path(config.data.classes).absolute())
    if config.data.truth_values is not None and Path(config.data.truth_values).is_file():
        paths["truth_values"] = str(Path(config.data.truth_values).absolute())
    return config.model_copy(update={"data": config.data.model_copy(update=paths)})


def data_for(
    run: Run,
    data: Path | None = None,
    split: str | None = None,
    truth: Path | None = None,
    classes: str | None = None,
    truth_values: str | None = None,
    truth_turn: str | None = None,
) -> Columns:
    """The data of a run, as its settings say, with whatever is given in its place; that of ``predict`` needs no tags.

    Raises:
        UserError: it is not known, or no longer there.
    """
    flags = {"path": data, "split": split, "truth": truth, "classes": classes}
    flags |= {"truth_values": truth_values, "truth_turn": truth_turn}
    given = {key: str(value) for key, value in flags.items() if value is not None}
    before = {} if data is not None and "config" not in run.noted else data_of(run).model_dump()
    if data is not None:  # what belonged to the old place
        before |= {"kind": None, "tags": None, "images": None, "truth": None}
    if data is not None or truth is not None:  # what was said of the old truth
        before |= {"truth_values": None, "truth_turn": None}
    return open_data(parse_data({**before, **given}), stored_classes(run) if is_predicted(run) else None)


def images_for(run: Run, *given: Any) -> Columns:
    """As ``data_for``, to be looked at: of data in other classes than the network's that saw it, the images alone.

    Raises:
        UserError: as ``data_for``.
    """
    data = data_for(run, *given)
    if is_predicted(run) and data.classes.names != stored_classes(run).names:
        return data.images_only(stored_classes(run))
    return data


def data_of(run: Run) -> DataConfig:
    """Where a run's data was. Raises UserError for a run made from Python, whose data has no path on record."""
    config = run.noted.get("config")
    if config is None:
        raise UserError(f"{run.path} does not say where its images are; name the data with --data")
    return parse_config(config, str(run.path / "run.yaml")).data
