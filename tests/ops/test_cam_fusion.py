from __future__ import annotations

import numpy as np
import torch

from tag2mask.ops.cam_fusion import (
    flip_sum,
    max_normalise,
    scaled_size,
    strided_frame,
    strided_size,
    sum_at,
)
from tag2mask.ops.masks import upsample


def test_sizes_equal_the_released_ones(golden):
    recorded = golden("clims/strided_sizes")
    for size, small, frame in zip(*(recorded[k].tolist() for k in ("sizes", "stride4", "stride16_up")), strict=True):
        assert list(strided_size(tuple(size), 4)) == small
        assert list(strided_frame(tuple(size), 16)) == frame


def test_sizes_by_hand():
    assert strided_size((281, 500), 4) == (71, 125)
    assert strided_frame((281, 500), 16) == (288, 512)
    assert strided_size((1, 1), 4) == (1, 1)
    assert scaled_size((281, 333), 0.5) == (140, 166)  # 140.5 and 166.5: halves to even, as numpy rounds
    assert scaled_size((1, 3), 0.25) == (1, 1)


def test_fusion_equals_the_released_code(golden):
    recorded = golden("clims/cam_fusion")
    size = tuple(recorded["size"].tolist())
    present = torch.tensor(recorded["keys"])
    maps = [torch.tensor(recorded[f"out_{i}"])[present].relu() for i in range(4)]
    strided = max_normalise(sum_at(maps, strided_size(size, 4)))
    full = max_normalise(torch.stack([upsample(each, size, strided_frame(size, 16)) for each in maps]).sum(0))
    np.testing.assert_allclose(strided, recorded["strided_cam"], atol=1e-6)
    np.testing.assert_allclose(full, recorded["highres_cam"], atol=1e-6)
    winner = torch.cat([torch.full_like(full[:1], 0.15), full]).argmax(0)
    mask = torch.tensor([0, *(present + 1).tolist()])[winner]
    assert np.array_equal(mask, recorded["pred_thr015"])


def test_a_mirror_image_is_turned_back():
    maps = torch.arange(6.0).view(1, 2, 3)
    assert torch.equal(flip_sum(torch.stack([maps, maps.flip(-1)])), 2 * maps)


def test_every_class_is_divided_by_its_own_maximum():
    maps = torch.tensor([[[1.0, 2.0]], [[5.0, 10.0]], [[0.0, 0.0]]])
    torch.testing.assert_close(max_normalise(maps, eps=0)[:2], torch.tensor([[[0.5, 1.0]], [[0.5, 1.0]]]))
    assert max_normalise(maps)[2].eq(0).all()


def test_no_class():
    none = [torch.zeros(0, 3, 5), torch.zeros(0, 2, 3)]
    assert max_normalise(sum_at(none, (12, 17))).shape == (0, 12, 17)
