"""Evaluation of a small run against doing everything again, image by image and rule by rule."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_jaccard_index

from stages.small_run import CLASSES, SIZES, TAGS, Toys, scores_of, small_run, toys, truth_of
from tag2mask.data.png import encode_mask, read_mask
from tag2mask.ops.masks import class_probabilities, to_labels
from tag2mask.ops.metrics import boundary_counts, boundary_iou
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.tally import CONSTANTS, POWERS
from tag2mask.types import IGNORE, Background, Constant, MaskRule, Own, Power, Scores, UserError


def pooled(masks: list[torch.Tensor], average: str = "macro") -> torch.Tensor:
    """mIoU by torchmetrics over all pixels of the data set at once."""
    truth = torch.cat([torch.from_numpy(truth_of(i)).flatten() for i in range(len(SIZES))])
    found = torch.cat([mask.flatten() for mask in masks])
    return multiclass_jaccard_index(found.long(), truth.long(), len(CLASSES), average, IGNORE)


def relabelled(index: int, background: Background, source: str) -> torch.Tensor:
    scores = scores_of(index)
    if not TAGS[index]:
        return torch.zeros(SIZES[index], dtype=torch.uint8)
    if source == "initial":
        scores = replace(scores, maps=scores.initial)
    return to_labels(class_probabilities(scores, MaskRule(background=background)), scores.tags)


@pytest.fixture
def data(tmp_path: Path) -> Toys:
    return toys(tmp_path / "data")


def test_masks_agree_with_torchmetrics_over_all_pixels(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    found = evaluate(run, data)
    masks = [torch.from_numpy(read_mask(run.mask_path(sample.id))) for sample in data]
    assert found.miou == pytest.approx(pooled(masks).item(), abs=1e-6)
    ious = torch.tensor([row.iou for row in found.per_class])
    torch.testing.assert_close(ious, pooled(masks, "none"), atol=1e-6, rtol=0)
    assert [row.name for row in found.per_class] == list(CLASSES.names)
    assert [row.images for row in found.per_class] == [5, 2, 2, 2]
    counts = sum(boundary_counts(torch.from_numpy(truth_of(i)), mask, 4) for i, mask in enumerate(masks))
    assert found.boundary == boundary_iou(counts)[1]
    assert found.per_class[2].boundary_iou == boundary_iou(counts)[0][2].item()
    assert (found.images, found.missing, found.without_truth) == (5, 0, 0)


@pytest.mark.parametrize("source", ["maps", "initial"])
def test_every_threshold_equals_labelling_anew(data: Toys, tmp_path: Path, source: str) -> None:
    found = evaluate(small_run(tmp_path / "run", data, MaskRule(background=Power(1.7))), data)
    (curve,) = [curve for curve in found.curves if curve.source == source]
    wanted = [*map(Power, POWERS), *map(Constant, CONSTANTS), Power(1.7)]
    assert [rule for rule, _ in curve.points] == wanted
    for rule, miou in curve.points:
        masks = [relabelled(index, rule, source) for index in range(len(SIZES))]
        assert miou == pytest.approx(pooled(masks).item(), abs=1e-6), rule
    assert curve.best[1] == max(miou for _, miou in curve.points)
    assert curve.images == 5
    if source == "maps":
        assert curve.at_used == found.miou


def test_the_methods_own_background_is_a_point_of_the_curve(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    rule = MaskRule(background=Own())
    own = [torch.full(scores_of(i).maps.shape[1:], 0.4) for i in range(len(SIZES))]
    settings = {**run.settings, "mask_rule": {**run.settings["mask_rule"], "background": "own"}}
    run.settings = settings
    read = run.scores
    run.scores = lambda id: replace(read(id), background=own[int(id[-1])])  # type: ignore[method-assign]
    curve = evaluate(run, data).curves[0]
    assert curve.used == rule.background
    assert curve.at_used == dict(curve.points)[Constant(0.4)]


def test_a_grid_that_spans_more_than_the_image_is_cropped(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    read = run.scores

    def framed(id: str) -> Scores:
        scores = read(id)
        return replace(scores, frame=(scores.size[0] + 24, scores.size[1] + 40))

    run.scores = framed  # type: ignore[method-assign]
    curve = evaluate(run, data).curves[0]
    masks = []
    for index, sample in enumerate(data):
        scores = framed(sample.id)
        empty = torch.zeros(SIZES[index], dtype=torch.uint8)
        probs = class_probabilities(scores, MaskRule()) if TAGS[index] else empty[None].float()
        masks.append(to_labels(probs, scores.tags))
    assert curve.at_used == pytest.approx(pooled(masks).item(), abs=1e-6)


def test_worst_come_first_and_best_hold_something(data: Toys, tmp_path: Path) -> None:
    found = evaluate(small_run(tmp_path / "run", data), data)
    assert found.worst[0].id == "toy/0"
    assert [s.miou for s in found.worst] == sorted(s.miou for s in found.worst)
    assert len(found.worst) == 5
    assert [s.miou for s in found.best] == sorted((s.miou for s in found.best), reverse=True)
    assert "toy/3" not in {score.id for score in found.best}, "an empty image is no achievement"


def test_ignored_pixels_are_missed_in_one_figure_and_left_out_of_the_other(data: Toys, tmp_path: Path) -> None:
    plain = evaluate(small_run(tmp_path / "a", data), data)
    found = evaluate(small_run(tmp_path / "b", data, MaskRule(mu=0.7)), data)
    assert plain.metrics.ignored == 0
    assert 0.05 < found.metrics.ignored < 0.95
    assert found.miou < plain.miou < found.metrics.miou_kept


def test_metrics_json_says_what_was_chosen_with_truth(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    found = evaluate(run.path, data)
    stored = json.loads((run.path / "metrics.json").read_text())
    assert stored["miou"] == found.miou
    refined = stored["thresholds"]["maps"]
    assert refined["best"]["chosen_with_ground_truth"] is True
    assert refined["used"] == {"background": "power", "value": 1.0, "miou": found.miou}
    assert "ground truth" in stored["thresholds"]["note"]
    assert len(refined["points"]) == len(POWERS) + len(CONSTANTS)


def test_nan_is_null_in_json(data: Toys, tmp_path: Path) -> None:
    data = Toys(data.root, data.samples[:1])
    found = evaluate(small_run(tmp_path / "run", data), data, boundary=False, thresholds=False)
    assert math.isnan(found.per_class[3].iou)
    assert math.isnan(found.boundary)
    stored = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert stored["per_class"][3]["iou"] is None
    assert stored["thresholds"] == {}


def test_missing_masks_are_counted_and_named(data: Toys, tmp_path: Path) -> None:
    found = evaluate(small_run(tmp_path / "run", data, leave_out=(1, 4)), data)
    assert (found.images, found.missing, found.missing_ids) == (3, 2, ("toy/1", "toy/4"))
    assert found.curves[0].images == 3


def test_a_run_without_scores_has_no_curves(data: Toys, tmp_path: Path) -> None:
    assert evaluate(small_run(tmp_path / "run", data, keep_scores=False), data).curves == ()


def test_samples_without_truth_are_counted(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    data.samples[0] = replace(data.samples[0], truth=None)
    found = evaluate(run, data)
    assert (found.images, found.without_truth) == (4, 1)


def test_messages_say_what_to_do(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    with pytest.raises(UserError, match="no ground truth for any of its 5 images"):
        evaluate(run, toys(tmp_path / "data", truth=False))
    with pytest.raises(UserError, match="no mask for any of the 5 images"):
        evaluate(run, toys(tmp_path / "data", prefix="other/"))
    with pytest.raises(UserError, match="holds masks of 4 classes"):
        evaluate(run, Toys(data.root, data.samples, replace(CLASSES, names=("background", "cat", "dog"))))


def test_masks_of_another_size_are_all_named(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    for index in (0, 2):
        run.mask_path(f"toy/{index}").write_bytes(encode_mask(np.zeros((7, 9), np.uint8), CLASSES.palette))
    with pytest.raises(UserError, match=r"toy/0: mask 9x7, ground truth 64x48; toy/2: mask 9x7, .* 40x40"):
        evaluate(run, data)
    assert not (run.path / "metrics.json").exists()


def test_a_value_that_is_no_class_names_the_image(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    run.mask_path("toy/2").write_bytes(encode_mask(np.full(SIZES[2], 77, np.uint8), CLASSES.palette))
    with pytest.raises(UserError, match=r"toy/2: the mask holds the value 77, but the classes are 0\.\.3"):
        evaluate(run, data)


def test_a_damaged_mask_names_the_file(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    run.mask_path("toy/2").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UserError, match=r"toy/2 cannot be scored: .*2\.png"):
        evaluate(run, data)


def test_truth_of_ignored_pixels_alone_is_refused(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    ignored = [replace(s, truth=partial(np.full, SIZES[i], IGNORE, np.uint8)) for i, s in enumerate(data.samples)]
    with pytest.raises(UserError, match="no pixel of the ground truth is scored"):
        evaluate(run, Toys(data.root, ignored), progress=False)
    assert not (run.path / "metrics.json").exists()
    # one scored image, but none of those that have maps
    run.scores_path("toy/0").unlink()
    found = evaluate(run, Toys(data.root, [data.samples[0], *ignored[1:]]), progress=False)
    assert found.curves == ()
    assert "nan" not in found.text()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", None),
        ("classes", 5),
        ("classes", {"names": 5}),
        ("classes", {"names": ["background", "cat", "dog", "hat"], "palette": [[0, 0]]}),
        ("classes", {"names": ["background", "cat", "dog", "hat"], "palette": [[0, 0, 300]] * 4}),
        ("mask_rule", None),
        ("mask_rule", {"background": 5}),
        ("mask_rule", {"background": {"power": "x"}}),
        ("mask_rule", {"background": "own", "colour": 3}),
    ],
)
def test_damaged_settings_name_the_file(data: Toys, tmp_path: Path, key: str, value: object) -> None:
    run = small_run(tmp_path / "run", data)
    run.settings = {name: item for name, item in run.settings.items() if name != key}
    if value is not None:
        run.settings[key] = value
    with pytest.raises(UserError, match=rf"run\.yaml is damaged: settings\.{key}") as caught:
        evaluate(run, data, progress=False)
    assert "\n" not in str(caught.value)
