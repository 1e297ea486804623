from __future__ import annotations

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from scipy import ndimage

from tag2mask.storybook import grain
from tag2mask.storybook.canvas import PART, Canvas
from tag2mask.storybook.figures import FIGURES

MAGENTA = (255, 0, 255)  # far from every colour that a figure wears


def flat(height, width, color=MAGENTA):
    return np.full((height, width, 3), color, np.uint8)


@pytest.mark.parametrize(
    "corners",
    [
        [(-0.8, -0.3), (0.9, -0.5), (0.2, 0.7)],
        [(-0.9, -0.8), (0.0, -0.1), (0.9, -0.8), (0.7, 0.9), (0.1, 0.2), (-0.8, 0.8)],
        [(-1.9, -1.0), (1.5, -1.2), (1.8, 1.4), (-1.6, 1.3)],  # over all four borders
    ],
)
def test_polygon_covers_the_sub_pixels_whose_middle_lies_inside(corners):
    canvas = Canvas(flat(90, 120))
    canvas.pen(5, x=62, y=40, scale=35, angle=30).polygon(corners, (0, 0, 0))
    turn = np.deg2rad(30)  # clockwise as seen: y points down
    turned = [
        (62 + 35 * (x * np.cos(turn) - y * np.sin(turn)), 40 + 35 * (x * np.sin(turn) + y * np.cos(turn)))
        for x, y in corners
    ]
    rows, columns = np.mgrid[:180, :240]
    middles = np.stack([columns.ravel(), rows.ravel()], 1) / 2 + 0.25
    inside = Outline([*turned, turned[0]], closed=True).contains_points(middles).reshape(180, 240)
    # Corners are rounded to 1/32 pixel, so only a middle right on an edge may fall on the other side.
    assert (np.logical_xor(canvas.mask() == 5, inside[1::2, 1::2])).sum() <= 3
    coverage = inside.reshape(90, 2, 120, 2).mean((1, 3))[..., None]
    expected = np.array(MAGENTA) * (1 - coverage)
    assert (np.abs(canvas.image() - expected).max(2) > 1).sum() <= 8


def test_neighbours_neither_overlap_nor_leave_a_gap():
    canvas = Canvas(flat(40, 40))
    pen = canvas.pen(1, 20, 20, 19, 17)
    pen.polygon([(-1, -1), (0.3, -1), (-0.2, 1), (-1, 1)], (10, 10, 10))
    left = int((canvas.mask() == 1).sum())
    canvas.pen(2, 20, 20, 19, 17).polygon([(0.3, -1), (1, -1), (1, 1), (-0.2, 1)], (10, 10, 10))
    assert (canvas.mask() == 1).sum() == left
    whole = Canvas(flat(40, 40))
    whole.pen(1, 20, 20, 19, 17).rectangle(-1, -1, 1, 1, (10, 10, 10))
    assert np.array_equal(whole.mask() > 0, canvas.mask() > 0)


def test_flip_mirrors_left_and_right():
    images = []
    for flip in (False, True):
        canvas = Canvas(flat(60, 61))
        canvas.pen(1, x=30.5, y=30, scale=20, flip=flip).polygon([(-1, 0), (1, -0.2), (1, 0.9)], (0, 0, 0))
        images.append(canvas.image())
    assert (images[0][:, ::-1] != images[1]).any(2).sum() <= 3
    assert (images[0] != images[1]).any(2).sum() > 200


def test_ellipse_and_line_have_their_areas():
    canvas = Canvas(flat(100, 100))
    canvas.pen(1, x=50, y=50, scale=40).ellipse(0, 0, 0.9, 0.4, (0, 0, 0), angle=70)
    assert (canvas.mask() > 0).sum() == pytest.approx(np.pi * 0.9 * 0.4 * 40**2, rel=0.02)
    canvas = Canvas(flat(100, 100))
    canvas.pen(1, x=50, y=50, scale=40).line([(-1, -0.5), (0.8, 0.7)], 0.2, (0, 0, 0))
    assert (canvas.mask() > 0).sum() == pytest.approx(np.hypot(1.8, 1.2) * 0.2 * 40**2, rel=0.03)


def test_paint_of_value_0_takes_an_object_out_of_the_mask():
    canvas = Canvas(flat(20, 20))
    canvas.pen(3).rectangle(0, 0, 20, 20, (0, 0, 0))
    canvas.pen(0).rectangle(10, 0, 20, 20, (0, 200, 0))
    assert canvas.mask()[:, :10].all()
    assert not canvas.mask()[:, 10:].any()


def test_ground_comes_back_unchanged():
    ground = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)
    canvas = Canvas(ground)
    assert np.array_equal(canvas.image(), ground)
    assert not canvas.mask().any()


def test_labels_say_value_detail_and_figure():
    detail = np.full((20, 30), 7, np.uint8)
    canvas = Canvas(flat(20, 30), detail)
    first, second = canvas.pen(3), canvas.pen(3)
    first.rectangle(0, 0, 10, 20, (0, 0, 0))
    first.part().rectangle(0, 0, 5, 5, (0, 0, 0))
    second.rectangle(8, 0, 15, 20, (0, 0, 0))
    second.thing(9).rectangle(12, 0, 15, 20, (0, 0, 0))
    expected_detail = detail.copy()
    expected_detail[:, :15], expected_detail[:5, :5], expected_detail[:, 12:15] = 0, PART, 9
    expected_figures = np.zeros_like(detail)
    expected_figures[:, :8], expected_figures[:, 8:12] = 1, 2
    assert np.array_equal(canvas.detail(), expected_detail)
    assert np.array_equal(canvas.figures(), expected_figures)
    assert np.array_equal(canvas.mask(), np.where(expected_figures, 3, 0))
    with pytest.raises(ValueError, match="255 labels"):
        [canvas.pen(1) for _ in range(200)]


