"""The page on adding a refiner is true: its code runs, and is a refiner like the others."""

from __future__ import annotations

import re
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
import yaml

from methods.toys import TrainingFree, make_data
from tag2mask.config import parse_config
from tag2mask.ops import refiners
from tag2mask.ops.masks import refine
from tag2mask.run.folder import Run
from tag2mask.stages.label import label
from tag2mask.types import MaskRule, UserError

PAGE = (Path(__file__).parent.parent / "docs" / "add-a-refiner.md").read_text(encoding="utf-8")


@pytest.fixture
def page(monkeypatch):
    """The page's function, under the page's name in the table."""
    (code,) = re.findall(r"^```python\n# ops/neighbours\.py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (line,) = re.findall(r'^ +("\w+": \w+),$', PAGE, re.MULTILINE)
    space: dict = {}
    exec(code, space)
    monkeypatch.setattr(refiners, "REFINERS", MappingProxyType({**refiners.REFINERS, **eval(f"{{{line}}}", space)}))


@pytest.mark.parametrize("on", ["scores", "labels"])
def test_the_refiner_of_the_page_follows_edges(page, on):
    """A score in one corner of a field of one colour spreads in it, and not into the next."""
    image = torch.zeros(3, 8, 12, dtype=torch.uint8)
    image[:, :, 6:] = 200
    probs = torch.full((2, 8, 12), 0.5)
    probs[1, :, :4], probs[1, :, 4:] = 0.9, 0.3
    found = refine(image, probs, MaskRule(refiner="neighbours", refiner_on=on))
    torch.testing.assert_close(found.sum(0), torch.ones(8, 12))
    before = probs[1] / probs.sum(0) if on == "scores" else (probs.argmax(0) * 0.4 + 0.3)
    assert (found[1, :, 4:6] > before[:, 4:6] + 0.01).all()
    torch.testing.assert_close(found[1, :, 6:], before[:, 6:], atol=1e-4, rtol=0)


def test_label_takes_it_by_its_name(page, tmp_path):
    data = make_data(tmp_path / "images", count=3)
    method = TrainingFree(data.classes, TrainingFree.Options())
    rule = parse_config(yaml.safe_load("masks: {refiner: neighbours}")).masks.rule(method.mask_rule)
    summary = label(data, method, tmp_path / "run", rule=rule, progress=False)
    assert (summary.done, summary.failed) == (3, 0)
    run = Run.open(tmp_path / "run")
    assert run.settings["mask_rule"]["refiner"] == "neighbours"
    assert "crf_engine" not in run.noted  # it is none
    with pytest.raises(UserError, match="did you mean 'neighbours'"):
        label(data, method, tmp_path / "other", rule=MaskRule(refiner="neighbour"), progress=False)
