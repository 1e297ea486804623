"""What the dense CRF takes and refuses: presets, settings, tensors; and the energies that are made for it."""

from __future__ import annotations

import math

import pytest
import torch

from tag2mask.ops.crf import (
    CRF,
    PRESETS,
    dense_crf,
    dense_crf_batch,
    preset,
    unary_from_labels,
    unary_from_probs,
    wrap_bgr,
)
from tag2mask.types import UserError

pytestmark = pytest.mark.usefixtures("crf_engine")


def test_presets():
    assert preset("clip-es") == CRF((1, 3), (67, 3, 4), 10)
    assert preset("irn") == CRF((3, 3), (50, 5, 10), 10)
    assert preset("psa") == CRF((3, 3), (80, 13, 10), 10)
    assert all(isinstance(crf, CRF) for crf in PRESETS.values())
    with pytest.raises(UserError, match="did you mean 'clip-es'"):
        preset("clipes")
    with pytest.raises(UserError, match="mctformer"):
        preset("?")


@pytest.mark.parametrize(
    "bad", [{"spatial": (0, 3)}, {"bilateral": (1, -2, 3)}, {"spatial": (1, -1)}, {"iterations": -1}]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(UserError, match="expected"):
        CRF(**{"spatial": None, "bilateral": None, **bad})


@pytest.mark.parametrize(
    ("image", "unary"),
    [
        (torch.zeros(4, 5, 3, dtype=torch.uint8), torch.zeros(2, 4, 5)),
        (torch.zeros(3, 4, 5), torch.zeros(2, 4, 5)),
        (torch.zeros(3, 0, 5, dtype=torch.uint8), torch.zeros(2, 0, 5)),
        (torch.zeros(3, 4, 5, dtype=torch.uint8), torch.zeros(2, 5, 4)),
        (torch.zeros(3, 4, 5, dtype=torch.uint8), torch.zeros(0, 4, 5)),
        (torch.zeros(3, 4, 5, dtype=torch.uint8), torch.zeros(2, 20)),
        (torch.zeros(3, 4, 5, dtype=torch.uint8), torch.zeros(2, 4, 5, dtype=torch.long)),
        (torch.zeros(3, 4, 5, dtype=torch.uint8), torch.full((2, 4, 5), math.nan)),
        (torch.zeros(3, 4, 5, dtype=torch.uint8), torch.full((2, 4, 5), math.inf)),
        (torch.zeros(3, 4, 5, dtype=torch.uint8), torch.full((2, 4, 5), 1e39, dtype=torch.float64)),
    ],
)
def test_bad_tensors_are_refused(image, unary):
    with pytest.raises(ValueError, match=r"got .*expected"):
        dense_crf(image, unary, preset("irn"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_bad_energy_among_labels_alike_is_refused(value):
    unary = torch.zeros(5, 20, 30)
    unary[3, 0, 1] = value  # not among the pixels by which labels are first compared
    with pytest.raises(ValueError, match="expected finite energies"):
        dense_crf(torch.zeros(3, 20, 30, dtype=torch.uint8), unary, preset("irn"))


def test_a_batch_of_unequal_length_is_refused():
    with pytest.raises(ValueError, match="1 images and 0 unaries"):
        dense_crf_batch([torch.zeros(3, 4, 5, dtype=torch.uint8)], [], preset("irn"))


def test_unary_from_probs_clips_and_takes_the_log():
    probs = torch.tensor([0.0, 1e-9, 0.25, 1.0, 1.5]).view(5, 1, 1)
    expected = torch.tensor([-math.log(1e-5), -math.log(1e-5), math.log(4), 0, 0]).view(5, 1, 1)
    assert torch.allclose(unary_from_probs(probs), expected)
    assert unary_from_probs(probs.half()).dtype == torch.float32
    with pytest.raises(ValueError, match="floating"):
        unary_from_probs(torch.zeros(1, 2, 2, dtype=torch.long))


def test_unary_from_labels_follows_its_formula():
    labels = torch.tensor([[0, 2], [255, 1]], dtype=torch.uint8)
    unary = unary_from_labels(labels, 3, unsure=255)
    sure, other, unknown = -math.log(0.7), -math.log(0.15), math.log(3)
    expected = [
        [[sure, other], [unknown, other]],
        [[other, other], [unknown, sure]],
        [[other, sure], [unknown, other]],
    ]
    assert torch.allclose(unary, torch.tensor(expected))
    assert torch.isfinite(unary_from_labels(torch.zeros(2, 2, dtype=torch.long), 1)).all()
    with pytest.raises(ValueError, match="255"):
        unary_from_labels(labels, 3)
    with pytest.raises(ValueError, match="integers"):
        unary_from_labels(labels.float(), 3)
    with pytest.raises(ValueError, match="gt_prob"):
        unary_from_labels(labels, 3, gt_prob=1.0)


def test_wrap_bgr_is_a_truncated_wrapped_difference():
    image = torch.tensor([[[0, 122, 123, 255]], [[0, 116, 117, 255]], [[0, 104, 105, 255]]], dtype=torch.uint8)
    # blue - 104.008, green - 116.669, red - 122.675, towards zero, mod 256
    expected = torch.tensor([[[152, 0, 0, 150]], [[140, 0, 0, 138]], [[134, 0, 0, 132]]], dtype=torch.uint8)
    assert torch.equal(wrap_bgr(image), expected)
    assert torch.equal(
        wrap_bgr(torch.full((3, 1, 1), 103, dtype=torch.uint8)).flatten(),
        torch.tensor([255, 243, 237], dtype=torch.uint8),
    )
