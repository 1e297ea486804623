"""ResNets in other people's files: by which names, under which prefix, with strides where, and what lies beside them.

The two ways of striding have weights of the same shapes and compute different things, so a file is taken for one of
them by the names of its tensors, whatever stands before these; a file of ours says it in its metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from tag2mask.models.backbone import Layout
from tag2mask.models.containers import Weights, prefix_of, read_weights
from tag2mask.types import UserError

StrideAt = Literal["3x3", "1x1"]

OWN = "tag2mask"
"""Under this key our own .safetensors say what they are."""

PUBLIC, CAFFE = "layer1.0.conv1.weight", "layer2.block1.reduce.conv.weight"
"""A tensor by which torchvision's names, and those of deeplab-pytorch, are known."""

_PART = re.compile(r"(?:conv|bn|layer)\d+\.")
"""How the names of a ResNet's tensors begin."""

_CAFFE_NAMED = re.compile(r"caffe|msra|detectron", re.IGNORECASE)

_OUR_HEAD = re.compile(r"(?:^|\.)head\.branches\.\d")

_TAG_HEADS = re.compile(r"(?:^|\.)(?:fc|fc8|f8_[345]|f9|fc_edge\d?|fc_dp\d?|mean_shift|classifier|head|logits)\.\w+$")
"""Heads that learn from tags, or from masks made of tags: a classifier's, PSA's and IRN's."""

_DECODERS = re.compile(
    r"(?:^|\.)(?:decode_head|auxiliary_head|aux_classifier|segmentation_head|seg_head|mask_head|pixel_decoder|"
    r"pixel_level_module|decoder\w*|main_decoder|aspp|ppm|psp|conv_out|fc8_seg_conv\d|conv_fov2?|cls_conv)\."
)


@dataclass(frozen=True)
class PublicResNet:
    """A ResNet of a file.

    state: tensors by the names of ``backbone.ResNet``. stride_at: the convolutions that stride. around: what stood
    before those names. rest: the file's other tensors, by their names there.
    """

    state: dict[str, Tensor]
    stride_at: StrideAt
    around: str
    rest: dict[str, Tensor]

    @property
    def layout(self) -> Layout:
        """Blocks, width and stem as read off the weights; what they do not show is as in the public networks."""
        numbers = [{int(name.split(".")[1]) for name in self.state if _block(name, stage)} for stage in (1, 2, 3, 4)]
        a, b, c, d = map(len, numbers)
        stem: Literal["7x7", "3x3"] = "7x7" if "conv1.weight" in self.state else "3x3"
        first = self.state["conv1.weight" if stem == "7x7" else "conv1.0.weight"]
        return Layout(blocks=(a, b, c, d), width=len(first), stem=stem, stride_at=self.stride_at)


def _block(name: str, stage: int) -> bool:
    parts = name.split(".")
    return parts[0] == f"layer{stage}" and len(parts) > 2 and parts[1].isdigit()


def read_resnet(path: Path, stride_at: StrideAt) -> PublicResNet:
    """The ResNet of a file, whatever it is packed in and whatever stands before its names.

    Understood: torchvision's names, torchcv's (with a stem of three convolutions), deeplab-pytorch's (also of
    CLIP-ES, CLIMS and POT), and files of ours.

    Args:
        path: see ``containers.read_weights``.
        stride_at: where the network that it is meant for strides.

    Raises:
        UserError: no ResNet of such names, several, or one that strides elsewhere.
    """
    weights = read_weights(path)
    found = _find(weights)
    own = about_own(weights.about)
    if own.get("stride_at"):
        has: StrideAt = own["stride_at"]
    elif own:
        raise UserError(f"{path}: is a {own.get('architecture', 'network')} of tag2mask without a ResNet")
    else:
        has = found.stride_at
        _refuse_unclear(path, found, has)
    if has != stride_at:
        take = (
            "ImageNet's public ResNet in torchvision's names, or the architecture deeplabv2-resnet101 for these"
            if stride_at == "3x3"
            else "weights in deeplab-pytorch's names, or an architecture that strides so, such as cct-resnet50"
        )
        raise UserError(
            f"{path}: got a ResNet that strides in its {has} convolutions, expected one that strides in its "
            f"{stride_at}: the shapes agree and the results do not; take {take}"
        )
    return PublicResNet(found.state, has, found.around, found.rest)


def _find(weights: Weights) -> PublicResNet:
    """By names alone."""
    path, state = weights.path, {name: value.float() for name, value in weights.state.items()}
    caffe, public = (prefix_of(state, anchor, path) for anchor in (CAFFE, PUBLIC))
    if caffe is None and public is None:
        raise UserError(
            f"{path}: holds {', '.join(sorted(state)[:3])}, …; expected a ResNet checkpoint with conv1.weight and "
            "layer1 to layer4, such as torchvision's resnet50, or the names of deeplab-pytorch "
            "(layer2.block1.reduce.conv.weight)"
        )
    if caffe is not None and public is not None:
        raise UserError(f"{path}: holds two ResNets, in torchvision's names and in deeplab-pytorch's; expected one")
    if caffe is not None:
        named = {name: caffe_name(name.removeprefix(caffe)) for name in state if name.startswith(caffe)}
        inside = {name: own for name, own in named.items() if own is not None}
        rest = {name: value for name, value in state.items() if name not in inside}
        return PublicResNet({own: state[name] for name, own in inside.items()}, "1x1", caffe, rest)
    around = public or ""
    inside = {}
    for name in state:
        bare = name.removeprefix(around).removeprefix("prefix.")  # the latter torchcv's, before its stem alone
        if name.startswith((around, "prefix.")) and _PART.match(bare):
            inside[name] = bare
    if any(name.startswith(f"{around}attnpool.") for name in state):
        raise UserError(
            f"{path}: got CLIP's own ResNet, which pools where the public ones stride; take ImageNet's, such as "
            "torchvision's resnet50"
        )
    if "conv3.weight" in inside.values():
        inside = {name: _deep_stem(bare) for name, bare in inside.items()}
    rest = {name: value for name, value in state.items() if name not in inside}
    found = PublicResNet({bare: state[name] for name, bare in inside.items()}, "3x3", around, rest)
    stem = found.state.get("conv1.weight", found.state.get("conv1.0.weight"))
    if stem is None or stem.ndim != 4 or not all(any(_block(name, s) for name in found.state) for s in (1, 2, 3, 4)):
        raise UserError(
            f"{path}: holds {', '.join(sorted(state)[:3])}, …; expected a ResNet checkpoint with conv1.weight and "
            "layer1 to layer4, such as torchvision's resnet50"
        )
    return found


