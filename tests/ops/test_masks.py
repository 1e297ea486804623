"""From maps to a mask: each step against numpy, hand-made numbers, and what must not happen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tag2mask.ops import refiners
from tag2mask.ops.crf import wrap_bgr
from tag2mask.ops.masks import (
    background_score,
    cam_confidence,
    class_probabilities,
    normalise_maps,
    pseudo_mask,
    refine,
    to_labels,
    upsample,
)
from tag2mask.types import IGNORE, Constant, MaskRule, Own, Power, Scores, UserError


def uniform(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def picture(h, w, seed=1):
    return torch.randint(0, 256, (3, h, w), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def along(rows, length):
    """Linear interpolation of the first axis at half-pixel centres, the ends held: (n, ...) -> (length, ...)."""
    n = len(rows)
    out = []
    for i in range(length):
        at = min(max((i + 0.5) * n / length - 0.5, 0), n - 1)
        low = int(at)
        high = min(low + 1, n - 1)
        out.append(rows[low] + (at - low) * (rows[high] - rows[low]))
    return np.stack(out)


def bilinear(plane, size):
    return along(along(plane.astype(np.float64), size[0]).T, size[1]).T


@pytest.fixture
def crf_input(monkeypatch):
    """Replaces the CRF by softmax(-U) and keeps what it was given: [(image, unary), ...]."""
    seen = []

    def fake(image, unary, crf):
        seen.append((image, unary))
        return (-unary).softmax(0)

    monkeypatch.setattr(refiners, "dense_crf", fake)
    return seen


@pytest.mark.parametrize("size", [(8, 11), (3, 4), (2, 3)])
def test_upsample_is_bilinear_at_half_pixel_centres(size):
    maps = uniform(2, 3, 4)
    out = upsample(maps, size)
    assert out.dtype == torch.float32
    expected = np.stack([bilinear(m, size) for m in maps.numpy()])
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-6)


def test_a_frame_is_cropped_not_stretched():
    maps, size, frame = uniform(2, 3, 4), (8, 11), (12, 16)
    expected = np.stack([bilinear(m, frame)[:8, :11] for m in maps.numpy()])
    np.testing.assert_allclose(upsample(maps, size, frame).numpy(), expected, atol=1e-6)


def test_upsample_of_no_maps():
    assert upsample(torch.zeros(0, 3, 4), (8, 11), (12, 16)).shape == (0, 8, 11)


def test_background_scores():
    maps = torch.tensor([[[0.2, 0.5]], [[0.4, 0.1]]])  # the largest: 0.4, 0.5
    torch.testing.assert_close(background_score(maps, Power(1)), torch.tensor([[0.6, 0.5]]))
    torch.testing.assert_close(background_score(maps, Power(3)), torch.tensor([[0.216, 0.125]]))
    torch.testing.assert_close(background_score(maps, Constant(0.3)), torch.tensor([[0.3, 0.3]]))
    own = torch.tensor([[0.7, 0.9]])
    assert torch.equal(background_score(maps, Own(), own), own)
    assert torch.equal(background_score(maps, Constant(0.3), own), torch.full((1, 2), 0.3))
    with pytest.raises(UserError, match="background"):
        background_score(maps, Own())


def test_a_map_above_one_leaves_no_nan_in_the_background():
    assert torch.equal(background_score(torch.tensor([[[1.25]]]), Power(0.5)), torch.zeros(1, 1))


def test_normalisation_by_class_and_by_image():
    maps = torch.tensor([[[0.0, 2.0], [4.0, 1.0]], [[2.0, 8.0], [5.0, 3.5]]])
    by_class = torch.tensor([[[0, 0.5], [1, 0.25]], [[0, 1], [0.5, 0.25]]])
    torch.testing.assert_close(normalise_maps(maps, "class"), by_class, rtol=0, atol=1e-6)
    torch.testing.assert_close(normalise_maps(maps, "image"), maps / 8, rtol=0, atol=1e-6)
    assert torch.equal(normalise_maps(maps, "none"), maps)
    assert torch.equal(normalise_maps(torch.ones(1, 2, 2), "class"), torch.zeros(1, 2, 2))


def test_class_probabilities_put_background_first():
    maps, size, frame = uniform(2, 3, 4), (8, 11), (12, 16)
    scores = Scores(torch.tensor([3, 9]), maps, size, background=uniform(3, 4, seed=2), frame=frame)
    up = np.stack([bilinear(m, frame)[:8, :11] for m in maps.numpy()])

    out = class_probabilities(scores, MaskRule(background=Power(2), normalise="class")).numpy()
    low, high = up.min((1, 2), keepdims=True), up.max((1, 2), keepdims=True)
    normal = (up - low) / (high - low)  # after the crop, which moves the extremes
    np.testing.assert_allclose(out[1:], normal, atol=1e-5)
    np.testing.assert_allclose(out[0], (1 - normal.max(0)) ** 2, atol=1e-5)

    out = class_probabilities(scores, MaskRule(background=Own())).numpy()
    np.testing.assert_allclose(out[1:], up, atol=1e-6)
    np.testing.assert_allclose(out[0], bilinear(scores.background.numpy(), frame)[:8, :11], atol=1e-6)


def test_ties_go_to_background_then_to_the_first_tag():
    probs = torch.tensor([[0.5, 0.1, 0.2, 0.1], [0.5, 0.4, 0.1, 0.2], [0.2, 0.4, 0.1, 0.6]])[:, None]
    labels = to_labels(probs, torch.tensor([254, 3]))
    assert labels.dtype == torch.uint8
    assert labels.tolist() == [[0, 254, 0, 3]]


def test_absent_tags_never_occur():
    labels = to_labels(uniform(4, 20, 20), torch.tensor([2, 15, 200]))
    assert set(labels.unique().tolist()) == {0, 2, 15, 200}


def test_mu_is_strict():
    maps = torch.tensor([[[0.75, 0.7, 0.25, 0.5, 0.9, 0.1]]])
    scores = Scores(torch.tensor([4]), maps, (1, 6))
    mask, confidence = pseudo_mask(scores, picture(1, 6), MaskRule(mu=0.75))
    torch.testing.assert_close(confidence, torch.tensor([[0.75, 0.7, 0.75, 0.5, 0.9, 0.9]]))
    assert mask.tolist() == [[4, IGNORE, 0, IGNORE, 4, 0]]
    mask, _ = pseudo_mask(scores, picture(1, 6), MaskRule())
    assert mask.tolist() == [[4, 4, 0, 0, 4, 0]]


def test_cam_confidence_is_of_the_maps_and_posterior_of_the_crf():
    scores = Scores(torch.tensor([4, 6]), uniform(2, 3, 4), (12, 16))
    image = picture(12, 16)
    up = np.stack([bilinear(m, (12, 16)) for m in scores.maps.numpy()]).max(0)
    mask, cam = pseudo_mask(scores, image, MaskRule(refiner="clip-es", confidence="cam"))
    np.testing.assert_allclose(cam.numpy(), np.maximum(1 - up, up), atol=1e-6)

    same, posterior = pseudo_mask(scores, image, MaskRule(refiner="clip-es"))
    assert torch.equal(mask, same)  # the confidence decides nothing where mu is not set
    assert (cam - posterior).abs().max() > 0.01
    rule = MaskRule(refiner="clip-es")
    probs = refine(image, class_probabilities(scores, rule), rule)
    torch.testing.assert_close(posterior, probs.amax(0))
    assert torch.equal(mask, to_labels(probs, scores.tags))

    mu = float(cam.median())
    ignored, _ = pseudo_mask(scores, image, MaskRule(refiner="clip-es", confidence="cam", mu=mu))
    assert torch.equal(ignored == IGNORE, cam < mu)
    assert torch.equal(ignored[cam >= mu], mask[cam >= mu])


@pytest.mark.parametrize("crf", [None, "clip-es"])
def test_without_tags_all_is_background_for_certain(crf):
    scores = Scores(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, 3), (7, 9))
    mask, confidence = pseudo_mask(scores, picture(7, 9), MaskRule(refiner=crf, mu=0.95))
    assert mask.dtype == torch.uint8
    assert torch.equal(mask, torch.zeros(7, 9, dtype=torch.uint8))
    assert torch.equal(confidence, torch.ones(7, 9))


def test_an_image_of_another_size_is_refused():
    scores = Scores(torch.tensor([1]), uniform(1, 2, 3), (7, 9))
    with pytest.raises(ValueError, match=r"\(9, 7\)"):
        pseudo_mask(scores, picture(9, 7), MaskRule())


def test_a_large_image_is_refined_at_a_smaller_size(crf_input):
    image, probs = picture(30, 40), uniform(3, 30, 40)
    out = refine(image, probs, MaskRule(refiner="clip-es"), refine_max_pixels=320)
    ((small, unary),) = crf_input
    assert small.shape == (3, 15, 20)  # sides times sqrt(320 / 1200), rounded down
    assert small.dtype == torch.uint8
    assert unary.shape[1:] == small.shape[1:]
    assert out.shape == (3, 30, 40)
    torch.testing.assert_close(out.sum(0), torch.ones(30, 40))
    expected = np.stack([bilinear(p, (30, 40)) for p in (-unary).softmax(0).numpy()])
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)


def test_an_image_at_the_limit_is_not_shrunk(crf_input):
    image = picture(6, 8)
    refine(image, uniform(3, 6, 8), MaskRule(refiner="clip-es"), refine_max_pixels=48)
    assert torch.equal(crf_input[0][0], image)


def test_a_strip_keeps_at_least_one_pixel_across(crf_input):
    out = refine(picture(1, 400), uniform(2, 1, 400), MaskRule(refiner="clip-es"), refine_max_pixels=100)
    assert crf_input[0][0].shape[1] == 1
    assert out.shape == (2, 1, 400)


def test_shrinking_does_not_alias(crf_input):
    board = (torch.arange(24)[:, None] + torch.arange(24)) % 2  # (24, 24); every third pixel alone is 0 or 1
    probs = torch.stack([board, 1 - board]).float()
    image = (255 * board).to(torch.uint8).expand(3, 24, 24)
    refine(image, probs, MaskRule(refiner="clip-es"), refine_max_pixels=65)
    ((small, unary),) = crf_input
    assert small.shape == (3, 8, 8)
    assert ((-unary).exp() - 0.5).abs().max() < 0.01
    assert (small.float() - 127.5).abs().max() < 3


def test_the_crf_path_with_a_limit_end_to_end():
    scores = Scores(torch.tensor([4, 6]), uniform(2, 3, 4), (18, 24))
    rule = MaskRule(refiner="clip-es")
    mask, confidence = pseudo_mask(scores, picture(18, 24), rule, refine_max_pixels=108)
    _, full = pseudo_mask(scores, picture(18, 24), rule)
    assert mask.shape == confidence.shape == (18, 24)
    assert not torch.equal(confidence, full)
    assert confidence.min() >= 1 / 3 - 1e-6
    assert confidence.max() <= 1


def test_wrapped_bgr_is_what_the_crf_sees(crf_input):
    image, probs = picture(12, 16), uniform(3, 12, 16)
    refine(image, probs, MaskRule(refiner="clip-es", refiner_image="wrapped-bgr"))
    refine(image, probs, MaskRule(refiner="clip-es"))
    assert torch.equal(crf_input[0][0], wrap_bgr(image))
    assert torch.equal(crf_input[1][0], image)


def test_wrapped_bgr_changes_the_posteriors():
    ramp = torch.linspace(60, 180, 16).to(torch.uint8).expand(3, 12, 16).contiguous()  # through the mean
    probs = uniform(3, 12, 16)
    plain = refine(ramp, probs, MaskRule(refiner="clip-es"))
    wrapped = refine(ramp, probs, MaskRule(refiner="clip-es", refiner_image="wrapped-bgr"))
    assert (plain - wrapped).abs().max() > 0.01


def test_confidence_knows_a_background_of_the_methods_own():
    """Eq. 8 of the share m / (m + b): sure where either is alone, unsure where they are level, at any scale."""
    maps = torch.tensor([[[0.8, 0.4, 0.0, 0.1, 0.3, 0.0]], [[0.1, 0.0, 0.0, 0.0, 0.2, 0.0]]])
    own = torch.tensor([[0.2, 0.4, 0.5, 0.9, 0.1, 0.0]])
    wanted = torch.tensor([[0.8, 0.5, 1.0, 0.9, 0.75, 0.5]])
    for factor in (1.0, 0.5):
        scores = Scores(torch.tensor([4, 6]), factor * maps, (1, 6), background=factor * own)
        _, confidence = pseudo_mask(scores, picture(1, 6), MaskRule(background=Own()))
        torch.testing.assert_close(confidence, wanted)
    mask, _ = pseudo_mask(scores, picture(1, 6), MaskRule(background=Own(), mu=0.8))
    assert mask.tolist() == [[4, IGNORE, 0, 0, IGNORE, IGNORE]]
    rest = Scores(scores.tags, maps, (1, 6), background=1 - maps.amax(0))
    _, same = pseudo_mask(rest, picture(1, 6), MaskRule(background=Own()))
    torch.testing.assert_close(same, cam_confidence(maps))  # where b is 1 - m, it is Eq. 8 as it stands
