from __future__ import annotations

import torch
import torch.nn.functional as F

from tag2mask.models.psa import AffinityHead


def test_parameters_of_the_published_head():
    head = AffinityHead()
    assert sum(p.numel() for p in head.parameters()) == 512 * 64 + 1024 * 128 + 4096 * 256 + 448 * 448
    bound = 4 * (6 / (448 + 448)) ** 0.5  # Xavier, gain 4
    assert 0.99 * bound < head.mix.weight.abs().max() <= bound


def test_the_head_step_by_step():
    generator = torch.Generator().manual_seed(0)
    head = AffinityHead((4, 6, 8), (3, 2, 5))
    features = [torch.randn(2, c, 5, 7, generator=generator) for c in (4, 6, 8)]
    seen = []
    for projection, x in zip(head.projections, features, strict=True):
        seen.append(F.elu(torch.einsum("oc,bchw->bohw", projection.weight[:, :, 0, 0], x)))
    expected = F.elu(torch.einsum("oc,bchw->bohw", head.mix.weight[:, :, 0, 0], torch.cat(seen, 1)))
    torch.testing.assert_close(head(features), expected)


def test_features_of_other_strides_are_enlarged():
    features = [torch.ones(1, 4, 9, 12), torch.ones(1, 6, 5, 6), torch.ones(1, 8, 5, 6)]
    out = AffinityHead((4, 6, 8), (3, 2, 5))(features)
    assert out.shape == (1, 10, 9, 12)
    assert out.std((2, 3)).max() < 1e-5