def _refuse_unclear(path: Path, found: PublicResNet, has: StrideAt) -> None:
    """Where the names leave open how a file strides."""
    if (path.parent / "config.json").is_file() and _ours(path.parent / "config.json"):
        raise UserError(
            f"{path}: is a part of the network in {path.parent}, written before such files said how they stride; "
            f"give the folder, {path.parent}"
        )
    if found.around.startswith("network.") or any(_OUR_HEAD.search(name) for name in found.rest):
        raise UserError(
            f"{path}: has the names of a network of tag2mask, but does not say how it strides; give the folder that "
            "`tag2mask train` or `tag2mask export` wrote"
        )
    if has == "3x3" and _CAFFE_NAMED.search(path.name):
        raise UserError(
            f"{path}: is called Caffe's, whose ResNets stride in the first 1x1 convolutions and take BGR pixels, in "
            "torchvision's names, whose stride in the 3x3: the shapes agree and the results do not; take "
            "torchvision's weights, or rename the file if it does not come from Caffe"
        )


def _ours(config: Path) -> bool:
    try:
        said = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("model_type") == "tag2mask-segmentation"


def about_own(about: Mapping[str, str]) -> dict[str, Any]:
    """What a file of ours says of itself in its metadata; empty for the files of others."""
    try:
        said = json.loads(about.get(OWN, "{}"))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


_CAFFE_PARTS = {"reduce": "1", "conv3x3": "2", "increase": "3"}
_BLOCK = re.compile(r"layer([2-5])\.block(\d+)\.(reduce|conv3x3|increase|shortcut|proj)\.(conv|bn)\.(\w+)")


def caffe_name(name: str) -> str | None:
    """The name of a ResNet's tensor in deeplab-pytorch's layout, today's or that of 2018 ("proj"), as ours."""
    if match := _BLOCK.fullmatch(name):
        stage, block, part, kind, rest = match.groups()
        stem = f"layer{int(stage) - 1}.{int(block) - 1}"
        if part in _CAFFE_PARTS:
            return f"{stem}.{kind}{_CAFFE_PARTS[part]}.{rest}"
        return f"{stem}.downsample.{0 if kind == 'conv' else 1}.{rest}"
    if name.startswith("layer1.conv1."):
        return name.removeprefix("layer1.").replace("conv1.conv", "conv1").replace("conv1.bn", "bn1")
    return None


_DEEP_STEM = {
    "conv1": "conv1.0",
    "bn1": "conv1.1",
    "conv2": "conv1.3",
    "bn2": "conv1.4",
    "conv3": "conv1.6",
    "bn3": "bn1",
}
"""The parts of a stem of three convolutions, by the names of torchcv's public checkpoints (CCT, PSPNet), as ours."""


def _deep_stem(name: str) -> str:
    first, dot, rest = name.partition(".")
    return _DEEP_STEM.get(first, first) + dot + rest


def outside(names: Iterable[str]) -> str:
    """Names of tensors that are left out, as a message lists them: few in full, many by their first parts."""
    names = sorted(names)
    if len(names) <= 2:
        return " and ".join(names)
    parts = sorted({name.rpartition(".")[0] or name for name in names})
    return f"{len(names)} tensors ({', '.join(parts[:4])}{', …' if len(parts) > 4 else ''})"


def pixel_labels(path: Path) -> tuple[str, ...]:
    """What the supervision of weights in a file has beside tags, as parts such as "pixels(weights: net.pth)".

    A decoder of segmentation or a detector beside the backbone learned from masks or boxes that people drew. A file
    of ours says it itself.

    Raises:
        UserError: the file cannot be read.
    """
    weights = read_weights(path)
    own = about_own(weights.about)
    if own:
        return tuple(part for part in str(own.get("supervision", "tags")).split("+") if part != "tags")
    return (f"pixels(weights: {path.name.replace('+', '_')})",) if has_decoder(weights.state) else ()


def has_decoder(state: Mapping[str, Tensor]) -> bool:
    """Whether a network has a head that gives pixels: known by its name, or by convolutions outside of a backbone."""
    return any(_DECODERS.search(name) for name in state) or any(
        value.ndim == 4 and max(value.shape[2:]) > 1 and not _TAG_HEADS.search(name) and not _in_backbone(name)
        for name, value in state.items()
    )


_BACKBONE = re.compile(
    r"(?:^|\.)(?:(?:conv|bn|layer)\d+[a-z]?|b[2-7](?:_\d)?|bn7|stem|patch_embed\w*|embeddings|visual|vision_model|"
    r"blocks|encoder|backbone|embedder|stages?\d?)\."
)


def _in_backbone(name: str) -> bool:
    return _BACKBONE.search(name) is not None
