"""ResNet-38 against its layer table, written out as one chain, and the public key layouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.wideresnet import DeepLabV1, WideResNet, load_wideresnet
from tag2mask.types import UserError


def tiny(head: str = "seam", classes: int = 3, seed: int = 0) -> DeepLabV1:
    torch.manual_seed(seed)
    net = DeepLabV1(classes, head, width=2)  # type: ignore[arg-type]
    for name, value in net.state_dict().items():
        if "running" in name:
            value.uniform_(0.5, 1.5)
        elif "bn" in name and value.is_floating_point():
            value.normal_(1, 0.3)
    return net.eval()


def test_parameter_counts_and_sizes() -> None:
    with torch.device("meta"):
        counts = {head: DeepLabV1(21, head) for head in ("mctformer", "seam")}  # type: ignore[arg-type]
        taps = WideResNet().features(torch.empty(1, 3, 321, 250))
    for net in counts.values():
        assert sum(p.numel() for p in net.backbone.parameters()) == 105_070_912
    assert sum(p.numel() for p in counts["mctformer"].head.parameters()) == 18_971_669
    assert sum(p.numel() for p in counts["seam"].head.parameters()) == 19_149_333
    assert [t.shape for t in taps] == [(1, c, 41, 32) for c in (512, 1024, 4096)]
    assert (counts["mctformer"].align_corners, counts["seam"].align_corners) == (False, True)


def norm(x: Tensor, s: dict[str, Tensor], name: str) -> Tensor:
    """Batch norm by its formula, then ReLU."""
    mean, var, w, b = (s[f"{name}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias"))
    return ((x - mean) / (var + 1e-5).sqrt() * w + b).clamp(min=0)


def by_table(s: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """The layer table of the specification, from the tensors of a checkpoint alone."""
    x = F.conv2d(x, s["conv1a.weight"], padding=1)
    table = [(f"b2{u}", 2 if not u else 1, 1, 1) for u in ("", "_1", "_2")]
    table += [(f"b3{u}", 2 if not u else 1, 1, 1) for u in ("", "_1", "_2")]
    table += [(f"b4{u}", 2 if not u else 1, 1, 1) for u in ("", "_1", "_2", "_3", "_4", "_5")]
    table += [("b5", 1, 1, 2), ("b5_1", 1, 2, 2), ("b5_2", 1, 2, 2)]
    taps = []
    for name, stride, first, second in table:
        active = norm(x, s, f"{name}.bn_branch2a")
        if name == "b5":
            taps.append(active)
        y = F.conv2d(active, s[f"{name}.conv_branch2a.weight"], stride=stride, padding=first, dilation=first)
        y = F.conv2d(
            norm(y, s, f"{name}.bn_branch2b1"), s[f"{name}.conv_branch2b1.weight"], padding=second, dilation=second
        )
        key = f"{name}.conv_branch1.weight"
        assert (key in s) == (name in ("b2", "b3", "b4", "b5"))
        x = y + (F.conv2d(active, s[key], stride=stride) if key in s else x)
    for name in ("b6", "b7"):
        active = norm(x, s, f"{name}.bn_branch2a")
        if name == "b6":
            taps.append(active)
        y = norm(F.conv2d(active, s[f"{name}.conv_branch2a.weight"]), s, f"{name}.bn_branch2b1")
        y = norm(F.conv2d(y, s[f"{name}.conv_branch2b1.weight"], padding=4, dilation=4), s, f"{name}.bn_branch2b2")
        x = F.conv2d(y, s[f"{name}.conv_branch2b2.weight"]) + F.conv2d(active, s[f"{name}.conv_branch1.weight"])
    return [*taps, norm(x, s, "bn7")]


def test_the_backbone_is_its_layer_table() -> None:
    net = tiny().backbone
    x = torch.randn(1, 3, 70, 50)
    with torch.no_grad():
        for found, expected in zip(net.features(x), by_table(net.state_dict(), x), strict=True):
            assert found.shape[2:] == (9, 7)
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_heads_written_out() -> None:
    x = torch.randn(1, 128, 5, 6)
    with torch.no_grad():
        a = tiny("mctformer").head
        s = a.state_dict()
        y = F.conv2d(x, s["fc8_seg_conv1.weight"], s["fc8_seg_conv1.bias"], padding=12, dilation=12).clamp(min=0)
        y = F.conv2d(y, s["fc8_seg_conv2.weight"], s["fc8_seg_conv2.bias"], padding=12, dilation=12)
        assert torch.allclose(a(x), y, atol=1e-5)
        b = tiny("seam").head
        s = b.state_dict()
        y = norm(F.conv2d(x, s["conv_fov.weight"], padding=12, dilation=12), s, "bn_fov")
        y = norm(F.conv2d(y, s["conv_fov2.weight"]), s, "bn_fov2")
        assert torch.allclose(b(x), F.conv2d(y, s["cls_conv.weight"], s["cls_conv.bias"]), atol=1e-4)


def test_what_learns_and_what_drops_out() -> None:
    net = tiny().train()
    frozen = {n for n, p in net.named_parameters() if not p.requires_grad}
    norms = {f"{n}.{k}" for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) for k in ("weight", "bias")}
    heads = {n for n in norms if n.startswith("head.")}
    assert frozen == (norms - heads) | {"backbone.conv1a.weight"}
    x = torch.randn(1, 3, 32, 32)
    before = {n: b.clone() for n, b in net.backbone.named_buffers()}
    assert not torch.equal(net.backbone(x), net.backbone(x))  # dropout
    assert all(torch.equal(before[n], b) for n, b in net.backbone.named_buffers())
    psa = WideResNet(2, freeze=("conv1a", "b2"))
    still = {n.split(".")[0] for n, m in psa.named_children() if not any(p.requires_grad for p in m.parameters())}
    assert still == {"conv1a", "b2", "b2_1", "b2_2", "bn7"}
    free = WideResNet(2, frozen_norm=False).train()
    free(x)
    assert int(free.bn7.num_batches_tracked) == 1


@pytest.mark.parametrize(("head", "prefix"), [("mctformer", ""), ("seam", "backbone."), ("seam", "module.backbone.")])
def test_public_layouts(tmp_path: Path, head: str, prefix: str) -> None:
    source, target = tiny(head, seed=1), tiny(head, seed=2)
    outer = prefix.removesuffix("backbone.")
    state = {f"{prefix}{n}": v for n, v in source.backbone.state_dict().items()}
    state |= {f"{outer}{n}": v for n, v in source.head.state_dict().items()}
    torch.save(state, tmp_path / "net.pth")
    load_wideresnet(target, tmp_path / "net.pth", head=True)
    x = torch.randn(1, 3, 24, 24)
    assert torch.equal(source(x), target(x))


def test_classifier_weights_fill_the_backbone_alone(tmp_path: Path) -> None:
    source, target, bare = tiny(seed=1), tiny(seed=2), WideResNet(2).eval()
    head = {n: v.clone() for n, v in target.head.state_dict().items()}
    torch.save(dict(source.backbone.state_dict()) | {"fc8.weight": torch.zeros(20, 128, 1, 1)}, tmp_path / "cls.pth")
    for net in (target, bare):
        load_wideresnet(net, tmp_path / "cls.pth")
    x = torch.randn(1, 3, 24, 24)
    assert torch.equal(bare(x), source.backbone(x))
    assert torch.equal(target.backbone(x), source.backbone(x))
    assert all(torch.equal(v, head[n]) for n, v in target.head.state_dict().items())


def test_misfits_are_refused(tmp_path: Path) -> None:
    torch.save(tiny(classes=5).state_dict(), tmp_path / "five.pth")
    with pytest.raises(UserError, match=r"cls_conv\.weight is \(5, 512, 1, 1\), expected \(3, 512, 1, 1\)"):
        load_wideresnet(tiny(), tmp_path / "five.pth", head=True)
    with pytest.raises(UserError, match="fc8_seg_conv1"):
        load_wideresnet(tiny("mctformer"), tmp_path / "five.pth", head=True)
    with pytest.raises(UserError, match="expected a DeepLabV1"):
        load_wideresnet(WideResNet(2), tmp_path / "five.pth", head=True)
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"conv1a\.weight is missing"):
        load_wideresnet(tiny(), tmp_path / "x.pth")
