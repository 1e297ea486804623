"""DeiT's augmentation: what it draws, and what each of its changes does, against readings by numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from tag2mask.segment.deit_augment import CHANGES, DeiTAugment, augment_deit, part_of, rectangle_of

PLAIN = DeiTAugment(16, area=(1.0, 1.0), flip=0.0, rand_augment=False, erase=0.0)
FILL = (124, 116, 104)


def gen(seed):
    return torch.Generator().manual_seed(seed)


def picture(height=16, width=16, seed=0):
    return torch.randint(0, 256, (3, height, width), generator=gen(seed), dtype=torch.uint8)


def uniform(count, seed):
    return torch.rand(count, generator=gen(seed), dtype=torch.float64).tolist()


def test_parts_have_the_published_areas_and_ratios():
    found = np.array([part_of(200, 300, (0.08, 1.0), uniform(40, seed)) for seed in range(1500)])
    top, left, height, width = found.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 200).all()
    assert (left + width <= 300).all()
    assert (top + height == 200).any()
    assert (left + width == 300).any()
    area, ratio = height * width / 60000, width / height
    assert 0.079 < area.min() < 0.1
    assert area.max() == pytest.approx(800 / 900, abs=0.01)  # as wide as 4:3 can be in 3:2
    assert np.median(area[area < 0.5]) == pytest.approx(0.29, abs=0.02)  # uniform where all tries fit
    assert 0.73 < ratio.min() < 0.76
    assert 1.3 < ratio.max() < 1.36
    assert np.median(np.log(ratio[area < 0.5])) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 10), (43, 0, 13, 10)), ((10, 100), (0, 43, 10, 13)), ((1, 1), (0, 0, 1, 1)), ((1, 50), (0, 24, 1, 1))],
)
def test_where_no_part_fits_it_is_the_middle(size, expected):
    assert part_of(*size, (1.0, 1.0), [0.999] * 40 if size[1] > size[0] else [0.0] * 40) == expected


def test_a_part_becomes_the_square():
    image = picture(40, 30)
    out = augment_deit(image, DeiTAugment(8, flip=0.0, rand_augment=False, erase=0.0), gen(3))
    top, left, height, width = part_of(40, 30, (0.08, 1.0), uniform(40, 3))
    part = Image.fromarray(image[:, top : top + height, left : left + width].permute(1, 2, 0).numpy())
    expected = np.array(part.resize((8, 8), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    np.testing.assert_array_equal(out, expected)
    assert (out.dtype, tuple(out.shape)) == (torch.float32, (3, 8, 8))


def test_mirrored_and_not():
    image = picture()
    kinds = [augment_deit(image, DeiTAugment(16, (1, 1), 0.5, False, 0.0), gen(seed)) for seed in range(60)]
    plain = augment_deit(image, PLAIN, gen(0))
    assert torch.equal(plain, image.float())
    mirrored = sum(torch.equal(kind, plain.flip(-1)) for kind in kinds)
    assert mirrored + sum(torch.equal(kind, plain) for kind in kinds) == 60
    assert 18 < mirrored < 42


def test_erased_rectangles():
    found = np.array([rectangle_of(100, uniform(40, seed)) for seed in range(800)])
    top, left, height, width = found.T
    assert (top + height <= 100).all()
    assert (left + width <= 100).all()
    assert 0.018 < (height * width).min() / 1e4 < 0.03
    assert 0.31 < (height * width).max() / 1e4 < 0.34
    assert 0.28 < (height / width).min() < 0.35
    assert 2.9 < (height / width).max() < 3.5
    assert rectangle_of(2, [0.999, 0.0, 0, 0] * 10) is None


def test_erased_pixels_are_noise_about_the_mean_colour():
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    settings = DeiTAugment(64, (1, 1), 0.0, False, 1.0, mean=(100, 150, 200), std=(10, 20, 40))
    values, shares = [], []
    for seed in range(40):
        out = augment_deit(image, settings, gen(seed))
        erased = (out != 0).any(0)
        rows, columns = erased.any(1).nonzero(), erased.any(0).nonzero()
        assert erased.sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)  # a rectangle
        values.append(out[:, erased])
        shares.append(erased.float().mean())
    every = torch.cat(values, 1)
    assert every.mean(1).tolist() == pytest.approx([100, 150, 200], abs=2)
    assert every.std(1).tolist() == pytest.approx([10, 20, 40], rel=0.05)
    often = sum(
        not torch.equal(augment_deit(image, DeiTAugment(64, (1, 1), 0, False, 0.25), gen(s)), image.float())
        for s in range(200)
    )
    assert 30 < often < 72


def test_a_function_of_the_generator_alone():
    image, settings = picture(50, 70), DeiTAugment(24)
    np.random.seed(1)  # global dice must not matter
    torch.manual_seed(1)
    first = [augment_deit(image, settings, gen(seed)) for seed in range(20)]
    torch.manual_seed(2)
    again = [augment_deit(image, settings, gen(seed)) for seed in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({a.numpy().tobytes() for a in first}) == 20
    assert torch.equal(image, picture(50, 70))


def test_half_of_two_changes_are_made(monkeypatch):
    """By 15 changes that leave a trace of themselves: which, how often, and how strong."""
    made = []

    def trace(index):
        return lambda p, strength, sign, fill: made.append((index, strength, sign)) or p

    monkeypatch.setattr(
        "tag2mask.segment.deit_augment.CHANGES", tuple((name, trace(i)) for i, (name, _) in enumerate(CHANGES))
    )
    for seed in range(1200):
        augment_deit(picture(8, 8), DeiTAugment(8, erase=0.0), gen(seed))
    which, strength, sign = np.array(made).T
    assert len(made) == pytest.approx(1200, rel=0.08)
    assert np.bincount(which.astype(int), minlength=15) == pytest.approx(np.full(15, len(made) / 15), rel=0.4)
    inside = strength[strength < 1]
    assert np.median(strength) == pytest.approx(0.9, abs=0.01)
    assert strength.max() == 1
    assert (strength == 1).mean() == pytest.approx(0.023, abs=0.015)  # two deviations above the mean
    assert np.percentile(inside, 16) == pytest.approx(0.85, abs=0.01)
    assert (sign > 0).mean() == pytest.approx(0.5, abs=0.05)


def changed(name, image, strength=0.9, sign=1.0):
    made = dict(CHANGES)[name](Image.fromarray(image), strength, sign, FILL)
    return np.array(made)


GREY = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, 2)
NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
POINTS = {
    "invert": lambda v: 255 - v,
    "posterize": lambda v: v & 0b10000000,  # 1 of 8 bits is left at 0.9
    "solarize": lambda v: np.where(v < 26, v, 255 - v),
    "solarize-add": lambda v: np.where(v < 128, np.minimum(255, v + 99), v),
}


@pytest.mark.parametrize("name", POINTS)
def test_changes_of_single_values(name):
    np.testing.assert_array_equal(changed(name, GREY), POINTS[name](GREY.astype(int)))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", dict(CHANGES))
def test_changes_of_every_strength(name, strength):
    """Both ends are drawn, too: one picture in 40 is changed with the full strength."""
    out = changed(name, NOISE, strength)
    assert out.shape == NOISE.shape
    assert out.dtype == np.uint8
    if name == "posterize":
        kept = {0.0: 0b11110000, 0.5: 0b11000000, 1.0: 0}[strength]
        np.testing.assert_array_equal(out, NOISE & kept)


def test_changes_of_the_range_of_values():
    low = (NOISE // 4 + 20).astype(np.uint8)
    for name in ("autocontrast", "equalize"):
        out = changed(name, low)
        for channel in range(3):
            assert (out[..., channel].min(), out[..., channel].max()) == (0, 255), name
            order = np.argsort(low[..., channel].ravel(), kind="stable")
            assert (np.diff(out[..., channel].ravel()[order].astype(int)) >= 0).all(), name  # the order stays


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_changes_of_colour_are_mixed_with_what_they_mean(sign):
    kinds = {"colour": ImageEnhance.Color, "contrast": ImageEnhance.Contrast}
    kinds |= {"brightness": ImageEnhance.Brightness, "sharpness": ImageEnhance.Sharpness}
    for name, kind in kinds.items():
        plain = np.array(kind(Image.fromarray(NOISE)).enhance(0)).astype(float)
        for strength in (0.3, 0.9):
            factor = 1 + sign * 0.9 * strength
            expected = np.clip(plain + factor * (NOISE - plain), 0, 255)
            np.testing.assert_allclose(changed(name, NOISE, strength, sign), expected, atol=1.001, err_msg=name)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_changes_of_place(sign):
    """A white cross on grey: where its middle goes, and what comes in at the borders."""
    image = np.full((41, 61, 3), 90, np.uint8)
    image[8:11, 38:41] = 255

    def middle(out):
        weight = np.clip(out[..., 0].astype(float) - 140, 0, None)
        weight[(out == FILL).all(-1)] = 0
        y, x = np.mgrid[: out.shape[0], : out.shape[1]]
        return (weight * y).sum() / weight.sum(), (weight * x).sum() / weight.sum()

    for strength in (0.2, 0.4):
        m, (y, x) = sign * strength, (9, 39)
        angle = math.radians(30 * m)
        dy, dx = y - 20, x - 30
        expected = {
            "translate-x": (y, x - 0.45 * m * 61),
            "translate-y": (y - 0.45 * m * 41, x),
            "shear-x": (y, x - 0.3 * m * (y + 0.5)),
            "shear-y": (y - 0.3 * m * (x + 0.5), x),
            "rotate": (
                20 + dy * math.cos(angle) - dx * math.sin(angle),
                30 + dx * math.cos(angle) + dy * math.sin(angle),
            ),
        }
        for name, place in expected.items():
            if not (2 < place[0] < 38 and 2 < place[1] < 58):
                continue
            out = changed(name, image, strength, sign)
            assert middle(out) == pytest.approx(place, abs=0.7), (name, strength)
            assert (out == FILL).all(-1).any(), name


def test_the_changes_are_the_published_ones():
    assert len(CHANGES) == len({name for name, _ in CHANGES}) == 15
    assert augment_deit(picture(1, 1), DeiTAugment(8), gen(0)).shape == (3, 8, 8)
    assert augment_deit(picture(3, 900), DeiTAugment(8), gen(0)).isfinite().all()
