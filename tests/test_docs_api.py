"""The page of what Python code can use is what the docstrings say."""

from __future__ import annotations

import importlib.util
import re
from importlib import import_module
from pathlib import Path

import pytest

import tag2mask

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def api():
    spec = importlib.util.spec_from_file_location("docs_api", DOCS / "api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(api):
    assert api.PAGE.read_text(encoding="utf-8") == api.page(), f"docstrings have changed: run `{api.COMMAND}`"


def test_what_the_page_says_to_import_is_there_and_every_public_name_is_on_it():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    found = re.findall(r"^### (\w+)\n\n`from ([\w.]+) import (\w+)`$", page, re.MULTILINE)
    assert len(found) == page.count("\n### ") == len(set(found))
    for heading, module, name in found:
        assert heading == name
        assert hasattr(import_module(module), name), f"{module} has no {name}"
    assert [name for _, module, name in found if module == "tag2mask"] == list(tag2mask.__all__[1:])


def test_every_name_on_the_page_is_described():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    for block in page.split("\n### ")[1:]:
        assert '"""' in block, f"{block.splitlines()[0]} has no docstring"


TOY = '''@mark
class _Base:
    """Of all."""

    hidden_base: int


class Toy(_Base):
    """A toy.

    size: of it.
    """

    size: int = 3  # noqa: X1
    _own = 1

    def __len__(self) -> int:
        return self.size

    def _hide(self) -> None: ...

    @property
    def name(self) -> str: ...  # noqa: D102

    def play(
        self, *, long: bool = False
    ) -> None:
        """Play."""
        secret()
'''


def test_an_entry_is_what_the_source_says_without_what_it_does(api, tmp_path, monkeypatch):
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(api, "SOURCE", tmp_path)
    shown = TOY
    for hidden in (
        "  # noqa: X1\n    _own = 1",
        "  # noqa: D102",
        "\n    def _hide(self) -> None: ...\n",
        "        secret()\n",
    ):
        shown = shown.replace(hidden, "")
    shown = shown.replace("-> int:\n        return self.size", "-> int: ...")
    assert api.entry("toy", "Toy") == f"### Toy\n\n`from toy import Toy`\n\n```python\n{shown}```\n"
