"""Outlines, run lengths and Label Studio's brush, against what they must give back."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from pycocotools import mask as rle

from stages.small_run import CLASSES
from tag2mask.data.tools.coco import write_coco
from tag2mask.data.tools.label_studio import decode_brush, encode_brush
from tag2mask.data.tools.shapes import drop_small, fill, fill_in, layers, objects, outlines, paint, runs
from tag2mask.types import IGNORE


def masks():
    """Small random ones, sparse and dense, with holes, corners that touch, one row, one column, one pixel."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = rng.integers(1, 14, 2)
        yield (rng.random((height, width)) < rng.choice([0.3, 0.6, 0.9])).astype(np.uint8)
    yield np.ones((1, 1), np.uint8)
    ring = np.ones((9, 9), np.uint8)
    ring[2:7, 2:7] = 0
    ring[4, 4] = 1
    yield ring
    holes = np.ones((7, 3000), np.uint8)  # each hole is reached through the one before it
    holes[3, 1:-1:2] = 0
    yield holes
    yield np.zeros((2, 3), np.uint8)


def inside(x, y, points):
    """Whether a ray from a point to the right crosses an odd number of edges."""
    edges = zip(points, [*points[1:], points[0]], strict=True)
    return sum((b > y) != (d > y) and x < a + (y - b) / (d - b) * (c - a) for (a, b), (c, d) in edges) % 2


def test_an_outline_encloses_the_pixels_of_its_object_and_no_others():
    for mask in masks():
        whole = np.zeros_like(mask)
        for (shape, (top, left)), points in zip(objects(mask), outlines(mask), strict=True):
            expected = np.zeros_like(mask)
            expected[top : top + shape.shape[0], left : left + shape.shape[1]] = shape
            np.testing.assert_array_equal(fill([points], mask.shape), expected)
            whole += expected
            height, width = mask.shape
            if width > 100:
                continue
            by_rays = [[inside(x + 0.5, y + 0.5, points) for x in range(width)] for y in range(height)]
            np.testing.assert_array_equal(by_rays, expected)
        np.testing.assert_array_equal(whole, mask)  # every pixel in one object


def test_an_outline_has_corners_only():
    layer = np.zeros((5, 7), np.uint8)
    layer[1:4, 2:6] = 1
    (points,) = outlines(layer)
    assert sorted(points) == [(2, 1), (2, 4), (6, 1), (6, 4)]


def test_where_a_polygon_lies_changes_nothing():
    """Only its box is looked at; fifths of pixels and corners outside of the image are read as in the whole."""
    rng = np.random.default_rng(2)
    for _ in range(300):
        height, width = rng.integers(1, 30, 2)
        points = (rng.random((rng.integers(3, 9), 2)) * 1.2 - 0.1) * [width, height]
        points = points.round(1) if rng.random() < 0.5 else points.clip(0, [width, height])
        polygons = [[(x, y) for x, y in points.tolist()], [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)]][: rng.integers(1, 3)]
        mask = np.full((height, width), 3, np.uint8)
        fill_in(mask, polygons, 2)
        np.testing.assert_array_equal(mask, np.where(fill(polygons, (height, width)), 2, 3))
    for wrong, message in (([(0, 0), (1, 1)], "fewer than three"), ([(0, 0), (1, 1), (9, 1)], "far outside")):
        with pytest.raises(ValueError, match=message):
            fill_in(np.zeros((2, 3), np.uint8), [wrong], 1)


def test_small_pieces_are_left_out_and_counted():
    mask = np.array([[1, 1, 0, 2], [1, 2, 0, 0], [0, 0, IGNORE, IGNORE]], np.uint8)
    for least in (0, 1):
        kept, *left = drop_small(mask, least)
        assert (left, (kept == mask).all()) == ([0, 0], True)
    kept, *left = drop_small(mask, 2)
    assert (left, kept.tolist()) == ([2, 2], [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, IGNORE, IGNORE]])
    kept, *left = drop_small(mask, 3)
    assert (left, kept.tolist()) == ([3, 4], [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    assert mask[0, 3] == 2


def test_run_lengths_of_an_object_are_those_of_the_whole_image():
    for mask in masks():
        handle = io.StringIO()
        write_coco([("a", "a.png", mask)], CLASSES, handle, "objects")
        found = json.loads(handle.getvalue())["annotations"]
        parts = list(objects(mask))
        assert len(found) == len(parts)
        for annotation, (shape, (top, left)) in zip(found, parts, strict=True):
            whole = np.zeros_like(mask)
            whole[top : top + shape.shape[0], left : left + shape.shape[1]] = shape
            expected = rle.encode(np.asfortranarray(whole))
            assert annotation["segmentation"]["counts"] == expected["counts"].decode()
            assert annotation["area"] == rle.area(expected)
            assert annotation["bbox"] == rle.toBbox(expected).tolist()


def test_layers_are_the_values_without_background():
    mask = np.array([[0, 3, IGNORE], [1, 1, 0]], np.uint8)
    found = {value: layer.tolist() for value, layer in layers(mask)}
    assert found == {1: [[0, 0, 0], [1, 1, 0]], 3: [[0, 1, 0], [0, 0, 0]], IGNORE: [[0, 0, 1], [0, 0, 0]]}


def test_run_lengths_begin_with_background():
    assert runs(np.array([1, 1, 0, 1], np.uint8)) == [0, 2, 1, 1]
    assert runs(np.array([0, 0, 1], np.uint8)) == [2, 1]
    for mask in masks():
        flat = mask.ravel()
        np.testing.assert_array_equal(paint(runs(flat), flat.size), flat)
    with pytest.raises(ValueError, match="add up to 3, expected 4"):
        paint([1, 2], 4)


def test_the_brush_is_as_label_studio_defines_it():
    assert encode_brush(np.array([[0, 1]], np.uint8)) == [0, 0, 0, 8, 57, 27, 252, 96, 17, 255, 128]
    for mask in masks():
        np.testing.assert_array_equal(decode_brush(encode_brush(mask), mask.shape), mask)
    large = np.zeros((300, 300), np.uint8)  # runs longer than 16 bits count
    large[150:] = 1
    np.testing.assert_array_equal(decode_brush(encode_brush(large), large.shape), large)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([0, 0, 0, 8, 57], "ends too early"),
        ([0, 0, 0, 12, 57, 27, 252, 96, 17, 255, 128], "12 values"),
        ([0, 0, 0, 8, 57, 27, 252, 96, 17, 300], "no list of bytes"),
        ([0, 0, 0, 8, 57, 27, 254, 15, 255], "longer than the image"),
    ],
)
def test_a_damaged_brush(data, message):
    with pytest.raises(ValueError, match=message):
        decode_brush(data, (1, 2))


def test_literal_values_of_other_encoders_are_read():
    # 32 bits: 8 values; word size 8; sizes 3, 4, 8, 16; no repeat, size 3, 8 values: two pixels, the second labelled
    bits = f"{8:032b}00111001000110111" + "1111" + "0" + "00" + "111" + "00000000" * 3 + "00000000" + "11111111" * 4
    bits += "0" * (-len(bits) % 8)
    data = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    np.testing.assert_array_equal(decode_brush(data, (1, 2)), [[0, 1]])
