from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tag2mask.classes import load_classes, plain_classes
from tag2mask.ops.clims import (
    CAMERA_READY,
    RELEASED,
    RELEASED_COCO,
    CLIMSLoss,
    background_phrases,
    caption_loss,
    class_emphasis,
    clims_loss,
    cosines,
    masked_views,
    negative_log,
    positive_pairs,
    suppression_weights,
    tag_caption,
)
from tag2mask.types import UserError


def test_the_released_losses_and_their_gradient(golden):
    recorded = {k: torch.tensor(v) for k, v in golden("clims/clims_losses_current").items()}
    maps = recorded["cam"].clone().requires_grad_()
    tags = [row.nonzero()[:, 0] + 1 for row in recorded["label"]]
    images, classes = positive_pairs(tags)
    assert torch.equal(torch.stack([images, classes], 1), recorded["pair_index"])

    def embed(views):
        return F.adaptive_avg_pool2d(views, 8).flatten(1) @ recorded["clip_image_proj"]

    inside, outside = masked_views(recorded["img"], maps, images, classes)
    np.testing.assert_allclose(inside[0, :, ::16, ::16].detach(), recorded["fg_masked_00"], atol=1e-5)
    own = recorded["text_feat_per_pair"]
    sim_in = cosines(embed(inside), own).diagonal()
    sim_out = cosines(embed(outside), own).diagonal()
    sim_texts = cosines(embed(inside), recorded["text_feat_bg_voc"])
    for mine, name in ((sim_in, "sim_fg"), (sim_out, "sim_bg"), (sim_texts, "sim_cbs")):
        np.testing.assert_allclose(mine.detach().flatten(), recorded[name].flatten(), atol=1e-5)
    weights = suppression_weights(sim_texts, classes, torch.ones(20, 10, dtype=torch.bool), RELEASED)
    assert weights.sum() == 8
    loss = clims_loss(sim_in, sim_out, sim_texts, weights, maps, RELEASED)
    for mine, name in (
        (loss.object, "L_OTM"),
        (loss.background, "L_BTM"),
        (loss.suppression, "L_CBS"),
        (loss.area, "L_REG"),
        (loss.total, "loss"),
    ):
        assert mine.item() == pytest.approx(recorded[name].item(), rel=1e-5), name
    loss.total.backward()
    np.testing.assert_allclose(maps.grad, recorded["grad_cam"], rtol=1e-3, atol=1e-4)


