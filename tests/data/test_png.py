from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tag2mask.classes import load_classes
from tag2mask.data.image import BadImage
from tag2mask.data.png import encode_confidence, encode_mask, read_confidence, read_mask

VOC = load_classes("voc12").palette


@settings(deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)))
def test_masks_come_back(tmp_path_factory, mask):
    path = tmp_path_factory.getbasetemp() / "mask.png"
    path.write_bytes(encode_mask(mask, VOC))
    got = read_mask(path)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, mask)


def test_a_mask_is_an_8_bit_indexed_png_in_vocs_colours():
    mask = np.array([[0, 1, 15], [20, 255, 21]], dtype=np.uint8)  # (2, 3)
    content = encode_mask(mask, VOC)
    width, height, depth, colour_type = struct.unpack(">IIBB", content[16:26])
    assert (width, height, depth, colour_type) == (3, 2, 8, 3)
    colours = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert colours[0, 1].tolist() == [128, 0, 0]
    assert colours[0, 2].tolist() == [192, 128, 128]
    assert colours[1, 1].tolist() == [224, 224, 192]


def test_own_colours_are_kept_with_few_classes():
    content = encode_mask(np.array([[0, 1]], np.uint8), ((9, 8, 7), (1, 2, 3)))
    assert content[24] == 8
    assert np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).tolist() == [[[9, 8, 7], [1, 2, 3]]]


def test_same_pixels_same_bytes():
    mask = np.random.default_rng(0).integers(0, 21, (40, 50), dtype=np.uint8)
    assert encode_mask(mask, VOC) == encode_mask(mask.copy(order="F"), VOC)
    assert encode_confidence(mask / 21) == encode_confidence(mask / 21)


@pytest.mark.parametrize("mask", [np.zeros((2, 2), int), np.zeros((2, 2, 1), np.uint8), np.zeros(4, np.uint8)])
def test_only_masks_are_written(mask):
    with pytest.raises(ValueError, match="uint8"):
        encode_mask(mask, VOC)


@settings(deadline=None)
@given(hnp.arrays(np.float32, (3, 5), elements=st.floats(0, 1, width=32)))
def test_confidences_come_back(tmp_path_factory, confidence):
    path = tmp_path_factory.getbasetemp() / "confidence.png"
    path.write_bytes(encode_confidence(confidence))
    got = read_confidence(path)
    assert got.dtype == np.float32
    assert got.shape == (3, 5)
    assert np.abs(got - confidence).max() <= 0.5 / 255 + 1e-6


def test_confidence_is_rounded_and_kept_at_its_ends(tmp_path):
    path = tmp_path / "c.png"
    path.write_bytes(encode_confidence([[0, 1, 0.95, 1 + 1e-6]]))
    assert np.asarray(Image.open(path)).tolist() == [[0, 255, 242, 255]]
    assert read_confidence(path)[0, 1] == 1


@pytest.mark.parametrize("value", [1.1, -0.1, np.nan])
def test_no_confidence_outside_0_to_1(value):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        encode_confidence([[0.5, value]])


def test_grey_one_bit_and_16_bit_masks(tmp_path):
    mask = np.array([[0, 3], [255, 20]], np.uint8)
    Image.fromarray(mask).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "grey.png"), mask)
    Image.fromarray(mask > 3).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "bit.png"), mask > 3)
    Image.fromarray(mask.astype(np.uint16)).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "deep.png"), mask)
    Image.fromarray(mask.astype(np.uint16) * 9).save(tmp_path / "deeper.png")
    with pytest.raises(BadImage, match="2295"):
        read_mask(tmp_path / "deeper.png")


def test_a_coloured_picture_is_no_mask(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    with pytest.raises(BadImage, match="indexed or 8-bit grey"):
        read_mask(tmp_path / "x.png")
    with pytest.raises(BadImage, match="grey"):
        read_confidence(tmp_path / "x.png")


def test_a_torn_mask_is_reported(tmp_path):
    content = encode_mask(np.random.default_rng(0).integers(0, 256, (30, 30), dtype=np.uint8), VOC)
    (tmp_path / "x.png").write_bytes(content[: len(content) // 2 + 200])
    with pytest.raises(BadImage):
        read_mask(tmp_path / "x.png")


def test_vocs_own_masks(photographs):
    paths = sorted((photographs / "voc12-mini" / "SegmentationClass").glob("*.png"))[:10]
    for path in paths:
        mask = read_mask(path)
        assert mask.ndim == 2
        assert set(np.unique(mask)) <= {*range(21), 255}
        # Written again, it shows the same colours.
        again = np.asarray(Image.open(io.BytesIO(encode_mask(mask, VOC))).convert("RGB"))
        np.testing.assert_array_equal(again, np.asarray(Image.open(path).convert("RGB")))
