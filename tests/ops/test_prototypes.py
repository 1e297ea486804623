from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tag2mask.ops.prototypes import cluster_means, cosine_kmeans, cosines, draw_members


def dice(seed):
    return torch.Generator().manual_seed(seed)


def everyone(count, batch=1):
    return torch.ones(batch, 1, count, dtype=torch.bool)


def kmeans_by_hand(points, start, rounds=100, tolerance=1e-4):
    """One group, in float64, by loops over points and centres; (ids, centres)."""
    points = points.astype(np.float64)
    centres = points[start]
    for _ in range(rounds):
        ids = []
        for point in points:
            likeness = [point @ c / (np.linalg.norm(point) * np.linalg.norm(c)) for c in centres]
            ids.append(int(np.argmax(likeness)))
        ids = np.array(ids)
        assert len(set(ids)) == len(centres), "an empty cluster: not a case for this oracle"
        moved = np.array([points[ids == k].mean(0) for k in range(len(centres))])
        shift = np.linalg.norm(moved - centres, axis=1).sum()
        centres = moved
        if shift**2 < tolerance:
            break
    return ids, centres


@pytest.mark.parametrize("k", [2, 3])
def test_recorded_clusters(pot_cases, k):
    points = torch.from_numpy(pot_cases["kmeans_cosine/X"])[None]
    start = torch.from_numpy(pot_cases[f"kmeans_cosine/k{k}_init_idx"])[None, None]
    ids = cosine_kmeans(points, everyone(33), start)
    assert ids[0, 0].tolist() == pot_cases[f"kmeans_cosine/k{k}_ids"].tolist()
    centres, _ = cluster_means(points, ids, k)
    np.testing.assert_allclose(centres[0, 0], pot_cases[f"kmeans_cosine/k{k}_centers"], atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_many_groups_at_once_are_each_as_alone(seed):
    """Two images, three groups of other sizes each, against loops over one group; groups stop at other rounds."""
    numbers = np.random.default_rng(seed)
    means = numbers.normal(size=(3, 6)) * 2
    features = (means[numbers.integers(0, 3, (2, 40))] + numbers.normal(size=(2, 40, 6))).astype(np.float32)
    members = torch.from_numpy(numbers.random((2, 3, 40)) < np.array([0.3, 0.6, 1.0])[None, :, None])
    start = draw_members(members, 3, [dice(seed), dice(seed + 100)])
    ids = cosine_kmeans(torch.from_numpy(features), members, start)
    assert ((ids >= 0) == members).all()
    centres, sizes = cluster_means(torch.from_numpy(features), ids, 3)
    for image in range(2):
        for group in range(3):
            rows = members[image, group].nonzero()[:, 0].numpy()
            first = [rows.tolist().index(row) for row in start[image, group].tolist()]
            by_hand, means_by_hand = kmeans_by_hand(features[image][rows], first)
            assert ids[image, group][rows].tolist() == by_hand.tolist()
            np.testing.assert_allclose(centres[image, group], means_by_hand, atol=1e-5)
            assert sizes[image, group].tolist() == np.bincount(by_hand, minlength=3).tolist()


def test_it_is_the_cosine_and_not_the_distance_that_counts():
    points = torch.tensor([[[1.0, 0.1], [9.0, 0.0], [0.1, 1.0], [0.0, 9.0]]])
    ids = cosine_kmeans(points, everyone(4), torch.tensor([[[0, 2]]]))
    assert ids[0, 0].tolist() == [0, 0, 1, 1]


def test_centres_are_plain_means_and_not_means_of_unit_features():
    points = torch.tensor([[[1.0, 0.0], [0.0, 9.0]]])
    means, _ = cluster_means(points, torch.zeros(1, 1, 2, dtype=torch.int64), 1)
    assert means[0, 0, 0].tolist() == [0.5, 4.5]


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_points_that_are_all_alike_leave_no_cluster_empty_and_end(k):
    points = torch.ones(1, 5, 4)
    ids = cosine_kmeans(points, everyone(5), torch.arange(k)[None, None])
    assert sorted(set(ids[0, 0].tolist())) == list(range(k))


def test_a_cluster_that_loses_all_its_members_takes_the_one_least_like_its_centre():
    """Two starts in the same direction: the second gets nobody in the first round."""
    points = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [3.0, 0.2], [0.2, 1.0]]])
    ids = cosine_kmeans(points, everyone(4), torch.tensor([[[0, 1]]]))
    assert ids[0, 0].tolist() == [0, 0, 0, 1]