def test_the_released_curve(golden):
    recorded = golden("clims/clims_simloss_curve")
    sim = torch.tensor(recorded["sim"]).flatten()
    np.testing.assert_allclose(negative_log(sim, RELEASED), recorded["simmax"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(negative_log(1 - sim, RELEASED), recorded["simmin"], rtol=1e-3, atol=1e-6)


def test_what_a_hopeless_pair_costs():
    def at(value, settings):
        sim = torch.tensor([value], requires_grad=True)
        loss = negative_log(sim, settings).sum()
        loss.backward()
        return loss.item(), sim.grad.item()

    assert at(0.5, RELEASED) == pytest.approx((math.log(2), -2))
    assert at(-0.2, RELEASED) == pytest.approx((9.210341, 0))
    assert at(0.5, CAMERA_READY) == pytest.approx((math.log(2), -2))
    loss, slope = at(-0.2, CAMERA_READY)
    assert (loss, slope) == pytest.approx((-math.log(0.01) + 0.21 / 0.01, -100), rel=1e-5)
    assert at(0.010001, CAMERA_READY)[0] == pytest.approx(at(0.009999, CAMERA_READY)[0], abs=1e-3)


def camera_ready_reference(s_in, s_out, s_texts, classes, maps, relevant, emphasis):
    """Float64, from the description of the camera-ready losses; all cosines in range."""
    otm = np.mean([emphasis[k] * -np.log(s) for s, k in zip(s_in, classes, strict=True)])
    btm = np.mean([emphasis[k] * -np.log(1 - s) for s, k in zip(s_out, classes, strict=True)])
    cbs = 0.0
    for row, k in zip(s_texts, classes, strict=True):
        if relevant[k].any():
            cbs += np.mean([-np.log(1 - b) for b in row[relevant[k]]])
    return otm, btm, cbs, maps.mean()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_camera_ready_losses(seed):
    rng = np.random.default_rng(seed)
    voc = load_classes("voc12")
    phrases, relevant = background_phrases(voc, voc.texts["clims"], CAMERA_READY)
    emphasis = class_emphasis(voc, CAMERA_READY)
    # boat, train, chair, diningtable, person: some with texts, some with emphasis, some with neither.
    classes = torch.tensor([3, 18, 8, 10, 14, 3])
    s_in, s_out = rng.uniform(0.1, 0.9, (2, 6))
    s_texts = rng.uniform(-0.3, 0.9, (6, len(phrases)))
    maps = rng.random((3, 20, 5, 5))
    expected = camera_ready_reference(s_in, s_out, s_texts, classes, maps, relevant.numpy(), emphasis.numpy())
    texts = torch.tensor(s_texts)
    weights = suppression_weights(texts, classes, relevant, CAMERA_READY)
    mine = clims_loss(
        torch.tensor(s_in),
        torch.tensor(s_out),
        texts,
        weights,
        torch.tensor(maps),
        CAMERA_READY,
        emphasis[classes],
    )
    terms = [float(t) for t in (mine.object, mine.background, mine.suppression, mine.area)]
    assert terms == pytest.approx(expected, rel=1e-5)
    assert float(mine.total) == pytest.approx(np.dot((10, 25, 29.5, 1.15), expected), rel=1e-5)


def test_suppression_by_hand():
    texts = torch.tensor([[0.25, 0.27]])
    weights = suppression_weights(texts, torch.tensor([0]), torch.ones(1, 2, dtype=torch.bool), RELEASED)
    one = torch.tensor([0.5])
    loss = clims_loss(one, one, texts, weights, torch.zeros(1, 1, 2, 2), RELEASED)
    assert float(loss.suppression) == pytest.approx(0.314711, rel=1e-5)
    assert RELEASED_COCO.threshold == 0.285


@pytest.mark.parametrize("settings", [CAMERA_READY, RELEASED], ids=["camera-ready", "released"])
def test_suppression_follows_the_logarithm_up_to_one(settings):
    """Against autograd in float64; only 1, and what a cosine rounds to above it, is guarded."""
    values = torch.tensor([-0.3, 0.4, 0.985, 0.995, 0.9999, 1 - 2**-24, 1, 1 + 2**-23])
    mine, exact = values.clone().requires_grad_(), values[:6].double().requires_grad_()
    half = torch.full((1,), 0.5)
    found = clims_loss(half, half, mine[None], torch.ones(1, 8), torch.zeros(1, 1, 1, 1), settings).suppression
    found.backward()
    (-(1 - exact).log()).sum().backward()
    torch.testing.assert_close(mine.grad[:6].double(), exact.grad, rtol=1e-5, atol=0)
    assert torch.isfinite(found)
    assert torch.isfinite(mine.grad).all()
    assert found.item() == pytest.approx(float(-(1 - exact.detach()).log().sum()) + 2 * 24 * math.log(2), rel=1e-5)


def test_one_pair_and_none():
    maps = torch.full((2, 3, 4, 4), 0.5, requires_grad=True)
    pixels = torch.ones(2, 3, 8, 8)
    for tags, count in (([[], [2]], 1), ([[], []], 0)):
        images, classes = positive_pairs([torch.tensor(own, dtype=torch.long) for own in tags])
        assert classes.tolist() == ([1] if count else [])
        inside, outside = masked_views(pixels, maps, images, classes, size=(6, 6))
        assert inside.shape == outside.shape == (count, 3, 6, 6)
        sim = inside.flatten(1).sum(1) / 1000
        texts = sim[:, None].expand(-1, 4)
        loss = clims_loss(sim, sim, texts, torch.ones_like(texts), maps, RELEASED)
        maps.grad = None
        loss.total.backward()
        assert torch.isfinite(loss.total)
        assert torch.isfinite(maps.grad).all()
        if not count:
            assert loss.total.item() == pytest.approx(0.2 * 0.5)
    assert positive_pairs([])[0].shape == (0,)


def test_inside_and_outside_make_the_picture():
    pixels = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    maps = torch.rand(1, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    inside, outside = masked_views(pixels, maps, torch.tensor([0]), torch.tensor([1]), size=(9, 9))
    torch.testing.assert_close(inside + outside, pixels)
    torch.testing.assert_close(inside[0, :, 0, 0], maps[0, 1, 0, 0] * pixels[0, :, 0, 0])  # corners aligned


def test_half_precision_is_raised_to_single():
    sims = cosines(torch.ones(1, 4).half(), torch.ones(2, 4).half())
    assert sims.dtype == torch.float32
    assert negative_log(torch.tensor([1.0]).half(), RELEASED).dtype == torch.float32
    assert float(negative_log(torch.tensor([1.0]).half(), RELEASED)) == pytest.approx(1e-4, rel=1e-2)


def test_phrases_of_each_variant():
    voc = load_classes("voc12")
    phrases, relevant = background_phrases(voc, voc.texts["clims"], CAMERA_READY)
    by_class = {
        name: [p for p, r in zip(phrases, row, strict=True) if r]
        for name, row in zip(voc.foreground, relevant.tolist(), strict=True)
    }
    assert {name: own for name, own in by_class.items() if own} == {
        "boat": ["river", "water", "lake", "sea", "building"],
        "train": ["railroad", "railway", "branches", "tree"],
    }
    phrases, relevant = background_phrases(voc, voc.texts["clims-released"], RELEASED)
    assert relevant.shape == (20, 10)
    assert relevant.all()
    emphasis = class_emphasis(voc, CAMERA_READY)
    assert {voc.foreground[i] for i in emphasis.gt(1).nonzero()[:, 0]} == {"chair", "diningtable", "sofa"}
    assert emphasis.max() == 3


def test_classes_without_texts_are_not_suppressed():
    farm = plain_classes(["cow", "barn"], "farm")
    phrases, relevant = background_phrases(farm, farm.texts["clims"], CAMERA_READY)
    assert (phrases, relevant.shape) == ((), (2, 0))
    texts = torch.zeros(1, 0)
    weights = suppression_weights(texts, torch.tensor([1]), relevant, CAMERA_READY)
    half = torch.tensor([0.5])
    assert clims_loss(half, half, texts, weights, torch.zeros(1, 2, 3, 3), CAMERA_READY).suppression == 0


def test_captions_of_tags():
    said = [tag_caption("abcdefg"[:n]) for n in range(8)]
    assert said[:3] == ["background", "a photo of a", "a photo of a and b"]
    assert said[3:6] == ["a photo of a, b, and c", "a photo of a, b, c, and d", "a photo of a, b, c, d, and e"]
    assert said[6:] == ["a photo of a, b, c, d, e and f", "a photo of a, b, c, d, e, f and g"]


def test_equal_captions_do_not_fight():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 4, generator=generator)
    diagonal = torch.arange(4)
    plain = F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)
    torch.testing.assert_close(caption_loss(logits, ["a", "b", "c", "d"]), plain)
    same = torch.zeros(2, 2, requires_grad=True)
    caption_loss(same, ["a", "a"]).backward()
    assert same.grad.abs().max() < 1e-6  # the released loss would pull the diagonal up


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="expected weights of 0 or more"):
        CLIMSLoss(-1, 0, 0, 0)
    with pytest.raises(UserError, match="floor between"):
        CLIMSLoss(1, 0, 0, 0, floor=0.0)
