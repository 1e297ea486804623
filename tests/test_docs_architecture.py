"""The page on the rooms says what is there."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "tag2mask"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table after a heading or a text."""
    table = re.search(r"^\|.*\n\| ---.*\n((?:\|.*\n)+)", PAGE[PAGE.index(heading) :], re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.group(1).splitlines()]


ROOMS = [re.findall(r"`([\w./]+)`", row[0]) for row in rows("## The rooms")]
LENGTHS = rows("| example |")


def test_every_room_is_named_once_and_every_name_is_a_room():
    modules = {path.name for path in SOURCE.glob("*.py") if not path.name.startswith("__")}
    folders = {f"{path.parent.relative_to(SOURCE)}/" for path in SOURCE.rglob("__init__.py")} - {"./"}
    named = [name for row in ROOMS for name in row]
    assert len(named) == len(set(named))
    assert set(named) == modules | folders


def test_the_rooms_stand_in_the_order_in_which_they_may_import():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = [c["layers"] for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "layers"]
    layered = [{part.removeprefix("tag2mask.") for part in layer.split(" | ")} for layer in layers]
    rooms = [{name.rstrip("/").removesuffix(".py") for name in row if name.count("/") < 2} for row in ROOMS]
    assert [row for row in rooms if row] == layered


def test_what_is_named_to_be_touched_is_there():
    for cell in (cell for row in rows("## What must be touched") for cell in row[1:]):
        for name in re.findall(r"`((?:tests|docs)/[\w./-]+|[\w/]+\.py)`", cell):
            place = ROOT / name if name.startswith(("tests", "docs")) else SOURCE / name
            assert place.is_file() or (name.endswith("NAME.py") and place.parent.is_dir()), name
        for file, table in re.findall(r"`([\w/.]+)` \(`([A-Z]+)`\)", cell):
            assert re.search(rf"^{table}\b.* = ", (SOURCE / file).read_text(encoding="utf-8"), re.MULTILINE), table


def length(file: str, name: str) -> int:
    """The lines of an example that are not blank."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if file.endswith(".md"):
        (code,) = re.findall(rf"^```python\n# {re.escape(name)}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    else:
        code = next(
            str(ast.get_source_segment(text, n)) for n in ast.parse(text).body if getattr(n, "name", "") == name
        )
    return sum(bool(line.strip()) for line in code.splitlines())


@pytest.mark.parametrize("row", LENGTHS, ids=lambda row: row[0])
def test_examples_are_as_long_as_it_says(row):
    file, name = re.findall(r"`([\w./-]+)`", row[0])
    assert row[1] == str(length(file, name))


def test_all_links_lead_somewhere():
    for target in re.findall(r"\]\(([\w./-]+)\)", PAGE):
        assert (ROOT / "docs" / target).is_file(), target
