"""Boxes of a map's regions on maps small enough to be drawn by hand."""

from __future__ import annotations

import torch

from tag2mask.ops.boxes import box_masks, region_boxes


def drawn(*rows):
    """A map from rows of digits: "09" is 0 and 0.9; "X" is 1."""
    return torch.tensor([[1.0 if c == "X" else int(c) / 10 for c in row] for row in rows])


def test_values_are_truncated_to_255_steps_and_compared_strictly():
    threshold = 0.397  # int(0.397 * 255) = 101
    cells = torch.tensor([[1.0, 0, 101.6 / 255, 0, 102.1 / 255, 0, 101.2 / 255]])
    assert region_boxes(cells, threshold) == [(0, 0, 1, 1), (4, 0, 5, 1)]


def test_the_threshold_is_relative_to_the_truncated_maximum():
    cells = torch.tensor([[0.502, 0, 0.21, 0, 0.19]])  # levels 128, 53, 48; int(0.4 * 128) = 51
    assert region_boxes(cells, 0.4) == [(0, 0, 1, 1), (2, 0, 3, 1)]
    # int(0.4 * 127) = 50 lets level 51 in; int(0.4 * 127.9) = 51 would not
    assert region_boxes(torch.tensor([[127.9 / 255, 0, 51.5 / 255]]), 0.4) == [(0, 0, 1, 1), (2, 0, 3, 1)]


def test_boxes_are_x_then_y_with_exclusive_ends():
    cam = drawn("00000", "00990", "00090", "00000")
    assert region_boxes(cam, 0.4) == [(2, 1, 4, 3)]


def test_diagonal_cells_are_one_region():
    cam = drawn("X0000", "0X000", "00000", "0000X")
    assert region_boxes(cam, 0.4) == [(0, 0, 2, 2), (4, 3, 5, 4)]
    expected = drawn("XX000", "XX000", "00000", "0000X")  # by edges alone, two cells on the diagonal
    assert torch.equal(box_masks(cam[None], 0.4)[0], expected)


def test_masks_are_each_maps_own_union():
    cams = torch.stack([drawn("X0000", "00000", "000X0", "00XX0"), drawn("00000", "05000", "00000", "00000")])
    out = box_masks(cams, 0.4)
    assert out.dtype == torch.float32
    assert torch.equal(out[0], drawn("X0000", "00000", "00XX0", "00XX0"))
    assert torch.equal(out[1], drawn("00000", "0X000", "00000", "00000"))


def test_maps_of_one_value():
    out = box_masks(torch.stack([torch.zeros(3, 5), torch.ones(3, 5), torch.full((3, 5), 1e-4)]), 0.4)
    assert torch.equal(out, torch.stack([torch.zeros(3, 5), torch.ones(3, 5), torch.zeros(3, 5)]))
    assert region_boxes(torch.ones(3, 5), 0.4) == [(0, 0, 5, 3)]
    assert region_boxes(torch.zeros(3, 5), 0.0) == []


def test_without_edges_the_last_row_and_column_are_lost():
    cam = drawn("XX000", "00000", "00000", "000XX")
    assert torch.equal(box_masks(cam[None], 0.4)[0], cam)
    lost = box_masks(
        torch.stack([cam, torch.ones(4, 5), drawn("00000", "00XX0", "00XX0", "00000")]), 0.4, keep_edges=False
    )
    assert torch.equal(lost[0], drawn("XX000", "00000", "00000", "00000"))
    assert torch.equal(lost[1], drawn("XXXX0", "XXXX0", "XXXX0", "00000"))
    assert torch.equal(lost[2], drawn("00000", "00XX0", "00XX0", "00000"))
