"""What the commands share: the options of runs and models, and how flags become settings."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer

from tag2mask.types import UserError

Word = TypeVar("Word", bound=str)

SOME_FAILED = 3
"""Exit code of a run that ended, but could not do some of its images, or none at all."""

WIDEST = 50
"""Characters of a setting that still has its default in the common column."""

RemovedOption = Annotated[
    str,
    typer.Option(
        help="What to do with masks of images that are no longer in the data, or no longer tagged: keep or drop."
    ),
]

OthersOption = Annotated[
    str | None,
    typer.Option(
        help="What an untagged class may do: never win a pixel, ignore (where it wins, the pixel is 255), or keep "
        "(where it wins, the pixel is of that class)."
    ),
]

DeviceOption = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:1 or mps.")]
ShardOption = Annotated[
    str | None,
    typer.Option(help="Do one part only: i/n is part i of n, from 0; default: from torchrun or SLURM, else all."),
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Process only so many images, from the first on; the same command without it does the rest."
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Say what would be done, which settings are not the defaults, how long; write nothing."
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="A run folder that `label` or `predict` wrote.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="An option of the method, as NAME=VALUE; see `tag2mask methods NAME`."),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Run folder to create or resume.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Remove what an earlier call left in the folder, and start over.")
]
RefinerOption = Annotated[
    str | None,
    typer.Option(
        "--mask-refiner",
        "--crf",
        help="Makes masks follow the image's edges: a dense CRF preset (clip-es, deeplab, irn, psa, ...), par, or "
        "none.",
    ),
]
DevicesOption = Annotated[
    int, typer.Option(min=1, help="Number of GPUs that share every batch of the training (DDP).")
]
MinutesOption = Annotated[
    float | None,
    typer.Option(min=0, help="Stop after this many minutes; all is saved, and the same command resumes it."),
]
RecipeSetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting that overrides the recipe, as NAME=VALUE; --list shows all."),
]
ListOption = Annotated[
    bool, typer.Option("--list", help="List the recipe's settings beside their defaults, and stop.")
]

MODELS: dict[str, Any] = {
    "clip": Annotated[
        str | None,
        typer.Option(
            help="The CLIP: hub id, folder, OpenAI .pt or another file, or storybook-clip. Default: "
            "openai/clip-vit-base-patch16."
        ),
    ],
    "dino": Annotated[
        str | None,
        typer.Option(help="The DINO that cd-clip uses: hub id (facebook/dinov2-base), folder, or the authors' .pth."),
    ],
    "tokenizer": Annotated[
        str | None, typer.Option(help="Tokenizer for an OpenAI .pt: a folder, or a file of BPE merges.")
    ],
    "activation": Annotated[
        str | None,
        typer.Option(
            help="Activation of a CLIP whose file does not say it: quick_gelu (OpenAI's) or gelu (most of "
            "open_clip's)."
        ),
    ],
}
"""Which models a command takes, by the keys of ``config.LabelConfig``."""


def gather(parameter: str, options: Mapping[str, Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command several options in the place of one parameter, a dict of those that were given.

    options: annotations (``Annotated[str | None, typer.Option(...)]``) by key.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            found = {key: given.pop(key) for key in options}
            values = {key: str(v) if isinstance(v, Path) else v for key, v in found.items() if v is not None}
            command(**given, **{parameter: values})

        shown: list[inspect.Parameter] = []
        for each in inspect.signature(command, eval_str=True).parameters.values():
            if each.name != parameter:
                shown.append(each.replace(kind=inspect.Parameter.KEYWORD_ONLY))
                continue
            for key, kind in options.items():
                option = inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
                shown.append(option)
        run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # what typer reads
        run.__annotations__ = {each.name: each.annotation for each in shown}
        del run.__wrapped__  # its own parameters are not the command's
        return run

    return decorate


def model_options(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of ``MODELS``, in the place of its parameter ``models``.

    without: keys that the command does not have.
    """
    return gather("models", {key: kind for key, kind in MODELS.items() if key not in without})


def data_flags(data: Path | None, where: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a command as ``label_config`` takes them.

    data: its argument. where: its options of data, as ``cli_data.data_options`` gathers them.
    """
    return {"data.path": data, **{f"data.{key}": value for key, value in where.items()}}


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
            raise UserError(f"--refine-set {option!r} without --refine; name a method, such as --refine irn")
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


def next_steps(*commands: Sequence[object]) -> None:
    """Print the commands that come next, each given by its words after ``tag2mask``."""
    for words in commands:
        typer.echo(f"next: {shlex.join(['tag2mask', *map(str, words)])}")


def beside(folder: str, run: Path) -> Path:
    """Where the next command puts what it makes of a run: a folder of the run's name, so that runs do not mix."""
    return Path(folder) / run.resolve().name


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
        typer.echo(f"note: continuing without the images: {gone}", err=True)
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


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def show_options(options: Any, published: Mapping[str, Any] | None = None) -> None:
    """Print the options that a pydantic model has, in groups: those of the class itself first.

    published: the values of a recipe, shown beside the defaults.
    """
    import json

    own = [kind for kind in options.__mro__ if hasattr(kind, "model_fields")]
    place = {name: kind for kind in reversed(own) for name in inspect.get_annotations(kind)}
    head = ["option", "default", *(["in the recipe"] if published is not None else []), "takes"]
    rows, names = [head], list(options.model_fields)
    for name in names:
        info = options.model_fields[name]
        default = (
            "required" if info.is_required() else json.dumps(_plain(info.get_default(call_default_factory=True)))
        )
        value = [] if published is None else [json.dumps(_plain(published[name])) if name in published else "-"]
        rows.append([name, default, *value, spell(info.annotation)])
    lines = dict(zip(names, aligned(rows)[1:], strict=True))
    typer.echo(aligned(rows)[0])
    for kind in own:
        inner = [name for name in names if place.get(name) is kind]
        if inner:
            typer.echo(f"\n{(inspect.getdoc(kind) or kind.__name__).splitlines()[0]}")
        for name in inner:
            typer.echo(f"{lines[name]}\n    {options.model_fields[name].description}")


def _plain(value: Any) -> Any:
    from tag2mask.run.settings import plain

    return plain(value)


def list_settings(recipe: Any, groups: Mapping[str, Sequence[str]] | None = None) -> None:
    """Print what a recipe's class says of its settings, then each as `--set` takes it, beside its default.

    groups: settings by heading.
    """
    import json

    typer.echo(f"{inspect.getdoc(type(recipe))}\n".replace("``", "`"))
    usual = type(recipe)()
    shown = {name: f"{name}={json.dumps(_plain(value))}" for name, value in vars(recipe).items()}
    width = max(len(each) for each in shown.values() if len(each) <= WIDEST)  # one long value moves no other
    lines = {
        name: f"{each:<{width}}  default {json.dumps(_plain(getattr(usual, name)))}" for name, each in shown.items()
    }
    if groups is None:
        typer.echo("\n".join(lines.values()))
        return
    for heading, names in groups.items():
        typer.echo(f"{heading}:")
        for name in names:
            typer.echo(f"  {lines[name]}")
