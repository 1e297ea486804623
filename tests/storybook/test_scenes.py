from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

from tag2mask.classes import load_classes
from tag2mask.storybook import CLASSES16, CLASSES20, draw_scene
from tag2mask.types import UserError


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(seed, (96, 128), CLASSES20) for seed in range(250)]


@pytest.mark.parametrize(
    ("seed", "size", "classes", "digest"),
    [
        (0, (192, 256), CLASSES16, "a2d2d8a5e03536a7"),
        (1, (192, 192), CLASSES16, "b78794f0d40969a3"),
        (2, (61, 47), CLASSES20, "211dfd81fb998066"),
        (10**9 + 7, (240, 320), CLASSES20, "5182ca4a7e939e5a"),
        (5, (96, 128), ("train", "boat"), "96d98bdbb1925ace"),
    ],
)
def test_a_seed_gives_the_same_bytes_for_ever(seed, size, classes, digest):
    scene = draw_scene(seed, size, classes)
    found = hashlib.sha256(scene.image.tobytes() + scene.mask.tobytes()).hexdigest()
    assert found[:16] == digest


def test_drawing_leaves_the_global_random_state_alone():
    before = np.random.get_state()[1].copy()
    first = draw_scene(4, (64, 64))
    draw_scene(5, (64, 64))
    assert np.array_equal(first.image, draw_scene(4, (64, 64)).image)
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


def test_a_class_too_small_to_be_tagged_leaves_the_mask(scenes, monkeypatch):
    monkeypatch.setattr("tag2mask.storybook.scenes.VISIBLE", 0.05)
    left_out = 0
    for seed in range(40):
        strict, loose = draw_scene(seed, (96, 128), CLASSES20), scenes[seed]
        shares = np.bincount(loose.mask.ravel(), minlength=21) / loose.mask.size
        assert strict.tags == tuple(tag for tag in loose.tags if shares[tag] > 0.05)
        assert np.array_equal(strict.mask, np.where(np.isin(loose.mask, strict.tags), loose.mask, 0))
        assert np.array_equal(strict.image, loose.image)
        left_out += len(loose.tags) - len(strict.tags)
    assert left_out > 5


def test_the_world_has_the_traps_of_photographs(scenes):
    seen = {name: [scene for scene in scenes if name in scene.names] for name in CLASSES20}
    assert all(len(with_it) >= 4 for with_it in seen.values())
    on_rails = [scene for scene in seen["train"] if {"railroad", "railway"} & set(scene.things)]
    afloat = [scene for scene in seen["boat"] if "water" in scene.things]
    assert len(on_rails) >= 0.8 * len(seen["train"])
    assert len(afloat) >= 0.8 * len(seen["boat"])
    assert 0.2 < np.mean([len(scene.tags) > 1 for scene in scenes]) < 0.7
    assert 0.08 < np.mean([np.mean(scene.mask > 0) for scene in scenes]) < 0.25


@pytest.mark.parametrize("size", [(31, 47), (47, 31), (480, 640), (16, 16), (30, 200), (192, 256)])
def test_any_size_and_aspect(size):
    shares = []
    for seed in range(6):
        scene = draw_scene(seed, size)
        assert scene.image.shape == (*size, 3)
        assert scene.mask.shape == size
        assert scene.image.std() > 5
        shares.append(np.mean(scene.mask > 0))
    assert 0.01 < np.mean(shares) < 0.5


def test_only_the_chosen_classes_appear_under_their_own_numbers():
    for seed in range(20):
        scene = draw_scene(seed, (64, 96), ("sofa", "bird", "car"))
        assert set(scene.tags) <= {1, 2, 3}
        assert set(scene.names) <= {"sofa", "bird", "car"}
    alone = [draw_scene(seed, (64, 96), ("bottle",)) for seed in range(5)]
    assert all(set(scene.things) == {"wall", "floor"} for scene in alone)


def test_classes_are_those_of_the_class_sets():
    assert load_classes("storybook16").foreground == CLASSES16
    assert load_classes("voc12").foreground == CLASSES20


@pytest.mark.parametrize(
    ("size", "classes", "message"),
    [
        ((64, 64), ("cat", "hors"), "'hors'; did you mean 'horse'"),
        ((64, 64), ("cat", "cat"), "only once"),
        ((64, 64), (), "at least one class"),
        ((64, 8), ("cat",), "64x8 pixels is too small"),
    ],
)
def test_impossible_scenes_are_refused(size, classes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        draw_scene(0, size, classes)
