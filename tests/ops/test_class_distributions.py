"""CDA: the arrays of its formulas in float64, and what must hold of any features and texts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tag2mask.ops.affinity import AFFINITIES, Affinity, make_affinity, propagate
from tag2mask.ops.class_distributions import ClassDistributions, class_shares, distribution_factor
from tag2mask.ops.divergences import distances

FORMS = {
    "none": (None, "before"),
    "mul_before": ("mul", "before"),
    "mulW_before": ("mul-rows", "before"),
    "matmul_before": ("matmul", "before"),
    "replace": ("replace", "before"),
    "mul_after": ("mul", "after"),
    "matmul_after": ("matmul", "after"),
}


def unit(count, width=8, seed=0):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def attention(count=9, seed=3):
    return torch.randn(count, count, generator=torch.Generator().manual_seed(seed)).softmax(-1)


@pytest.fixture(scope="module")
def case(golden):
    return {name: torch.from_numpy(array).float() for name, array in golden("cdclip/cda").items()}


@pytest.fixture(scope="module")
def literal(case):
    """The settings of the arrays."""
    return ClassDistributions(temperature=float(case["prob_temp"]), tau=float(case["tau"]), tau_of="one")


def test_shares_and_distances_are_the_arrays(case, literal):
    shares = class_shares(case["features"], case["texts"], literal)
    torch.testing.assert_close(shares, case["P"], rtol=0, atol=1e-5)
    for name in ("js", "kl", "kl_sym", "ws_index"):
        torch.testing.assert_close(distances(name, shares), case[name], rtol=0, atol=1e-5)


def test_factors_are_the_arrays(case, literal):
    for combine, name in (("mul", "E"), ("mul-rows", "W"), ("matmul", "W")):
        factor = distribution_factor(case["features"], case["texts"], replace(literal, combine=combine))
        torch.testing.assert_close(factor, case[name], rtol=0, atol=1e-5 * float(case[name].max()))


def test_tau_of_the_median(case, literal):
    """A quarter of the median, given as a number, is what the default takes by itself."""
    fixed = replace(literal, tau=float(case["tau_median_quarter"]))
    by_itself = replace(literal, tau_of="median", tau=0.25)
    factors = [distribution_factor(case["features"], case["texts"], each) for each in (fixed, by_itself)]
    torch.testing.assert_close(factors[0], factors[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FORMS)
def test_affinities_and_maps_are_the_arrays(case, literal, name):
    combine, place = FORMS[name]
    settings, factor = Affinity(), None
    if combine is not None:
        settings = Affinity(distributions=replace(literal, combine=combine), place=place)
        factor = distribution_factor(case["features"], case["texts"], settings.distributions)
    affinity = make_affinity(case["attention"], settings, factor=factor)
    maps = propagate(affinity, case["cams"], None, settings.steps)
    for got, key in ((affinity, f"A_{name}"), (maps, f"M_{name}")):
        torch.testing.assert_close(got, case[key], rtol=0, atol=1e-5 * float(case[key].max()))


def test_a_great_tau_is_plain_attention():
    settings = replace(AFFINITIES["cda"], distributions=ClassDistributions(tau=1e9))
    factor = distribution_factor(unit(9), unit(5, seed=1), settings.distributions)
    got = make_affinity(attention(), settings, factor=factor)
    torch.testing.assert_close(got, make_affinity(attention(), AFFINITIES["mhsa"]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("combine", ["mul-rows", "matmul", "replace"])
def test_a_small_tau_leaves_each_patch_to_itself(combine):
    settings = ClassDistributions(tau=1e-6, combine=combine)
    factor = distribution_factor(unit(9), unit(5, seed=1), settings)
    torch.testing.assert_close(factor, torch.eye(9), rtol=0, atol=1e-5)


def test_patches_that_are_all_alike_leave_the_attention_as_it_is():
    settings = AFFINITIES["cda"]
    factor = distribution_factor(unit(1).expand(9, -1), unit(5, seed=1), settings.distributions)
    got = make_affinity(attention(), settings, factor=factor)
    torch.testing.assert_close(got, make_affinity(attention(), AFFINITIES["mhsa"]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("distance", ["js", "kl", "ws_index", "cos"])
def test_classes_in_another_order(distance):
    texts, order = unit(5, seed=1), torch.tensor([4, 2, 0, 3, 1])
    settings = ClassDistributions(distance=distance)
    before, after = (distribution_factor(unit(9), each, settings) for each in (texts, texts[order]))
    same = torch.allclose(before, after, rtol=1e-3, atol=1e-5)
    assert same == (distance != "ws_index")


def test_less_tau_keeps_more_in_its_own_region():
    """Two regions that the texts tell apart, in an attention that does not: mass crosses less as tau falls."""
    texts = torch.eye(4)
    features = F.normalize(torch.cat([texts[:1].expand(5, -1), texts[1:2].expand(4, -1)]) + 0.3 * unit(9, 4), dim=-1)
    seed = torch.zeros(1, 9)
    seed[0, 1] = 1
    inside = []
    for tau in (100.0, 1.0, 0.25, 0.05):
        settings = replace(AFFINITIES["cda"], distributions=ClassDistributions(tau=tau))
        factor = distribution_factor(features, texts, settings.distributions)
        spread = propagate(make_affinity(torch.full((9, 9), 1 / 9), settings, factor=factor), seed, None, 2)
        inside.append(float(spread[0, :5].sum() / spread.sum()))
    assert inside == sorted(inside)
    assert inside[-1] > inside[0] + 0.3


@pytest.mark.parametrize("scale", ["text", "patch", "all"])
def test_scales(scale):
    settings = ClassDistributions(scale=scale, temperature=0.5)
    features, texts = unit(9), unit(5, seed=1)
    scaled = 0.5 * class_shares(features, texts, settings).log()
    dims = {"text": (0,), "patch": (1,), "all": (0, 1)}[scale]
    if scale == "text":  # a softmax hides what is added to a row, so compare differences of texts
        cosines = features @ texts.T
        low, high = cosines.amin(dims, keepdim=True), cosines.amax(dims, keepdim=True)
        expected = (cosines - low) / (high - low)
        torch.testing.assert_close(scaled - scaled[:, :1], expected - expected[:, :1], rtol=1e-3, atol=1e-5)
    else:
        spread = scaled.amax(1) - scaled.amin(1)
        assert (spread <= 1 + 1e-5).all()
        assert torch.allclose(spread, torch.ones(9), atol=1e-4) == (scale == "patch")


def test_a_batch_is_image_by_image():
    features, texts = torch.stack([unit(9), unit(9, seed=5)]), unit(5, seed=1)
    both = distribution_factor(features, texts, ClassDistributions())
    for one, got in zip(features, both, strict=True):
        torch.testing.assert_close(got, distribution_factor(one, texts, ClassDistributions()), rtol=1e-5, atol=1e-7)
