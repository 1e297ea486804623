"""Small MCTformers: the recorded one, and random ones in the files that people have."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tag2mask.models.mctformer import MCTformer, Shape
from tag2mask.models.mctformer_files import build_mctformer, read_start
from tag2mask.ops.image import MEAN, STD

__all__ = ["MEAN", "NAMES", "STD", "TINY", "golden_network", "random_network", "save_timm", "timm_state"]

NAMES = ("cat", "dog", "cow", "hen")
TINY = Shape(width=16, layers=3, heads=2, patch=4, grid=(3, 3))


def golden_network(golden, folder: Path, version: str) -> MCTformer:
    """The recorded network, through a checkpoint as MCTformer's code writes them."""
    state = {name: torch.from_numpy(value).float() for name, value in golden("mctformer/weights").items()}
    if version == "v1":
        del state["head.bias"]
        state["head.weight"] = torch.ones(4, 48)  # V1's, which is never used
    torch.save({"model": state, "epoch": 59}, folder / "checkpoint.pth")
    return build_mctformer(read_start(folder / "checkpoint.pth", heads=4), NAMES, version)


def random_network(version: str = "v2", shape: Shape = TINY, classes: int = 4, seed: int = 0) -> MCTformer:
    """A network whose weights are large enough that all of its parts matter."""
    torch.manual_seed(seed)
    plus = version == "plus"
    made = MCTformer(classes, shape, patch_cam=version != "v1", ranked=plus, offset=0.0 if plus else 0.1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return made.eval()


def timm_state(shape: Shape = TINY, tokens: int = 1, *, distilled: bool = False) -> dict[str, Tensor]:
    """Random weights of an image transformer by timm's names, with a classifier of 5 classes."""
    torch.manual_seed(1)
    width, patches = shape.width, shape.grid[0] * shape.grid[1]
    extra = 2 if distilled else tokens
    sizes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, tokens, width),
        "pos_embed": (1, extra + patches, width),
        "patch_embed.proj.weight": (width, 3, shape.patch, shape.patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (5, width),
        "head.bias": (5,),
    }
    if distilled:
        sizes |= {"dist_token": (1, 1, width), "head_dist.weight": (5, width), "head_dist.bias": (5,)}
    for i in range(shape.layers):
        for part, out, into in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            sizes |= {f"blocks.{i}.{part}.weight": (out, into), f"blocks.{i}.{part}.bias": (out,)}
        for norm in ("norm1", "norm2"):
            sizes |= {f"blocks.{i}.{norm}.weight": (width,), f"blocks.{i}.{norm}.bias": (width,)}
    return {name: 0.3 * torch.randn(size) for name, size in sizes.items()}


def save_timm(path: Path, state: dict[str, Tensor]) -> Path:
    """As DeiT's published files are."""
    torch.save({"model": state}, path)
    return path
