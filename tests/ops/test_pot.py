"""POT's maps: the released code's against recorded arrays, the paper's against a reading by loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F

from tag2mask.ops import pot
from tag2mask.ops.pot import (
    Prototypes,
    activate,
    consistency_loss,
    fuse_in_training,
    max_scaled,
    mean_activation,
    with_background,
)
from tag2mask.ops.prototypes import draw_members

PAPER = Prototypes()


def case_of(cases, name):
    return {
        key.partition("/")[2]: torch.from_numpy(value) for key, value in cases.items() if key.startswith(f"{name}/")
    }


def dice(seed):
    return torch.Generator().manual_seed(seed)


# --- the released code ------------------------------------------------------------------------------------------


def released_starts(won, calls, rows):
    """Where the recorded k-means began: (image, class, pixels) and two rows of that class's pixels each."""
    start = torch.full((*won.shape[:2], 2), -1)
    for (image, group, count), first in zip(calls.tolist(), rows, strict=True):
        pixels = won[image, group].flatten().nonzero()[:, 0]
        assert len(pixels) == count
        start[image, group] = pixels[first]
    return start


def test_recorded_prototype_maps_and_their_gradient(pot_cases):
    case = case_of(pot_cases, "multi_proto_cam")
    won = (F.one_hot(case["norm_cam"].argmax(1), 4).permute(0, 3, 1, 2) * case["label"]).bool()
    assert torch.equal(won.float(), case["seeds"])
    features = case["feature"].clone().requires_grad_()
    out = mean_activation(features, won, released_starts(won, case["kmeans_calls"], case["kmeans_init"]))
    np.testing.assert_allclose(out.detach(), case["out"], atol=1e-5)
    out.square().sum().backward()
    np.testing.assert_allclose(features.grad, case["grad_of_sumsq_wrt_feature"], atol=1e-4)


def test_recorded_fusion_and_losses(pot_cases):
    case, losses = case_of(pot_cases, "fusion_train"), case_of(pot_cases, "loss")
    logits = F.conv2d(case["x4"], case["W"])
    np.testing.assert_allclose(logits.mean((2, 3), keepdim=True), case["score"], atol=1e-5)
    np.testing.assert_allclose(with_background(logits) * case["valid_mask"], case["norm_cam"], atol=1e-5)
    ours, joined = fuse_in_training(case["cam_class_in"], case["clip_cam"], case["valid_mask"])
    np.testing.assert_allclose(ours, case["cam_class"], atol=1e-5)
    np.testing.assert_allclose(joined, case["cam_add"], atol=1e-5)
    valid = case["valid_mask"]
    loss = 10 * consistency_loss(max_scaled(ours * valid), max_scaled(joined * valid))
    assert loss.item() == pytest.approx(losses["loss_con"].item(), rel=1e-5)


def test_a_class_of_fewer_pixels_than_clusters_has_no_map():
    features = torch.randn(1, 5, 3, 4, generator=dice(0))
    won = torch.zeros(1, 2, 3, 4, dtype=torch.bool)
    won[0, 0, 1, 2] = won[0, 1] = True
    maps = mean_activation(features, won, draw_members(won.flatten(2), 2, [dice(1)]))
    assert not maps[0, 0].any()
    assert maps[0, 1].max() == pytest.approx(1, abs=1e-4)


def test_the_released_maps_ask_no_plan(monkeypatch):
    """With the plan replaced by noise the released maps stay, and the paper's change."""
    features, seeds = scene(3)
    won = seeds > 0.5
    start = draw_members(won.flatten(2), 2, [dice(1), dice(2)])
    before = mean_activation(features, won, start), paper(features, seeds).maps
    monkeypatch.setattr(pot, "transport_plan", lambda cost, *masses, **_: torch.rand(cost.shape, generator=dice(9)))
    after = mean_activation(features, won, start), paper(features, seeds).maps
    assert torch.equal(before[0], after[0])
    assert (before[1] - after[1]).abs().max() > 0.01


# --- the paper --------------------------------------------------------------------------------------------------


