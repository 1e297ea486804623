"""Writes what the code says into the pages of docs/methods/: ``python docs/method_pages.py``.

A page begins with what a person wrote. All below its mark is made here: what the method takes, its options, its
recipes, and what its docstring says of paper and code. A test says when a page is out of date.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tag2mask.cli_options import spell
from tag2mask.methods import METHODS, method_class
from tag2mask.methods.protocol import Method, Trainable
from tag2mask.run.settings import plain
from tag2mask.segment.architectures import ARCHITECTURES
from tag2mask.segment.recipe import CCT, TrainRecipe
from tag2mask.types import UserError

FOLDER = Path(__file__).parent / "methods"
ROOT = FOLDER.parents[1]
COMMAND = "python docs/method_pages.py"
MARK = f"<!-- Made from the code by `{COMMAND}`: write above this line only. -->\n"
SEGMENTATION = ("segment.losses", "segment.test_time", "models.deeplab", "models.wideresnet", "models.decoders")
"""Modules whose docstrings tell what papers and code do in the segmentation stage."""


def parts() -> dict[str, str]:
    """The part of each page that is made here, by the page's name."""
    made = {name: method_part(name) for name in METHODS}
    made["index"] = overview()
    made["segmentation"] = segmentation_part()
    made["cct"] = cct_part()
    return {name: f"{MARK}\n{text.strip()}\n" for name, text in made.items()}


def page(name: str, part: str) -> str:
    """The whole page: what a person wrote, then the part."""
    path = FOLDER / f"{name}.md"
    written = path.read_text(encoding="utf-8").partition(MARK)[0] if path.is_file() else f"# {name}\n\n"
    return written + part


def method_part(name: str) -> str:
    """What the code says of a method."""
    method = method_class(name)
    module = importlib.import_module(method.__module__)
    lines = ["## What it takes and gives", "", *takes(method), "", "## Options", ""]
    lines += [f"`--set NAME=VALUE`; the same as `tag2mask methods {name}` lists.", "", *options(method.Options), ""]
    lines += ["## Paper and code", "", *markdown(inspect.getdoc(module) or ""), ""]
    return "\n".join([*lines, *recipes(lambda recipe: name in used(recipe))])


def overview() -> str:
    """All methods in a table."""
    rows = []
    for name in METHODS:
        method = method_class(name)
        doc = importlib.import_module(method.__module__).__doc__ or ""
        what = doc.strip().splitlines()[0].partition(": ")[2]
        rows.append(
            (f"[`{name}`]({name}.md)", what[0].upper() + what[1:], ", ".join(towers(method)), earlier(method))
        )
    return "\n".join(["## All methods", "", *table(("method", "what it is", "needs", "earlier run"), rows)])


def takes(method: type[Method]) -> Iterator[str]:
    """What a method needs, and how its maps become masks, if nothing else is asked for."""
    said = {"clip": "a CLIP (`--clip`)", "dino": "a DINO (`--dino`)"}
    yield f"- **Networks by name**: {' and '.join(said[tower] for tower in towers(method)) or 'none'}."
    yield f"- **Learns from your data**: {'yes, then it labels' if issubclass(method, Trainable) else 'no'}."
    yield f"- **Earlier run** (`--prior`, or `--refine` of another method): {earlier(method)}."
    rule = getattr(method, "mask_rule", None)  # of some it depends on the options
    if rule is not None:
        refiner = f"`{rule.refiner}` on {rule.refiner_on}" if rule.refiner else "none"
        unsure = "nothing is left unsure" if rule.mu is None else f"255 where less sure than `--mu {rule.mu:g}`"
        words = f"`--background {rule.background}`; mask refiner: {refiner}; `--others {rule.others}`; {unsure}"
        yield f"- **Masks**, if you choose nothing else: {words}."


def towers(method: type[Method]) -> tuple[str, ...]:
    """The networks that a method loads by name, under its defaults."""
    try:
        return method.towers_of(method.Options())
    except UserError:
        return method.needs


def earlier(method: type[Method]) -> str:
    """What a method takes from an earlier run under its defaults."""
    try:
        asked = method.earlier_run(method.Options())
    except UserError:
        return "it depends on its options"
    said = [f"{what} to {verb}" for verb, what in (("learn", asked.fit), ("label", asked.label)) if what]
    return " and ".join(said) or "none"


def options(model: type[BaseModel]) -> list[str]:
    """A table of the fields of a pydantic model."""
    rows = [
        (f"`{name}`", spell(field.annotation), _default(field), field.description)
        for name, field in model.model_fields.items()
    ]
    return table(("option", "values", "default", "what it does"), rows)


