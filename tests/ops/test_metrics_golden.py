"""The figures of a confusion matrix against those of the papers' own evaluations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tag2mask.ops.metrics import confusion_matrix, metrics


def test_deeplab_scores(golden) -> None:
    """One class is in the predictions alone and some pixels are ignored; the mean is over classes in the truth."""
    data = golden("clims/deeplab_metric")
    total = sum(
        confusion_matrix(torch.from_numpy(t.astype(np.uint8)), torch.from_numpy(p.astype(np.uint8)), 21)
        for t, p in zip(data["gt"], data["pred"], strict=True)
    )
    found = metrics(torch.as_tensor(total))
    assert found.miou == pytest.approx(float(data["miou"]), rel=1e-6)
    assert found.pixel_accuracy == pytest.approx(float(data["pixel_acc"]), rel=1e-6)
    assert found.mean_accuracy == pytest.approx(float(data["mean_acc"]), rel=1e-6)
    assert found.fw_iou == pytest.approx(float(data["fwiou"]), rel=1e-6)
    assert np.nan_to_num(found.iou.numpy()) == pytest.approx(data["class_iou"], rel=1e-6)


def test_cct_counts(golden) -> None:
    data = golden("clims/cct_metrics")
    truth = torch.from_numpy(data["target"].astype(np.uint8)).flatten(0, 1)
    labels = torch.from_numpy(data["logits"]).argmax(1).to(torch.uint8).flatten(0, 1)
    counts = confusion_matrix(truth, labels, 21)[:, :-1]
    inter = counts.diagonal()
    assert (int(inter.sum()), int(counts.sum())) == (int(data["correct"]), int(data["labeled"]))
    assert inter.tolist() == data["inter"].tolist()
    assert (counts.sum(0) + counts.sum(1) - inter).tolist() == data["union"].tolist()
