"""A page of a report as a browser would see it."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from stages.small_run import Toys
from tag2mask.data.png import read_confidence
from tag2mask.run.folder import Run

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would see: elements, attributes and text, and whether every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text("utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(self.html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def pictures(self) -> list[Image.Image]:
        sources = [value or "" for name, value in self.attributes if name == "src"]
        assert all(re.match("data:image/(jpeg|png);base64,", source) for source in sources if source)
        return [Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) for source in sources if source]

    def cards(self) -> list[str]:
        return re.findall(r"<header><h3>(.*?)</h3>", self.html)


def least_sure(run: Run, data: Toys) -> list[str]:
    means = {sample.id: read_confidence(run.confidence_path(sample.id)).mean() for sample in data}
    return sorted(means, key=means.__getitem__)
