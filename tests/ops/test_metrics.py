"""Metrics against torchmetrics, scipy, brute force, and what the released code of CLIP-ES counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index

from tag2mask.ops.metrics import (
    BackgroundSweep,
    boundary_band,
    boundary_counts,
    boundary_iou,
    confusion_matrix,
    crossing,
    metrics,
)
from tag2mask.types import IGNORE, Constant, Power

RULES = [Power(a) for a in (3, 1, 2, 0.5, 1.5, 10)] + [Constant(t) for t in (0.45, 0.05, 0.95, 0.3)]


def blobs(seed: int, shape: tuple[int, int], classes: int) -> Tensor:
    """A mask of a few rectangles, with IGNORE around one of them."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    for _ in range(6):
        y, x = rng.integers(0, shape[0] - 6), rng.integers(0, shape[1] - 6)
        h, w = rng.integers(3, shape[0] // 2), rng.integers(3, shape[1] // 2)
        mask[y : y + h, x : x + w] = rng.integers(0, classes)
    mask[y : y + 2, x : x + 5] = IGNORE
    return torch.from_numpy(mask)


def relabelled(maps: Tensor, tags: Tensor, rule: Power | Constant) -> Tensor:
    """The mask that one rule gives, the plain way: stack the background in front and take the argmax."""
    best = maps.amax(0)
    background = (
        torch.pow(torch.relu(1 - best), rule.exponent)
        if isinstance(rule, Power)
        else torch.full_like(best, rule.value)
    )
    index = torch.cat([background[None], maps]).argmax(0)
    return torch.cat([torch.zeros(1, dtype=tags.dtype), tags])[index].to(torch.uint8)


def test_confusion_matrix_agrees_with_torchmetrics_and_adds_up() -> None:
    total = torch.zeros(6, 7, dtype=torch.int64)
    oracle = torch.zeros(7, 7, dtype=torch.int64)
    for seed in range(3):
        truth, labels = blobs(seed, (40, 30), 6), blobs(seed + 50, (40, 30), 6)
        total += confusion_matrix(truth, labels, 6)
        ignored_as_six = torch.where(labels == IGNORE, 6, labels.long())
        oracle += multiclass_confusion_matrix(ignored_as_six, truth.long(), 7, ignore_index=IGNORE)
    assert total[:, 6].sum() > 0, "the case must hold ignored predictions"
    assert torch.equal(total, oracle[:6])


def test_miou_agrees_with_torchmetrics_jaccard_index() -> None:
    truth, labels = blobs(1, (60, 50), 5), blobs(2, (60, 50), 5)
    truth[0, :5] = torch.arange(5)
    labels[labels == IGNORE] = 0
    assert set(truth.unique().tolist()) == {0, 1, 2, 3, 4, IGNORE}
    found = metrics(confusion_matrix(truth, labels, 5))
    for average, ours in (("macro", found.miou), ("none", found.iou), ("weighted", found.fw_iou)):
        oracle = multiclass_jaccard_index(labels.long(), truth.long(), 5, average, IGNORE)
        torch.testing.assert_close(torch.as_tensor(ours).float(), oracle)
    assert found.miou_kept == found.miou
    assert found.ignored == 0


def test_equal_to_the_released_scores(golden) -> None:
    case = golden("clip-es/eval_unit")
    confusion = sum(
        confusion_matrix(torch.from_numpy(gt), torch.from_numpy(pred), 21)
        for gt, pred in zip(case["gt"], case["pred"], strict=True)
    )
    found = metrics(confusion)
    np.testing.assert_allclose(found.iou.nan_to_num().numpy(), case["class_iou"], rtol=1e-14)
    for ours, theirs in (
        (found.miou, "mean_iou"),
        (found.pixel_accuracy, "pixel_acc"),
        (found.mean_accuracy, "mean_acc"),
        (found.fw_iou, "fwiou"),
    ):
        assert ours == pytest.approx(float(case[theirs]), rel=1e-14)


def test_hand_counted_figures() -> None:
    truth = torch.tensor([[0, 0, 0, 0], [1, 1, 1, IGNORE]], dtype=torch.uint8)
    labels = torch.tensor([[0, 0, 1, 2], [1, 1, IGNORE, 1]], dtype=torch.uint8)
    found = metrics(confusion_matrix(truth, labels, 4))
    assert found.iou.tolist()[:3] == [2 / 4, 2 / 4, 0]  # class 1: 2 of {3 true + 1 wrongly found}
    assert found.iou[3].isnan()
    assert found.precision.tolist()[:3] == [1, 2 / 3, 0]
    assert found.recall.tolist()[:2] == [2 / 4, 2 / 3]
    assert found.recall[2].isnan()
    assert found.miou == 0.5  # class 2 is not in the truth
    assert found.miou_kept == pytest.approx((2 / 4 + 2 / 3) / 2)  # without the ignored pixel
    assert found.ignored == pytest.approx(1 / 7)
    assert found.pixel_accuracy == pytest.approx(4 / 7)


@pytest.mark.parametrize(
    ("truth", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2), r"mask is \(3, 2\), the ground truth \(2, 3\)"),
        (torch.full((2, 2), 9), torch.zeros(2, 2), "the ground truth holds the value 9"),
        (torch.zeros(2, 2), torch.full((2, 2), 3), "the mask holds the value 3"),
    ],
)
def test_what_cannot_be_scored_is_refused(truth: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion_matrix(truth.to(torch.uint8), labels.to(torch.uint8), 3)


# --- boundaries


@pytest.mark.parametrize("width", [1, 2, 5])
def test_band_is_every_mask_minus_its_erosion(width: int) -> None:
    labels = blobs(3, (31, 44), 5)
    square = np.ones((3, 3))
    oracle = np.zeros(labels.shape, bool)
    for value in labels.unique():
        mask = (labels == value).numpy()
        oracle |= mask & ~ndimage.binary_erosion(mask, square, iterations=width, border_value=0)
    assert np.array_equal(boundary_band(labels, width).numpy(), oracle)


def test_boundary_iou_of_a_shifted_square_by_hand() -> None:
    # a diagonal of 50 pixels makes the boundary 1 pixel wide
    truth, labels = torch.zeros(30, 40, dtype=torch.uint8), torch.zeros(30, 40, dtype=torch.uint8)
    truth[10:15, 10:15] = 1
    labels[10:15, 11:16] = 1
    counts = boundary_counts(truth, labels, 3)
    # rings of 16 pixels; they share 4 in the top row and 4 in the bottom row; the sides lie apart
    assert counts[:, 1].tolist() == [8, 16, 16]
    found, mean = boundary_iou(counts)
    assert found[1] == 8 / 24
    assert found[2].isnan()
    assert mean == (found[0] + found[1]) / 2
    same, _ = boundary_iou(boundary_counts(truth, truth, 3))
    assert same[:2].tolist() == [1, 1]


def test_the_boundary_is_two_per_cent_of_the_diagonal_wide() -> None:
    empty = torch.zeros(150, 200, dtype=torch.uint8)  # a diagonal of 250 pixels: 5 of them
    assert boundary_counts(empty, empty, 2)[1, 0] == 150 * 200 - 140 * 190


def test_ignored_truth_has_no_boundary_and_ends_objects() -> None:
    truth, labels = torch.zeros(30, 40, dtype=torch.uint8), torch.zeros(30, 40, dtype=torch.uint8)
    truth[10:20, 10:20] = 1
    truth[10:20, 15:20] = IGNORE
    labels[10:20, 10:20] = 1
    both, true, found = boundary_counts(truth, labels, 2)[:, 1].tolist()
    assert true == 2 * 5 + 2 * 8  # the ring of the left half, closed where the ignored part begins
    assert found == 2 * 5 + 8  # the ring of the whole, its right half not counted
    assert both == found


# --- thresholds


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sweep_equals_relabelling_for_every_rule(dtype: torch.dtype) -> None:
    sweep = BackgroundSweep(RULES, 7)
    oracle = torch.zeros(len(RULES), 7, 8, dtype=torch.int64)
    for seed, tags in enumerate([(2, 5), (6,), (1, 2, 3), ()]):
        generator = torch.Generator().manual_seed(seed)
        truth = blobs(seed, (37, 53), 7)
        maps = 1.1 * torch.rand(len(tags), 37, 53, generator=generator)  # stored maps may round or reach above 1
        maps = ((maps * 40).round() / 40).to(dtype) if seed != 1 else maps.to(dtype)  # many ties
        tag = torch.tensor(tags, dtype=torch.int64)
        sweep.update(truth, maps, tag)
        for index, rule in enumerate(RULES):
            labels = relabelled(maps, tag, rule) if tags else torch.zeros_like(truth)
            oracle[index] += confusion_matrix(truth, labels, 7)
    assert len({metrics(matrix).miou for matrix in oracle}) == len(RULES), "the rules must differ"
    assert torch.equal(sweep.confusion(), oracle)


@pytest.mark.parametrize("rule", RULES)
def test_crossing_is_the_first_score_that_wins(rule: Power | Constant) -> None:
    value = torch.tensor([crossing(rule)])
    before = torch.nextafter(value, torch.zeros(1))
    assert relabelled(value.view(1, 1, 1), torch.tensor([1]), rule).item() == 1
    assert relabelled(before.view(1, 1, 1), torch.tensor([1]), rule).item() == 0


def test_a_constant_of_one_is_beaten_by_what_is_above_it() -> None:
    assert crossing(Constant(1.0)) == 1 + 2**-23
    assert crossing(Constant(1.0), torch.float16) == 1 + 2**-10


def test_sweep_equals_the_released_evaluation(golden) -> None:
    case = golden("clip-es/eval_pipeline")
    rules = {"1": Power(1), "2": Power(2), "0.3": Constant(0.3), "0.5": Constant(0.5)}
    sweep = BackgroundSweep(list(rules.values()), 21)
    rest = torch.zeros(len(rules), 21, 22, dtype=torch.int64)
    for name in case["ids"]:
        truth = torch.from_numpy(case[f"gt_{name}"])
        predictions = [torch.from_numpy(case[f"pred_{key}_{name}"]) for key in rules]
        wanted = torch.stack([confusion_matrix(truth, labels, 21) for labels in predictions])
        if name == "voc_full":  # recorded without its maps
            rest += wanted
            continue
        maps = golden(f"clip-es/case_{name}")
        one = BackgroundSweep(list(rules.values()), 21)
        for counted in (one, sweep):
            counted.update(truth, torch.from_numpy(maps["attn_highres"]), torch.from_numpy(maps["keys"]) + 1)
        assert torch.equal(one.confusion(), wanted), name
    for matrix, key in zip(sweep.confusion() + rest, rules, strict=True):
        assert metrics(matrix).miou == pytest.approx(float(case[f"miou_{key}"]), rel=1e-14)
