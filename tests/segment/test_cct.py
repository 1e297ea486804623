"""CCT's perturbations and losses: each against the specification, written out again in loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.decoders import CCT_RESNET50, CCTNet
from tag2mask.segment import cct
from tag2mask.types import IGNORE, UserError


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(batch: int = 2, channels: int = 8, side: int = 10) -> Tensor:
    return torch.rand(batch, channels, side, side, generator=gen(9)) + 0.1


def guess_of(mask: Tensor, classes: int = 3) -> Tensor:
    """Logits whose argmax is the mask (B, H, W)."""
    return F.one_hot(mask, classes).permute(0, 3, 1, 2).float() * 5


def test_the_published_decoders() -> None:
    names = cct.kinds()
    assert len(names) == 30
    assert names[:2] == ("vat", "vat")
    assert names[-6:] == ("noise",) * 6


def test_noise_is_shared_by_the_pictures_and_bounded() -> None:
    z = features(3)
    ratio = cct.feature_noise(z, gen()) / z - 1
    assert torch.allclose(ratio[0], ratio[1], atol=1e-5)
    assert 0.29 < float(ratio.abs().max()) <= 0.3 + 1e-5
    assert abs(float(ratio.mean())) < 0.03


def test_drop_removes_the_most_active_places() -> None:
    z = features(2)
    for seed in range(5):
        gamma = 0.7 + 0.2 * float(torch.rand((), generator=gen(seed)))
        out = cct.feature_drop(z, gen(seed))
        for b in range(2):
            activity = z[b].mean(0)
            expected = z[b] * (activity < gamma * activity.max())
            assert torch.equal(out[b], expected)
            assert 0 < (out[b] == 0).float().mean() < 1


def test_dropout_of_channels() -> None:
    z = features(4, 64)
    out = cct.feature_dropout(z, gen(), 0.5)
    gone = (out == 0).flatten(2).all(-1)
    assert torch.equal(gone, (out == 0).flatten(2).any(-1))
    assert 0.3 < float(gone.float().mean()) < 0.7
    assert not torch.equal(gone[0], gone[1])
    assert torch.allclose(out[~gone], z[~gone] * 2)


def test_masking_of_context_and_objects() -> None:
    mask = torch.zeros(1, 16, 16, dtype=torch.long)
    mask[:, 4:12, 0:6] = 2
    z = features(1, side=8)
    objects = torch.zeros(8, 8)
    objects[2:6, 0:3] = 1
    assert torch.equal(cct.context_masking(z, guess_of(mask)), z * objects)
    assert torch.equal(cct.object_masking(z, guess_of(mask)), z * (1 - objects))


def test_cutout_cuts_a_box_from_every_object() -> None:
    mask = torch.zeros(2, 80, 80, dtype=torch.long)
    mask[0, 10:40, 5:55] = 1  # a plain rectangle, which the released code never cuts
    mask[0, 60:66, 60:66] = 2  # 36 pixels: too small
    mask[1, 20:30, 20:30] = 1
    mask[1, 30:40, 30:40] = 2  # touches by a corner: one object, of two classes
    z = torch.ones(2, 3, 80, 80)
    starts = set()
    for seed in range(30):
        out = cct.guided_cutout(z, guess_of(mask), gen(seed))
        for b, (top, left, height, width) in enumerate(((10, 5, 30, 50), (20, 20, 20, 20))):
            gone = (out[b, 0] == 0).nonzero()
            (y0, x0), (y1, x1) = gone.min(0).values.tolist(), gone.max(0).values.tolist()
            assert (y1 - y0 + 1, x1 - x0 + 1) == (int(0.4 * height), int(0.4 * width))
            assert len(gone) == int(0.4 * height) * int(0.4 * width)
            assert top <= y0 <= y1 < top + height
            assert left <= x0 <= x1 < left + width
            starts.add((b, y0 - top, x0 - left))
    assert max(s[1] for s in starts if s[0] == 0) >= 15
    assert min(s[1] for s in starts if s[0] == 0) <= 3
    nothing = cct.guided_cutout(z, guess_of(torch.zeros_like(mask)), gen())
    assert torch.equal(nothing, z)
    # on the grid of the features: the corner pixel of each cell decides
    coarse = cct.guided_cutout(torch.ones(2, 1, 10, 10), guess_of(mask), gen(0))
    fine = cct.guided_cutout(z, guess_of(mask), gen(0))
    assert torch.equal(coarse[:, 0], fine[:, 0, ::8, ::8])


class Linear(nn.Module):
    """Logits W z over all numbers of a picture; small enough for the exact answer."""

    def __init__(self, channels: int = 2, side: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, channels * side * side, generator=gen(4)))

    def forward(self, z: Tensor) -> Tensor:
        return (z.flatten(1) @ self.weight.T)[..., None, None]


def test_adversarial_direction_is_one_step_of_the_power_method() -> None:
    head = Linear()
    z = torch.randn(2, 2, 3, 3, generator=gen(5))
    moved = cct.adversarial(z, head, gen(6), step=1e-2, length=2.0)
    d = torch.rand(z.shape, generator=gen(6)) - 0.5
    for b in range(2):
        r = (moved - z)[b].detach().flatten().double()
        assert float(r.norm()) == pytest.approx(2, rel=1e-5)
        p = head(z[b : b + 1]).flatten().softmax(0).double().detach()
        w = head.weight.detach().double()
        hessian = w.T @ (p.diag() - p[:, None] * p) @ w  # of KL(p || softmax(W (z + d))) at d = 0
        expected = hessian @ d[b].flatten().double()
        assert float(F.cosine_similarity(r, expected, dim=0)) > 0.999
    assert head.weight.grad is None


def test_adversarial_keeps_its_length_where_gradients_are_tiny_or_none() -> None:
    head = Linear()
    z = torch.randn(2, 2, 3, 3, generator=gen(5))
    for step in (1e-6, 1e-2):
        tiny = cct.adversarial(z * 1e-3, head, gen(), step=step) - z * 1e-3
        assert tiny.flatten(1).norm(dim=1).tolist() == pytest.approx([2, 2], rel=1e-4)
    nn.init.zeros_(head.weight)
    flat = cct.adversarial(z, head, gen()) - z
    assert flat.flatten(1).norm(dim=1).tolist() == pytest.approx([2, 2], rel=1e-4)


def test_a_direction_too_short_to_square_still_has_one() -> None:
    tiny = torch.tensor([[3e-30, 4e-30], [0.0, 0.0]])
    assert torch.allclose(cct._unit(tiny, torch.ones(2, 2)), torch.tensor([[0.6, 0.8], [1.0, 1.0]]))


def test_adversarial_lets_gradients_reach_the_features() -> None:
    z = torch.randn(1, 2, 3, 3).requires_grad_()
    cct.adversarial(z, Linear(), gen()).sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))  # type: ignore[arg-type]


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    g = gen(seed)
    return torch.randn(2, 4, 3, 5, generator=g), torch.randn(2, 4, 3, 5, generator=g).mul(2).softmax(1)


def test_consistency_by_definition() -> None:
    logits, t = pair()
    p = logits.softmax(1)
    n = p.numel()
    assert float(cct.consistency(logits, t)) == pytest.approx(float(((p - t) ** 2).sum() / n), rel=1e-5)
    assert float(cct.consistency(logits, t, "kl")) == pytest.approx(float((t * (t / p).log()).sum() / n), rel=1e-4)
    m = (p + t) / 2
    js = ((m * (m / p).log()).sum() / n + (m * (m / (t + 1e-5)).log()).sum() / n) / 2
    assert float(cct.consistency(logits, t, "js")) == pytest.approx(float(js), rel=1e-4)
    sure = t.amax(1) > 0.6
    assert 0 < int(sure.sum()) < sure.numel()
    picked = ((p - t) ** 2).movedim(1, -1)[sure]
    assert float(cct.consistency(logits, t, threshold=0.6)) == pytest.approx(float(picked.mean()), rel=1e-5)
    x = logits.clone().requires_grad_()
    none = cct.consistency(x, t, threshold=1.0)
    none.backward()
    assert (float(none.detach()), float(x.grad.abs().sum())) == (0, 0)  # type: ignore[union-attr]


def test_golden_losses(golden) -> None:
    data = golden("clims/cct_losses")
    logits = torch.from_numpy(data["logits"])
    target = torch.from_numpy(data["teacher_logits"]).softmax(1)
    for name, found in (
        ("mse", cct.consistency(logits, target)),
        ("mse_conf05", cct.consistency(logits, target, threshold=0.5)),
        ("kl", cct.consistency(logits, target, "kl")),
        ("kl_conf05", cct.consistency(logits, target, "kl", threshold=0.5)),
        ("js", cct.consistency(logits, target, "js")),
    ):
        assert float(found) == pytest.approx(float(data[name]), rel=1e-5), name
    labels = torch.from_numpy(data["target"])
    for (epoch, i), loss, threshold in zip(
        data["abce_epoch_iter"].tolist(), data["abce"], data["abce_threshold"], strict=True
    ):
        found = cct.bootstrap_threshold(epoch * 100 + i, 80 * 100, 21)
        assert found == pytest.approx(float(threshold), rel=1e-9)
        assert float(cct.bootstrapped_cross_entropy(logits, labels, found)) == pytest.approx(float(loss), rel=1e-5)


def test_golden_pairwise(golden) -> None:
    data = golden("clims/cct_pairwise")
    outputs = list(torch.from_numpy(data["outputs"]))
    assert float(cct.pairwise(outputs)) == pytest.approx(float(data["pair_wise"]), rel=1e-5)


def test_pairwise_is_a_variance() -> None:
    outputs = [torch.randn(1, 3, 2, 2, generator=gen(s)) for s in range(4)]
    probs = np.stack([x.softmax(1).numpy() for x in outputs])
    assert float(cct.pairwise(outputs)) == pytest.approx(float(probs.var(0).sum(1).mean()), rel=1e-5)


def test_bootstrapped_cross_entropy_by_sorting() -> None:
    logits, _ = pair(3)
    labels = torch.randint(0, 4, (2, 3, 5), generator=gen(1))
    labels[0, 0] = IGNORE
    found = sorted(
        float(logits[b, :, y, x].softmax(0)[labels[b, y, x]])
        for b, y, x in np.ndindex(2, 3, 5)
        if labels[b, y, x] != IGNORE
    )
    for threshold in (0.0, 0.3):
        limit = max(found[2], threshold)  # the batch has two pictures
        picked = [-math.log(p) for p in found if p < limit]
        loss = cct.bootstrapped_cross_entropy(logits, labels, threshold)
        assert float(loss) == pytest.approx(sum(picked) / len(picked), rel=1e-5)
    x = logits.clone().requires_grad_()
    empty = cct.bootstrapped_cross_entropy(x, torch.full_like(labels, IGNORE), 0.5)
    empty.backward()
    assert (float(empty.detach()), float(x.grad.abs().sum())) == (0, 0)  # type: ignore[union-attr]
    one = labels.clone().fill_(IGNORE)
    one[0, 1, 1] = 2
    assert torch.isfinite(cct.bootstrapped_cross_entropy(logits, one, 0.0))


def test_weights_rise_together() -> None:
    weights = cct.Weights(ramp_steps=8 * 911)
    u, w = weights.at(3 * 911 + 500)
    assert u == pytest.approx(6.381005, rel=1e-6)
    assert w == pytest.approx(u / 30 * 0.4)
    assert weights.at(10**6) == (30, 0.4)


def small(auxiliary: int) -> tuple[CCTNet, nn.ModuleList]:
    torch.manual_seed(0)
    net = CCTNet(3, replace(CCT_RESNET50, blocks=(1, 1, 1, 1), width=4)).train()
    return net, net.auxiliary_decoders(auxiliary)


def test_unlabelled_losses_teach_all_but_the_main_decoder() -> None:
    names: tuple[cct.Kind, ...] = tuple(cct.PUBLISHED)
    net, auxiliary = small(len(names))
    x = torch.randn(2, 3, 48, 48, generator=gen())
    weak = torch.randint(0, 3, (2, 48, 48), generator=gen())
    weak[:, :10] = IGNORE
    losses = cct.unlabelled_losses(net, auxiliary, x, names, gen(1), weak=weak, with_pairwise=True)
    assert losses.weak is not None
    assert losses.pairwise is not None
    (losses.consistency * 30 + losses.weak + losses.pairwise).backward()
    assert all(p.grad is None for p in net.main.parameters())
    for decoder in auxiliary:
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())
    assert net.backbone.conv1[0].weight.grad.abs().sum() > 0  # type: ignore[index, union-attr]

    z = net.encode(x)
    guess = net.main(z)
    g = gen(1)
    agree, taught = [], []
    for name, decoder in zip(names, auxiliary, strict=True):
        logits = decoder(cct.perturb(name, z, guess, decoder, g))
        agree.append(float(F.mse_loss(logits.softmax(1), guess.softmax(1)).detach()))
        taught.append(float(F.cross_entropy(logits, weak, ignore_index=IGNORE).detach()))
    assert float(losses.consistency.detach()) == pytest.approx(np.mean(agree), rel=1e-4)
    assert float(losses.weak.detach()) == pytest.approx(np.mean(taught), rel=1e-4)
    bare = cct.unlabelled_losses(net, auxiliary, x, names, gen(1))
    assert (bare.weak, bare.pairwise) == (None, None)


def test_perturbations_follow_the_generator_alone() -> None:
    _, auxiliary = small(1)
    z, mask = features(2, 32), torch.zeros(2, 80, 80, dtype=torch.long)
    mask[:, 10:60, 10:70] = 1
    for kind in cct.PUBLISHED:
        decoder = auxiliary[0]
        before = torch.get_rng_state()
        a, b, c = (cct.perturb(kind, z, guess_of(mask), decoder, gen(s)) for s in (1, 1, 2))
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(a, b)
        assert torch.equal(a, c) == (kind in ("context", "object"))
        assert not torch.equal(a, z)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UserError, match="got 1 perturbations for 2 auxiliary decoders"):
        cct.unlabelled_losses(*small(2), torch.zeros(2, 3, 16, 16), ("noise",), gen())
    with pytest.raises(UserError, match="got a perturbation 'rain', expected one of vat"):
        cct.perturb("rain", features(), features(), nn.Identity(), gen())  # type: ignore[arg-type]
