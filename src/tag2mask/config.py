"""Settings of a run: YAML in, checked, resolved YAML out. Unknown keys are refused with the nearest known name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from tag2mask.safe_yaml import parse_yaml
from tag2mask.types import Background, MaskRule, UserError
from tag2mask.words import did_you_mean


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Settings):
    """Where the images and tags are."""

    path: str | None = Field(None, description="data of a kind that tag2mask.formats has a reader for")
    kind: str | None = Field(None, description="a reader of tag2mask.formats; default: detected")
    split: str | None = Field(None, description="a list under ImageSets/Segmentation (VOC)")
    tags: str | None = Field(None, description='a tag file, "folders", or the labels of one image; default: found')
    images: str | None = Field(None, description="folder of the images (COCO)")
    truth: str | None = Field(None, description="folder of ground-truth masks, for evaluation only")
    truth_values: str | None = Field(None, description="as-is, from-0, from-2, coco-ids, 255=NAME, or a file")
    truth_turn: Literal["stored", "upright"] | None = Field(
        None, description="which pixels of photographs that EXIF turns the truth was drawn on"
    )
    classes: str | None = Field(
        None, description="voc12, coco14, a YAML of your own, or file: VOC's or COCO's own names"
    )
    unknown: Literal["error", "skip"] = Field("error", description="what to do with tags that are no class")
    separator: str | None = Field(None, min_length=1, description='between labels besides ";"; "none": nothing is')
    twins: Literal["keep", "merge"] | None = Field(None, description="names that look like one class: two, or one")
    count_from: Literal[0, 1] | None = Field(None, description="the first class's number, where labels are numbers")


RENAMED = {"crf": "refiner"}
"""Earlier names of mask settings: older recipes and run.yaml still work."""


class MaskConfig(_Settings):
    """How maps become masks; what is None is the method's own choice."""

    background: str | None = Field(None, description='"power:A" is (1 - max)^A, "constant:T" is T, or "own"')
    normalise: Literal["class", "image", "none"] | None = None
    refiner: str | None = Field(None, description='name of a dense CRF preset or another refiner, or "none"')
    refiner_on: Literal["scores", "labels"] | None = Field(None, description="what the refiner starts from")
    others: Literal["never", "ignore", "keep"] | None = Field(
        None, description="where a class wins that is not among the tags: it cannot, 255, or that class"
    )
    mu: float | None = Field(None, ge=0, le=1, description="less confident pixels become 255; 0 keeps every pixel")
    confidence: Literal["posterior", "cam"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _names_of_today(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        for old, new in RENAMED.items():
            if old in given and new in given:
                raise ValueError(f"{old} is an earlier name of {new}, and both are given; leave out {old}")
        return {RENAMED.get(key, key): value for key, value in given.items()}

    @field_validator("background")
    @classmethod
    def _parses(cls, text: str | None) -> str | None:
        if text is not None:
            Background.parse(text)
        return text

    def rule(self, default: MaskRule) -> MaskRule:
        """The method's rule with these settings in its place."""
        refiner = default.refiner if self.refiner is None else (None if self.refiner == "none" else self.refiner)
        # A method's own mu is meant for CRF posteriors; maps alone are rarely that sure: few pixels would be left.
        mu = default.mu if refiner is not None else None
        return MaskRule(
            background=default.background if self.background is None else Background.parse(self.background),
            normalise=self.normalise or default.normalise,
            refiner=refiner,
            refiner_on=self.refiner_on or default.refiner_on,
            others=self.others or default.others,
            mu=mu if self.mu is None else (self.mu or None),
            confidence=self.confidence or default.confidence,
            refiner_image=default.refiner_image,
        )


class RefineConfig(_Settings):
    """The refiner of a label run; the run's own method makes the seeds."""

    method: str = Field("irn", description="irn, psa, or another method that starts from an earlier run")
    options: dict[str, Any] = Field(default_factory=dict, description="the refiner's own options")
    masks: MaskConfig = MaskConfig()


class LabelConfig(_Settings):
    """Everything that ``tag2mask label`` needs; a recipe is one of these as YAML."""

    data: DataConfig = DataConfig()
    method: str = "clip-es"
    options: dict[str, Any] = Field(default_factory=dict, description="the method's own options")
    clip: str | None = Field(None, description="hub id, folder, OpenAI .pt, or storybook-clip")
    dino: str | None = Field(None, description="hub id, folder, or a file of the authors' hub; for cd-clip")
    tokenizer: str | None = Field(None, description="only for an OpenAI .pt: tokenizer folder or BPE merges file")
    activation: Literal["quick_gelu", "gelu"] | None = Field(
        None, description="only for a CLIP's bare state dict, which does not say which one it was trained with"
    )
    masks: MaskConfig = MaskConfig()
    refine: RefineConfig | None = Field(None, description="refine the maps in a second run, whose prior is the first")
    precision: Literal["float32", "bfloat16", "float16"] = "float32"


def read_config(path: Path | str) -> LabelConfig:
    """A LabelConfig from YAML. Raises UserError naming every wrong key or value, and the nearest known key."""
    return parse_config(_read_mapping(Path(path), "such as data, method, options"), str(path))


def _read_mapping(path: Path, such_as: str) -> Mapping[str, Any]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"no config at {path}; give the path of a YAML file, such as recipes/voc12_clip_es.yaml"
        ) from None
    raw = parse_yaml(content, path)
    if not isinstance(raw, Mapping):
        raise UserError(f"{path} holds a {type(raw).__name__}, expected keys {such_as}")
    return raw


def parse_config(raw: Mapping[str, Any], where: str = "the settings") -> LabelConfig:
    """A LabelConfig from plain values; ``where`` names their source in messages.

    Raises:
        UserError: naming every wrong key or value, and the nearest known key.
    """
    try:
        return LabelConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, LabelConfig)}") from None