def settings(kind: type) -> list[str]:
    """What a dataclass of settings says of them, and a table of their defaults."""
    types, made = typing.get_type_hints(kind), kind()
    rows = [
        (f"`{field.name}`", _spell(types[field.name]), _value(plain(getattr(made, field.name))))
        for field in dataclasses.fields(kind)
        if not dataclasses.is_dataclass(types[field.name])  # it has settings of its own, and a page
    ]
    said = re.sub(r"^(?=[a-z_]+(?:, [a-z_]+)*: )", "- ", inspect.getdoc(kind) or "", flags=re.MULTILINE)
    said = re.sub(r"(?<!\n)\n(?!- |\n)", "\n  ", said)
    return [*_literals(said).splitlines(), "", *table(("setting", "values", "default"), rows)]


def segmentation_part() -> str:
    """What the code says of the networks that `train` makes."""
    recipe = settings(TrainRecipe)
    lines = ["## Settings", "", "`train --set NAME=VALUE`, or a YAML file.", "", *recipe, ""]
    for name, architecture in ARCHITECTURES.items():
        rows = options(architecture.options)
        lines += [f"## Options of {name}", "", "`--set 'options={NAME: VALUE}'`.", "", *rows, ""]
    lines += ["## Paper and code", ""]
    for module in SEGMENTATION:
        lines += [*markdown(_docstring(module)), ""]
    return "\n".join([*lines, *recipes(lambda recipe: "architecture" in recipe)])


def cct_part() -> str:
    """What the code says of semi-supervised training."""
    lines = ["## Settings", "", "`train --set cct.NAME=VALUE`, beside those of any training.", "", *settings(CCT), ""]
    lines += ["## Paper and code", ""]
    for module in ("segment.semi", "segment.cct"):
        lines += [*markdown(_docstring(module)), ""]
    return "\n".join([*lines, *recipes(lambda recipe: recipe.get("semi") == "cct")])


def recipes(wanted: Callable[[dict[str, Any]], bool]) -> list[str]:
    """The recipes that are wanted, with the first sentence of their comments."""
    found = []
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if wanted(yaml.safe_load(text)):
            comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
            what = re.split(r"(?<=[.:;]) ", comment)[0].rstrip(".:;")
            found.append(f"- `recipes/{path.name}`: {what}.")
    return ["## Recipes", "", *found] if found else []


def used(recipe: dict[str, Any]) -> tuple[str | None, ...]:
    """The methods of a recipe of `label`."""
    refine = recipe.get("refine")
    return recipe.get("method"), refine.get("method") if isinstance(refine, dict) else refine


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """A Markdown table."""
    lines = [list(head), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return [f"| {' | '.join(line)} |" for line in lines]


TABLE = re.compile(r"^(=[= ]+)\n((?:(?!=).+\n)+)\1(?:\n((?:(?!=).+\n)+)\1)?$", re.MULTILINE)
"""A table drawn with blanks between rules of `=`: its head, where there are three rules, and its rows."""


def markdown(docstring: str) -> list[str]:
    """A docstring as Markdown: its drawn tables and its literals are brought to that form."""
    text = TABLE.sub(lambda found: "\n".join(_drawn_table(*found.groups())), docstring)
    text = re.sub(r"^( *)- \* ", r"\1- \\* ", text, flags=re.MULTILINE)
    return _literals(text).splitlines()


def _drawn_table(rule: str, head: str, rows: str | None) -> list[str]:
    """A drawn table. A row goes on where its first cell is empty, or says more in brackets."""
    starts = [found.start() for found in re.finditer("=+", rule)]
    columns = [slice(start, end) for start, end in zip(starts, [*starts[1:], None], strict=True)]
    read: list[list[str]] = []
    for line in (rows or head).splitlines():
        cells = [line[column].strip() for column in columns]
        before = read[-1][0] if read else ""
        opened = before.count("[") + before.count("(") > before.count("]") + before.count(")")
        if read and (opened or cells[0][:1] in ("", "[", "(")):
            read[-1] = [" ".join(filter(None, pair)) for pair in zip(read[-1], cells, strict=True)]
        else:
            read.append(cells)
    over = head.splitlines() if rows else []
    return table([" ".join(line[column].strip() for line in over).strip() for column in columns], read)


def _literals(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", text, flags=re.DOTALL)


def _value(value: Any) -> str:
    return "not set" if value is None else f"`{value!r}`" if not isinstance(value, str) else f"`{value}`"


def _spell(annotation: Any) -> str:
    return "a setting for each name" if typing.get_origin(annotation) is Mapping else spell(annotation)


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else _value(field.get_default(call_default_factory=True))


def _docstring(module: str) -> str:
    source = (ROOT / "src" / "tag2mask" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


if __name__ == "__main__":
    for name, part in parts().items():
        (FOLDER / f"{name}.md").write_text(page(name, part), encoding="utf-8")
    print(f"written: {FOLDER}")
