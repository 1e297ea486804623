from __future__ import annotations

import hashlib
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from scipy import ndimage

from tag2mask.classes import load_classes
from tag2mask.storybook import CLASSES, THINGS, TRAPS, draw_scene
from tag2mask.storybook.canvas import PART, Canvas
from tag2mask.storybook.cast import COMPANY, RELATIVES
from tag2mask.storybook.layout import plan
from tag2mask.storybook.light import compress
from tag2mask.storybook.scenes import paint
from tag2mask.types import UserError


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(seed, (96, 128), CLASSES) for seed in range(200)]


@pytest.fixture(scope="module")
def trapped():
    return {kind: [draw_scene(seed, (96, 128), CLASSES, kind) for seed in range(25)] for kind in TRAPS}


def hashes(scene):
    image = hashlib.sha256(scene.image.tobytes()).hexdigest()[:16]
    return image, hashlib.sha256(scene.mask.tobytes() + scene.detail.tobytes()).hexdigest()[:16]


SIXTEEN = tuple(name for name in CLASSES if name not in ("bicycle", "diningtable", "motorbike", "sofa"))
CASES = [
    (0, (192, 256), SIXTEEN, "mixed"),
    (1, (37, 211), CLASSES, "mixed"),
    (10**9 + 7, (240, 320), CLASSES, "mixed"),
    (5, (96, 128), ("train", "boat"), "cooccurrence"),
    (6, (192, 192), CLASSES, "adjacency"),
    (7, (128, 96), CLASSES, "crowds"),
]
HASHES = [
    ("79c9c4b898c1b579", "75da84161cb5be00"),
    ("7eba02d8dde11d76", "81491065a2e69c86"),
    ("bdf860690a1d82f0", "5f7310cb16dfe02d"),
    ("cbcf453d4b58812b", "2dd6b73abbf175f2"),
    ("26856f006b1f6697", "e09bcabed8073714"),
    ("e2edd364a5221ee7", "7c2747aeb48e0f13"),
]


@pytest.mark.parametrize(("case", "expected"), list(zip(CASES, HASHES, strict=True)))
def test_a_seed_gives_the_same_bytes_for_ever(case, expected):
    assert hashes(draw_scene(*case)) == expected


def test_another_process_draws_the_same_bytes():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert hashes(pool.submit(draw_scene, *CASES[4]).result()) == hashes(draw_scene(*CASES[4]))


def test_drawing_leaves_the_global_random_state_alone():
    before = np.random.get_state()[1].copy()
    first = draw_scene(4, (64, 64))
    draw_scene(5, (64, 64))
    assert np.array_equal(first.image, draw_scene(4, (64, 64)).image)
    assert np.array_equal(before, np.random.get_state()[1])


def test_mask_tags_counts_and_detail_say_the_same(scenes):
    for scene in scenes:
        assert scene.image.dtype == scene.mask.dtype == scene.detail.dtype == np.uint8
        assert scene.image.shape == (*scene.mask.shape, 3)
        assert scene.detail.shape == scene.mask.shape
        values, counts = np.unique(scene.mask, return_counts=True)
        assert scene.tags == tuple(int(v) for v in values if v)
        assert 1 <= len(scene.tags) == len(scene.counts)
        assert all(count >= 1 for count in scene.counts)
        assert all(count > 0.004 * scene.mask.size for count in counts[values > 0])
        assert scene.names == tuple(CLASSES[v - 1] for v in scene.tags)
        inside = scene.mask > 0
        assert set(np.unique(scene.detail[inside])) <= {0, PART}
        assert not (scene.detail[~inside] == PART).any()


def test_things_are_those_that_are_seen(scenes):
    for scene in scenes:
        shares = np.bincount(scene.detail.ravel(), minlength=256) / scene.mask.size
        assert scene.things == tuple(name for t, name in enumerate(THINGS) if shares[t + 1] > 0.005)
    seen = {thing for scene in scenes for thing in scene.things}
    assert len(seen) >= 20


