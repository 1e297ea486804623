"""How pictures are held against texts: every loss by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tag2mask.lab.losses import aligned_similarity, alike, contrastive, cosine, pairwise


def test_aligned_similarity_against_a_loop():
    torch.manual_seed(0)
    patches, texts = torch.randn(3, 7, 5), torch.randn(4, 5)
    found = aligned_similarity(patches, texts, 6.0)
    for b in range(3):
        for t in range(4):
            text = texts[t] / texts[t].norm()
            units = [patch / patch.norm() for patch in patches[b]]
            powers = [math.exp(6.0 * float(unit @ text)) for unit in units]
            embedding = sum(power * unit for power, unit in zip(powers, units, strict=True)) / sum(powers)
            assert abs(float(found[b, t]) - float(embedding @ text)) < 1e-6


def test_contrastive_is_cross_entropy_where_no_two_captions_are_alike():
    torch.manual_seed(0)
    similarity, scale = torch.randn(6, 6), torch.tensor(3.0)
    labels = torch.arange(6)
    expected = (F.cross_entropy(3 * similarity, labels) + F.cross_entropy(3 * similarity.T, labels)) / 2
    positive = alike(torch.tensor([4, 8, 1, 0, 7, 2]))
    torch.testing.assert_close(contrastive(similarity, positive, scale), expected)


def test_captions_that_claim_the_same_are_no_rivals():
    """Two pictures with one caption: both losses are least where each is as like the other's as its own."""
    positive = alike(torch.tensor([5, 5, 9]))
    assert positive.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    apart = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    together = torch.tensor([[1.0, 1, -1], [1, 1, -1], [-1, -1, 1]])
    scale, bias = torch.tensor(5.0), torch.tensor(-1.0)
    assert contrastive(together, positive, scale) < contrastive(apart, positive, scale)
    assert pairwise(together, positive, scale, bias) < pairwise(apart, positive, scale, bias)
    by_hand = 0.0
    for i in range(3):
        for j in range(3):
            sign = 1 if positive[i, j] else -1
            by_hand += math.log(1 + math.exp(-sign * (5 * float(apart[i, j]) - 1)))
    assert float(pairwise(apart, positive, scale, bias)) == pytest.approx(by_hand / 3, rel=1e-5)


def test_similarities_stay_exact_under_autocast():
    torch.manual_seed(0)
    pictures, patches, texts = torch.randn(3, 16), torch.randn(3, 7, 16), torch.randn(4, 16)
    exact = cosine(pictures, texts), aligned_similarity(patches, texts, 6.0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = cosine(pictures, texts), aligned_similarity(patches, texts, 6.0)
        assert (pictures @ texts.T).dtype == torch.bfloat16
    for found, expected in zip(rounded, exact, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_rows_without_a_positive_are_passed_over():
    torch.manual_seed(0)
    similarity, scale = torch.randn(3, 4), torch.tensor(2.0)
    positive = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0]], dtype=torch.bool)
    rows = [(2 * similarity[i]).log_softmax(0) for i in range(3)]
    columns = [(2 * similarity[:, j]).log_softmax(0) for j in range(4)]
    by_picture = -(float(rows[0][0] + rows[0][2]) / 2 + float(rows[2][2])) / 2
    by_text = -(float(columns[0][0]) + float(columns[2][0] + columns[2][2]) / 2) / 2
    assert float(contrastive(similarity, positive, scale)) == pytest.approx((by_picture + by_text) / 2, rel=1e-5)
    assert float(contrastive(similarity, torch.zeros_like(positive), scale)) == 0
