"""Augmentation: paired exactly, padded as the papers pad, a function of the generator alone."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from tag2mask.segment.augment import Augment, Choice, Colour, Example, FitSide, LongSide, Uniform, augment, recolour
from tag2mask.segment.distort import Distort, distort, shift_hue
from tag2mask.segment.recipe import parse_scale
from tag2mask.types import IGNORE, UserError

FILL = (200.0, 100.0, 50.0)


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coded(height: int = 9, width: int = 12) -> Example:
    """Every pixel says where it came from, in all three parts."""
    code = torch.arange(height * width).view(height, width) % 199
    return Example(code.expand(3, -1, -1).to(torch.uint8), code.to(torch.uint8), (code + 1) / 256)


@pytest.mark.parametrize("place", ["corner", "anywhere"])
@pytest.mark.parametrize("crop", [6, 10, 20])
def test_image_mask_and_confidence_stay_together(place: str, crop: int) -> None:
    example = coded()
    settings = Augment(crop, flip=0.5, place=place, fill=FILL)  # type: ignore[arg-type]
    corners, flipped = set(), set()
    for seed in range(40):
        out = augment(example, settings, gen(seed))
        assert out.labels is not None
        assert out.confidence is not None
        inside = out.labels != IGNORE
        assert out.image.shape == (3, crop, crop)
        assert (out.image.dtype, out.labels.dtype, out.confidence.dtype) == (
            torch.float32,
            torch.uint8,
            torch.float32,
        )
        assert torch.equal(out.image[0][inside], out.labels[inside].float())
        assert torch.equal(out.confidence[inside], (out.labels[inside] + 1.0) / 256)
        assert (out.confidence[~inside] == 0).all()
        for channel, value in enumerate(FILL):
            assert (out.image[channel][~inside] == value).all()
        # what is inside is one rectangle of the source, maybe mirrored, as large as can be
        rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
        assert (len(rows), len(columns)) == (min(crop, 9), min(crop, 12))
        block = out.labels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].long()
        mirrored = bool(block[0, 1] < block[0, 0])
        flipped.add(mirrored)
        source = example.labels.flip(-1) if mirrored else example.labels  # type: ignore[union-attr]
        windows = source.long().unfold(0, block.shape[0], 1).unfold(1, block.shape[1], 1)
        assert (windows == block).all(-1).all(-1).any()
        corners.add((int(rows[0]), int(columns[0]), int(block[0, 0])))
    assert flipped == {True, False}
    starts = {c[:2] for c in corners}
    if place == "corner" or crop == 6:
        assert starts == {(0, 0)}
    else:
        assert len(starts) > 5 or crop == 10
        assert max(s[0] for s in starts) == crop - 9
    if crop == 6:
        assert len(corners) > 22  # of (9 - 6 + 1) (12 - 6 + 1) 2 windows; rows and columns are drawn apart


def test_a_flip_of_probability_one_and_none() -> None:
    example = coded()
    assert torch.equal(augment(example, Augment(None, flip=1), gen(0)).labels, example.labels.flip(-1))  # type: ignore
    assert torch.equal(augment(example, Augment(None, flip=0), gen(0)).labels, example.labels)  # type: ignore


def test_the_generator_decides_everything_and_moves_by_the_same_count() -> None:
    example = coded(40, 30)
    full = Augment(16, Uniform(0.5, 1.5), colour=Colour(0.3, 0.3, 0.3, 0.1), place="anywhere")
    a, b = augment(example, full, gen(3)), augment(example, full, gen(3))
    assert torch.equal(a.image, b.image)
    plain = augment(example, Augment(16, Uniform(0.5, 1.5), place="anywhere"), gen(3))
    assert torch.equal(a.labels, plain.labels)  # type: ignore[arg-type]
    assert not torch.equal(a.image, plain.image)
    one, two = gen(3), gen(3)
    augment(example, full, one)
    augment(example, Augment(None), two)
    assert torch.equal(one.get_state(), two.get_state())
    torch.manual_seed(0)
    state = torch.get_rng_state()
    augment(example, full, one)
    assert torch.equal(state, torch.get_rng_state())


def test_scales_and_their_rounding() -> None:
    assert [Choice((0.5, 0.75, 1.5)).size(101, 67, u) for u in (0, 0.34, 0.99)] == [(50, 33), (75, 50), (151, 100)]
    assert Uniform(0.5, 1.5).size(101, 67, 0) == (50, 34)  # 50.5 and 33.5, halves to even
    assert LongSide(200, 800).size(250, 500, 0) == (100, 200)
    assert LongSide(200, 800).size(500, 250, 0.9999999) == (800, 400)
    drawn = {LongSide(3, 5).size(10, 10, u / 300)[0] for u in range(300)}
    assert drawn == {3, 4, 5}
    assert Choice((0.01,)).size(5, 5, 0) == (1, 1)


def test_masks_are_scaled_by_pils_nearest_and_pictures_as_opencv_and_pillow_do() -> None:
    g = np.random.default_rng(0)
    picture, mask = g.integers(0, 256, (40, 30, 3)).astype(np.uint8), g.integers(0, 21, (40, 30)).astype(np.uint8)
    example = Example(torch.from_numpy(picture).permute(2, 0, 1), torch.from_numpy(mask), torch.from_numpy(mask) / 21)
    out = augment(example, Augment(None, Choice((0.75,)), flip=0), gen(0))
    expected = np.asarray(Image.fromarray(mask).resize((22, 30), Image.Resampling.NEAREST)).copy()
    assert np.array_equal(out.labels, expected)  # type: ignore[arg-type]
    assert torch.equal(out.confidence, torch.from_numpy(expected) / 21)  # type: ignore[arg-type]
    # bilinear without smoothing, by its definition, at one pixel: (5.5 * 40 / 30 - 0.5, 7.5 * 30 / 22 - 0.5)
    y, x = 5.5 * 40 / 30 - 0.5, 7.5 * 30 / 22 - 0.5
    i, j, a, b = int(y), int(x), y % 1, x % 1
    value = sum(picture[i + p, j + q] * (a if p else 1 - a) * (b if q else 1 - b) for p in (0, 1) for q in (0, 1))
    assert out.image[:, 5, 7].tolist() == pytest.approx(value.tolist(), abs=1e-3)
    smooth = augment(example, Augment(None, Choice((0.75,)), flip=0, resample="bicubic"), gen(0)).image
    pillow = np.asarray(Image.fromarray(picture).resize((22, 30), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(smooth.permute(1, 2, 0).numpy() - pillow).max() <= 1
    assert (smooth.permute(1, 2, 0).numpy() == pillow).mean() > 0.98


def test_hue_against_colorsys() -> None:
    image = torch.randint(0, 256, (3, 6, 7), generator=gen(1)).float()
    image[:, 0, 0], image[:, 0, 1] = 77, torch.tensor([255.0, 0, 0])
    for turns in (-0.4, 0.0, 0.1, 1.25):
        found = shift_hue(image, turns)
        for y, x in np.ndindex(6, 7):
            h, s, v = colorsys.rgb_to_hsv(*(float(c) / 255 for c in image[:, y, x]))
            expected = [255 * c for c in colorsys.hsv_to_rgb((h + turns) % 1, s, v)]
            assert found[:, y, x].tolist() == pytest.approx(expected, abs=1e-2), (turns, y, x)


def test_brightness_contrast_and_saturation() -> None:
    image = torch.randint(50, 150, (3, 5, 4), generator=gen(2)).float()
    r, g, b = image
    grey = 0.2989 * r + 0.587 * g + 0.114 * b
    limits = Colour(0.2, 0.4, 0.6, 0)
    order = [0.0, 0.1, 0.2, 0.3]
    bright = recolour(image, limits, [0.0, 0.5, 0.5, 0.5], order)
    assert torch.allclose(bright, image * 0.8, atol=1e-3)
    contrast = recolour(image, limits, [0.5, 0.0, 0.5, 0.5], order)
    assert torch.allclose(contrast, grey.mean() + 0.6 * (image - grey.mean()), atol=1e-3)
    saturated = recolour(image, limits, [0.5, 0.5, 0.0, 0.5], order)
    assert torch.allclose(saturated, grey + 0.4 * (image - grey), atol=1e-3)
    wide = Colour(1.0, 0.4, 0, 0)  # cut off at 255, so the order matters
    contrast = (grey.mean() + 1.32 * (image - grey.mean())).clamp(0, 255)
    assert torch.allclose(recolour(image, wide, [0.9] * 4, [1, 0, 2, 3]), (contrast * 1.8).clamp(0, 255), atol=1e-2)
    bright = (image * 1.8).clamp(0, 255)
    mean = (torch.tensor([0.2989, 0.587, 0.114])[:, None, None] * bright).sum(0).mean()
    expected = (mean + 1.32 * (bright - mean)).clamp(0, 255)
    assert torch.allclose(recolour(image, wide, [0.9] * 4, [0, 1, 2, 3]), expected, atol=1e-2)


def test_several_confidence_maps_ride_together() -> None:
    example = coded()
    stack = torch.stack([example.confidence, 1 - example.confidence])  # type: ignore[arg-type,operator]
    settings = Augment(15, place="anywhere")
    one = augment(example, settings, gen(3))
    out = augment(Example(example.image, None, stack), settings, gen(3))
    assert torch.equal(out.confidence[0], one.confidence)  # type: ignore[index,arg-type]
    inside = one.labels != IGNORE
    assert torch.equal(out.confidence[1][inside], 1 - one.confidence[inside])  # type: ignore[index]
    assert (out.confidence[:, ~inside] == 0).all()  # type: ignore[index]


def test_parts_of_other_sizes_are_refused_and_missing_ones_stay_missing() -> None:
    example = coded()
    with pytest.raises(UserError, match=r"got a mask of 9x11 pixels \(height x width\) for an image of 9x12"):
        augment(Example(example.image, example.labels[:, :11]), Augment(5), gen(0))  # type: ignore[index]
    with pytest.raises(UserError, match="got a confidence of 8x12"):
        augment(Example(example.image, None, example.confidence[:8]), Augment(5), gen(0))  # type: ignore[index]
    out = augment(Example(example.image), Augment(5, Choice((1.5,))), gen(0))
    assert (out.labels, out.confidence) == (None, None)


def test_nothing_is_shared_with_the_source() -> None:
    example = coded()
    out = augment(example, Augment(None, flip=0), gen(0))
    out.labels.zero_()  # type: ignore[union-attr]
    assert int(example.labels.max()) > 0  # type: ignore[union-attr]


def test_the_number_of_threads_changes_no_bit() -> None:
    """Processes that prepare batches have one thread, the main one has several."""
    before = torch.get_num_threads()
    example = Example(torch.rand(3, 375, 500, generator=gen(0)) * 255)
    settings = Augment(320, scale=LongSide(320, 640), resample="bicubic", colour=Colour(0.2, 0.2, 0.2, 0.05))
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(torch.stack([augment(example, settings, gen(seed)).image for seed in range(8)]))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


# --- WeakCLIP's -----------------------------------------------------------------------------------------------


def test_a_picture_fits_two_sides_and_is_then_scaled():
    assert FitSide(2048, 512, 0.5, 2.0).size(375, 500, 1 / 3) == (512, 683)
    assert FitSide(2048, 512, 0.5, 2.0).size(100, 1000, 1 / 3) == (205, 2048)
    assert FitSide(2048, 512, 0.5, 2.0).size(375, 500, 0.0) == (256, 341)
    assert parse_scale("fit:2048,512,0.5,2") == FitSide(2048, 512, 0.5, 2.0)
    for wrong in ("fit:512,2048,0.5,2", "fit:2048,512,2,0.5", "fit:2048,512,1", "fit:2048.5,512,1,2"):
        with pytest.raises(UserError, match=r"fit:2048,512,0\.5,2"):
            parse_scale(wrong)


def test_crops_of_one_label_are_drawn_again_up_to_ten_times():
    labels = torch.zeros(40, 40, dtype=torch.uint8)
    labels[:, 34:] = 1
    labels[:4, :4] = 255  # counts for nothing
    example = Example(torch.rand(3, 40, 40) * 255, labels)
    varied = 0
    for seed in range(40):
        dice = torch.Generator().manual_seed(seed)
        crop = augment(example, Augment(8, share=0.75), dice).labels
        counts = torch.bincount(crop.flatten().long(), minlength=256)[:255]
        varied += int((counts > 0).sum() > 1 and counts.max() / counts.sum() < 0.75)
    first = Augment(8)
    once = [augment(example, first, torch.Generator().manual_seed(seed)).labels for seed in range(40)]
    assert varied > 20 > sum(len(crop.unique()) > 1 for crop in once)
    plain = Example(example.image, torch.zeros(40, 40, dtype=torch.uint8))  # has none such, and still ends
    assert augment(plain, Augment(8, share=0.75), torch.Generator().manual_seed(0)).image.shape == (3, 8, 8)


def test_distortion_is_that_of_hsv_and_whole_grey_levels():
    image = torch.randint(0, 256, (3, 5, 6)).float()
    none = [0.9] * 4 + [0.9]
    assert torch.equal(distort(image, Distort(), none, [0.1] * 4), image)
    brighter = distort(image, Distort(), [0.0, 0.9, 0.9, 0.9, 0.9], [0.75, 0, 0, 0])
    assert torch.equal(brighter, (image + 16).clamp(0, 255))
    darker = distort(image, Distort(), [0.9, 0.0, 0.9, 0.9, 0.9], [0, 0.0, 0, 0])
    assert torch.equal(darker, (image * 0.5).floor())
    for coins, amounts in (
        ([0.9, 0.9, 0.0, 0.9, 0.9], [0, 0, 0.9, 0]),
        ([0.9, 0.9, 0.9, 0.0, 0.9], [0, 0, 0, 0.95]),
    ):
        seen = distort(image, Distort(), coins, amounts)
        for y in range(5):
            for x in range(6):
                h, s, v = colorsys.rgb_to_hsv(*(image[:, y, x] / 255).tolist())
                h, s = (h, min(1, s * 1.4)) if coins[2] < 0.5 else ((h + 16 / 180) % 1, s)
                expected = torch.tensor(colorsys.hsv_to_rgb(h, s, v)) * 255
                assert (seen[:, y, x] - expected).abs().max() <= 1.01
    assert torch.equal(seen, seen.round())


def test_where_contrast_comes_among_the_distortions():
    image = torch.tensor([200.0, 100, 50]).reshape(3, 1, 1)
    first, last = (distort(image, Distort(), [0.9, 0.0, 0.0, 0.9, coin], [0, 1.0, 1.0, 0]) for coin in (0.0, 0.9))
    assert not torch.equal(first, last)  # clipped between, or after