def test_a_pen_inside_a_pen_draws_where_it_says():
    one, other = Canvas(flat(60, 60)), Canvas(flat(60, 60))
    one.pen(1, 30, 20, 10, 30).at(1.0, 0.5, 1.5, 20).rectangle(-1, -0.5, 1, 0.5, (0, 0, 0))
    x, y = other.pen(1, 30, 20, 10, 30).pixel(1.0, 0.5)
    turn = np.deg2rad(30)
    assert x == pytest.approx(30 + 10 * (np.cos(turn) - 0.5 * np.sin(turn)))
    assert y == pytest.approx(20 + 10 * (np.sin(turn) + 0.5 * np.cos(turn)))
    other.pen(1, x, y, 15, 50).rectangle(-1, -0.5, 1, 0.5, (0, 0, 0))
    assert (one.mask() != other.mask()).sum() <= 2


def test_shade_and_outline_change_colours_only():
    canvas = Canvas(flat(40, 40, (200, 200, 200)))
    pen = canvas.pen(2, 20, 20, 10)
    pen.rectangle(-1, -1, 1, 1, (200, 100, 50))
    before = canvas.mask()
    canvas.outline(pen.label.figure, 0.5)
    image = canvas.image()
    assert image[20, 20].tolist() == [200, 100, 50]
    assert image[10, 20].tolist() == [150, 75, 38]  # half of the pixel's sub-pixels are rim
    assert image[5, 5].tolist() == [200, 200, 200]
    canvas.shade(20, 35, 10, 4, 0.5)
    assert canvas.image()[35, 20].tolist() == [100, 100, 100]
    assert canvas.image()[35, 5].tolist() == [200, 200, 200]
    assert np.array_equal(canvas.mask(), before)


def drawn(name, seed, size=(180, 240), scale=60.0, x=120.0, value=7, pose=""):
    canvas = Canvas(flat(*size))
    FIGURES[name](canvas.pen(value, x, size[0] * (0.5 if name == "aeroplane" else 0.85), scale), rng(seed), pose)
    return canvas


def rng(seed):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", FIGURES)
def test_mask_of_a_figure_is_what_was_drawn(name):
    canvas = drawn(name, 4 if name == "train" else 3)
    mask = canvas.mask() == 7
    changed = (canvas.image() != MAGENTA).any(2)
    assert mask.sum() > 500
    assert set(np.unique(canvas.mask())) == {0, 7}
    assert set(np.unique(canvas.detail())) <= {0, PART}
    assert not (mask & ~changed).any()
    # Where the picture changed outside the mask, an edge was averaged, a tip was thin, or steam was blown.
    outside = changed & ~ndimage.binary_dilation(mask, np.ones((3, 3)))
    assert outside.sum() <= (2000 if name == "train" else 12)


@pytest.mark.parametrize("name", FIGURES)
def test_no_two_instances_look_alike(name):
    seen, shapes = set(), set()
    for seed in range(20):
        canvas = drawn(name, seed, (60, 90), 28.0, 45.0)
        mask = canvas.mask() > 0
        assert mask.sum() > 60
        seen.add(canvas.image().tobytes())
        shapes.add(mask.tobytes())
    assert len(seen) == 20
    assert len(shapes) >= 15  # not only other colours


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_over_the_edge_is_cut_not_moved(name):
    whole, part = Canvas(flat(200, 200)), Canvas(flat(80, 90))
    FIGURES[name](whole.pen(1, 100, 130, 50), rng(5), "")
    FIGURES[name](part.pen(1, 20, 100, 50), rng(5), "")
    assert np.array_equal(part.mask(), whole.mask()[30:110, 80:170])
    assert np.array_equal(part.image(), whole.image()[30:110, 80:170])


@pytest.mark.parametrize("name", ["person", "cat", "dog", "horse", "cow", "bird", "car", "bicycle", "motorbike"])
def test_faces_and_wheels_are_told(name):
    canvas = drawn(name, 1, pose="walk" if name in ("cat", "dog") else "")
    part = (canvas.detail() == PART).sum() / (canvas.mask() > 0).sum()
    assert 0.05 < part < 0.9


def test_noise_is_normal_and_as_coarse_as_asked():
    rng = np.random.default_rng(0)
    fine = grain.white(rng, (200, 200))
    assert fine.dtype == np.float32
    assert abs(fine.mean()) < 0.02
    assert fine.std() == pytest.approx(1, abs=0.02)

    def neighbours(noise):
        return np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]

    assert abs(neighbours(fine)) < 0.02
    coarse = grain.smooth(rng, (200, 200), 8)
    assert neighbours(coarse) > 0.95
    assert 0.7 < coarse.std() < 0.95


def test_blur_is_the_binomial_filter():
    image = np.random.default_rng(0).random((9, 11, 3)).astype(np.float32)
    kernel = np.outer([1, 2, 1], [1, 2, 1])[..., None] / 16
    expected = ndimage.convolve(image, kernel, mode="nearest")
    assert np.allclose(grain.blur(image), expected, atol=1e-6)
