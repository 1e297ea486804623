"""What the commands share: the options of data, runs and models, and how flags become settings."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer

from tag2mask.types import UserError

Word = TypeVar("Word", bound=str)

SOME_FAILED = 3
"""Exit code of a run that ended, but could not do some of its images, or none at all."""

RemovedOption = Annotated[
    str, typer.Option(help="Masks of images that are no longer in the data, or not tagged: keep or drop them.")
]

OthersOption = Annotated[
    str | None,
    typer.Option(
        help="If an untagged class would win a pixel: never (only tags compete), ignore (255), keep (that class)."
    ),
]

DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
RunFolder = Annotated[Path, typer.Argument(help="A run folder that `label` or `predict` wrote.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="An option of the method, NAME=VALUE; see `tag2mask methods NAME`.")
]
ClipOption = Annotated[
    str | None,
    typer.Option(
        help="Hub id, folder, OpenAI .pt or another file, or storybook-clip. Default: openai/clip-vit-base-patch16."
    ),
]
DinoOption = Annotated[
    str | None, typer.Option(help="For cd-clip: hub id (facebook/dinov2-base), folder, or the authors' .pth.")
]
ActivationOption = Annotated[
    str | None,
    typer.Option(help="Only for a CLIP's bare state dict: quick_gelu (OpenAI's) or gelu (open_clip's, mostly)."),
]
TokenizerOption = Annotated[str | None, typer.Option(help="Only for an OpenAI .pt: tokenizer folder or BPE merges.")]


def label_config(
    path: Path | None, flags: dict[str, Any], options: list[str], refine: list[str] | None = None
) -> Any:
    """A LabelConfig from a YAML file with flags, --set and --refine-set on top."""
    from tag2mask.config import RENAMED, dump_config, parse_config, read_config

    raw = dump_config(read_config(path)) if path is not None else {}
    for key, value in flags.items():
        if value is not None:
            place, _, leaf = key.rpartition(".")
            (raw.setdefault(place, {}) if place else raw)[leaf] = str(value) if isinstance(value, Path) else value
    for option in options:
        name, value = named_value("--set", option, "affinity=mhsa")
        raw.setdefault("options", {})[name] = value
    for option in refine or []:
        name, value = named_value("--refine-set", option, "walk_steps=64")
        if not isinstance(raw.get("refine"), dict):
            raise UserError(f"--refine-set {option!r} without a refiner; name one, such as --refine irn")
        part, _, leaf = name.rpartition(".")
        leaf = RENAMED.get(leaf, leaf) if part == "masks" else leaf
        raw["refine"].setdefault(part or "options", {})[leaf] = value
    return parse_config(raw, "the command line" if path is None else str(path))


def named_value(flag: str, option: str, example: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as YAML reads it."""
    import yaml

    name, equals, value = option.partition("=")
    if not equals:
        raise UserError(f"{flag} {option!r}: expected NAME=VALUE, such as {flag} {example}")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"{flag} {option!r}: the value is not YAML; put it in quotes") from None


def one_of(option: str, word: str, *words: Word) -> Word:
    """The word given for an option, if it is one of its words."""
    for known in words:
        if word == known:
            return known
    raise UserError(f"{option} {word}: expected {' or '.join(words)}")


def images_if_there(run: Any, where: dict[str, Any]) -> Any:
    """The data of a run, or None with a note where it is gone: masks can be shown and exported without it.

    where: what was given in its place, see ``stages.run_data.data_for``; what is given must be there.
    """
    from tag2mask.stages.run_data import images_for

    try:
        return images_for(run, where)
    except UserError as gone:
        if any(value is not None for value in where.values()):
            raise
        typer.echo(f"note: going on without the images: {gone}", err=True)
        return None


def spell(annotation: Any) -> str:
    """A type as a reader writes it: the allowed words, or int, float, bool, list."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    if get_origin(annotation) is Literal:
        return " | ".join(get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list of {spell(get_args(annotation)[0])}"
    return " | ".join(spell(part) for part in get_args(annotation) if part is not type(None))


def show_options(options: Any) -> None:
    """Print the options that a pydantic model has."""
    for field, info in options.model_fields.items():
        typer.echo(f"{field}: {spell(info.annotation)}, default {info.default!r}\n    {info.description}")


def list_settings(recipe: Any) -> None:
    """Print what a recipe's class says of its settings, then each as `--set` takes it."""
    import json

    from tag2mask.run.settings import plain

    typer.echo(f"{inspect.getdoc(type(recipe))}\n")
    for name, value in vars(recipe).items():
        typer.echo(f"{name}={json.dumps(plain(value))}")
