from __future__ import annotations

import numpy as np
import pytest
import torch

from tag2mask.ops.calibration import calibrate_threshold
from tag2mask.types import UserError


def world(seed, images=400, classes=5, low=0.2, high=0.3, spread=0.02):
    """Cosines of a CLIP whose absent classes lie about ``low`` and whose present ones lie about ``high``."""
    rng = np.random.default_rng(seed)
    present = rng.random((images, classes)) < np.linspace(0.05, 0.6, classes)
    cosine = np.where(present, high, low) + rng.normal(size=present.shape) * spread
    return torch.tensor(cosine), torch.tensor(present)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("allowed", [0.01, 0.05, 0.3])
def test_class_by_class(seed, allowed):
    cosine, present = world(seed)
    found = calibrate_threshold(cosine, present, false_alarms=allowed)

    def share(threshold, which):
        per_class = [
            (cosine[:, c][which[:, c]] > threshold).double().mean()
            for c in range(present.shape[1])
            if which[:, c].any()
        ]
        return float(np.mean(per_class))

    assert found.false_alarms == pytest.approx(share(found.threshold, ~present))
    assert found.hits == pytest.approx(share(found.threshold, present))
    assert found.false_alarms <= allowed
    assert share(found.threshold - 0.002, ~present) > allowed - 0.01  # and it is no stricter than it must be
    assert share(np.nextafter(found.threshold, -1), ~present) > allowed
    pairs = [(cosine[:, i][present[:, i]], cosine[:, j][~present[:, j]]) for i in range(5) for j in range(5)]
    area = np.mean([float((a[:, None] > b).double().mean()) for a, b in pairs])
    assert found.separation == pytest.approx(area, abs=1e-9)


def test_another_clip_gets_another_threshold():
    cosine, present = world(0)
    here = calibrate_threshold(cosine, present)
    there = calibrate_threshold(3 * cosine - 0.4, present)
    assert there.threshold == pytest.approx(3 * here.threshold - 0.4)
    assert (there.hits, there.separation) == pytest.approx((here.hits, here.separation))
    assert 0.22 < here.threshold < 0.25
    assert here.hits > 0.9


def test_every_class_counts_the_same():
    """A common class with high cosines throughout must not drown the rare ones."""
    present = torch.zeros(1000, 2, dtype=torch.bool)
    present[:990, 0] = True
    present[:10, 1] = True
    cosine = torch.where(present, 0.5, 0.1)
    cosine[990:, 0] = 0.3  # all false alarms of the first class: half of all, though only 10 of 1000 pairs
    assert calibrate_threshold(cosine, present, false_alarms=0.4).threshold == pytest.approx(0.3)
    assert calibrate_threshold(cosine, present, false_alarms=0.5).threshold == pytest.approx(0.1)


def test_tied_cosines_pass_together():
    present = torch.tensor([[True], [False], [False], [True]])
    cosine = torch.tensor([[0.4], [0.3], [0.3], [0.3]])
    found = calibrate_threshold(cosine, present, false_alarms=0.5)
    assert (found.threshold, found.false_alarms, found.hits) == (pytest.approx(0.3), 0, 0.5)
    assert found.separation == pytest.approx(0.75)


def test_what_cannot_be_calibrated_is_said():
    cosine, present = world(0)
    with pytest.raises(UserError, match="no class is in some"):
        calibrate_threshold(cosine, torch.ones_like(present))
    with pytest.raises(UserError, match="no class is in some"):
        calibrate_threshold(cosine[:0], present[:0])
    with pytest.raises(UserError, match="no better than chance"):
        calibrate_threshold(-cosine, present)
    with pytest.raises(ValueError, match="share between 0 and 1"):
        calibrate_threshold(cosine, present, false_alarms=0)
    with pytest.raises(ValueError, match="expected \\(N, C\\) twice"):
        calibrate_threshold(cosine, present[:, :2])


def test_classes_that_nobody_has_are_left_out():
    cosine, present = world(0)
    more = torch.cat([present, torch.zeros(len(present), 1, dtype=torch.bool)], 1)
    with_nobody = calibrate_threshold(torch.cat([cosine, torch.full((len(cosine), 1), 0.9)], 1), more)
    assert with_nobody == calibrate_threshold(cosine, present)