@pytest.mark.parametrize("kind", ["mixed", "adjacency", "crowds"])
def test_each_layer_covers_what_it_covers_alone(kind):
    """Every figure is drawn alone; laid over each other, far to near, they give the labels of the scene."""
    for seed in range(12):
        _, layers, _ = plan(np.random.default_rng(seed), (96, 128), CLASSES, kind)
        ground = np.full((96, 128, 3), 200, np.uint8), np.full((96, 128), 63, np.uint8)
        together = Canvas(*ground)
        paint(together, layers, CLASSES)
        mask, detail, figures = np.zeros((3, 96, 128), np.uint8)
        detail[:] = 63
        count = 0
        for layer in layers:
            alone = Canvas(*ground)
            paint(alone, [layer], CLASSES)
            own = alone.detail() != 63
            mask[own], detail[own] = alone.mask()[own], alone.detail()[own]
            figures[own] = np.where(alone.figures()[own] > 0, alone.figures()[own] + count, 0)
            count += len(getattr(layer, "names", ()))
        assert count > 0
        assert np.array_equal(together.mask(), mask)
        assert np.array_equal(together.detail(), detail)
        assert np.array_equal(together.figures(), figures)


def test_a_scene_is_its_layers():
    """The mask of a scene is that of its plan, painted; where it was right at the first attempt."""
    equal = 0
    for seed in range(20):
        stage, layers, _ = plan(np.random.default_rng(seed), (96, 128), CLASSES, "mixed")
        paint(stage.canvas, layers, CLASSES)
        scene = draw_scene(seed, (96, 128), CLASSES)
        kept = np.isin(stage.canvas.mask(), scene.tags)
        equal += np.array_equal(np.where(kept, stage.canvas.mask(), 0), scene.mask)
    assert equal >= 14


def test_a_class_too_small_to_be_tagged_leaves_the_mask(scenes, monkeypatch):
    monkeypatch.setattr("tag2mask.storybook.scenes.VISIBLE", 0.1)
    left_out = 0
    for seed in range(40):
        strict, loose = draw_scene(seed, (96, 128), CLASSES), scenes[seed]
        if not np.array_equal(strict.image, loose.image):
            continue  # drawn again: nothing or too little was left
        shares = np.bincount(loose.mask.ravel(), minlength=21) / loose.mask.size
        assert strict.tags == tuple(tag for tag in loose.tags if shares[tag] > 0.1)
        assert np.array_equal(strict.mask, np.where(np.isin(loose.mask, strict.tags), loose.mask, 0))
        left_out += len(loose.tags) - len(strict.tags)
    assert left_out > 3


def test_sizes_and_numbers_are_those_of_photographs(scenes):
    areas = [np.mean(scene.mask == tag) for scene in scenes for tag in scene.tags]
    assert 0.13 < np.median(areas) < 0.22
    assert np.quantile(areas, 0.05) < 0.04
    assert 0.4 < np.quantile(areas, 0.98) <= 0.62
    numbers = np.bincount([len(scene.tags) for scene in scenes], minlength=5)
    assert numbers[1] + numbers[2] > 0.75 * len(scenes)
    assert numbers[3] + numbers[4] > 0.02 * len(scenes)
    assert 0.2 < np.mean([max(scene.counts) > 1 for scene in scenes]) < 0.8
    border = [np.r_[s.mask[0], s.mask[-1], s.mask[:, 0], s.mask[:, -1]].any() for s in scenes]
    assert 0.2 < np.mean(border) < 0.8
    seen = [name for scene in scenes for name in scene.names]
    assert all(seen.count(name) >= 5 for name in CLASSES)


def test_cooccurrence_is_mostly_but_not_always(trapped):
    together = [
        COMPANY[name] in scene.things for scene in trapped["cooccurrence"] for name in scene.names if name in COMPANY
    ]
    assert 0.6 < np.mean(together) < 1
    assert any(not set(scene.names) & set(COMPANY) for scene in trapped["cooccurrence"])


def beside(scene, a, b):
    there = [scene.mask == CLASSES.index(name) + 1 for name in (a, b)]
    return bool((ndimage.binary_dilation(there[0], np.ones((3, 3))) & there[1]).any())


