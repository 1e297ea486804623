"""What is near a contact, and how often prototypes are right there."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tag2mask.lab.contacts import Rightness, Touching, near_contacts, prototype_scores, rightness, touching_scenes
from tag2mask.models.weights import load_clip
from tag2mask.ops.superclasses import prototype_maps
from tag2mask.storybook import draw_scene, scene_seed

pytestmark = pytest.mark.usefixtures("one_thread")


def by_hand(truth, radius):
    rows, columns = truth.shape
    near = np.zeros(truth.shape, bool)
    for y in range(rows):
        for x in range(columns):
            others = np.argwhere((truth > 0) & (truth != truth[y, x]))
            near[y, x] = truth[y, x] > 0 and bool((np.hypot(*(others - (y, x)).T) <= radius).any())
    return near


@pytest.mark.parametrize("radius", [0, 1, 3, 4.5])
def test_near_contacts_by_brute_force(radius) -> None:
    rng = np.random.default_rng(int(radius))
    truth = np.kron(rng.integers(0, 4, (5, 6)), np.ones((4, 3), int))
    assert np.array_equal(near_contacts(torch.from_numpy(truth), radius).numpy(), by_hand(truth, radius))


def test_background_touches_nothing() -> None:
    truth = torch.zeros(8, 8, dtype=torch.int64)
    assert not near_contacts(truth).any()
    truth[2:4] = 1
    assert not near_contacts(truth).any()
    truth[6:] = 2
    assert torch.equal(near_contacts(truth, 4), truth > 0)
    assert not near_contacts(truth, 2).any()


def halves(maps, image=None):
    """Super-class 1 on the left, 2 on the right, background above; 16x16 pixels."""
    truth = torch.ones(16, 16, dtype=torch.int64)
    truth[:, 8:], truth[:4] = 2, 0
    picture = torch.zeros(3, 16, 16, dtype=torch.uint8) if image is None else image
    return Touching(picture, maps, truth, near_contacts(truth, 2))


def test_maps_are_right_as_far_as_they_reach() -> None:
    right = torch.zeros(2, 8, 8)
    right[0, :, :4], right[1, :, 4:] = 1, 1
    assert rightness([halves(right)]) == Rightness(100.0, 100.0, 1, 2 * 2 * 12)
    assert rightness([halves(right.flip(0))]).contacts == 0
    short = right.clone()
    short[0, :, 3], short[1, :, 3] = 0, 1  # two columns of the left half go to the right one
    found = rightness([halves(short), halves(right)])
    assert found.scenes == 2
    assert 0 < found.everywhere < 100
    assert found.contacts < found.everywhere


def test_prototypes_follow_features_where_maps_are_wrong() -> None:
    """Features that know the halves mend maps that do not quite; features that know nothing spoil them."""
    maps = torch.zeros(2, 8, 8)
    maps[0, :, :5], maps[1, :, 5:] = 1, 1  # a column too far
    knows = torch.zeros(1, 2, 16, 16)
    knows[0, 0, :, :8], knows[0, 1, :, 8:] = 1, 1
    scene = halves(maps)
    before, after = rightness([scene]), rightness([scene], lambda images: knows)
    assert before.contacts < 100
    assert after == Rightness(100.0, 100.0, 1, before.pixels)
    blind = F.normalize(torch.ones(1, 3, 16, 16), dim=1)
    assert rightness([scene], lambda images: blind).contacts == 50  # all go to the first


def test_prototype_scores_are_those_of_boundaries() -> None:
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    features = F.normalize(torch.randn(1, 5, 4, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    scores = prototype_scores(halves(maps), lambda images: features)
    near = prototype_maps(features[0].flatten(1), maps.flatten(1)).view(2, 4, 4)
    low, high = near.amin((1, 2), keepdim=True), near.amax((1, 2), keepdim=True)
    coarse = (near - low) / (high - low)
    assert scores.shape == (2, 16, 16)
    expected = F.interpolate(coarse[None], (16, 16), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


def test_scenes_without_contacts_say_nothing() -> None:
    scene = halves(torch.rand(2, 4, 4))
    with pytest.raises(ValueError, match="none of 1 scenes"):
        rightness([replace(scene, near=torch.zeros_like(scene.near))])


def test_scenes_with_two_super_classes_are_taken() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that storybook-clip knows no photographs: these are none
        clip = load_clip("storybook-clip")
    found = touching_scenes(clip, 5, size=(64, 96))
    animals, vehicles = {3, 8, 10, 12, 13, 17}, {1, 2, 4, 6, 7, 14, 19}
    home, furniture = {5, 16, 20}, {9, 11, 18}
    groups = (animals, vehicles, home, furniture, {15})  # in the order of the set
    expected = []
    for index in range(5):
        scene = draw_scene(scene_seed("val", 1, index), (64, 96))
        here = [group for group in groups if group & set(scene.tags)]
        if len(here) > 1:
            truth = sum(place * np.isin(scene.mask, list(group)) for place, group in enumerate(here, 1))
            expected.append((scene.image, truth))
    assert len(found) == len(expected) > 0
    for one, (image, truth) in zip(found, expected, strict=True):
        assert np.array_equal(one.image.permute(1, 2, 0).numpy(), image)
        assert np.array_equal(one.truth.numpy(), truth)
        assert one.maps.shape == (int(truth.max()), 8, 12)
        assert 0 <= float(one.maps.min()) <= float(one.maps.max()) <= 1
    assert rightness(found).pixels == sum(int(one.near.sum()) for one in found) > 0
