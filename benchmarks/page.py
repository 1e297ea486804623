"""What the benchmarks share: the command's options, what a page says of the measuring, and Markdown tables."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tag2mask import __version__

NOTES = "\n## Notes\n"
"""Begins what a person wrote on a page, at its end."""


def options(doc: str | None) -> argparse.ArgumentParser:
    """The options of a command whose help is its module's docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def begin() -> Callable[[], str]:
    """Two threads from here on; what it gives says what was measured with, and how long it took."""
    torch.set_num_threads(2)
    start = time.perf_counter()

    def said() -> str:
        seconds = time.perf_counter() - start
        return (
            f"tag2mask {__version__}, torch {torch.__version__}, {platform.machine()} with "
            f"{torch.get_num_threads()} threads, {seconds:.0f} s"
        )

    return said


def write_page(path: Path, page: str) -> None:
    """Put ``page`` in the place of what a command made before; the notes of a person stay, to be read again."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    kept = before[before.index(NOTES) :] if NOTES in before else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.rstrip("\n") + "\n" + kept, encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows under ``head``; floats with one decimal, NaN as an empty cell."""
    cells = [[_cell(value) for value in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *cells))


def section(title: str, head: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> str:
    """A heading, a note if there is one, and a table; ends with an empty line."""
    return "\n".join([f"## {title}", "", *([note, ""] if note else []), table(head, rows), ""])


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return "" if value != value else f"{value:.1f}"
