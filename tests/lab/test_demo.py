"""The demo, on a few scenes: above its floors, and as good as when the weights were shipped."""

from __future__ import annotations

import pytest

from tag2mask.lab.demo import demo

MEASURED = 0.467
"""mIoU of the masks of these 30 scenes by the weights that ship."""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return demo(tmp_path_factory.mktemp("demo"), 30, device="cpu", progress=False)


def test_masks_are_as_good_as_they_were(shown):
    assert shown.miou >= MEASURED - 0.03


def test_all_figures_are_above_their_floors(shown):
    floor = max(shown.floor_random, shown.floor_everything)
    assert min(shown.miou, shown.initial, shown.refined) > floor + 0.1


def test_what_it_says_is_what_it_found(shown):
    for value in (shown.miou, shown.refined, shown.initial, shown.floor_random, shown.floor_everything):
        assert f"{100 * value:5.1f} %" in shown.text
    page = shown.report.read_text(encoding="utf-8")
    assert "untrained weights" in page
    assert "everything foreground" in page
