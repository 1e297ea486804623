"""The ResNet backbone against transformers' own, and its variants against what they must be equal to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import ResNetConfig, ResNetModel

from tag2mask.models.backbone import IRN, Bottleneck, FrozenBatchNorm2d, Layout, ResNet


def pixels(height: int, width: int, count: int = 1) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def with_statistics(model: torch.nn.Module) -> torch.nn.Module:
    """Norms that do something: statistics, weights and biases drawn at random."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value in (module.running_mean, module.bias.data):
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
            for value in (module.running_var, module.weight.data):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return model.eval()


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Transformers' names as torchvision's."""
    out = {}
    for name, value in state.items():
        parts = name.split(".")
        kind, leaf = parts[-2], parts[-1]
        if parts[0] == "embedder":
            out[f"{'conv1' if kind == 'convolution' else 'bn1'}.{leaf}"] = value
            continue
        _, _, stage, _, block, where, *rest = parts
        at = f"layer{int(stage) + 1}.{block}"
        if where == "shortcut":
            out[f"{at}.downsample.{int(kind == 'normalization')}.{leaf}"] = value
        else:
            out[f"{at}.{'conv' if kind == 'convolution' else 'bn'}{int(rest[0]) + 1}.{leaf}"] = value
    return out


@pytest.mark.parametrize(("stride_at", "blocks"), [("3x3", (3, 4, 6, 3)), ("1x1", (1, 2, 1, 2))])
@pytest.mark.parametrize("size", [(64, 96), (75, 61)])
@torch.no_grad()
def test_equals_transformers(stride_at, blocks, size) -> None:
    torch.manual_seed(0)
    theirs = ResNetModel(
        ResNetConfig(
            embedding_size=8,
            hidden_sizes=[32, 64, 128, 256],
            depths=list(blocks),
            layer_type="bottleneck",
            downsample_in_bottleneck=stride_at == "1x1",
        )
    )
    with_statistics(theirs)
    ours = ResNet(Layout(blocks=blocks, width=8, stride_at=stride_at)).eval()
    ours.load_state_dict(renamed(theirs.state_dict()))  # strict: the names are torchvision's
    expected = theirs(pixels(*size), output_hidden_states=True)
    got = ours.features(pixels(*size))
    assert len(got) == 5
    for mine, other in zip(got, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)
    assert [len(one[0]) for one in got] == list(ours.layout.channels)


def test_full_width_has_the_published_parameters() -> None:
    with torch.device("meta"):
        resnet50, resnet101 = ResNet(Layout()), ResNet(Layout(blocks=(3, 4, 23, 3)))
    head = 2048 * 1000 + 1000
    assert sum(p.numel() for p in resnet50.parameters()) + head == 25_557_032
    assert sum(p.numel() for p in resnet101.parameters()) + head == 44_549_160


@pytest.mark.parametrize(
    ("layout", "stride"),
    [
        (Layout(), 32),
        (IRN, 16),
        (Layout(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)), 8),
        (Layout(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), stride_at="1x1"), 8),
        (Layout(strides=(2, 2, 2, 1)), 32),
        (Layout(stem="3x3"), 32),
    ],
)
@torch.no_grad()
def test_sizes(layout, stride) -> None:
    small = ResNet(Layout(**{**layout.__dict__, "width": 2, "blocks": (1, 1, 1, 2)})).eval()
    assert small.layout.stride == stride
    for height, width in [(64, 96), (65, 31), (1, 1), (281, 50)]:
        got = small(pixels(height, width))
        assert got.shape == (1, 64, -(-height // stride), -(-width // stride))


@pytest.mark.parametrize(("size", "cells"), [(321, 41), (240, 31), (160, 21), (513, 65)])
@torch.no_grad()
def test_caffe_sizes(size, cells) -> None:
    """DeepLabV2's, as published: its pooling rounds up."""
    caffe = Layout((1, 1, 1, 1), 1, (1, 2, 1, 1), (1, 1, 2, 4), stride_at="1x1", ceil_pool=True)
    assert ResNet(caffe).eval()(pixels(size, 40)).shape[2] == cells


@torch.no_grad()
def test_dilation_is_the_strided_network_on_more_cells() -> None:
    """Every fourth cell of the dilated network is the strided network's: the à trous trick."""
    torch.manual_seed(0)
    strided = with_statistics(ResNet(Layout(blocks=(1, 1, 2, 3), width=4)))
    both = Layout((1, 1, 2, 3), 4, (1, 2, 1, 1), dilations=(1, 1, 2, 4), first_dilations=(1, 1, 1, 2))
    dilated = ResNet(both).eval()
    dilated.load_state_dict(strided.state_dict())
    for size in [(96, 64), (91, 70)]:
        x = pixels(*size)
        torch.testing.assert_close(dilated(x)[:, :, ::4, ::4], strided(x), atol=1e-5, rtol=1e-4)


def test_where_strides_and_dilations_sit() -> None:
    def blocks(layout: Layout) -> list[Bottleneck]:
        with torch.device("meta"):
            return [m for m in ResNet(layout).modules() if isinstance(m, Bottleneck)]

    caffe = blocks(Layout(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), stride_at="1x1"))
    assert [b.conv1.stride[0] for b in caffe] == [1, 1, 1, 2] + [1] * 12
    assert all(b.conv2.stride == (1, 1) for b in caffe)
    assert [b.conv2.dilation[0] for b in caffe] == [1] * 7 + [2] * 6 + [4] * 3
    irn = blocks(Layout(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 2), first_dilations=(1, 1, 1, 1)))
    assert [b.conv2.dilation[0] for b in irn] == [1] * 8 + [2] * 5 + [1, 2, 2]


def test_a_frozen_norm_keeps_its_statistics_and_learns_its_weights() -> None:
    torch.manual_seed(0)
    free = with_statistics(ResNet(Layout(blocks=(1, 1, 1, 1), width=4)))
    frozen = ResNet(Layout(blocks=(1, 1, 1, 1), width=4, frozen_norm=True))
    frozen.load_state_dict(free.state_dict())
    before = frozen.bn1.running_mean.clone()
    out = frozen.train()(pixels(32, 32, 2))
    torch.testing.assert_close(out, free(pixels(32, 32, 2)))
    out.sum().backward()
    assert torch.equal(frozen.bn1.running_mean, before)
    assert frozen.bn1.weight.grad.abs().sum() > 0
    norms = [m for m in frozen.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(isinstance(m, FrozenBatchNorm2d) for m in norms)
