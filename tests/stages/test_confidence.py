"""Table S3 by hand, with every pixel on or beside an edge."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stages.small_run import small_run, toys
from tag2mask.data.png import encode_confidence, read_confidence
from tag2mask.run.files import write_atomic
from tag2mask.stages.confidence import ConfidenceTally
from tag2mask.stages.evaluate import evaluate


def table(confidence, truth, mask, classes=3):
    tally = ConfidenceTally(classes)
    for each in zip(truth, mask, confidence, strict=True):
        t, m, c = (np.array(rows) for rows in each)
        tally.add(torch.from_numpy(t.astype(np.uint8)), torch.from_numpy(m.astype(np.uint8)), c.astype(np.float32))
    return tally.table()


def test_shares_and_what_mu_keeps_by_hand():
    found = table(
        confidence=[[[0.3, 0.5, 0.6, 0.75], [0.8, 0.9, 0.96, 1.0]], [[0.96, 0.96]]],
        truth=[[[1, 1, 0, 0], [1, 0, 1, 0]], [[255, 2]]],
        mask=[[[0, 1, 1, 0], [0, 0, 1, 0]], [[1, 2]]],
    )
    assert found.images == 2
    assert [round(share, 9) for _, _, share in found.shares] == [0.1, 0.3, 0.2, 0.4]
    at7, at8, at95 = found.kept
    # of nine scored pixels: 0.75 and above are six, of which class 1 has one hit and one miss, background three hits
    # and one that should be class 1
    assert at7.share == pytest.approx(6 / 9)
    assert at7.miou == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    # without the 0.75
    assert at8.share == pytest.approx(5 / 9)
    assert at8.miou == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    # 0.96, 1.0 and 0.96: all right
    assert at95.share == pytest.approx(3 / 9)
    assert at95.miou == pytest.approx(1)
    assert "[0.95, 1] 40.00" in found.text()
    assert "mu 0.95: 100.0 on 33.33" in found.text()


def test_the_stored_steps_decide_as_the_numbers_would(tmp_path):
    """A confidence that is stored and read is on the same side of every edge, up to half a step."""
    values = np.linspace(0, 1, 1001, dtype=np.float32)[None]
    write_atomic(tmp_path / "c.png", encode_confidence(values))
    stored = read_confidence(tmp_path / "c.png")
    zeros = np.zeros_like(values, np.uint8)
    found = table([stored], [zeros], [zeros], classes=2)
    spans = [(0, 0.5), (0.5, 0.8), (0.8, 0.95), (0.95, 1)]
    for (low, high, share), expected in zip(found.shares, spans, strict=True):
        assert (low, high) == expected
        exact = ((values >= low) & ((values < high) | (high == 1))).mean()
        assert share == pytest.approx(exact, abs=0.005)
    for row in found.kept:
        assert row.share == pytest.approx((values >= row.mu).mean(), abs=0.0025)


def test_no_pixel_left_is_no_number():
    found = table([[[0.2, 0.3]]], [[[0, 1]]], [[[0, 1]]])
    assert all(np.isnan(row.miou) and row.share == 0 for row in found.kept)
    assert "mu 0.95: none" in found.text()


def test_eval_keeps_it_only_where_asked(tmp_path):
    data = toys(tmp_path / "images")
    run = small_run(tmp_path / "run", data, leave_out=(2,))
    assert evaluate(run, data, progress=False).confidence is None
    found = evaluate(run, data, confidence=True, progress=False)
    assert found.confidence is not None
    assert found.confidence.images == 4
    kept = json.loads((tmp_path / "run" / "metrics.json").read_text())["confidence"]["kept"]
    assert [row["mu"] for row in kept] == [0.7, 0.8, 0.95]
    whole = sum(read_confidence(run.confidence_path(id)).size for id in run.ids())
    high = sum((read_confidence(run.confidence_path(id)) >= 0.95).sum() for id in run.ids())
    assert found.confidence.shares[-1][2] == pytest.approx(high / whole)
