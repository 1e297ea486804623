"""The sparse walk against dense matrix powers in float64, written from the papers' definitions."""

from __future__ import annotations

import math
import resource

import numpy as np
import pytest
import torch

from tag2mask.ops.random_walk import (
    Links,
    boundary_links,
    chebyshev_power,
    feature_links,
    random_walk,
    refine_with_boundary,
    refine_with_features,
)


def on_the_line(dy, dx):
    """Cells of the box between (0, 0) and (dy, dx) less than 1 away from the line through both."""
    for y in range(min(0, dy), max(0, dy) + 1):
        for x in range(min(0, dx), max(0, dx) + 1):
            if abs(dy * x - dx * y) / math.hypot(dy, dx) < 1 - 1e-12:
                yield y, x


def dense_power(affinity, beta, steps):
    weights = affinity**beta
    return np.linalg.matrix_power(weights / weights.sum(0), steps)  # columns sum to 1


def dense_boundary(edge, radius=5):
    """IRN's way: walls around the image, affinities of all padded pixels, then cropped back."""
    height, width = edge.shape
    padded = np.pad(edge.astype(np.float64), ((0, radius), (radius, radius)), constant_values=1.0)
    affinity = np.eye(height * width)
    for y in range(height):
        for x in range(width):
            for dy in range(radius):
                for dx in range(-radius + 1, radius):
                    if (dy == 0 and dx <= 0) or dy * dy + dx * dx >= radius * radius:
                        continue
                    a = 1 - max(padded[y + py, x + radius + px] for py, px in on_the_line(dy, dx))
                    if y + dy < height and 0 <= x + dx < width:
                        i, j = y * width + x, (y + dy) * width + x + dx
                        affinity[i, j] = affinity[j, i] = a
                    else:
                        assert a == 0
    return affinity


def dense_features(features, radius=5):
    """PSA's way: sources are the rows 0 .. H - 5 and the columns 4 .. W - 5."""
    _, height, width = features.shape
    affinity = np.eye(height * width)
    for y in range(height - radius + 1):
        for x in range(radius - 1, width - radius + 1):
            for dy in range(radius):
                for dx in range(-radius + 1, radius):
                    if (dy == 0 and dx <= 0) or dy * dy + dx * dx >= radius * radius:
                        continue
                    difference = features[:, y, x].astype(np.float64) - features[:, y + dy, x + dx]
                    i, j = y * width + x, (y + dy) * width + x + dx
                    affinity[i, j] = affinity[j, i] = np.exp(-np.abs(difference).mean())
    return affinity


@pytest.mark.parametrize(("seed", "size"), [(0, (12, 17)), (1, (19, 9)), (2, (3, 30)), (3, (14, 3)), (4, (1, 8))])
def test_boundary_walk_is_the_dense_power(seed, size):
    rng = np.random.default_rng(seed)
    edge = (rng.random(size) ** (seed + 1)).astype(np.float32)
    maps = rng.random((3, *size)).astype(np.float32)
    affinity = dense_boundary(edge)
    start = (maps * (1 - edge)).reshape(3, -1).astype(np.float64)
    for beta, steps in ((10, 256), (10, 4), (8, 256), (10, 0)):
        expected = (start @ dense_power(affinity, beta, steps)).reshape(maps.shape)
        mine = refine_with_boundary(torch.tensor(maps), torch.tensor(edge), beta=beta, steps=steps)
        np.testing.assert_allclose(mine, expected, atol=1e-6)


