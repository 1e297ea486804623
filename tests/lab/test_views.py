"""Pictures and captions as a training sees them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from small_pretraining import TAUGHT, TINY, few_scenes, pairs_of
from tag2mask.lab.cache import Facts
from tag2mask.lab.views import Pairs, look, look_at_labels
from tag2mask.run.sampling import Draw
from tag2mask.storybook import CLASSES
from tag2mask.storybook.captions import says


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return few_scenes(tmp_path_factory.mktemp("cache"))


def test_a_sample_is_a_function_of_its_draw(scenes):
    pairs = pairs_of(scenes)
    first, again = pairs[Draw(3, 5)], pairs_of(scenes)[Draw(3, 5)]
    assert first[2:5] == again[2:5]
    assert len({pairs[Draw(step, 5)][3] for step in range(40)}) > 20
    for step in range(40):
        _, image, view, text, *_ = pairs[Draw(step, 5)]
        assert np.array_equal(image.numpy(), scenes.images[5])
        there = {*scenes.facts[5].names, *scenes.facts[5].things, "railway"}
        assert all(claim.any_of & there for claim in says(text)), text
        height, width, top, left = view[:4]
        assert TINY.crop <= height <= 1
        assert TINY.crop <= width <= 1
        assert 0 <= top <= 1 - height + 1e-9
        assert 0 <= left <= 1 - width + 1e-9


def test_captions_say_the_numbers_that_are_told(scenes):
    """Two cats where there are two: the numbers reach the caption."""
    told = (Facts(("cat",), (), (2,)), *scenes.facts[1:])
    pairs = Pairs(replace(scenes, facts=told), 0, TINY.crop, TINY.colour)
    said = " ".join(pairs[Draw(step, 0)].text for step in range(200))
    assert "two cats" in said
    assert "one cat" not in said


def test_a_view_is_a_crop_a_mirror_and_other_light():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (4, 20, 40, 3), dtype=np.uint8))
    plain = images.permute(0, 3, 1, 2).float() / 255
    whole = [1.0, 1.0, 0.0, 0.0]
    views = torch.tensor(
        [
            [*whole, 0.0, 0, 0, 0, 0],
            [*whole, 1.0, 0, 0, 0, 0],
            [0.5, 0.25, 0.25, 0.5, 0.0, 0, 0, 0, 0],
            [*whole, 0.0, 0.5, 0.1, 0.0, -0.1],
        ]
    )
    same, mirrored, _, light = look(images, views, (20, 40))
    torch.testing.assert_close(same, plain[0], atol=2e-5, rtol=0)
    torch.testing.assert_close(mirrored, plain[1].flip(-1), atol=2e-5, rtol=0)
    shift = torch.tensor([0.1, 0.0, -0.1])[:, None, None]
    torch.testing.assert_close(light, 1.5 * (plain[3] - 0.5) + 0.5 + shift, atol=5e-5, rtol=0)
    crop = look(images, views, (10, 10))[2]
    torch.testing.assert_close(crop, plain[2, :, 5:15, 20:30], atol=2e-5, rtol=0)


def test_a_mask_is_seen_through_the_window_of_its_picture():
    """Of a picture whose red is its mask, both views agree wherever the neighbours do."""
    rng = np.random.default_rng(1)
    labels = torch.from_numpy(rng.integers(0, 3, (6, 6, 10), dtype=np.uint8)).repeat_interleave(8, 1)
    labels = labels.repeat_interleave(8, 2)  # (6, 48, 80)
    images = (100 * labels)[..., None].expand(-1, -1, -1, 3)
    views = torch.from_numpy(rng.random((6, 9), dtype=np.float32))
    views[:, :2] = 0.5 + 0.5 * views[:, :2]
    views[:, 2:4] *= 1 - views[:, :2]
    views[:, 4], views[:, 5:] = torch.tensor([0.0, 1, 0, 1, 0, 1]), 0.0
    red = look(images, views, (40, 40))[:, 0] * 255 / 100
    seen = look_at_labels(labels, views, (40, 40))
    assert seen.dtype == torch.int64
    certain = (red - red.round()).abs() < 1e-3  # not between two labels
    assert certain.float().mean() > 0.6
    assert torch.equal(seen[certain], red[certain].round().long())


def test_a_batch_has_tags_and_where_there_are_any_masks(scenes):
    pairs = pairs_of(scenes, TAUGHT)
    batch = pairs.collate([pairs[Draw(0, i)] for i in (3, 7)])
    assert [[name in scenes.facts[i].names for name in CLASSES] for i in (3, 7)] == batch["tags"].tolist()
    assert np.array_equal(batch["labels"].numpy(), pairs.masks[[3, 7]])
    for shown, labels in zip(batch["tags"], batch["labels"], strict=True):
        assert {*labels.unique().tolist()} <= {0, *(int(i) + 1 for i in shown.nonzero())}
    plain = pairs_of(scenes)
    assert "labels" not in plain.collate([plain[Draw(0, 3)]])