def scene(seed, batch=2, groups=2, size=(5, 6), channels=8):
    """Features of a few directions, and seed maps that follow the first ones loosely."""
    numbers = np.random.default_rng(seed)
    means = numbers.normal(size=(4, channels))
    kinds = numbers.integers(0, 4, (batch, *size))
    features = means[kinds] + 0.4 * numbers.normal(size=(batch, *size, channels))
    seeds = np.stack([np.where(kinds == g, 0.9, 0.3) for g in range(groups)], 1) + numbers.uniform(
        -0.29, 0.1, (batch, groups, *size)
    )
    seeds = seeds / seeds.max((2, 3), keepdims=True)
    return torch.from_numpy(features).float().permute(0, 3, 1, 2), torch.from_numpy(seeds).float()


def paper(features, seeds, settings=PAPER, classifier=None, seed=5):
    generators = [dice(seed + image) for image in range(len(features))]
    return activate(features, seeds, seeds if classifier is None else classifier, generators, settings)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_loops(features, seed, classifier, clusters, settings):
    """One image, one class, from the supplement's words; ``clusters`` are those of the k-means."""
    f = features.reshape(len(features), -1).T.astype(np.float64)  # (N, D)
    seed, classifier = seed.ravel(), classifier.ravel()
    kinds = [k for k in range(settings.clusters) if (clusters == k).any()]
    anchors = np.array([f[clusters == k].mean(0) for k in kinds])
    typical = f[clusters >= 0].mean(0)
    likeness = np.array([max(0.0, float(unit(a) @ unit(typical))) for a in anchors])
    masses = likeness / likeness.sum() if settings.marginal == "similarity" else np.full(len(kinds), 1 / len(kinds))
    cost = 1 - unit(f) @ unit(anchors).T
    plan = ot.bregman.sinkhorn_log(
        np.full(len(f), 1 / len(f)), masses, cost, 0.1, numItermax=3000, stopThr=1e-12, warn=False
    )
    share = plan / plan.sum(1, keepdims=True)
    near = np.ones(len(f), bool)
    if settings.population != "all":
        near = seed > settings.threshold
    if settings.population == "likely":
        near |= (seed > settings.threshold / 2) | (classifier > settings.threshold / 2)
    own = share.argmax(1)
    prototypes = []
    for k in range(len(kinds)):
        if settings.allocation == "hard":
            rows = near & (own == k)
            prototypes.append(f[rows].mean(0) if rows.any() else anchors[k])
        else:
            weight = share[:, k] * seed * near
            prototypes.append((weight[:, None] * f).sum(0) / weight.sum())
    active = np.maximum(unit(f) @ unit(np.array(prototypes)).T, 0)
    combined = {
        "plan": (share * active).sum(1),
        "mean": active.mean(1),
        "hard": active[np.arange(len(f)), own],
    }[settings.combine]
    return combined / (combined.max() + 1e-5), masses, plan


