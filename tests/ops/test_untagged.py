"""Untagged classes that win (``MaskRule.others``), and refiners of masks by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ops.test_masks import bilinear, picture, uniform
from tag2mask.ops import refiners
from tag2mask.ops.crf import PRESETS, dense_crf, preset, unary_from_labels, unary_from_probs
from tag2mask.ops.masks import (
    best_others,
    class_probabilities,
    full_maps,
    ignore_untagged,
    pseudo_mask,
    refine,
    to_labels,
)
from tag2mask.ops.metrics import BackgroundSweep, confusion_matrix
from tag2mask.ops.refiners import REFINERS, find_refiner
from tag2mask.run.scores import encode_scores, read_scores
from tag2mask.types import IGNORE, Constant, MaskRule, Others, Own, Power, Scores, UserError

TAGS = torch.tensor([3, 7])


def scores_with(background, maps, others, values) -> Scores:
    """One row of pixels, a cell each."""
    row = [torch.tensor([each], dtype=torch.float32) for each in (background, others)]
    return Scores(
        TAGS,
        torch.tensor(maps)[:, None],
        (1, len(others)),
        background=row[0],
        others=Others(row[1], torch.tensor([values], dtype=torch.uint8)),
    )


#                      background, tag 3, tag 7, untagged (its class) -> what each choice makes of it
TRUTH_TABLE = [
    ((0.9, 0.1, 0.1, 0.1, 5), {"never": 0, "ignore": 0, "keep": 0}),  # background wins
    ((0.1, 0.9, 0.1, 0.1, 5), {"never": 3, "ignore": 3, "keep": 3}),  # a tag wins
    ((0.1, 0.2, 0.8, 0.7, 5), {"never": 7, "ignore": 7, "keep": 7}),
    ((0.1, 0.3, 0.2, 0.9, 5), {"never": 3, "ignore": IGNORE, "keep": 5}),  # an untagged class wins
    ((0.4, 0.3, 0.2, 0.9, 9), {"never": 0, "ignore": IGNORE, "keep": 9}),
    ((0.1, 0.5, 0.2, 0.5, 5), {"never": 3, "ignore": 3, "keep": 3}),  # on a tie the tag wins,
    ((0.5, 0.1, 0.2, 0.5, 5), {"never": 0, "ignore": 0, "keep": 0}),  # and background
]


@pytest.mark.parametrize("others", ["never", "ignore", "keep"])
def test_the_truth_table(others):
    background, one, two, best, values = zip(*(row for row, _ in TRUTH_TABLE), strict=True)
    scores = scores_with(background, [one, two], best, values)
    rule = MaskRule(background=Own(), others=others)
    mask, confidence = pseudo_mask(scores, picture(1, len(best)), rule)
    assert mask.dtype == torch.uint8
    assert mask[0].tolist() == [wanted[others] for _, wanted in TRUTH_TABLE]
    top = torch.tensor([max(row[1:3] if others == "never" else row[1:4]) for row, _ in TRUTH_TABLE])
    share = top / (top + torch.tensor(background))  # the background that was scored is a rival, too
    torch.testing.assert_close(confidence[0], torch.maximum(share, 1 - share))  # of whatever wins
    unsure, _ = pseudo_mask(scores, picture(1, len(best)), replace(rule, mu=0.85))
    assert torch.equal(unsure, torch.where(confidence < 0.85, torch.full_like(mask, IGNORE), mask))
    nothing = Scores(TAGS[:0], torch.zeros(0, 1, 1), (1, 4))  # known to hold no class: no scores are asked for
    mask, confidence = pseudo_mask(nothing, picture(1, 4), rule)
    assert (mask.tolist(), confidence.tolist()) == ([[0] * 4], [[1.0] * 4])


def test_untagged_classes_matter_only_where_the_rule_says_so():
    scores = Scores(TAGS, uniform(2, 3, 4), (9, 12))
    with_others = replace(scores, others=Others(2 * uniform(3, 4), torch.full((3, 4), 5, dtype=torch.uint8)))
    for rule in (MaskRule(), MaskRule(normalise="image", refiner="irn"), MaskRule(normalise="class")):
        found, again = (pseudo_mask(each, picture(9, 12), rule) for each in (scores, with_others))
        assert torch.equal(found[0], again[0])
        assert torch.equal(found[1], again[1])
    for others in ("ignore", "keep"):
        with pytest.raises(UserError, match="untagged classes score, but these scores do not say"):
            pseudo_mask(scores, picture(9, 12), MaskRule(others=others))


def test_the_untagged_map_is_one_map_more():
    """Upsampled, cropped and normalised like the others; background is scored against it too."""
    size, frame = (8, 11), (13, 18)
    maps, best = uniform(2, 3, 4), 3 * uniform(3, 4, seed=2)
    values = torch.arange(20, 32, dtype=torch.uint8).view(3, 4)
    scores = Scores(TAGS, maps, size, frame=frame, others=Others(best, values))
    up = np.stack([bilinear(m, frame)[:8, :11] for m in torch.cat([maps, best[None]]).numpy()])
    rule = MaskRule(background=Power(2), normalise="image", others="keep")
    wanted = (up - up.min()) / (up.max() - up.min())
    np.testing.assert_allclose(full_maps(scores, rule).numpy(), wanted, atol=1e-5)
    found = class_probabilities(scores, rule)
    np.testing.assert_allclose(found[0].numpy(), (1 - wanted.max(0)) ** 2, atol=1e-5)
    np.testing.assert_allclose(found[1:].numpy(), wanted, atol=1e-5)
    mask, _ = pseudo_mask(scores, picture(*size), rule)
    rows, columns = (((np.arange(n) + 0.5) * cells // whole) for n, cells, whole in ((8, 3, 13), (11, 4, 18)))
    nearest = values.numpy()[rows.astype(int)][:, columns.astype(int)]
    won = found.argmax(0).numpy() == 3
    assert won.mean() > 0.2
    assert (mask.numpy()[won] == nearest[won]).all()
    assert not (mask.numpy()[~won] >= 20).any()
    ignored, _ = pseudo_mask(scores, picture(*size), replace(rule, others="ignore"))
    assert ((ignored == IGNORE).numpy() == won).all()


@pytest.mark.parametrize("others", ["ignore", "keep"])
def test_the_refiner_has_one_label_for_untagged_classes(others):
    values = torch.randint(1, 3, (3, 4), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    scores = Scores(TAGS, uniform(2, 3, 4), (12, 16), others=Others(uniform(3, 4, seed=3), values))
    rule = MaskRule(background=Constant(0.3), refiner="clip-es", others=others)
    image = picture(12, 16)
    energy = unary_from_probs(class_probabilities(scores, rule))
    assert len(energy) == 4
    wanted = dense_crf(image, energy, preset("clip-es"))
    mask, confidence = pseudo_mask(scores, image, rule)
    torch.testing.assert_close(confidence, wanted.amax(0))
    won = wanted.argmax(0) == 3
    assert won.any()
    assert not won.all()
    tagged = to_labels(wanted[:3], TAGS)
    known = torch.repeat_interleave(torch.repeat_interleave(values, 4, 0), 4, 1)
    assert torch.equal(mask, torch.where(won, known if others == "keep" else torch.tensor(IGNORE).byte(), tagged))


def test_the_best_of_the_untagged_classes():
    maps = uniform(6, 3, 4)
    found = best_others(maps, torch.tensor([2, 5]))
    rest = maps[[0, 2, 3, 5]]
    assert torch.equal(found.score, rest.amax(0))
    assert torch.equal(found.values, torch.tensor([1, 3, 4, 6])[rest.argmax(0)].byte())
    none = best_others(maps, torch.arange(1, 7))
    assert (none.score.unique().tolist(), none.values.unique().tolist()) == ([0], [IGNORE])
    assert none.score.shape == none.values.shape == (3, 4)


def test_untagged_scores_are_stored_with_the_others(tmp_path):
    plain = Scores(TAGS, uniform(2, 3, 4), (9, 12))
    scores = replace(plain, others=Others(uniform(3, 4, seed=5), torch.full((3, 4), 200, dtype=torch.uint8)))
    path = tmp_path / "a.npz"
    path.write_bytes(encode_scores(scores))
    found = read_scores(path).others
    torch.testing.assert_close(found.score, scores.others.score, rtol=2**-11, atol=0)
    assert found.score.dtype == torch.float32
    assert torch.equal(found.values, scores.others.values)
    path.write_bytes(encode_scores(plain))
    assert read_scores(path).others is None


@pytest.mark.parametrize("others", ["ignore", "keep"])
@pytest.mark.parametrize("normalise", ["none", "image"])
def test_the_sweep_equals_labelling_anew_with_untagged_classes(others, normalise):
    rules = [Power(a) for a in (0.5, 1, 3)] + [Constant(t) for t in (0.2, 0.5, 0.8)]
    sweep, size = BackgroundSweep(rules, 6), (20, 24)
    oracle = torch.zeros(len(rules), 6, 7, dtype=torch.int64)
    for seed, tags in enumerate([(2, 5), (1,)]):
        tag = torch.tensor(tags)
        maps = uniform(5, 5, 6, seed=seed)
        scores = Scores(tag, maps[tag - 1], size, others=best_others(maps, tag))
        truth = torch.randint(0, 6, size, generator=torch.Generator().manual_seed(seed)).byte()
        for index, background in enumerate(rules):
            rule = MaskRule(background=background, normalise=normalise, others=others)
            oracle[index] += confusion_matrix(truth, pseudo_mask(scores, picture(*size), rule)[0], 6)
        nearest = torch.repeat_interleave(torch.repeat_interleave(scores.others.values, 4, 0), 4, 1)
        labels = nearest if others == "keep" else torch.full(size, IGNORE, dtype=torch.uint8)
        sweep.update(truth, full_maps(scores, MaskRule(normalise=normalise, others=others)), tag, labels)
    assert torch.equal(sweep.confusion(), oracle)
    assert (oracle[..., -1].sum() > 0) == (others == "ignore")


def test_a_networks_labels_by_equation_14():
    labels = torch.tensor([[0, 1, 2], [3, 2, 254]], dtype=torch.uint8)
    assert ignore_untagged(labels, [2]).tolist() == [[0, IGNORE, 2], [IGNORE, 2, IGNORE]]
    assert ignore_untagged(labels, []).tolist() == [[0, IGNORE, IGNORE], [IGNORE, IGNORE, IGNORE]]


# --- refiners ----------------------------------------------------------------------------------------------------


def test_every_crf_preset_is_a_refiner():
    image, probs = picture(10, 13), uniform(3, 10, 13)
    assert set(PRESETS) <= set(REFINERS)
    for name in ("clip-es", "psa", "dsrg-train"):
        wanted = dense_crf(image, unary_from_probs(probs), PRESETS[name])
        assert torch.equal(refine(image, probs, MaskRule(refiner=name)), wanted)


def test_every_refiner_gives_posteriors():
    image, probs = picture(10, 13), uniform(3, 10, 13)
    kept = image.clone(), probs.clone()
    for name, refiner in REFINERS.items():
        found = refiner(image, probs)
        assert (found.shape, found.dtype) == (probs.shape, torch.float32), name
        torch.testing.assert_close(found.sum(0), torch.ones(10, 13), msg=name)
        assert found.min() >= 0, name
        assert torch.equal(image, kept[0]), name
        assert torch.equal(probs, kept[1]), name


@pytest.mark.parametrize("labels", [1, 2, 5])
def test_a_refiner_on_labels_sees_what_wins_and_nothing_else(labels):
    """As IRN's and POT's label CRF: a label is right with probability 0.7."""
    image, probs = picture(12, 15), uniform(labels, 12, 15)
    hard = probs.argmax(0)
    wanted = dense_crf(image, unary_from_labels(hard, labels, gt_prob=0.7), preset("pot"))
    found = refine(image, probs, MaskRule(refiner="pot", refiner_on="labels"))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    other = probs.clone()
    other[hard, torch.arange(12)[:, None], torch.arange(15)] += 3  # another score, the same winner
    assert torch.equal(refine(image, other, MaskRule(refiner="pot", refiner_on="labels")), found)
    if labels > 1:
        assert (refine(image, probs, MaskRule(refiner="pot")) - found).abs().max() > 1e-3


def test_a_shrunk_image_has_its_labels_at_its_own_size(monkeypatch):
    """Of a large image the shrunk scores decide, so that no label lies between two."""
    seen = []
    monkeypatch.setattr(refiners, "REFINERS", {"see": lambda image, probs: seen.append(probs) or probs})
    refine(picture(16, 16), uniform(3, 16, 16), MaskRule(refiner="see", refiner_on="labels"), refine_max_pixels=64)
    torch.testing.assert_close(seen[0].amax(0), torch.full((8, 8), 0.7))
    torch.testing.assert_close(seen[0].amin(0), torch.full((8, 8), 0.15))


def test_an_unknown_refiner_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"no refiner of masks is called 'clip-se' .did you mean 'clip-es'"):
        find_refiner("clip-se")
