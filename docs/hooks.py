"""What the site needs beside mkdocs.yml: mkdocs calls these functions while it builds.

Headings get the anchors that GitHub gives them. The cards of the embedded weights, which lie beside the weights,
become pages, and so do notebooks. A page that needs something of another host is refused.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
CARDS = {f"cards/{path.parent.name}.md": path for path in sorted(ROOT.glob("src/tag2mask/**/MODEL_CARD.md"))}
"""Page of the site -> the file that it is made from."""


def slug(heading: str, separator: str = "-") -> str:
    """A heading's anchor: lower case, without marks, blanks as hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


def notebook_page(text: str) -> str:
    """A notebook's cells as Markdown, with what they printed."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"]).strip()
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        printed = "".join("".join(output.get("text", "")) for output in cell.get("outputs", ())).strip()
        if printed:
            parts.append(f"```text\n{printed}\n```")
    return "\n\n".join(parts) + "\n"


def generated() -> dict[str, str]:
    """The pages that lie in docs/ as something else, or elsewhere: page -> Markdown."""
    cards = {page: path.read_text(encoding="utf-8") for page, path in CARDS.items()}
    books = {
        path.relative_to(DOCS).with_suffix(".md").as_posix(): notebook_page(path.read_text(encoding="utf-8"))
        for path in sorted(DOCS.rglob("*.ipynb"))
    }
    return cards | books


def within(page: str, target: str) -> str:
    """The target of a link on a page of docs/, as the site has it: a card is a page of it."""
    there = (DOCS / page).parent.joinpath(target).resolve()
    for card, path in CARDS.items():
        if there == path.resolve():
            return posixpath.relpath(card, posixpath.dirname(page))
    return target


def on_config(config: Any) -> None:
    """Called with what mkdocs.yml says."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug


def on_files(files: Any, config: Any) -> Any:
    """Called with the files of docs/."""
    from mkdocs.structure.files import File

    for page, text in generated().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called with each page."""
    return re.sub(r"(?<=\]\()[^)#\s:]+", lambda link: within(page.file.src_uri, link.group()), markdown)


def on_post_build(config: Any) -> None:
    """Called when all is written: the search's index as a script, too, which a page opened as a file can load."""
    folder = Path(config.site_dir, "search")
    index = (folder / "search_index.json").read_text(encoding="utf-8")
    (folder / "search_index.js").write_text(f"var __index = {index}", encoding="utf-8")


ELSEWHERE = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*>""")


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Called with each page as it is written: it must need nothing of other hosts."""
    from mkdocs.exceptions import PluginError

    found = [tag for tag in ELSEWHERE.findall(output) if 'rel="canonical"' not in tag]
    if found:
        raise PluginError(f"{page.file.src_uri}: this comes from another host, put it into docs/: {found[0]}")
    return output