def test_riders_touch_what_carries_them(trapped):
    pairs = [("person", m) for m in ("horse", "bicycle", "motorbike", "chair")]
    pairs += [
        ("dog", "sofa"),
        ("cat", "sofa"),
        ("cat", "chair"),
        ("bottle", "diningtable"),
        ("pottedplant", "diningtable"),
    ]
    for scene in trapped["adjacency"]:
        assert any(beside(scene, *pair) for pair in pairs if set(pair) <= set(scene.names)), scene.names


def test_relatives_touch(trapped):
    for scene in trapped["contact"]:
        pairs = [(a, b) for family in RELATIVES for a in family for b in family if a < b]
        assert any(beside(scene, *pair) for pair in pairs if set(pair) <= set(scene.names)), scene.names


def test_parts_stand_out(trapped):
    for scene in trapped["parts"]:
        assert np.mean(scene.mask > 0) > 0.18
        assert (scene.detail == PART).sum() > 0.1 * (scene.mask > 0).sum()


def test_small_objects_are_small(trapped):
    for scene in trapped["small"]:
        for tag, count in zip(scene.tags, scene.counts, strict=True):
            assert np.mean(scene.mask == tag) < 0.03 * (count + 0.5)


def test_crowds_are_many_of_several_classes(trapped):
    for scene in trapped["crowds"]:
        assert sum(scene.counts) >= 4
    assert np.mean([sum(scene.counts) for scene in trapped["crowds"]]) > 5.5
    assert np.mean([len(scene.tags) >= 2 for scene in trapped["crowds"]]) > 0.9


@pytest.mark.parametrize("size", [(16, 16), (37, 211), (211, 37), (400, 1000), (192, 256)])
def test_any_size_and_aspect(size):
    for kind in ("mixed", "crowds"):
        for seed in range(4 if size[1] < 500 else 1):
            scene = draw_scene(seed, size, CLASSES, kind)
            assert scene.image.shape == (*size, 3)
            assert scene.mask.shape == scene.detail.shape == size
            assert scene.image.std() > 4
            assert 0.003 < np.mean(scene.mask > 0) < 0.9


def test_only_the_chosen_classes_appear_under_their_own_numbers():
    for seed in range(20):
        scene = draw_scene(seed, (64, 96), ("sofa", "bird", "car"))
        assert set(scene.tags) <= {1, 2, 3}
        assert set(scene.names) <= {"sofa", "bird", "car"}


def test_compression_makes_blocks_and_keeps_a_flat_picture():
    flat = np.full((21, 30, 3), (90, 140, 60), np.uint8)
    assert np.abs(compress(flat, 1.0).astype(int) - flat).max() <= 12
    noisy = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    fine, coarse = (np.abs(compress(noisy, c).astype(int) - noisy).mean() for c in (0.1, 4.0))
    assert fine < 6 < coarse
    steps = np.abs(np.diff(compress(noisy, 8.0).astype(float), axis=1)).mean((0, 2))  # (63,)
    assert steps[7::8].mean() > 1.15 * np.delete(steps, np.s_[7::8]).mean()


def test_classes_are_those_of_the_class_sets():
    assert load_classes("voc12").foreground == CLASSES
    assert len(THINGS) == len(set(THINGS)) == 24


@pytest.mark.parametrize(
    ("size", "classes", "kind", "message"),
    [
        ((64, 64), ("cat", "hors"), "mixed", "'hors' (did you mean 'horse'?)"),
        ((64, 64), ("cat", "cat"), "mixed", "only once"),
        ((64, 64), (), "mixed", "at least one class"),
        ((64, 8), ("cat",), "mixed", "64x8 pixels is too small"),
        ((64, 64), ("cat",), "traps", "no kind of scene 'traps'"),
        ((64, 64), ("cat", "bus"), "contact", "no contact scene can be drawn of cat, bus"),
    ],
)
def test_impossible_scenes_are_refused(size, classes, kind, message):
    with pytest.raises(UserError, match=re.escape(message)):
        draw_scene(0, size, classes, kind)
