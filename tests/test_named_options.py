"""No message and no page names an option that does not exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer.main

from tag2mask.cli import app
from tag2mask.config import DataConfig
from tag2mask.formats import exporters
from tag2mask.methods import known_methods, method_class

ROOT = Path(__file__).parent.parent
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
OTHERS = {
    "--index-url",
    "--extra-index-url",
    "--upgrade",
    "--build-arg",
    "--logdir",
}  # pip's, docker's, TensorBoard's


def options(command) -> set[str]:
    found = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for inner in getattr(command, "commands", {}).values():
        found |= options(inner)
    return found


def strings(path: Path) -> list[str]:
    if path.suffix != ".py":
        return [path.read_text(encoding="utf-8")]
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def scripts() -> set[str]:
    """Options of the benchmarks' own command lines."""
    declared = re.compile(r"""add_argument\(\s*["'](--[a-z0-9-]+)""")
    found = [found for path in ROOT.glob("benchmarks/**/*.py") for found in declared.findall(path.read_text("utf-8"))]
    return set(found)


def sources() -> list[Path]:
    found = [*(ROOT / "src").rglob("*.py"), *(ROOT / "recipes").glob("*.yaml"), *ROOT.glob("*.md")]
    return sorted([*found, *(ROOT / "docs").rglob("*.md")])


def test_every_option_that_is_named_exists() -> None:
    known = options(typer.main.get_command(app)) | OTHERS | {"--help"} | scripts()
    named = {(found, path) for path in sources() for text in strings(path) for found in OPTION.findall(text)}
    assert len({name for name, _ in named}) > 30
    assert not {(name, str(path.relative_to(ROOT))) for name, path in named if name not in known}


SET = re.compile(r"--(?:refine-)?set '?([a-z_]+)=")


def test_every_setting_that_is_named_exists() -> None:
    from dataclasses import fields

    from tag2mask.lab.classifier import ClassifierRecipe
    from tag2mask.lab.pretrain_deit import DeitRecipe
    from tag2mask.lab.pretrain_recipe import Pretrain
    from tag2mask.lab.self_distil_recipe import SelfDistil
    from tag2mask.segment.recipe import TrainRecipe
    from tag2mask.stages.export import find_exporter

    known = {name for method in known_methods() for name in method_class(method).Options.model_fields}
    known |= {name for to in exporters() for name in find_exporter(to).Options.model_fields}
    made = (Pretrain, SelfDistil, DeitRecipe)
    known |= {"digits"}  # of the exporter that docs/add-a-reader-or-exporter.md makes
    known |= {field.name for kind in (TrainRecipe, ClassifierRecipe, *made) for field in fields(kind)}
    named = {(found, path) for path in sources() for text in strings(path) for found in SET.findall(text)}
    assert len(named) > 5
    assert not {(name, str(path.relative_to(ROOT))) for name, path in named if name not in known}


@pytest.mark.parametrize("text", ["give --no-such-thing", "a (--nothing) b"])
def test_the_pattern_sees_options(text: str) -> None:
    assert OPTION.findall(text)


@pytest.mark.parametrize("command", ["label", "predict", "eval", "report", "export", "train"])
def test_a_command_that_reads_data_takes_every_option_of_it(command):
    """A reader's message may name any of them."""
    takes = options(typer.main.get_command(app).commands[command])
    assert {f"--{name.replace('_', '-')}" for name in DataConfig.model_fields if name != "path"} <= takes
