"""DeepLabV2: sizes and counts, the multi-scale wrapper written out, public key layouts on a narrow network."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tag2mask.models.deeplab import (
    ASPP,
    CAFFE_MEAN,
    CAFFE_RESNET101,
    DeepLabV2,
    MultiScale,
    caffe_pixels,
    load_deeplab,
)
from tag2mask.types import UserError

SMALL = replace(CAFFE_RESNET101, blocks=(2, 2, 2, 1), width=4)


def tiny(classes: int = 3, seed: int = 0, **layout: object) -> DeepLabV2:
    torch.manual_seed(seed)
    net = DeepLabV2(classes, replace(SMALL, **layout))  # type: ignore[arg-type]
    for name, buffer in net.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return net.eval()


@pytest.fixture(scope="module")
def full() -> DeepLabV2:
    with torch.device("meta"):
        return DeepLabV2(21)


def test_parameters_and_sizes_of_the_published_network(full: DeepLabV2) -> None:
    assert sum(p.numel() for p in full.parameters()) == 44_048_532
    stages = (full.backbone.layer1, full.backbone.layer2, full.backbone.layer3, full.backbone.layer4)
    assert [{(b.conv2.dilation[0], b.conv2.padding[0]) for b in s} for s in stages] == [
        {(1, 1)},
        {(1, 1)},
        {(2, 2)},
        {(4, 4)},
    ]
    assert [s[0].conv1.stride[0] for s in stages] == [1, 2, 1, 1]
    assert [b.dilation[0] for b in full.head.branches] == [6, 12, 18, 24]
    for side, cells in ((240, 31), (160, 21)):
        assert full(torch.empty(1, 3, side, side, device="meta")).shape == (1, 21, cells, cells)


def test_golden_shapes(golden, full: DeepLabV2) -> None:
    data = golden("clims/deeplab_shapes")
    assert sum(p.numel() for p in full.parameters()) == int(data["n_params"])
    for side, cells in zip(data["input"].tolist(), data["out"].tolist(), strict=True):
        assert full(torch.empty(1, 3, side, side, device="meta")).shape[2:] == (cells, cells)


def test_norms_are_frozen_and_the_rest_learns() -> None:
    net = tiny().train()
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    norms = {f"{n}.{p}" for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) for p in ("weight", "bias")}
    assert frozen == norms
    before = {name: b.clone() for name, b in net.named_buffers()}
    net(torch.randn(2, 3, 33, 33)).sum().backward()
    assert all(torch.equal(before[name], b) for name, b in net.named_buffers())


def test_aspp_is_the_sum_of_dilated_convolutions() -> None:
    torch.manual_seed(1)
    head = ASPP(5, 2, (1, 3))
    assert head.branches[0].bias.count_nonzero() == 0
    for b in head.branches:
        nn.init.normal_(b.bias)
    x = torch.randn(1, 5, 9, 8)
    expected = sum(
        F.conv2d(x, b.weight, b.bias, padding=r, dilation=r) for b, r in zip(head.branches, (1, 3), strict=True)
    )
    assert torch.allclose(head(x), expected, atol=1e-5)


def along(side: int, cells: int, step: float) -> Tensor:
    """Bilinear weights (cells, side) of centres ``step`` pixels apart, the first half a step from the edge."""
    weights = torch.zeros(cells, side, dtype=torch.float64)
    for cell in range(cells):
        at = min(max((cell + 0.5) * step - 0.5, 0), side - 1)
        low = int(at)
        weights[cell, low] += 1 - (at - low)
        weights[cell, min(low + 1, side - 1)] += at - low
    return weights


def resampled(x: Tensor, size: tuple[int, int], steps: tuple[float, float]) -> Tensor:
    rows, columns = (along(x.shape[2 + i], size[i], steps[i]) for i in (0, 1))
    return torch.einsum("yY,bcYX,xX->bcyx", rows, x, columns)


@pytest.mark.parametrize("size", [(64, 48), (67, 45), (66, 47), (33, 97), (321, 5)])
def test_multi_scale_output_in_training_and_test(size: tuple[int, int]) -> None:
    """Inputs by 1 / scale with floored sides, which leaves out the far end; logits from edge to edge."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 2, 3, stride=4, padding=1).double()
    net = MultiScale(conv, (0.5, 0.75, 1.25))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = [conv(x)]
        for scale in net.scales:
            floored = (math.floor(size[0] * scale), math.floor(size[1] * scale))
            expected.append(conv(resampled(x, floored, (1 / scale, 1 / scale))))
        cells = expected[0].shape[2:]
        same = [resampled(y, cells, (y.shape[2] / cells[0], y.shape[3] / cells[1])) for y in expected]
        expected.append(torch.stack(same).amax(0))
        for found, wanted in zip(net.train()(x), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(net.eval()(x), expected[-1], rtol=0, atol=1e-12)


def test_caffe_pixels_are_blue_first() -> None:
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    r, g, b = CAFFE_MEAN
    assert caffe_pixels(image).flatten().tolist() == pytest.approx([30 - b, 20 - g, 10 - r], abs=1e-4)


def caffe_names(net: DeepLabV2, old: bool) -> dict[str, Tensor]:
    """The state dict as deeplab-pytorch would write it: built from the modules, not from the loader's patterns."""
    shortcut, aspp, wrapper = ("proj", "aspp.stages", "scale") if old else ("shortcut", "aspp", "base")
    found: dict[str, Tensor] = {}

    def put(prefix: str, module: nn.Module) -> None:
        found.update({f"{wrapper}.{prefix}.{name}": value for name, value in module.state_dict().items()})

    put("layer1.conv1.conv", net.backbone.conv1)
    put("layer1.conv1.bn", net.backbone.bn1)
    for s, stage in enumerate((net.backbone.layer1, net.backbone.layer2, net.backbone.layer3, net.backbone.layer4)):
        for b, block in enumerate(stage):
            stem = f"layer{s + 2}.block{b + 1}"
            for part, conv, norm in (
                ("reduce", block.conv1, block.bn1),
                ("conv3x3", block.conv2, block.bn2),
                ("increase", block.conv3, block.bn3),
            ):
                put(f"{stem}.{part}.conv", conv)
                put(f"{stem}.{part}.bn", norm)
            if block.downsample is not None:
                put(f"{stem}.{shortcut}.conv", block.downsample[0])
                put(f"{stem}.{shortcut}.bn", block.downsample[1])
    for i, branch in enumerate(net.head.branches):
        put(f"{aspp}.c{i}", branch)
    return found


@pytest.mark.parametrize("old", [False, True])
def test_trained_checkpoint_of_deeplab_pytorch(tmp_path: Path, old: bool) -> None:
    source, target = tiny(seed=1), tiny(seed=2)
    torch.save(caffe_names(source, old), tmp_path / "a.pth")
    load_deeplab(target, tmp_path / "a.pth", head=True)
    x = torch.randn(1, 3, 41, 33)
    assert torch.equal(source(x), target(x))


def test_initialisation_leaves_the_head(tmp_path: Path) -> None:
    source, target = tiny(classes=7, seed=1), tiny(seed=2)
    head = {name: p.clone() for name, p in target.head.named_parameters()}
    state = {n.removeprefix("base."): v for n, v in caffe_names(source, False).items() if "aspp" not in n}
    torch.save(state | {"fc.weight": torch.zeros(91, 128), "fc.bias": torch.zeros(91)}, tmp_path / "init.pth")
    load_deeplab(target, tmp_path / "init.pth", head=False)
    x = torch.randn(1, 3, 41, 33)
    assert torch.equal(source.backbone(x), target.backbone(x))
    assert all(torch.equal(p, head[name]) for name, p in target.head.named_parameters())


def test_own_state_and_public_resnets(tmp_path: Path) -> None:
    source, target = tiny(seed=1), tiny(seed=2)
    state = {f"network.network.{n}": v for n, v in source.state_dict().items()}
    for said, fits in (("1x1", True), ("3x3", False)):
        own = {"tag2mask": json.dumps({"stride_at": said})}
        safetensors.torch.save_file(state, tmp_path / "own.safetensors", metadata=own)
        if fits:
            load_deeplab(target, tmp_path / "own.safetensors", head=True)
            assert torch.equal(source(torch.ones(1, 3, 33, 33)), target(torch.ones(1, 3, 33, 33)))
        else:
            with pytest.raises(UserError, match="strides in its 3x3 convolutions, expected"):
                load_deeplab(target, tmp_path / "own.safetensors", head=True)
    for unsaid in (state, source.state_dict()):  # names alone do not tell how they stride
        torch.save(unsaid, tmp_path / "own.pth")
        for net in (target, tiny(stride_at="3x3")):
            with pytest.raises(UserError, match="does not say how it strides; give the folder"):
                load_deeplab(net, tmp_path / "own.pth", head=True)

    public = dict(source.backbone.state_dict()) | {"fc.weight": torch.zeros(1000, 128)}
    torch.save(public, tmp_path / "resnet.pth")
    with pytest.raises(UserError, match="strides in its 3x3 convolutions, expected one that strides in its 1x1"):
        load_deeplab(target, tmp_path / "resnet.pth", head=False)
    modern = tiny(seed=3, stride_at="3x3")
    load_deeplab(modern, tmp_path / "resnet.pth", head=False)
    assert torch.equal(modern.backbone.layer4[0].conv2.weight, source.backbone.layer4[0].conv2.weight)
    torch.save(caffe_names(source, False), tmp_path / "caffe.pth")
    with pytest.raises(UserError, match="strides in its 1x1 convolutions, expected one that strides in its 3x3"):
        load_deeplab(modern, tmp_path / "caffe.pth", head=False)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"expected a ResNet checkpoint.*the names of deeplab-pytorch"):
        load_deeplab(tiny(), tmp_path / "other.pth", head=False)
    torch.save(caffe_names(tiny(classes=5), False), tmp_path / "five.pth")
    with pytest.raises(UserError, match=r"branches\.0\.weight is \(5, 128, 3, 3\), expected \(3, 128, 3, 3\)"):
        load_deeplab(tiny(), tmp_path / "five.pth", head=True)
    torch.save({"a": "b"}, tmp_path / "pickle.pth")
    with pytest.raises(UserError, match="was not read: it is a dict without named tensors"):
        load_deeplab(tiny(), tmp_path / "pickle.pth", head=False)
