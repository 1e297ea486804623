from __future__ import annotations

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from scipy import ndimage

from tag2mask.storybook import grain
from tag2mask.storybook.canvas import Canvas
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


@pytest.mark.parametrize("name", FIGURES)
def test_mask_of_a_figure_is_what_was_drawn(name):
    canvas = Canvas(flat(150, 180))
    FIGURES[name](canvas.pen(7, 90, 75, 60, 10), np.random.default_rng(3))
    mask = canvas.mask() == 7
    changed = (canvas.image() != MAGENTA).any(2)
    assert mask.sum() > 500
    assert set(np.unique(canvas.mask())) == {0, 7}
    assert not (mask & ~changed).any()
    # Where the picture changed outside the mask, an edge was averaged, or the tip of a thin part.
    assert (changed & ~ndimage.binary_dilation(mask, np.ones((3, 3)))).sum() <= 4
    border = np.ones_like(mask)
    border[1:-1, 1:-1] = False
    assert not mask[border].any()  # in its own units a figure stays near -1..1


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_over_the_edge_is_cut_not_moved(name):
    whole, part = Canvas(flat(200, 200)), Canvas(flat(80, 90))
    FIGURES[name](whole.pen(1, 100, 100, 50), np.random.default_rng(5))
    FIGURES[name](part.pen(1, 20, 70, 50), np.random.default_rng(5))
    assert np.array_equal(part.mask(), whole.mask()[30:110, 80:170])
    assert np.array_equal(part.image(), whole.image()[30:110, 80:170])


def test_figures_differ_from_each_other_and_from_seed_to_seed():
    def draw(name, seed):
        canvas = Canvas(flat(100, 120))
        FIGURES[name](canvas.pen(1, 60, 50, 45), np.random.default_rng(seed))
        return canvas.image().tobytes()

    assert len({draw(name, 0) for name in FIGURES}) == len(FIGURES) == 20
    for name in FIGURES:
        assert len({draw(name, seed) for seed in range(4)}) > 1, name


def test_noise_is_normal_and_as_coarse_as_asked():
    rng = np.random.default_rng(0)
    fine = grain.white(rng, (200, 200))
    assert fine.dtype == np.float32
    assert abs(fine.mean()) < 0.02
    assert fine.std() == pytest.approx(1, abs=0.02)

    def neighbours(noise):
        return np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]

    assert abs(neighbours(fine)) < 0.02
    coarse = grain.smooth(rng, (200, 200), 8)[..., 0]
    assert neighbours(coarse) > 0.95
    assert 0.7 < coarse.std() < 0.95


def test_blur_is_the_binomial_filter():
    image = np.random.default_rng(0).random((9, 11, 3)).astype(np.float32)
    kernel = np.outer([1, 2, 1], [1, 2, 1])[..., None] / 16
    expected = ndimage.convolve(image, kernel, mode="nearest")
    assert np.allclose(grain.blur(image), expected, atol=1e-6)
