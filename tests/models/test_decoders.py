"""CCT's network: pyramid, shuffles and sizes, against recorded values and definitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tag2mask.models.classifier import Classifier
from tag2mask.models.decoders import CCT_RESNET50, PSP, CCTNet, Decoder, icnr_
from tag2mask.types import UserError


def test_sizes_and_counts_of_the_published_network() -> None:
    with torch.device("meta"):
        net = CCTNet(21)
        x = torch.empty(2, 3, 320, 320)
        z = net.encode(x)
        others = net.auxiliary_decoders(30)
    assert z.shape == (2, 512, 40, 40)
    assert net.main(z).shape == (2, 21, 320, 320)
    assert [p.shape for p in others[29].parameters()] == [p.shape for p in net.main.parameters()]
    # 1x1 without bias, three of 21 -> 84 with bias
    assert sum(p.numel() for p in net.main.parameters()) == 512 * 21 + 3 * (21 * 84 + 84)
    # four 1x1 to 512, a 3x3 of 4096 to 512, five norms
    assert sum(p.numel() for p in net.psp.parameters()) == 4 * 2048 * 512 + 9 * 4096 * 512 + 5 * 2 * 512
    strides = {
        n: m.stride for n, m in net.backbone.named_modules() if isinstance(m, torch.nn.Conv2d) and m.stride != (1, 1)
    }
    assert set(strides) == {"conv1.0", "layer2.0.conv2", "layer2.0.downsample.0"}
    dilations = [block.conv2.dilation[0] for stage in (net.backbone.layer3, net.backbone.layer4) for block in stage]
    assert dilations[1:6] == [2] * 5
    assert dilations[6:] == [2, 4, 4]
    assert dilations[0] == 1


def test_icnr_repeats_pixels_at_first() -> None:
    torch.manual_seed(0)
    weight = icnr_(torch.empty(12, 5, 1, 1))
    assert torch.equal(weight.view(3, 4, 5), weight.view(3, 4, 5)[:, :1].expand(3, 4, 5))
    assert len(weight.view(3, 4, 5)[:, 0].unique(dim=0)) == 3
    y = F.pixel_shuffle(F.conv2d(torch.randn(1, 5, 2, 3), weight), 2)
    assert torch.equal(y, y[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_icnr_golden_is_of_the_same_kind(golden) -> None:
    weight = torch.from_numpy(golden("clims/cct_icnr")["w"])
    mine = icnr_(torch.empty_like(weight))
    for w in (weight, mine):
        groups = w.view(21, 4, 21)
        assert torch.equal(groups, groups[:, :1].expand_as(groups))
    assert float(mine.std()) == pytest.approx(float(weight.std()), rel=0.2)


def test_decoder_by_its_definition_and_golden(golden) -> None:
    data = {k: torch.from_numpy(v) for k, v in golden("clims/cct_upsample_head").items()}
    decoder = Decoder(16, 21)
    names = {f"upsample.{k.removeprefix('up_').replace('_', '.')}": v for k, v in data.items() if k.startswith("up_")}
    decoder.load_state_dict(names)
    with torch.no_grad():
        assert torch.allclose(decoder(data["feat"]), data["out"], atol=1e-5)


def test_decoder_written_out() -> None:
    torch.manual_seed(1)
    decoder = Decoder(6, 2, doublings=1)
    x = torch.randn(1, 6, 3, 4)
    s = decoder.state_dict()
    y = torch.einsum("oc,bchw->bohw", s["upsample.0.weight"][..., 0, 0], x)
    y = torch.einsum("oc,bchw->bohw", s["upsample.1.conv.weight"][..., 0, 0], y)
    y = (y + s["upsample.1.conv.bias"][:, None, None]).clamp(min=0)  # (1, 8, 3, 4)
    expected = torch.empty(1, 2, 6, 8)
    for c, i, j in np.ndindex(2, 2, 2):
        expected[:, c, i::2, j::2] = y[:, 4 * c + 2 * i + j]
    assert torch.allclose(decoder(x), expected, atol=1e-5)


def test_a_decoder_that_passes_on_enlarges_its_first_inputs() -> None:
    decoder = Decoder(7, 3)
    decoder.pass_on()
    x = torch.rand(2, 7, 3, 2)
    assert torch.equal(decoder(x), x[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3))


def test_a_network_that_starts_from_a_classifier_gives_its_maps() -> None:
    torch.manual_seed(3)
    layout = replace(CCT_RESNET50, blocks=(1, 1, 1, 1), width=4)
    classifier = Classifier(("cow", "cat", "dog"), layout)
    net = CCTNet(4, layout).eval()
    net.backbone.load_state_dict(classifier.backbone.state_dict())
    net.start_from(classifier, ("background", "dog", "unheard", "cat"))
    x = torch.randn(1, 3, 40, 48)
    with torch.no_grad():
        maps = classifier.eval().maps(x) / (1 + 1e-5) ** 0.5  # the norm before it has seen anything
        nothing = torch.zeros_like(maps[:, 0])
        want = torch.stack([1 - maps.mean(1), maps[:, 2], nothing, maps[:, 1]], 1).clamp(min=0)  # (1, 4, 5, 6)
        assert torch.allclose(net(x), want.repeat_interleave(8, 2).repeat_interleave(8, 3), atol=1e-5)


def test_psp_golden(golden) -> None:
    data = {k: torch.from_numpy(v) for k, v in golden("clims/cct_psp").items()}
    psp = PSP(32).eval()
    own = psp.state_dict()
    given = {k.replace(".", "_"): k for k in own}
    psp.load_state_dict({given[k.removeprefix("p_")]: v for k, v in data.items() if k.startswith("p_")})
    with torch.no_grad():
        assert torch.allclose(psp(data["x"]), data["out"], atol=1e-5)


def test_psp_by_its_definition() -> None:
    torch.manual_seed(2)
    psp = PSP(8, bins=(1, 2)).eval()
    x = torch.randn(1, 8, 4, 6)
    parts = [x]
    for side, stage in zip((1, 2), psp.stages, strict=True):
        cells = torch.stack(
            [torch.stack([c.mean((2, 3)) for c in r.chunk(side, 3)], -1) for r in x.chunk(side, 2)], 2
        )
        y = F.conv2d(cells, stage[1].weight) / (1 + 1e-5) ** 0.5
        parts.append(F.interpolate(y.clamp(min=0), (4, 6), mode="bilinear"))
    y = F.conv2d(torch.cat(parts, 1), psp.bottleneck[0].weight, padding=1) / (1 + 1e-5) ** 0.5
    assert torch.allclose(psp(x), y.clamp(min=0), atol=1e-5)


def test_a_batch_of_one_cannot_train() -> None:
    torch.manual_seed(0)
    net = CCTNet(3, replace(CCT_RESNET50, blocks=(1, 1, 1, 1), width=4)).train()
    with pytest.raises(UserError, match="got a batch of 1 in training, expected 2 or more"):
        net(torch.randn(1, 3, 32, 32))


def test_logits_lie_on_the_pixels_of_any_size() -> None:
    torch.manual_seed(0)
    net = CCTNet(3, replace(CCT_RESNET50, blocks=(1, 1, 1, 1), width=4)).eval()
    x = torch.randn(1, 3, 30, 41)
    with torch.no_grad():
        out = net(x)
        assert out.shape == (1, 3, 30, 41)
        assert torch.equal(out, net.main(net.encode(x))[..., :30, :41])
