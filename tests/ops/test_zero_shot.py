"""Zero-shot scores against their definition, written out view by view and class by class."""

from __future__ import annotations

import math

import pytest
import torch

from tag2mask.ops.metrics import chosen_right
from tag2mask.ops.zero_shot import VIEWS, class_scores, crop_views, view_grid


@pytest.mark.parametrize("size", [(50, 70), (33, 20), (1, 1), (2, 9)])
def test_views_are_the_whole_the_corners_and_the_centre(size):
    h, w = size
    image = torch.arange(3 * h * w).view(3, h, w)
    views = crop_views(image)
    assert len(views) == VIEWS
    assert torch.equal(views[0], image)
    a, b = views[1].shape[1:]
    assert (a, b) == (max(1, round(0.6 * h)), max(1, round(0.6 * w)))
    corners = [image[:, :a, :b], image[:, :a, w - b :], image[:, h - a :, :b], image[:, h - a :, w - b :]]
    assert all(torch.equal(view, corner) for view, corner in zip(views[1:5], corners, strict=True))
    seen = torch.zeros(h, w, dtype=torch.bool)
    for view in views[1:]:
        seen.view(-1)[view[0].flatten()] = True
    assert bool(seen.all())  # the corners leave nothing out
    top, left = divmod(int(views[5][0, 0, 0]), w)
    assert abs((h - a) - 2 * top) <= 1
    assert abs((w - b) - 2 * left) <= 1


@pytest.mark.parametrize("others", [0, 3])
def test_scores_are_the_geometric_mean_of_the_whole_and_the_best_view(others):
    dice = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(2 * 4 + 5 + others, 7, generator=dice), dim=-1)
    views, classes, rest = unit[:8].view(2, 4, 7), unit[8:13], unit[13:]
    found = class_scores(views, classes, rest, 9.0)
    for image in range(2):
        shares = []
        for view in views[image]:
            each = [math.exp(9 * float(view @ text)) for text in [*classes, *rest]]
            shares.append([value / sum(each) for value in each[:5]])
        for c in range(5):
            wanted = math.sqrt(shares[0][c] * max(share[c] for share in shares))
            assert float(found[image, c]) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("size", [(192, 256), (3000, 4000), (30, 40), (1, 5000), (7000, 2), (196, 196)])
def test_a_picture_keeps_its_shape_within_its_tokens(size):
    h, w = view_grid(size, 196)
    assert 1 <= h * w <= 196
    if max(size) < 5 * min(size):
        assert h * w >= 0.8 * 196
        assert h / w == pytest.approx(size[0] / size[1], rel=0.12)


def test_precision_and_recall_of_all_classes_together():
    chosen = torch.tensor([[1, 1, 0], [0, 1, 0]]).bool()
    present = torch.tensor([[1, 0, 1], [0, 1, 1]]).bool()
    assert chosen_right(chosen, present) == (2 / 3, 2 / 4)
    assert math.isnan(chosen_right(torch.zeros(2, 3).bool(), present)[0])
