"""Ground truth drawn from outlines: in every form, or an error that names the annotation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from coco_files import BOX, H, W, content, write
from tag2mask.data import read_coco
from tag2mask.data.coco_outline import draw, has_outline, read_outline, run_lengths
from tag2mask.types import UserError

SQUARE = np.zeros((H, W), np.uint8)
SQUARE[3:13, 4:14] = 1


def by_hand(mask):
    """Run lengths in columns, the first of background."""
    lengths, now = [0], 0
    for value in mask.flatten(order="F").tolist():
        if value != now:
            lengths.append(0)
            now = value
        lengths[-1] += 1
    return lengths


def packed(mask):
    shape = rle.encode(np.asfortranarray(mask))
    return {"size": list(shape["size"]), "counts": shape["counts"].decode()}


def truth(tmp_path, segmentation, **more):
    """The mask of the first of two images, the second of which has a plain box."""
    what = content()
    what["annotations"][0] |= {"segmentation": segmentation, **more}
    sample = read_coco(write(tmp_path, what))[0]
    return None if sample.truth is None else sample.truth()


POINTS = [[4, 3], [14, 3], [14, 13], [4, 13]]
FLAT = [number for point in POINTS for number in point]
FORMS = {
    "polygons": [FLAT],
    "flat": FLAT,
    "flat, texts": [str(number) for number in FLAT],
    "texts": [[str(float(number)) for number in FLAT]],
    "pairs": [POINTS],
    "pairs without a list": POINTS,
    "pairs of texts": [[[str(x), str(y)] for x, y in POINTS]],
    "two polygons": [[4, 3, 9, 3, 9, 13, 4, 13], [9, 3, 14, 3, 14, 13, 9, 13]],
    "a polygon and a box of two points": [FLAT, [0, 0, 20, 20]],
    "compressed": packed(SQUARE),
    "list of run lengths": [packed(SQUARE)],
    "counts": {"size": [H, W], "counts": by_hand(SQUARE)},
    "counts and size as texts": {"size": [str(H), str(W)], "counts": [str(n) for n in by_hand(SQUARE)]},
    "counts and size as floats": {"size": [float(H), float(W)], "counts": [float(n) for n in by_hand(SQUARE)]},
    "both kinds": [[4, 3, 9, 3, 9, 13, 4, 13], packed(SQUARE * (np.arange(W) >= 9).astype(np.uint8))],
    "over the edge": [[4, 3, 14, 3, 14, 13, 4, 13], [-9, -9, -2, -9, -2, -2, -1, 0]],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_one_meaning(tmp_path, form):
    np.testing.assert_array_equal(truth(tmp_path, FORMS[form]), SQUARE)


@pytest.mark.parametrize("form", [None, [], [[]], [[], []], {}, [[4, 3, 14, 13]], [4, 3, 14, 13], [[4, 3], [14, 13]],
                                  [[4, 3, 14, 13, 4, 3]], [[4, 3, 4, 3, 4, 3, 4, 3]]])  # fmt: skip
def test_an_object_without_an_outline_is_no_background(tmp_path, form):
    what = content(("a.jpg", "b.jpg", "c.jpg"))
    what["annotations"][0]["segmentation"] = form
    what["annotations"].append({"id": 2, "image_id": 1, "category_id": 1, "segmentation": BOX})
    what["annotations"].append({"id": 3, "image_id": 1, "category_id": 2, "bbox": [0, 0, 3, 3]})
    dataset = read_coco(write(tmp_path, what, ("a.jpg", "b.jpg", "c.jpg")))
    assert [sample.truth is not None for sample in dataset] == [False, True, True]
    assert [sample.tags for sample in dataset] == [(1, 2), (1,), (1,)]
    assert any("without an outline" in note and ": 2," in note and "1 of 3 (a.jpg)" in note for note in dataset.notes)


def test_what_is_no_class_needs_no_outline(tmp_path):
    what = content(names=("cat", "dog", "background"))
    what["annotations"] += [{"id": 5, "image_id": 1, "category_id": 3}, {"id": 6, "image_id": 2, "category_id": 2}]
    path = write(tmp_path, what)
    assert [sample.truth is not None for sample in read_coco(path)] == [True, False]
    (tmp_path / "cats.yaml").write_text("names: [cat]")
    cats = read_coco(path, classes=tmp_path / "cats.yaml", unknown="skip")
    assert [sample.truth is not None for sample in cats] == [True, True]


BAD = {
    "huge": ([[-164.1, -221.8, 2e8, 3.5e8, 225.9, 236.5, 272.0, 384.2]], "far outside"),
    "huge and back": ([[10, 10, 1e12, 10, 1e12, 1e12]], "far outside"),
    "another size": ([[4 * n for n in FLAT[:-2]] + [100, 80]], "far outside.*another size"),
    "negative": ([[10, 10, -1e9, 10, 10, 15]], "far outside"),
    "not a number": ([[10, 10, float("nan"), 10, 15, 15]], "NaN or infinite"),
    "infinite": ([[10, 10, float("inf"), 10, 15, 15]], "NaN or infinite"),
    "no number": ([[10, 10, None, 10, 15, 15]], "no number"),
    "infinite text": ([["10", "10", "inf", "10", "15", "15"]], "NaN or infinite"),
    "beyond floats": ([[10, 10, 10**400, 10, 15, 15]], "no numbers"),
    "words": ([["x"] * 6], "no numbers"),
    "odd": ([[1, 2, 3, 4, 5, 6, 7]], "7 coordinates"),
    "odd and long": ([list(range(11))], "11 coordinates"),
    "triples": ([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]], r"points \[x, y\]"),
    "shares": ([[x / W if n % 2 == 0 else x / H for n, x in enumerate(FLAT)]], "shares"),
    "whole image in shares": ([[0, 0, 1, 0, 1, 1, 0, 1]], "shares"),
    "beside the image": ([[40, 3, 45, 3, 45, 13, 40, 13]], "outside of the image"),
    "a line": ([[4, 3, 8, 7, 12, 11]], "on a line"),
    "text": ("4 3 14 3 14 13", "expected polygons"),
    "number": (5, "expected polygons"),
    "mixed": ([FLAT, 7], "holds 7"),
    "points with names": ([{"x": 1, "y": 2}], "no size and no counts"),
    "size swapped": ({"size": [W, H], "counts": packed(SQUARE)["counts"]}, f"of {H} x {W} .*image is {W} x {H}"),
    "twice the size": (packed(np.kron(SQUARE, np.ones((2, 2), np.uint8))), "image is"),
    "half the size": (packed(SQUARE[::2, ::2].copy()), "image is"),
    "cut counts": ({"size": [H, W], "counts": by_hand(SQUARE)[:-1]}, "add up to"),
    "more counts": ({"size": [H, W], "counts": [*by_hand(SQUARE), 5]}, "add up to"),
    "negative counts": ({"size": [H, W], "counts": [H * W + 5, -5]}, "add up to"),
    "broken counts": ({"size": [H, W], "counts": [0.5, H * W - 0.5]}, "no whole number"),
    "true counts": ({"size": [H, W], "counts": [True, H * W - 1]}, "no whole number"),
    "garbage": ({"size": [H, W], "counts": "Zzzzzzz~~~~~~~~~" * 50}, "no compressed run lengths"),
    "not ascii": ({"size": [H, W], "counts": "ä" * 5}, "no compressed run lengths|run lengths are of"),
    "no counts": ({"size": [H, W], "counts": ""}, "no compressed run lengths"),
    "no size": ({"counts": packed(SQUARE)["counts"]}, "no size"),
    "huge size": ({"size": [10**9, 10**9], "counts": [10**18]}, "size of its run lengths"),
    "odd size": ({"size": H, "counts": packed(SQUARE)["counts"]}, "size of its run lengths"),
}


@pytest.mark.parametrize("form", BAD)
def test_other_outlines_are_named(tmp_path, form):
    segmentation, message = BAD[form]
    with pytest.raises(UserError, match=rf"annotation 10 of the image 'a\.jpg'.*({message})"):
        truth(tmp_path, segmentation)


def test_an_odd_outline_concerns_its_image_alone(tmp_path):
    what = content()
    what["annotations"][0]["segmentation"] = 5
    dataset = read_coco(write(tmp_path, what))
    np.testing.assert_array_equal(dataset[1].truth(), SQUARE)
    with pytest.raises(UserError, match="annotation 10"):
        dataset[0].truth()


def test_cut_run_lengths_never_pass():
    """Every beginning of compressed counts is refused, whether it ends within a number or after one."""
    rng = np.random.default_rng(0)
    mask = (rng.random((40, 50)) < 0.05).astype(np.uint8)
    counts = packed(mask)["counts"].encode()
    for end in range(len(counts)):
        with pytest.raises(ValueError, match=r"no compressed run lengths|run lengths are of"):
            draw(read_outline({"size": [40, 50], "counts": counts[:end].decode()}), (40, 50))
    assert draw(read_outline({"size": [40, 50], "counts": counts.decode()}), (40, 50))["counts"] == counts


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 400), st.randoms(use_true_random=False), st.floats(0, 1))
def test_run_lengths_against_a_decoder_by_hand(height, width, random, share):
    mask = np.array([[random.random() < share for _ in range(width)] for _ in range(height)], np.uint8)
    lengths = run_lengths(packed(mask)["counts"].encode())
    assert lengths.tolist() == by_hand(mask)
    flat = [n % 2 for n, length in enumerate(lengths) for _ in range(length)]
    np.testing.assert_array_equal(np.array(flat).reshape(width, height).T, mask)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40), st.integers(1, 9), st.integers(1, 9))
def test_garbage_is_refused_or_fills_the_image(counts, height, width):
    try:
        drawn = draw(read_outline({"size": [height, width], "counts": counts.decode("latin-1")}), (height, width))
    except ValueError:
        return
    assert run_lengths(drawn["counts"]).sum() == height * width


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-15, 45), st.floats(-10, 30)), min_size=3, max_size=8))
def test_polygons_against_a_rasteriser_by_hand(points):
    """A pixel is in where a ray from its middle crosses the outline an odd number of times; edges may be rounded."""
    corners = np.array(points)
    ends = np.roll(corners, -1, axis=0)
    x, y = np.meshgrid(np.arange(W) + 0.5, np.arange(H) + 0.5)
    inside, near = np.zeros((H, W), bool), np.zeros((H, W), bool)
    for (x0, y0), (x1, y1) in zip(corners, ends, strict=True):
        with np.errstate(all="ignore"):
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
            along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2), 0, 1)
        along = np.nan_to_num(along)
        near |= np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)) < 1
    outline = read_outline([[number for point in points for number in point]])
    assume(outline is not None)
    low, high = corners.min(0), corners.max(0)
    assume((high > 1).any() and (low < [W, H]).all() and (high > 0).all() and inside.any())
    drawn = rle.decode(draw(outline, (H, W))).astype(bool)
    np.testing.assert_array_equal(drawn[~near], inside[~near])


def test_whether_there_is_an_outline_is_one_question():
    """What the reader counts as an outline is what is drawn later, or refused then."""
    for form in (*FORMS.values(), None, [], [[]], {}, [[1, 2, 3, 4]]):
        assert has_outline(form) == (read_outline(form) is not None)
    for form, _ in BAD.values():
        assert has_outline(form)


@pytest.mark.parametrize(("key", "value"), [("iscrowd", 1), ("iscrowd", "1"), ("iscrowd", True), ("ignore", 1)])
def test_crowds_and_ignored_objects_are_not_scored(tmp_path, key, value):
    drawn = truth(tmp_path, BOX, **{key: value})
    np.testing.assert_array_equal(drawn, SQUARE * 255)


@pytest.mark.parametrize(("key", "value"), [("iscrowd", 0), ("iscrowd", "0"), ("ignore", False), ("ignore", None)])
def test_flags_that_are_not_set(tmp_path, key, value):
    np.testing.assert_array_equal(truth(tmp_path, BOX, **{key: value}), SQUARE)


def test_odd_flags_are_named(tmp_path):
    with pytest.raises(UserError, match=r"annotation 10 .*iscrowd is 'maybe'"):
        truth(tmp_path, BOX, iscrowd="maybe")


def test_background_outlines_draw_nothing(tmp_path):
    what = content(names=("cat", "_background_"))
    what["annotations"].append({"id": 3, "image_id": 1, "category_id": 2, "segmentation": [[5, 4, 8, 4, 8, 8, 5, 8]]})
    np.testing.assert_array_equal(read_coco(write(tmp_path, what))[0].truth(), SQUARE)


# --- sizes ---


def sized(tmp_path, row, orientation=1):
    """The truth of an image (H, W), whose EXIF may turn it; its row has these sides."""
    what = content(("a.jpg",))
    del what["images"][0]["width"], what["images"][0]["height"]
    what["images"][0] |= row
    path = write(tmp_path, what, ("a.jpg",))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (W, H)).save(tmp_path / "images/a.jpg", exif=exif)
    return read_coco(path)[0].truth()


@pytest.mark.parametrize("row", [{"width": W, "height": H}, {"width": str(W), "height": float(H)}, {}])
def test_sides_as_they_are(tmp_path, row):
    np.testing.assert_array_equal(sized(tmp_path, row), SQUARE)


@pytest.mark.parametrize(("width", "height"), [(H, W), (2 * W, 2 * H), (W, H + 1), (10**9, 10**9)])
def test_sides_of_another_image_are_named(tmp_path, width, height):
    with pytest.raises(UserError, match=rf"'a\.jpg'.*({width} x {height} .*the image is {W} x {H}|pixels)"):
        sized(tmp_path, {"width": width, "height": height})


@pytest.mark.parametrize("row", [{"width": W}, {"height": H}, {"width": "x", "height": H}, {"width": W, "height": 0},
                                 {"width": float("nan"), "height": H}, {"width": True, "height": H},
                                 {"width": float("inf"), "height": H}, {"width": W + 0.5, "height": H}])  # fmt: skip
def test_odd_sides_are_named(tmp_path, row):
    with pytest.raises(UserError, match=r"'a\.jpg'.*width and height"):
        sized(tmp_path, row)


def test_truth_of_turned_images(tmp_path):
    """Both the upright size and the stored one are the image's, and truth is upright; without sides it is unknown."""
    drawn_upright = sized(tmp_path, {"width": H, "height": W}, orientation=6)
    assert drawn_upright.shape == (W, H)
    np.testing.assert_array_equal(sized(tmp_path, {"width": W, "height": H}, orientation=6), np.rot90(SQUARE, -1))
    with pytest.raises(UserError, match=r"'a\.jpg'.*EXIF"):
        sized(tmp_path, {}, orientation=6)


def test_a_file_that_changed_is_said(tmp_path):
    path = write(tmp_path, content())
    dataset = read_coco(path)
    path.write_text(json.dumps(content(("b.jpg",))))
    with pytest.raises(UserError, match="lists no image a"):
        dataset[0].truth()
