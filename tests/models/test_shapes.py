import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tag2mask.models.clip import CLIPModel, TextTransformer, VisionTransformer
from tag2mask.models.resnet import ModifiedResNet
from tag2mask.models.shapes import drawn, shapes_only

TOWER = {"width": 64, "layers": 1, "heads": 1, "embed": 8}


class Calls(TorchDispatchMode):
    """The kernels that run inside."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


def made():
    text = TextTransformer(**TOWER, vocabulary=9, context=4)
    return (
        CLIPModel(VisionTransformer(**TOWER, patch=4, native_grid=(2, 2)), text),
        ModifiedResNet(layers=[1, 1, 1, 1], width=8, heads=2, native_grid=(2, 2), embed=8),
    )


def test_nothing_is_computed_for_shapes():
    # the least kernel beyond these makes torch load its compiler, which takes longer than a picture
    with Calls() as calls, shapes_only():
        models = made()
    assert calls.names <= {"empty", "detach", "zeros", "ones", "fill_", "zero_", "uniform_", "lift_fresh"}
    for with_numbers, without in zip(made(), models, strict=True):
        for (name, there), (other, here) in zip(
            with_numbers.named_parameters(), without.named_parameters(), strict=True
        ):
            assert name == other
            assert (here.is_meta, there.is_meta) == (True, False)
            assert here.shape == there.shape
            assert here.requires_grad == there.requires_grad


def test_elsewhere_numbers_are_drawn():
    torch.manual_seed(3)
    found, normal = drawn(40, 50, std=0.5), nn.init.normal_(torch.empty(40, 50))
    torch.manual_seed(3)
    assert torch.equal(found, torch.randn(40, 50) * 0.5)
    assert normal.std() > 0.9
