from __future__ import annotations

import math

import pytest

from tag2mask.run.settings import plain
from tag2mask.types import Background, Constant, MaskRule, Own, Power


@pytest.mark.parametrize(
    ("background", "text", "kept"),
    [
        (Power(1.5), "power:1.5", {"power": 1.5}),
        (Constant(0.25), "constant:0.25", {"constant": 0.25}),
        (Own(), "own", "own"),
    ],
)
def test_a_background_is_read_as_it_is_written(background, text, kept):
    assert (str(background), background.plain()) == (text, kept)
    assert Background.parse(text) == Background.from_plain(kept) == background
    rule = MaskRule(background=background, normalise="image", mu=0.5)
    assert MaskRule.from_plain(plain(rule)) == rule
    assert math.isnan(background.number) == (text == "own")


@pytest.mark.parametrize("text", ["", "own:1", "power", "power:0", "power:inf", "constant:1.1", "half:1"])
def test_what_is_no_background_is_refused(text):
    with pytest.raises(ValueError, match="expected"):
        Background.parse(text)
    with pytest.raises((KeyError, TypeError, ValueError)):
        Background.from_plain(text)