@pytest.mark.parametrize(("seed", "size"), [(0, (12, 14)), (1, (9, 20)), (2, (20, 9))])
def test_feature_walk_is_the_dense_power(seed, size):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(8, *size)).astype(np.float32)
    maps = rng.random((2, *size)).astype(np.float32)
    affinity = dense_features(features)
    links = feature_links(torch.tensor(features))
    for steps in (256, 3):
        expected = (maps.reshape(2, -1).astype(np.float64) @ dense_power(affinity, 8, steps)).reshape(maps.shape)
        mine = random_walk(links, torch.tensor(maps), beta=8, steps=steps)
        np.testing.assert_allclose(mine, expected, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_refinement_of_psa_step_by_step(seed):
    """90 x 107 pixels on 12 x 14 cells of 8: background as a map, zeros around, means of cells, the walk."""
    rng = np.random.default_rng(seed)
    maps, features = rng.random((2, 90, 107)) ** 3, rng.normal(size=(8, 12, 14)).astype(np.float32)
    scores = np.zeros((3, 96, 112))
    scores[0, :90, :107] = (1 - maps.max(0)) ** 16
    scores[1:, :90, :107] = maps
    pooled = scores.reshape(3, 12, 8, 14, 8).mean((2, 4))
    expected = (pooled.reshape(3, -1) @ dense_power(dense_features(features), 8, 256)).reshape(pooled.shape)
    mine = refine_with_features(torch.tensor(maps), torch.tensor(features))
    np.testing.assert_allclose(mine, expected, atol=1e-6)


def test_background_alone_is_refined_to_itself():
    out = refine_with_features(torch.zeros(0, 64, 80), torch.zeros(4, 8, 10))
    torch.testing.assert_close(out, torch.ones(1, 8, 10))
    with pytest.raises(ValueError, match=r"expected a grid of \(8, 10\); pad the image"):
        refine_with_features(torch.zeros(1, 64, 80), torch.zeros(4, 8, 12))


@pytest.mark.parametrize("steps", [1, 2, 17, 256, 5000])
def test_the_polynomial_is_the_power(steps):
    x = np.linspace(-1, 1, 501)
    coefficients = chebyshev_power(steps)
    assert sum(coefficients) == pytest.approx(1, abs=1e-8)
    assert len(coefficients) <= min(steps, math.ceil(6 * math.sqrt(steps))) + 1
    value = np.polynomial.chebyshev.chebval(x, coefficients)
    np.testing.assert_allclose(value, x**steps, atol=2e-8)


def test_two_squarings_of_irn(golden):
    recorded = golden("clims/irn_propagate_t2")
    maps, edge = torch.tensor(recorded["cam"]), torch.tensor(recorded["edge"][0])
    mine = refine_with_boundary(maps, edge, steps=4)
    np.testing.assert_allclose(mine, recorded["rw"][:, 0], atol=1e-5)


def test_open_and_closed_maps():
    point = torch.zeros(1, 3, 3)
    point[0, 0, 0] = 1
    # Without boundaries every pixel of 3 x 3 is every other's neighbour: one step is enough.
    spread = random_walk(boundary_links(torch.zeros(3, 3)), point, beta=10, steps=1)
    torch.testing.assert_close(spread, torch.full((1, 3, 3), 1 / 9))
    assert refine_with_boundary(point, torch.ones(3, 3)).eq(0).all()


def test_a_wall_holds():
    edge = torch.zeros(3, 3)
    edge[:, 1] = 0.9
    left = torch.zeros(1, 3, 3)
    left[0, 0, 0] = 1
    links = boundary_links(edge)
    once = random_walk(links, left, beta=10, steps=1)[0, 0]
    torch.testing.assert_close(once, torch.tensor([1 / 3, 1e-10, 1e-10 / 3]), rtol=1e-4, atol=2e-11)
    last = random_walk(links, left, beta=10)[0, 0]
    torch.testing.assert_close(last, torch.tensor([1 / 3, 2.56e-8, 8.5e-9]), rtol=2e-2, atol=3e-8)


def test_means_stay_in_range_and_constants_stay():
    generator = torch.Generator().manual_seed(0)
    edge = torch.rand(20, 30, generator=generator) ** 3
    maps = torch.rand(2, 20, 30, generator=generator)
    maps[1] = 0.7
    out = random_walk(boundary_links(edge), maps, beta=10)
    assert out[0].min() >= maps[0].min()
    assert out[0].max() <= maps[0].max()
    assert out[1].eq(0.7).all()


def test_no_class_and_wrong_shapes():
    links = boundary_links(torch.zeros(4, 6))
    assert random_walk(links, torch.zeros(0, 4, 6), beta=10).shape == (0, 4, 6)
    for maps in (torch.zeros(1, 6, 4), torch.zeros(4, 6)):
        with pytest.raises(ValueError, match="expected \\(K, 4, 6\\)"):
            random_walk(links, maps, beta=10)
    for bad in ({"beta": 0}, {"beta": 10, "steps": -1}):
        with pytest.raises(ValueError, match="expected beta above 0"):
            random_walk(links, torch.zeros(1, 4, 6), **bad)
    with pytest.raises(ValueError, match="expected \\(h, w\\)"):
        boundary_links(torch.zeros(1, 4, 6))
    with pytest.raises(ValueError, match="expected \\(C, h, w\\)"):
        feature_links(torch.zeros(4, 6))


def test_a_grid_without_links_is_left_as_it_is():
    maps = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(random_walk(feature_links(torch.zeros(3, 4, 6)), maps, beta=8), maps)
    alone = Links(torch.zeros(0, 4, 6), ())
    assert torch.allclose(random_walk(alone, maps, beta=8), maps)


def test_memory_is_linear_in_the_pixels():
    """1024 x 1024 pixels at stride 4; the dense matrix would take 17 GB."""
    generator = torch.Generator().manual_seed(0)
    edge = torch.rand(256, 256, generator=generator) ** 4
    maps = torch.rand(1, 256, 256, generator=generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refine_with_boundary(maps, edge, steps=64)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes
