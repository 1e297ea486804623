"""The documentation site: every page is in its navigation, links lead somewhere, what is made is up to date."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tag2mask.methods import METHODS, method_class

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def module_of(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks, method_pages = module_of("hooks"), module_of("method_pages")
GENERATED = hooks.generated()
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LITERAL = re.compile(r"`[^`\n]*`")
"""What is code, and holds neither headings nor links."""


def named(nav):
    """The pages of a navigation, in order."""
    for entry in nav:
        for value in entry.values() if isinstance(entry, dict) else (entry,):
            yield from named(value) if isinstance(value, list) else (value,)


def anchors(text):
    """Those of the headings."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    return {hooks.slug(re.sub(r"[*`]", "", heading)) for heading in headings}


def links(text):
    return re.findall(r"\]\(([^)\s]+)\)", LITERAL.sub("", BLOCK.sub("", text)))


def test_every_page_is_in_the_navigation_once():
    shown = list(named(SITE["nav"]))
    assert len(shown) == len(set(shown))
    missing = (PAGES.keys() | GENERATED.keys()) - set(shown)
    assert not missing, f"add to nav in mkdocs.yml: {sorted(missing)}"
    assert not set(shown) - (PAGES.keys() | GENERATED.keys()), "nav in mkdocs.yml names pages that are not there"


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_every_link_leads_to_a_file_and_a_heading(page):
    path = ROOT / page if page == "README.md" else DOCS / page
    for link in links(path.read_text(encoding="utf-8")):
        assert "://" not in link or page == "README.md", f"{link}: pages need nothing of other hosts"
        target, _, anchor = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        assert there.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), f"{page}: {link}"
        if page != "README.md":
            assert there.is_relative_to(DOCS) or there in hooks.CARDS.values(), f"{page}: {link} is not on the site"


def test_the_search_works_without_a_server(tmp_path):
    """The index as a script, and a script in place of what browsers refuse to files, are there and loaded."""
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "search_index.json").write_text('{"docs": ["ä"]}', encoding="utf-8")
    hooks.on_post_build(SimpleNamespace(site_dir=str(tmp_path)))
    assert (tmp_path / "search" / "search_index.js").read_text(encoding="utf-8") == 'var __index = {"docs": ["ä"]}'
    (polyfill,) = SITE["extra"]["polyfills"]
    assert "window.Worker = class" in (DOCS / polyfill).read_text(encoding="utf-8")
    assert all((DOCS / style).is_file() for style in SITE["extra_css"])


def test_a_card_is_linked_as_a_page_of_the_site():
    card = "../src/tag2mask/storybook/weights/clip/MODEL_CARD.md"
    assert hooks.within("storybook.md", card) == "cards/clip.md"
    assert hooks.within("methods/clip-es.md", f"../{card}") == "../cards/clip.md"
    assert hooks.within("storybook.md", "index.md") == "index.md"


def test_what_needs_another_host_is_refused():
    for tag in (
        '<script src="https://a.b/c.js">',
        "<img alt=x src=//a.b/c.png>",
        '<link rel="x" href="http://a.b/c.css">',
    ):
        assert hooks.ELSEWHERE.findall(f"<p>{tag}</p>") == [tag]
    assert not hooks.ELSEWHERE.findall('<a href="https://a.b">x</a><img src="c.png"><link href="../d.css">')
    assert SITE["theme"]["font"] is False


def test_a_notebook_becomes_a_page():
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Words."]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": [{"text": ["1\n"]}, {"data": {}}]},
    ]
    made = hooks.notebook_page(json.dumps({"cells": cells}))
    assert made == "# Title\nWords.\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n"


@pytest.fixture(scope="module")
def parts():
    return method_pages.parts()


@pytest.mark.parametrize("name", [*METHODS, "index", "segmentation", "cct"])
def test_what_the_code_says_of_a_method_is_up_to_date(parts, name):
    written = (method_pages.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    made = method_pages.page(name, parts[name])
    assert written == made, f"the code has changed: run `{method_pages.COMMAND}`"
    assert len(written.partition(method_pages.MARK)[0]) > 300, "nothing says what it is and when to take it"


def test_every_method_has_a_page_with_every_option(parts):
    assert {path.stem for path in method_pages.FOLDER.glob("*.md")} == set(parts)
    for name in METHODS:
        for option in method_class(name).Options.model_fields:
            assert f"\n| `{option}` | " in parts[name]


WORDS = re.compile(r"[\w.,:;'+-]+")


def test_the_table_of_methods_names_the_networks_that_their_defaults_load(parts):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in parts["index"].splitlines()]
    needs = {row[0]: row[2] for row in rows if row and row[0].startswith("[")}
    assert needs["[`cd-clip`](cd-clip.md)"] == "clip, dino"
    assert needs["[`weclip`](weclip.md)"] == "clip"
    assert needs["[`irn`](irn.md)"] == ""


@pytest.mark.parametrize("name", [*METHODS, *method_pages.SEGMENTATION, "segment.semi", "segment.cct"])
def test_nothing_of_a_docstring_is_lost(name):
    """Its words are all there, those of a table's cells too, as often as in the docstring."""
    module = METHODS[name].partition(":")[0].removeprefix("tag2mask.") if name in METHODS else name
    source = (ROOT / "src" / "tag2mask" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(source))
    shown = "\n".join(line for line in method_pages.markdown(said) if not re.fullmatch(r"[| -]+", line))
    assert sorted(WORDS.findall(said)) == sorted(WORDS.findall(shown))


DRAWN = """Before.

=====  ========  =======
       one two   other
       wide
=====  ========  =======
a [b,  x | y     z
c]     more
``d``  p         q
                 r
=====  ========  =======

After.
"""


def test_a_drawn_table_becomes_a_table():
    assert method_pages.markdown(DRAWN) == [
        "Before.",
        "",
        "|  | one two wide | other |",
        "| --- | --- | --- |",
        "| a [b, c] | x \\| y more | z |",
        "| `d` | p | q r |",
        "",
        "After.",
    ]


def test_the_container_gets_what_it_copies_and_nothing_else():
    copied = {
        word
        for line in re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
        for word in line.split()
    }
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[1] == "*"
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {project["readme"], *project["license-files"], "pyproject.toml", "src"} <= copied
    (extras,) = re.findall(r'"\.\[(.+)\]"', (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()


def test_every_extra_is_listed_and_what_it_installs_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {
        re.sub("[-_.]+", "-", line.partition("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    start = PAGES["index.md"]
    for extra, wanted in project["optional-dependencies"].items():
        assert f'pip install -e ".[{extra}]"' in start
        for requirement in wanted:
            assert re.split(r"[\[<>=~! ;]", requirement)[0].replace("_", "-").lower() in pinned
