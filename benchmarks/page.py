"""Markdown tables of the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

NOTES = "\n## Notes\n"
"""Begins what a person wrote on a page, at its end."""


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
