"""Writes docs/api.md from the docstrings: ``python docs/api.py``.

It reads the source and imports nothing of it, so the page is the same under every Python. A test says when it is out
of date.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).parent
SOURCE = DOCS.parent / "src"
PAGE = DOCS / "api.md"
COMMAND = "python docs/api.py"

HEAD = f"""# What Python code can use

Made from the docstrings by `{COMMAND}`. The names of the first part are imported from `tag2mask` itself, all others
from the module that is given. What a user can fix is raised as `tag2mask.types.UserError`.
How to use it: [add a method](add-a-method.md), [a reader or an exporter](add-a-reader-or-exporter.md),
[a refiner](add-a-refiner.md).
"""

PARTS = (
    ("What the public names take and give", {
        "types": ["UserError", "TextSet", "Prior", "Others", "Background", "Power", "Constant", "Own"],
        "data.columns": ["Columns"],
        "stages.checked": ["Check", "Few", "Fault", "ClassCount", "Sizes", "Twins", "TruthCheck"],
        "stages.machinery.estimate": ["Estimate"],
        "stages.label": ["LabelSettings"],
        "stages.machinery.work": ["Summary"],
        "segment.recipe": ["TrainRecipe"],
        "stages.mask": ["Masked"],
        "stages.train": ["TrainSettings", "Trained"],
        "stages.machinery.watch": ["Validation"],
        "stages.predict": ["PredictSettings"],
        "segment.test_time": ["TestTime"],
        "stages.evaluate": ["Evaluation"],
        "run.folder": ["Run"],
    }),
    ("Methods", {"methods.protocol": "all", "methods": ["known_methods", "method_class"]}),
    ("Refiners of masks", {"ops.refiners": ["Refiner", "REFINERS", "find_refiner"]}),
    ("Readers and exporters", {"data.protocol": "all", "data.columns": ["ColumnsBuilder"]}),
)  # fmt: skip
"""Headings, and by module the names under them; "all" is the module's ``__all__``."""


def page() -> str:
    """The whole page."""
    public = ast.literal_eval(_value(_parsed("tag2mask")[0], "_PUBLIC"))
    lines = [HEAD, "## From `tag2mask` itself\n"]
    lines += [entry(f"tag2mask.{module}", name, of="tag2mask") for name, module in public.items()]
    for heading, modules in PARTS:
        lines.append(f"## {heading}\n")
        for module, named in modules.items():
            full = f"tag2mask.{module}"
            names = ast.literal_eval(_value(_parsed(full)[0], "__all__")) if named == "all" else named
            lines += [entry(full, name) for name in names if public.get(name) != module]
    return "\n".join(lines)


def entry(module: str, name: str, *, of: str | None = None) -> str:
    """The heading, signature and docstring of one name; ``of``: where it is imported from, if not the module."""
    tree, source = _parsed(module)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return entry(str(node.module), name, of=of or module)
    found = [(i, node) for i, node in enumerate(tree.body) if name in _names(node)]
    if not found:
        raise LookupError(f"{module} has no {name}")
    i, node = found[-1]
    if isinstance(node, ast.Assign | ast.AnnAssign):
        text = _constant(node, tree.body[i + 1 :], source)
    else:
        bases = [base.id for base in getattr(node, "bases", ()) if isinstance(base, ast.Name)]
        hidden = [each for each in tree.body if isinstance(each, ast.ClassDef) and each.name.startswith("_")]
        shown = [each for each in hidden if each.name in bases]  # its fields are the name's own
        text = "\n\n\n".join("\n".join(_stub(each, source)) for each in (*shown, node))  # type: ignore[arg-type]
    return f"### {name}\n\n`from {of or module} import {name}`\n\n```python\n{text}\n```\n"


def _parsed(module: str) -> tuple[ast.Module, str]:
    path = SOURCE.joinpath(*module.split("."))
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    return ast.parse(source), source


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = (
        node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    )
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _value(tree: ast.Module, name: str) -> ast.expr:
    return next(node.value for node in tree.body if name in _names(node))  # type: ignore[attr-defined, no-any-return]


def _constant(node: ast.Assign | ast.AnnAssign, after: list[ast.stmt], source: str) -> str:
    lines = [str(ast.get_source_segment(source, node))]
    if after and isinstance(after[0], ast.Expr) and isinstance(after[0].value, ast.Constant):
        lines += _quoted(str(after[0].value.value), "")
    return "\n".join(lines)


def _stub(node: ast.FunctionDef | ast.ClassDef, source: str, indent: str = "") -> Iterator[str]:
    """A class or function as in the source, without what it does."""
    rows = [row.partition("  # noqa")[0] for row in source.splitlines()]
    words = ast.get_docstring(node)
    first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
    before = node.body[0].lineno - 1  # the last row of what it is called with
    if not rows[before - 1].endswith(":"):  # what it does stands in that row, too
        yield from rows[first - 1 : before + 1]
        return
    head, inner = rows[first - 1 : before], f"{indent}    "
    if words is None and isinstance(node, ast.FunctionDef):
        yield from [*head[:-1], f"{head[-1]} ..."]
        return
    yield from head
    if words is not None:
        yield from _quoted(words, inner)
    fields = []
    for each in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(each, ast.AnnAssign | ast.Assign) and not _names(each)[0].startswith("_"):
            fields += rows[each.lineno - 1 : each.end_lineno]
    if fields:
        yield from ["", *fields]
    for each in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(each, ast.FunctionDef) and _shown(each):
            yield ""
            yield from _stub(each, source, inner)


def _shown(method: ast.FunctionDef) -> bool:
    return not method.name.startswith("_") or method.name in ("__init__", "__call__", "__len__", "__getitem__")


def _quoted(words: str, indent: str) -> list[str]:
    lines = f'"""{inspect.cleandoc(words)}'.splitlines()
    lines = [f'{lines[0]}"""'] if len(lines) == 1 else [*lines, '"""']
    return [f"{indent}{line}" if line else "" for line in lines]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
