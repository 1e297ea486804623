"""IRN and PSA in float64, from the formulas of their papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from methods.refiner_cases import item_of, make, pixels_of
from tag2mask.methods.fitting.affinity import PriorMaps
from tag2mask.ops.masks import class_probabilities
from tag2mask.types import Constant, MaskRule

pytestmark = pytest.mark.usefixtures("one_thread")

# --- the whole refinement in float64, from the papers' formulas -----------------------------------------


def stretch(maps, factor):
    """Bilinear enlargement with half-pixel centres, one axis after the other, in float64."""

    def matrix(n):
        centres = np.clip((np.arange(n * factor) + 0.5) / factor - 0.5, 0, n - 1)
        low = np.floor(centres).astype(int)
        out = np.zeros((n * factor, n))
        out[np.arange(n * factor), low] += 1 - (centres - low)
        out[np.arange(n * factor), np.minimum(low + 1, n - 1)] += centres - low
        return out

    return np.einsum("Yy,kyx,Xx->kYX", matrix(maps.shape[1]), maps, matrix(maps.shape[2]))


def walk(affinity, x, beta, steps):
    """x T^steps with a dense n x n matrix whose columns sum to 1."""
    transition = affinity**beta
    transition /= transition.sum(0, keepdims=True)
    return (x.reshape(len(x), -1) @ np.linalg.matrix_power(transition, steps)).reshape(x.shape)


def near_pairs(height, width, radius):
    for y in range(height):
        for x in range(width):
            for other_y in range(height):
                for other_x in range(width):
                    dy, dx = other_y - y, other_x - x
                    if (dy > 0 or (dy == 0 and dx > 0)) and dy * dy + dx * dx < radius * radius:
                        yield y, x, dy, dx


def between(dy, dx):
    """Every cell of the box between the ends that is less than 1 away from their line."""
    for y in range(min(0, dy), max(0, dy) + 1):
        for x in range(min(0, dx), max(0, dx) + 1):
            if abs(dy * x - dx * y) / np.hypot(dy, dx) < 1:
                yield y, x


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_irn_refines_as_dense_arithmetic_does(seed, variant):
    method = make("irn", beta=3, walk_steps=5, walk_radius=3, variant=variant)
    with torch.no_grad():
        # boundaries that differ and are none of them sure; in a frame of 512 the norms make more of a small picture
        method.net.edge.edge.weight.mul_(8 if variant == "paper" else 0.2)
    method.maps = PriorMaps(MaskRule(background=Constant(0.15)))
    item = item_of(seed)
    (found,) = method.scores([item])

    pixels = pixels_of(item.image)
    views = torch.cat([pixels, pixels.flip(-1)])
    if variant == "released":
        padded = torch.zeros(2, 3, 512, 512)
        padded[..., :27, :38] = views
        views = padded
    with torch.no_grad():
        logits, displacement = method.net(method.backbone.features(views))
    logits = logits[:, 0, :7, :10].double().numpy()
    edge = 1 / (1 + np.exp(-(logits[0] + logits[1][:, ::-1]) / 2))
    full = class_probabilities(item.prior.scores(), MaskRule(background=Constant(0.15)))[1:].double().numpy()
    whole = np.pad(full, ((0, 0), (0, 1), (0, 2)), mode="edge")
    x = whole.reshape(2, 7, 4, 10, 4).mean((2, 4)) * (1 - edge)
    affinity = np.eye(70)
    for y, col, dy, dx in near_pairs(7, 10, 3):
        here, there = y * 10 + col, (y + dy) * 10 + col + dx
        highest = max(edge[y + a, col + b] for a, b in between(dy, dx))
        affinity[here, there] = affinity[there, here] = 1 - highest
    walked = walk(affinity, x, 3, 5)
    highest = stretch(walked, 4)[:, :27, :38].max()
    assert walked.max() > 1.001 * highest  # a cell above all pixels around it, which must not be cut
    wanted = stretch(walked / highest, 4)[:, :27, :38]
    got = class_probabilities(found, method.mask_rule)
    np.testing.assert_allclose(got[1:].numpy(), wanted, atol=2e-5)
    assert got[0].eq(0.25).all()
    np.testing.assert_allclose(found.boundary.numpy(), edge, atol=1e-5)
    assert edge.std() > 0.02
    near = 1e-5 * float(displacement.abs().max())
    torch.testing.assert_close(found.displacement, displacement[0, :, :7, :10], atol=near, rtol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("background", ["power:16", "constant:0.39"])
def test_psa_refines_as_dense_arithmetic_does(seed, background):
    method = make("psa", beta=2, walk_steps=5, radius=3, background=background)
    method.maps = PriorMaps(MaskRule(background=Constant(0.15)))
    item = item_of(seed, (59, 70))
    (found,) = method.scores([item])

    padded = torch.zeros(1, 3, 64, 72)
    padded[..., :59, :70] = pixels_of(item.image)
    with torch.no_grad():
        features = method.net(padded)[0].double().numpy()  # (C, 8, 9)
    full = class_probabilities(item.prior.scores(), MaskRule(background=Constant(0.15)))[1:].double().numpy()
    own = (1 - full.max(0)) ** 16 if background == "power:16" else np.full((59, 70), 0.39)
    stack = np.pad(np.concatenate([own[None], full]), ((0, 0), (0, 5), (0, 2)))
    x = stack.reshape(3, 8, 8, 9, 8).mean((2, 4))
    affinity = np.eye(72)
    for y, col, dy, dx in near_pairs(8, 9, 3):
        if y < 8 - 2 and 2 <= col < 9 - 2:  # only pixels with a whole half disc reach out
            here, there = y * 9 + col, (y + dy) * 9 + col + dx
            difference = np.abs(features[:, y, col] - features[:, y + dy, col + dx]).mean()
            affinity[here, there] = affinity[there, here] = np.exp(-difference)
    wanted = stretch(walk(affinity, x, 2, 5), 8)[:, :59, :70]
    np.testing.assert_allclose(class_probabilities(found, method.mask_rule).numpy(), wanted, atol=2e-5)
