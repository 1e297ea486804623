"""Markdown tables of the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence


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