@given(st.integers(1, 6), st.integers(0, 5), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_every_cluster_that_starts_has_members_at_the_end(k, count, seed):
    """Few points of few directions, so that clusters do run empty; fewer members than clusters too."""
    features = torch.randint(0, 2, (1, 6, 2), generator=dice(seed)).float()
    members = torch.zeros(1, 1, 6, dtype=torch.bool)
    members[0, 0, torch.randperm(6, generator=dice(seed))[:count]] = True
    start = draw_members(members, k, [dice(seed + 1)])
    assert (start >= 0).sum() == min(k, count)
    ids = cosine_kmeans(features, members, start)
    assert ((ids >= 0) == members).all()
    _, sizes = cluster_means(features, ids, k)
    assert (sizes[0, 0] > 0).tolist() == (start[0, 0] >= 0).tolist()


def test_it_ends_after_the_most_rounds_though_centres_still_move():
    points = torch.randn(1, 50, 3, generator=dice(0))
    start = torch.tensor([[[0, 1, 2, 3]]])
    one = cosine_kmeans(points, everyone(50), start, rounds=1, tolerance=0)
    more = cosine_kmeans(points, everyone(50), start, rounds=50, tolerance=0)
    nearest = cosines(points, points[:, None, :4])[0, 0].argmax(0)
    assert one[0, 0].tolist() == nearest.tolist()
    assert not torch.equal(one, more)


def test_drawn_members_are_different_ones_and_an_images_own():
    members = torch.rand(2, 2, 30, generator=dice(3)) < 0.4
    drawn = draw_members(members, 5, [dice(1), dice(2)])
    for image in range(2):
        for group in range(2):
            rows = drawn[image, group].tolist()
            assert len(set(rows)) == 5
            assert members[image, group][rows].all()
    assert torch.equal(drawn[1:], draw_members(members[1:], 5, [dice(2)]))
    assert not torch.equal(drawn, draw_members(members, 5, [dice(4), dice(5)]))


def test_a_group_of_too_few_has_them_all_and_no_more():
    members = torch.zeros(1, 2, 4, dtype=torch.bool)
    members[0, 0, [1, 3]] = True
    drawn = draw_members(members, 6, [dice(0)])
    assert sorted(drawn[0, 0].tolist()) == [-1, -1, -1, -1, 1, 3]
    assert drawn[0, 1].tolist() == [-1] * 6


def test_means_pass_gradients_to_their_members_alone():
    features = torch.randn(1, 4, 3, generator=dice(0)).requires_grad_()
    means, _ = cluster_means(features, torch.tensor([[[0, 0, -1, 1]]]), 2)
    means[0, 0, 0].sum().backward()
    assert features.grad is not None
    assert features.grad[0, :, 0].tolist() == [0.5, 0.5, 0, 0]


def test_cosines_by_torch():
    features, prototypes = torch.randn(2, 7, 5, generator=dice(0)), torch.randn(2, 3, 4, 5, generator=dice(1))
    expected = F.cosine_similarity(features[:, None, None], prototypes[:, :, :, None], dim=-1)
    torch.testing.assert_close(cosines(features, prototypes), expected)
    assert cosines(features, torch.zeros(2, 1, 1, 5)).abs().max() == 0


def test_what_cannot_be_clustered_is_refused():
    points, start = torch.ones(1, 3, 2), torch.tensor([[[0, 1]]])
    with pytest.raises(ValueError, match="not finite"):
        cosine_kmeans(points * torch.nan, everyone(3), start)
    with pytest.raises(ValueError, match="no member"):
        cosine_kmeans(points, torch.tensor([[[True, False, True]]]), start)
    with pytest.raises(ValueError, match="1 generators for 2 images"):
        draw_members(everyone(3, 2), 2, [dice(0)])
