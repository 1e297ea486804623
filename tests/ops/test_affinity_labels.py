from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tag2mask.ops.affinity_labels import (
    irn_labels,
    merge_irn,
    pair_labels,
    psa_labels,
    psa_scores,
    shrink_labels,
)
from tag2mask.ops.crf import dense_crf, preset, unary_from_labels
from tag2mask.ops.pairs import disc_offsets, path_offsets
from tag2mask.types import IGNORE

KINDS = {"background": "bg_pos", "foreground": "fg_pos", "different": "neg"}


@pytest.mark.parametrize(
    ("name", "radius", "offsets"),
    [("irn_affinity_labels_r10", 10, path_offsets(10)), ("psa_affinity_labels_loss", 5, disc_offsets(5))],
)
def test_pairs_equal_the_released_ones(golden, name, radius, offsets):
    recorded = golden(f"clims/{name}")
    labels = torch.tensor(recorded["seg"] if "seg" in recorded else recorded["label"])
    pairs = pair_labels(labels, offsets, radius)
    for mine, theirs in KINDS.items():
        assert np.array_equal(getattr(pairs, mine), recorded[theirs].astype(bool)), mine


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pairs_are_what_their_names_say(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 7, IGNORE], (2, 7, 10)).astype(np.uint8)
    offsets = path_offsets(3)
    pairs = pair_labels(torch.tensor(labels), offsets, 3)
    for image in range(2):
        for p, (dy, dx) in enumerate(offsets):
            for s, (y, x) in enumerate((y, x) for y in range(7 - 2) for x in range(2, 10 - 2)):
                a, b = labels[image, y, x], labels[image, y + dy, x + dx]
                known = IGNORE not in (a, b)
                assert pairs.background[image, p, s] == (a == b == 0)
                assert pairs.foreground[image, p, s] == (known and a == b != 0)
                assert pairs.different[image, p, s] == (known and a != b)


@pytest.mark.parametrize(("size", "factor"), [((64, 64), 4), ((24, 40), 8), ((30, 21), 3), ((8, 6), 2), ((5, 4), 1)])
def test_labels_shrink_as_in_pillow(size, factor):
    labels = np.random.default_rng(0).integers(0, 255, size).astype(np.uint8)
    picture = Image.fromarray(labels).resize((size[1] // factor, size[0] // factor), Image.Resampling.NEAREST)
    assert np.array_equal(shrink_labels(torch.tensor(labels), factor), np.asarray(picture))


def test_labels_shrink_as_in_irn(golden):
    recorded = golden("clims/irn_imutils")
    assert np.array_equal(shrink_labels(torch.tensor(recorded["lab"]), 4), recorded["lab_quarter_nearest"])


def test_merging_by_hand():
    sure, wide = torch.tensor([[0, 2, 0, 2]]), torch.tensor([[0, 0, 2, 2]])
    assert merge_irn(sure, wide, torch.tensor([4, 9])).tolist() == [[0, 9, IGNORE, 9]]


def scene(seed, size=(24, 30)):
    rng = np.random.default_rng(seed)
    image = np.kron(rng.integers(0, 255, (3, 4, 5)), np.ones((1, 6, 6))).astype(np.uint8)[:, : size[0], : size[1]]
    maps = np.kron(rng.random((2, 4, 5)), np.ones((1, 6, 6)))[:, : size[0], : size[1]] ** 2
    return torch.tensor(image), torch.tensor(maps, dtype=torch.float32)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_irn_labels_pixel_by_pixel(seed):
    image, maps = scene(seed)
    tags = torch.tensor([3, 12])
    labels = irn_labels(image, maps, tags, foreground=0.3, background=0.1)
    found = []
    for threshold in (0.3, 0.1):
        top, where = maps.max(0)
        hard = torch.where(top > threshold, where + 1, 0)
        found.append(dense_crf(image, unary_from_labels(hard, 3, gt_prob=0.7), preset("irn")).argmax(0))
    for mine, fg, bg in zip(labels.flatten(), found[0].flatten(), found[1].flatten(), strict=True):
        assert mine == (tags[fg - 1] if fg else 0 if not bg else IGNORE)
    assert set(labels.unique().tolist()) <= {0, 3, 12, IGNORE}
    assert len(labels.unique()) > 2


def test_the_low_threshold_decides_what_is_sure_background():
    """Maps of .07 everywhere but in one corner: background at CLIMS's .10, undecided at IRN's .05."""
    image = torch.full((3, 24, 30), 90, dtype=torch.uint8)
    maps = torch.full((1, 24, 30), 0.07)
    tags = torch.tensor([5])
    assert irn_labels(image, maps, tags, background=0.10).eq(0).all()
    assert irn_labels(image, maps, tags, background=0.05).eq(IGNORE).all()


def test_images_without_classes_are_background():
    image, none = scene(0)[0], torch.zeros(0, 24, 30)
    assert irn_labels(image, none, torch.tensor([], dtype=torch.long)).eq(0).all()
    assert psa_scores(image, none, 4).eq(1).all()
    with pytest.raises(ValueError, match="at the image's size"):
        irn_labels(image, torch.zeros(1, 6, 6), torch.tensor([1]))


def test_psa_labels_equal_the_released_ones(golden):
    recorded = golden("clims/psa_la_ha_combine")
    low, high = (torch.tensor(recorded[key]) for key in ("score_la", "score_ha"))
    labels = psa_labels(low, high, torch.tensor([1, 2]), cell=1)
    assert np.array_equal(labels, recorded["local_label"])


def test_psa_scores_equal_the_released_ones(golden):
    recorded = golden("clims/crf_psa")
    image = torch.tensor(recorded["img"]).permute(2, 0, 1)
    for alpha, name in ((4, "crf_la"), (32, "crf_ha")):
        scores = psa_scores(image, torch.tensor(recorded["cams"]), alpha)
        np.testing.assert_allclose(scores, recorded[name], atol=2e-2)


def test_psa_cells_are_means():
    """Background wins in one pixel of the four, but not in their mean; a cell of padding is ignored."""
    low = torch.tensor([[[0.9, 0.2], [0.2, 0.2]], [[0.1, 0.8], [0.8, 0.8]]])  # (2, 2, 2)
    low = torch.cat([low, torch.zeros(2, 2, 2)], 2)
    assert psa_labels(low, low, torch.tensor([6]), cell=2).tolist() == [[6, IGNORE]]
    flipped = low.flip(0)  # the class wins by the strong background's scores alone
    assert psa_labels(flipped, low, torch.tensor([6]), cell=2).tolist() == [[IGNORE, IGNORE]]
    assert psa_labels(low, flipped, torch.tensor([6]), cell=2).tolist() == [[0, IGNORE]]
