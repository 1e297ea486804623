from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from tag2mask.lab.figures import measured_once, recipe_rows


@dataclass(frozen=True)
class Figures:
    score: float
    floor: float = 0.5


def read(kept):
    return Figures(**kept)


def test_figures_are_measured_once(tmp_path):
    file = tmp_path / "measured.json"
    assert measured_once(file, read, lambda: Figures(2.0)) == Figures(2.0)
    assert measured_once(file, read, lambda: pytest.fail("measured again")) == Figures(2.0)


@pytest.mark.parametrize("there", ["", "{", "[1]", "5", '{"other": 1}', "\xff"])
def test_what_is_no_figure_of_ours_is_measured_again(tmp_path, there):
    file = tmp_path / "measured.json"
    file.write_bytes(there.encode("latin-1"))
    assert measured_once(file, read, lambda: Figures(3.0)) == Figures(3.0)
    assert measured_once(file, read, lambda: pytest.fail("measured again")) == Figures(3.0)


def test_a_figure_that_is_no_number_is_not_kept(tmp_path):
    file = tmp_path / "measured.json"
    assert math.isnan(measured_once(file, read, lambda: Figures(math.nan)).score)
    assert not file.exists()


def test_a_recipe_as_rows():
    assert recipe_rows(Figures(2.0)) == "| score | 2.0 |\n| floor | 0.5 |"