EXACT = {"rounds": 3000, "tolerance": 0.0}
CHOICES = [
    {},
    {"clusters": 1},
    {"clusters": 2, "threshold": 0.6},
    {"marginal": "uniform"},
    {"population": "confident"},
    {"population": "all"},
    {"allocation": "soft"},
    {"combine": "mean"},
    {"combine": "hard"},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_each_reading_of_the_paper_by_loops(choice):
    settings = replace(PAPER, **EXACT, **choice)
    features, seeds = scene(1)
    classifier = scene(2)[1].flip(-1)
    found = paper(features, seeds, settings, classifier)
    for image in range(2):
        for group in range(2):
            maps, masses, plan = by_loops(
                features[image].numpy(),
                seeds[image, group].numpy(),
                classifier[image, group].numpy(),
                found.clusters[image, group].numpy(),
                settings,
            )
            np.testing.assert_allclose(found.maps[image, group].flatten(), maps, atol=2e-5)
            np.testing.assert_allclose(found.masses[image, group], masses, atol=1e-5)
            np.testing.assert_allclose(found.plan[image, group], plan, atol=2e-6)


def test_every_choice_changes_something():
    features, seeds = scene(1)
    classifier = scene(2)[1].flip(-1)
    results = [
        paper(features, seeds, replace(PAPER, **choice), classifier).maps
        for choice in [*CHOICES, {"marginal": "softmax"}, {"marginal": "softmax", "temperature": 1.0}]
    ]
    for first in range(len(results)):
        for second in range(first):
            assert (results[first] - results[second]).abs().max() > 1e-4, (first, second)


def test_one_cluster_is_sipes_single_prototype():
    """The mean of the confident features, and the cosine with it."""
    features, seeds = scene(4)
    found = paper(features, seeds, replace(PAPER, clusters=1, population="confident"))
    for image in range(2):
        for group in range(2):
            mean = features[image][:, seeds[image, group] > 0.7].mean(1)
            expected = F.relu(F.cosine_similarity(features[image], mean[:, None, None], dim=0))
            np.testing.assert_allclose(found.maps[image, group], expected / (expected.max() + 1e-5), atol=1e-5)


def test_a_class_without_a_confident_pixel_has_a_map_of_zeros_and_disturbs_no_other():
    features, seeds = scene(6)
    without = seeds.clone()
    without[1, 0] = 0
    found, all_ = paper(features, without), paper(features, seeds)
    assert not found.maps[1, 0].any()
    assert not found.plan[1, 0].any()
    assert torch.isfinite(found.maps).all()
    # the draws of an image's classes come one after the other; those of the other image are its own
    assert torch.equal(found.maps[0], all_.maps[0])


def test_a_class_with_one_confident_pixel_has_one_cluster():
    features, seeds = scene(7)
    seeds = seeds * 0.5
    seeds[0, 0, 2, 3] = 1
    found = paper(features, seeds, replace(PAPER, population="confident"))
    assert (found.masses[0, 0] > 0).sum() == 1
    expected = F.relu(F.cosine_similarity(features[0], features[0, :, 2, 3, None, None], dim=0))
    np.testing.assert_allclose(found.maps[0, 0], expected / (expected.max() + 1e-5), atol=1e-5)


def test_more_clusters_than_pixels():
    features, seeds = scene(8)
    found = paper(features, seeds, replace(PAPER, clusters=40))
    assert torch.isfinite(found.maps).all()
    assert found.maps.amax((2, 3)).min() == pytest.approx(1, abs=1e-3)


def test_an_image_does_not_depend_on_its_neighbours():
    features, seeds = scene(9)
    both = paper(features, seeds)
    alone = activate(features[1:], seeds[1:], seeds[1:], [dice(6)], PAPER)
    np.testing.assert_allclose(both.maps[1], alone.maps[0], atol=1e-6)


def test_gradients_reach_the_features_and_not_the_seeds():
    features, seeds = scene(10)
    features, seeds = features.requires_grad_(), seeds.requires_grad_()
    paper(features, seeds).maps.square().sum().backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0
    assert seeds.grad is None


def test_features_that_are_not_finite_are_refused():
    features, seeds = scene(0)
    features[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        paper(features, seeds)


def test_masses_where_no_cluster_is_like_its_class():
    """Two opposite clusters of unequal size, and one that points away: it gets no mass."""
    features = torch.zeros(1, 2, 1, 4)
    features[0, :, 0] = torch.tensor([[1.0, 1.0, 1.0, -1.0], [0.1, 0.0, -0.1, 0.0]])
    found = paper(features, torch.ones(1, 1, 1, 4), replace(PAPER, clusters=2))
    away = found.clusters[0, 0, 3]
    assert found.masses[0, 0, away] == 0
    assert found.masses[0, 0].sum() == pytest.approx(1)


def test_the_weight_of_a_pixel_in_the_consistency():
    first, second = torch.zeros(1, 2, 1, 2), torch.tensor([[[[1.0, 0.0]], [[0.0, 0.5]]]])
    assert consistency_loss(first, second).item() == pytest.approx(1.5 / 4)
    weight = torch.tensor([[[[0.5, 0.0]]]])
    assert consistency_loss(first, second, weight).item() == pytest.approx(0.5 / 4)
