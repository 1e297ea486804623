"""PAR against a reading by loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tag2mask.ops.par import PAR, PARSettings, par
from tag2mask.ops.refiners import find_refiner

SMALL = PARSettings(dilations=(1, 3), iterations=2)


def pictures(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_loops(image, maps, settings):
    """One image (3, H, W), its maps (K, H, W): pixel by pixel, in float64."""
    image, maps = image.double().numpy(), maps.double().numpy()
    _, height, width = image.shape
    steps = [(d * dy, d * dx) for d in settings.dilations for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    far = np.array([np.hypot(dy, dx) for dy, dx in steps])
    by_place = np.exp(-((far / (far.std(ddof=1) + 1e-8) / settings.colour) ** 2))
    by_place /= by_place.sum()

    def seen(y, x):
        return [(min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)) for dy, dx in steps]

    weights = {}
    for y in range(height):
        for x in range(width):
            near = np.array([image[:, j, i] for j, i in seen(y, x)])  # (n, 3)
            spread = near.std(0, ddof=1) + 1e-8
            like = -(((near - image[:, y, x]) / spread / settings.colour) ** 2).mean(1)
            like = np.exp(like - like.max())
            weights[y, x] = like / like.sum() + settings.place * by_place
    for _ in range(settings.iterations):
        new = np.zeros_like(maps)
        for (y, x), share in weights.items():
            for weight, (j, i) in zip(share, seen(y, x), strict=True):
                new[:, y, x] += weight * maps[:, j, i]
        maps = new
    return maps


@pytest.mark.parametrize("settings", [SMALL, replace(PAR, iterations=3), replace(SMALL, place=0.5, colour=1.0)])
def test_is_its_definition(settings):
    images, maps = pictures(2, 3, 8, 8), pictures(2, 2, 8, 8, seed=1).abs()
    got = par(images, maps, settings)
    for image, own, one in zip(images, maps, got, strict=True):
        np.testing.assert_allclose(one, by_loops(image, own, settings), rtol=2e-4, atol=1e-6)


def test_an_image_does_not_depend_on_its_neighbours_nor_a_map_on_other_maps():
    images, maps = pictures(3, 3, 9, 7), pictures(3, 4, 9, 7, seed=1).abs()
    together = par(images, maps, SMALL)
    torch.testing.assert_close(par(images[1:2], maps[1:2, :2], SMALL)[0], together[1, :2], rtol=1e-5, atol=1e-6)


def test_a_map_that_is_the_same_everywhere_grows_with_every_step():
    out = par(pictures(1, 3, 6, 6), torch.ones(1, 1, 6, 6), SMALL)
    torch.testing.assert_close(out, torch.full_like(out, 1.01**2), rtol=1e-5, atol=0)


def test_scores_stay_on_their_side_of_an_edge():
    images = torch.zeros(1, 3, 8, 8)
    images[..., 4:] = 1
    maps = torch.zeros(1, 1, 8, 8)
    maps[..., 2, 2] = 1
    out = par(images, maps, replace(SMALL, iterations=10))
    assert out[..., :4].sum() > 20 * out[..., 4:].sum()


def test_flat_pictures_and_single_pixels_are_finite():
    for size in [(1, 1), (5, 1), (6, 6)]:
        assert torch.isfinite(par(torch.ones(1, 3, *size), torch.rand(1, 2, *size))).all()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="expected"):
        par(torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 4, 4))


def test_pixels_without_any_score_are_shared_equally():
    image = torch.randint(0, 256, (3, 9, 9), dtype=torch.uint8)
    found = find_refiner("par")(image, torch.zeros(3, 9, 9))
    assert torch.equal(found, torch.full((3, 9, 9), 1 / 3))
