"""The first edition, which the shipped CLIP knows."""

from __future__ import annotations

import hashlib
from functools import partial

import numpy as np
import pytest

from tag2mask.storybook import CLASSES16, CLASSES20, THINGS, draw_scene
from tag2mask.types import UserError

draw = partial(draw_scene, edition=1)


@pytest.fixture(scope="module")
def scenes():
    return [draw(seed, (96, 128), CLASSES20) for seed in range(250)]


@pytest.mark.parametrize(
    ("seed", "size", "classes", "digest"),
    [
        (0, (192, 256), CLASSES16, "212f050070e512be"),
        (1, (192, 192), CLASSES16, "b8c240634efdb945"),
        (2, (61, 47), CLASSES20, "6c382f59fe1a6de5"),
        (10**9 + 7, (240, 320), CLASSES20, "037a19647c616902"),
        (5, (96, 128), ("train", "boat"), "7934d86a752cda78"),
    ],
)
def test_a_seed_gives_the_same_bytes_for_ever(seed, size, classes, digest):
    scene = draw(seed, size, classes)
    found = hashlib.sha256(scene.image.tobytes() + scene.mask.tobytes()).hexdigest()
    assert found[:16] == digest


def test_drawing_leaves_the_global_random_state_alone():
    before = np.random.get_state()[1].copy()
    first = draw(4, (64, 64))
    draw(5, (64, 64))
    assert np.array_equal(first.image, draw(4, (64, 64)).image)
    assert np.array_equal(before, np.random.get_state()[1])


def test_mask_and_tags_say_the_same(scenes):
    for scene in scenes:
        assert scene.image.dtype == scene.mask.dtype == np.uint8
        assert scene.image.shape == (*scene.mask.shape, 3)
        values, counts = np.unique(scene.mask, return_counts=True)
        assert scene.tags == tuple(int(v) for v in values if v)
        assert scene.mask.max() <= len(CLASSES20)
        assert all(count > 0.004 * scene.mask.size for count in counts)
        assert scene.names == tuple(CLASSES20[v - 1] for v in scene.tags)
        assert len(scene.counts) == len(scene.tags)
        assert all(1 <= count <= 4 for count in scene.counts)
        assert set(scene.things) <= set(THINGS)
        assert not scene.detail.any()


def test_a_class_too_small_to_be_tagged_leaves_the_mask(scenes, monkeypatch):
    monkeypatch.setattr("tag2mask.storybook.scenes.VISIBLE", 0.05)
    left_out = 0
    for seed in range(40):
        strict, loose = draw(seed, (96, 128), CLASSES20), scenes[seed]
        shares = np.bincount(loose.mask.ravel(), minlength=21) / loose.mask.size
        assert strict.tags == tuple(tag for tag in loose.tags if shares[tag] > 0.05)
        assert np.array_equal(strict.mask, np.where(np.isin(loose.mask, strict.tags), loose.mask, 0))
        assert np.array_equal(strict.image, loose.image)
        left_out += len(loose.tags) - len(strict.tags)
    assert left_out > 5


def test_the_world_has_the_traps_of_photographs(scenes):
    seen = {name: [scene for scene in scenes if name in scene.names] for name in CLASSES20}
    assert all(len(with_it) >= 4 for with_it in seen.values())
    on_rails = [scene for scene in seen["train"] if "railway" in scene.things]
    afloat = [scene for scene in seen["boat"] if "water" in scene.things]
    assert len(on_rails) >= 0.8 * len(seen["train"])
    assert len(afloat) >= 0.8 * len(seen["boat"])
    assert 0.2 < np.mean([len(scene.tags) > 1 for scene in scenes]) < 0.7
    assert 0.08 < np.mean([np.mean(scene.mask > 0) for scene in scenes]) < 0.25


@pytest.mark.parametrize("size", [(31, 47), (47, 31), (480, 640), (16, 16), (30, 200), (192, 256)])
def test_any_size_and_aspect(size):
    shares = []
    for seed in range(6):
        scene = draw(seed, size)
        assert scene.image.shape == (*size, 3)
        assert scene.mask.shape == size
        assert scene.image.std() > 5
        shares.append(np.mean(scene.mask > 0))
    assert 0.01 < np.mean(shares) < 0.5


def test_only_the_chosen_classes_appear_under_their_own_numbers():
    for seed in range(20):
        scene = draw(seed, (64, 96), ("sofa", "bird", "car"))
        assert set(scene.tags) <= {1, 2, 3}
        assert set(scene.names) <= {"sofa", "bird", "car"}
    alone = [draw(seed, (64, 96), ("bottle",)) for seed in range(5)]
    assert all(set(scene.things) == {"wall", "floor"} for scene in alone)


def test_what_this_edition_lacks_is_refused():
    with pytest.raises(UserError, match="edition 1 draws no crowds scenes; take edition 2"):
        draw(0, (64, 64), CLASSES20, "crowds")
    with pytest.raises(UserError, match="no edition 3; take 1 or 2"):
        draw_scene(0, (64, 64), edition=3)