def parse_data(raw: Mapping[str, Any]) -> DataConfig:
    """A DataConfig from plain values of the command line. Raises UserError as ``parse_config``."""
    return parse_config({"data": raw}, "the command line").data


T = TypeVar("T")


def read_recipe(kind: type[T], options: Sequence[str] = (), file: Path | None = None) -> T:
    """The recipe of a training, from a YAML file with NAME=VALUE texts on top; the rest keeps its default.

    Args:
        kind: a dataclass.
        options: values in YAML; ``options.width=8`` sets one entry of a setting that holds several.
        file: settings by name.

    Raises:
        UserError: a text not of that form, an unknown name (with the nearest known), or a wrong kind of value.
    """
    known = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    given: dict[str, Any] = {} if file is None else dict(_read_mapping(file, f"such as {', '.join(known[:3])}"))
    origin = dict.fromkeys(given, str(file))
    for name in given:
        if name not in known:
            raise UserError(f"{file}: unknown key {str(name)!r}{_nearest(str(name), known)}")
    for option in options:
        path, equals, text = option.partition("=")
        name, dot, entry = path.partition(".")
        if not equals or name not in known:
            raise UserError(
                f"--set {option!r}: expected NAME=VALUE with a setting of the recipe{_nearest(name, known)}"
            )
        value = parse_yaml(text.encode(), f"--set {option!r}: the value")
        given[name] = {**(given.get(name) or {}), entry: value} if dot else value
        origin[name] = "--set"
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        where = origin.get(str(first["loc"][0])) if first["loc"] else None
        raise UserError(f"{where or file} {place}: {first['msg'].lower()}, got {first['input']!r}") from None


def _nearest(name: str, known: Sequence[str]) -> str:
    if name in known:
        return f"; give it a value: {name}=..."
    return did_you_mean(name, known) or f"; known: {', '.join(known)}"


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """A pydantic error in one line: what was got at each wrong place, and the nearest known key."""
    parts = []
    for item in error.errors():
        place = ".".join(str(step) for step in item["loc"])
        if item["type"] == "extra_forbidden":
            known = _fields_at(model, item["loc"][:-1])
            hint = did_you_mean(str(item["loc"][-1]), known) or f"; known are {', '.join(sorted(known))}"
            parts.append(f"unknown key {place!r}{hint}")
        elif item["type"] in ("model_type", "dict_type", "model_attributes_type"):
            inner = [] if item["type"] == "dict_type" else _fields_at(model, item["loc"])
            example = f"{item['loc'][-1]}: {{{inner[0] if inner else 'NAME'}: {item['input']}}}"
            known_ = f" ({', '.join(inner)})" if inner else ""
            parts.append(
                f"{place} is {item['input']!r}, a single value: expected keys with values{known_}, such as {example}"
            )
        else:
            message = item["msg"].removeprefix("Value error, ")
            parts.append(f"{place} = {item['input']!r}: {message[:1].lower()}{message[1:]}")
    return "; ".join(parts)


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for step in location:
        annotation = model.model_fields[str(step)].annotation
        annotation = next(iter(get_args(annotation)), annotation)  # of "RefineConfig | None"
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)


def dump_config(config: LabelConfig) -> dict[str, Any]:
    """Plain values that ``parse_config`` takes back, without what was left at its default."""
    return config.model_dump(mode="json", exclude_defaults=True)
