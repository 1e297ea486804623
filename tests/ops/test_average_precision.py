"""Average precision, by hand and against torchmetrics."""

from __future__ import annotations

import pytest
import torch

from tag2mask.ops.metrics import average_precision


def test_average_precision() -> None:
    scores = torch.tensor([[0.9, 1.0, 0.1], [0.8, 0.9, 0.2], [0.7, 0.8, 0.3], [0.6, 0.7, 0.4]])
    truth = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=torch.bool)
    got = average_precision(scores, truth)
    assert got[:2].tolist() == pytest.approx([(1 + 2 / 3) / 2, 1 / 4])
    assert got[2].isnan()


def test_average_precision_is_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(50, 4, generator=generator)
    truth = torch.rand(50, 4, generator=generator) < 0.3
    expected = functional.multilabel_average_precision(scores, truth.long(), num_labels=4, average="none")
    torch.testing.assert_close(average_precision(scores, truth).float(), expected)
