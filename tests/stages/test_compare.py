"""Runs side by side: each as alone on the same images, agreement by its definition, and what cannot be compared."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_jaccard_index
from typer.testing import CliRunner

from stages.report_page import Page
from stages.small_run import CLASSES, Toys, small_run, toys, truth_of
from tag2mask.cli import app
from tag2mask.data.png import encode_mask, read_mask
from tag2mask.run.folder import Run
from tag2mask.stages.compare import compare, write_json, write_page
from tag2mask.stages.evaluate import evaluate
from tag2mask.types import IGNORE, Constant, MaskRule, Power, UserError

RULES = {"a": MaskRule(background=Power(1.0)), "b": MaskRule(background=Constant(0.5)), "c": MaskRule(mu=0.6)}


@pytest.fixture
def data(tmp_path: Path) -> Toys:
    return toys(tmp_path / "data")


def runs_of(tmp_path: Path, data: Toys, **left_out: tuple[int, ...]) -> list[Run]:
    return [small_run(tmp_path / name, data, rule, leave_out=left_out.get(name, ())) for name, rule in RULES.items()]


def test_each_run_is_as_alone_on_the_images_that_all_have(data: Toys, tmp_path: Path) -> None:
    runs = runs_of(tmp_path, data, b=(1,), c=(4,))
    found = compare(runs, [data] * 3, progress=False)
    common = Toys(data.root, [data.samples[i] for i in (0, 2, 3)])
    assert found.images == 3
    for run, each in zip(runs, found.runs, strict=True):
        alone = evaluate(run, common, thresholds=False, progress=False)
        assert each.evaluation.miou == alone.miou
        assert each.evaluation.boundary == alone.boundary
        assert str(each.evaluation.per_class) == str(alone.per_class)  # NaN is not itself
    assert [(each.lacks, each.lacking) for each in found.runs] == [(0, ()), (1, ("toy/1",)), (1, ("toy/4",))]
    assert "b: lacks a mask of 1 images that another run has, not compared: toy/1" in found.text()


def test_it_leaves_the_runs_as_they_were(data: Toys, tmp_path: Path) -> None:
    runs = runs_of(tmp_path, data)
    evaluate(runs[0], data, progress=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    compare(runs, [data] * 3, progress=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_agreement_is_over_all_pixels_and_one_against_the_other(data: Toys, tmp_path: Path) -> None:
    runs = runs_of(tmp_path, data)
    found = compare(runs, [data] * 3, boundary=False, progress=False)
    flat = [np.concatenate([read_mask(run.mask_path(s.id)).ravel() for s in data]) for run in runs]
    assert [(pair.first, pair.second) for pair in found.pairs] == [*combinations(range(3), 2)]
    for pair in found.pairs:
        one, other = flat[pair.first], flat[pair.second]
        assert pair.equal == (one == other).mean()
        assert pair.second_by_first == pytest.approx(against(one, other))
        assert pair.first_by_second == pytest.approx(against(other, one))
    assert found.pairs[1].second_by_first != found.pairs[1].first_by_second, "255 is in the one alone"


def against(truth: np.ndarray, mask: np.ndarray) -> float:
    """mIoU of a mask, 255 in it missed, with another as the truth, 255 in it not scored."""
    known = truth != IGNORE
    missed = np.where(mask == IGNORE, len(CLASSES), mask)[known]  # a class of its own, in no mean
    ious = multiclass_jaccard_index(
        torch.from_numpy(missed).long(), torch.from_numpy(truth[known]).long(), len(CLASSES) + 1, "none"
    )
    return float(ious[np.unique(truth[known]).tolist()].mean())


def test_other_classes_stop_it(data: Toys, tmp_path: Path) -> None:
    one = small_run(tmp_path / "one", data)
    data.classes = replace(CLASSES, names=("background", "cat", "hat", "dog"))
    other = small_run(tmp_path / "other", data)
    with pytest.raises(UserError, match=r"value 2 is 'dog' in the one and 'hat' in the other"):
        compare([one, other], [data, data])
    data.classes = replace(CLASSES, names=("background", "cat", "dog"), palette=CLASSES.palette[:3])
    fewer = Run.open(one.path)
    fewer.settings = {**one.settings, "classes": {"names": ["background", "cat", "dog"]}}
    with pytest.raises(UserError, match=r"4 classes and .* of 3: value 3 is 'hat' in the one and nothing"):
        compare([one, Run(tmp_path / "x", fewer.settings, {})], [data, data])


def test_another_truth_stops_it_and_is_named(data: Toys, tmp_path: Path) -> None:
    one, other = small_run(tmp_path / "one", data), small_run(tmp_path / "other", data)
    changed = truth_of(2)
    changed[0, :3] = 1
    samples = [*data.samples]
    samples[2] = replace(samples[2], truth=partial(np.copy, changed))
    second = Toys(data.root, samples)
    with pytest.raises(UserError, match=r"toy/2: the ground truth of .*one and of .*other differs in 3 of 1,600 pix"):
        compare([one, other], [data, second], progress=False)
    second.samples[2] = replace(samples[2], truth=partial(np.zeros, (5, 7), np.uint8))
    with pytest.raises(UserError, match=r"40x40 and 7x5"):
        compare([one, other], [data, second], progress=False)
    second.samples[:] = [replace(sample, truth=None) for sample in samples]
    assert compare([one, other], [data, second], progress=False).images == 5, "no truth is no other truth"
    with pytest.raises(UserError, match="no ground truth"):
        compare([one, other], [second, second], progress=False)


def test_runs_of_other_images_and_the_same_run_twice(data: Toys, tmp_path: Path) -> None:
    one = small_run(tmp_path / "one", data, leave_out=(0, 1))
    other = small_run(tmp_path / "other", data, leave_out=(2, 3, 4))
    with pytest.raises(UserError, match=r"no image has a mask in every run.*one of 3, .*other of 2"):
        compare([one, other], [data, data], progress=False)
    with pytest.raises(UserError, match="given twice"):
        compare([one, Run.open(tmp_path / "other" / ".." / "one")], [data, data])
    other = small_run(tmp_path / "sized", data)
    other.mask_path("toy/2").write_bytes(encode_mask(np.zeros((7, 9), np.uint8), CLASSES.palette))
    with pytest.raises(UserError, match=r"toy/2: .*sized 9x7, ground truth 40x40"):
        compare([small_run(tmp_path / "full", data), other], [data, data], progress=False)


def test_json_and_page_have_the_same_figures(data: Toys, tmp_path: Path) -> None:
    runs = runs_of(tmp_path, data, b=(1,))
    found = compare(runs, [data] * 3, progress=False)
    write_json(found, tmp_path / "c.json")
    stored = json.loads((tmp_path / "c.json").read_text())
    assert [run["miou"] for run in stored["runs"]] == [run.evaluation.miou for run in found.runs]
    assert stored["agreement"][0]["equal"] == found.pairs[0].equal
    assert stored["runs"][1]["lacking"] == ["toy/1"]
    write_page(found, CLASSES, tmp_path / "c.html")
    page = Page(tmp_path / "c.html")
    text = found.text()
    for run in found.runs:
        for figure in (run.evaluation.miou, run.evaluation.boundary, *(row.iou for row in run.evaluation.per_class)):
            assert f"{100 * figure:.1f}" in page.text
            assert f"{100 * figure:.1f}" in text
    assert "supervision" not in text, "no empty column"
    assert "Supervision" not in page.text
    assert "toy/1" in page.text


def test_a_page_escapes_the_names_of_runs(data: Toys, tmp_path: Path) -> None:
    evil = "<script>x"
    runs = [small_run(tmp_path / evil, data), small_run(tmp_path / "plain", data)]
    write_page(compare(runs, [data] * 2, boundary=False, progress=False), CLASSES, tmp_path / "c.html")
    page = Page(tmp_path / "c.html")
    assert page.tags.count("script") == 1
    assert evil in page.text
    assert "Boundary" not in page.text


def test_of_one_run_json_and_page_are_refused_with_the_way(data: Toys, tmp_path: Path) -> None:
    one, other = (str(small_run(tmp_path / name, data).path) for name in ("one", "other"))
    for flag, said in (("--json", "metrics.json"), ("--out", "report")):
        done = CliRunner().invoke(app, ["eval", one, flag, str(tmp_path / "x")])
        assert done.exit_code == 1
        assert said in done.stderr
    done = CliRunner().invoke(app, ["eval", one, other, "--confidence"])
    assert "--confidence works for one run" in done.stderr
    (tmp_path / "mine.json").write_text("{}")
    done = CliRunner().invoke(app, ["eval", one, other, "--json", str(tmp_path / "mine.json")])
    assert "exists and is no comparison" in done.stderr
    assert (tmp_path / "mine.json").read_text() == "{}"
