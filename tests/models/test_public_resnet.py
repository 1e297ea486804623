"""ResNets in other people's files: any prefix, either stride, and decoders beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from models.test_deeplab import caffe_names, tiny
from tag2mask.models.backbone import Layout, ResNet
from tag2mask.models.classifier import Classifier, load_backbone, save_classifier
from tag2mask.models.convert import from_openai_state
from tag2mask.models.deeplab import load_deeplab
from tag2mask.models.psa import load_affinity_net
from tag2mask.models.public_resnet import has_decoder, pixel_labels, read_resnet
from tag2mask.types import UserError
from tiny_clips import openai_state

LAYOUT = Layout(blocks=(2, 2, 2, 1), width=4)
PREFIXES = ("", "module.", "encoder.", "backbone.", "_orig_mod.", "model.", "module.model.backbone.", "encoder_q.")


def public() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(ResNet(LAYOUT).state_dict())


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_strides_are_told_apart_under_any_prefix_and_in_any_container(tmp_path: Path, prefix: str, wrapper) -> None:
    path = tmp_path / "net.pth"
    caffe = {n.removeprefix("base."): v for n, v in caffe_names(tiny(), False).items() if "aspp" not in n}
    for state, has, wants in ((public(), "3x3", "1x1"), (caffe, "1x1", "3x3")):
        named = {prefix + name: value for name, value in state.items()}
        torch.save({wrapper: named} if wrapper else named, path)
        assert read_resnet(path, has).layout == Layout(LAYOUT.blocks, LAYOUT.width, stride_at=has)
        with pytest.raises(
            UserError, match=f"strides in its {has} convolutions, expected one that strides in its {wants}"
        ):
            read_resnet(path, wants)
    # every door: the last file strides in its 1x1
    for door in (load_backbone, load_affinity_net):
        with pytest.raises(UserError, match="strides in its 1x1"):
            door(str(path))
    torch.save({prefix + name: value for name, value in public().items()}, path)
    with pytest.raises(UserError, match="strides in its 3x3"):
        load_deeplab(tiny(), path, head=False)
    loaded = load_backbone(path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in public().items())


def test_files_of_ours_say_how_they_stride(tmp_path: Path) -> None:
    save_classifier(Classifier(("cat",), LAYOUT), tmp_path, "")
    file = tmp_path / "model.safetensors"
    assert read_resnet(file, "3x3").around == "backbone."
    with pytest.raises(UserError, match="strides in its 3x3"):
        read_resnet(file, "1x1")
    own = {"tag2mask": json.dumps({"architecture": "deeplabv1-resnet38", "stride_at": None})}
    safetensors.torch.save_file({**public()}, file, metadata=own)
    with pytest.raises(UserError, match="is a deeplabv1-resnet38 of tag2mask without a ResNet"):
        read_resnet(file, "3x3")
    # an older folder of ours: names of torchvision's, strides of whichever network
    safetensors.torch.save_file({f"x.{n}": v for n, v in public().items()}, file)
    (tmp_path / "config.json").write_text('{"model_type": "tag2mask-segmentation"}')
    for stride in ("1x1", "3x3"):
        with pytest.raises(UserError, match="give the folder"):
            read_resnet(file, stride)


def test_resnets_that_only_look_alike(tmp_path: Path) -> None:
    for name in ("resnet50_caffe-788b5fa3.pth", "R101_MSRA.pth"):
        torch.save(public(), tmp_path / name)
        with pytest.raises(UserError, match="rename the file"):
            read_resnet(tmp_path / name, "3x3")
    clip = openai_state("resnet")
    from_openai_state(clip)
    torch.save(clip, tmp_path / "RN50.pt")
    with pytest.raises(UserError, match="CLIP's own ResNet, which pools where the public ones stride"):
        load_backbone(tmp_path / "RN50.pt")
    both = public() | {n.removeprefix("base."): v for n, v in caffe_names(tiny(), False).items()}
    torch.save(both, tmp_path / "both.pth")
    with pytest.raises(UserError, match="two ResNets"):
        load_backbone(tmp_path / "both.pth")


def conv(*shape: int) -> Tensor:
    return torch.zeros(*shape)


HEADS = {
    "classifier of images": ({"fc.weight": conv(10, 128), "fc.bias": conv(10)}, False),
    "CAM classifier": ({"classifier.weight": conv(20, 128, 1, 1)}, False),
    "IRN": ({"fc_edge1.0.weight": conv(32, 64, 1, 1), "fc_dp1.0.weight": conv(64, 64, 1, 1)}, False),
    "projection": ({"projection_head.0.weight": conv(64, 128), "queue": conv(64, 100)}, False),
    "ASPP": ({"aspp.c0.weight": conv(21, 128, 3, 3)}, True),
    "torchvision's DeepLabV3": ({"classifier.0.convs.1.0.weight": conv(9, 128, 3, 3)}, True),
    "torchvision's FCN": ({"aux_classifier.0.weight": conv(9, 64, 3, 3)}, True),
    "mmsegmentation": ({"decode_head.conv_seg.weight": conv(21, 128, 1, 1)}, True),
    "segmentation models": ({"decoder.blocks.0.conv1.0.weight": conv(9, 9, 3, 3)}, True),
    "pyramid pooling": ({"module.ppm.features.0.1.weight": conv(9, 128, 1, 1)}, True),
    "a detector": ({"neck.fpn_convs.0.conv.weight": conv(9, 9, 3, 3)}, True),
    "WeakCLIP's": ({"conv_fov.weight": conv(9, 9, 3, 3)}, True),
}


@pytest.mark.parametrize("head", HEADS)
def test_weights_with_a_decoder_come_from_pixel_labels(tmp_path: Path, head: str) -> None:
    extra, decodes = HEADS[head]
    backbone = {f"backbone.{name}": value for name, value in public().items()}
    assert has_decoder(backbone | extra) == decodes
    torch.save({"state_dict": {f"module.{n}": v for n, v in (backbone | extra).items()}}, tmp_path / "a+b.pth")
    assert pixel_labels(tmp_path / "a+b.pth") == (("pixels(weights: a_b.pth)",) if decodes else ())
    with pytest.warns(UserWarning, match="were left out"):
        load_backbone(tmp_path / "a+b.pth")


def test_files_of_ours_say_their_supervision(tmp_path: Path) -> None:
    decoder = {"head.conv.weight": nn.Conv2d(3, 3, 3).weight.detach()}
    for said, parts in (("tags", ()), ("tags+pixels(coco)+pixels(3)", ("pixels(coco)", "pixels(3)"))):
        own = {"tag2mask": json.dumps({"supervision": said})}
        safetensors.torch.save_file(decoder, tmp_path / "x.safetensors", metadata=own)
        assert pixel_labels(tmp_path / "x.safetensors") == parts
