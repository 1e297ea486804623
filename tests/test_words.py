from __future__ import annotations

import pytest

from tag2mask.words import Some, in_line, listing


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a b/ü 😀\u200d🐶.jpg", "a b/ü 😀\u200d🐶.jpg"),
        ("new\nline\x1b[2J.jpg", r"new\nline\x1b[2J.jpg"),
        ("bad\udcffbytes", r"bad\udcffbytes"),
        ("\u2028", r"\u2028"),
        ("x" * 200, "x" * 200),
        ("a" * 100 + "b" * 500 + "c" * 100, "a" * 100 + "…" + "c" * 100),
    ],
)
def test_names_in_a_line(name, shown):
    assert in_line(name) == shown
    assert listing([name, "b"]) == f"{shown}, b"


def test_a_few_of_many():
    some = Some(most=3)
    assert some.note("odd") == []
    for number in range(7):
        some.add(f"{number}\n")
    assert some.note("odd") == [r"odd: 7 (0\n, 1\n, 2\n and 4 more)"]
