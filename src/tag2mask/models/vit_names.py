"""Image transformers in other people's files: timm's names (DeiT, MCTformer) and transformers', as ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

TIMM, TRANSFORMERS = "patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight"
"""A tensor by which the names of timm (and of released MCTformers), and those of transformers, are known."""

_TIMM_BLOCK = {
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_HF_BLOCK = {
    "layernorm_before": "ln_1",
    "layernorm_after": "ln_2",
    "attention.output.dense": "attn.out_proj",
    "intermediate.dense": "mlp.c_fc",
    "output.dense": "mlp.c_proj",
}


def from_timm(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file of timm's by our names, unchanged, and the names that were left out.

    "dist_token" and MCTformer+'s "pos_embed_*" keep theirs.
    """
    plain = {
        "patch_embed.proj.weight": "conv1.weight",
        "patch_embed.proj.bias": "conv1.bias",
        "cls_token": "class_embedding",
        "pos_embed": "positional_embedding",
        **{name: name for name in ("dist_token", "pos_embed_cls", "pos_embed_pat")},
    }
    if "head.weight" in state and state["head.weight"].ndim == 4:  # PatchCAM; else a classifier
        plain |= {"head.weight": "head.weight", "head.bias": "head.bias"}
    return _renamed(state, plain, r"blocks\.(\d+)\.(.+)\.(weight|bias)", {**_TIMM_BLOCK, "attn.qkv": "attn.in_proj"})


def from_transformers(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """As ``from_timm``, of a file of transformers', where queries, keys and values are apart and are joined."""
    joined = dict(state)
    for name in state:
        layer, found = name.rpartition(".attention.attention.query.")[::2]
        parts = [f"{layer}.attention.attention.{part}.{found}" for part in ("query", "key", "value")]
        if layer and all(part in joined for part in parts):
            joined[f"{layer}.qkv.{found}"] = torch.cat([joined.pop(part) for part in parts])
    plain = {
        "embeddings.patch_embeddings.projection.weight": "conv1.weight",
        "embeddings.patch_embeddings.projection.bias": "conv1.bias",
        "embeddings.cls_token": "class_embedding",
        "embeddings.distillation_token": "dist_token",
        "embeddings.position_embeddings": "positional_embedding",
    }
    return _renamed(
        joined, plain, r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", {**_HF_BLOCK, "qkv": "attn.in_proj"}
    )


def _renamed(
    state: Mapping[str, Tensor], plain: Mapping[str, str], block: str, parts: Mapping[str, str]
) -> tuple[dict[str, Tensor], list[str]]:
    named: dict[str, Tensor] = {}
    left = []
    for name, value in state.items():
        match = re.fullmatch(block, name)
        if name in plain:
            named[plain[name]] = value
        elif match and match[2] in parts:
            own = parts[match[2]]
            joint = "_" if own.endswith("in_proj") else "."
            named[f"transformer.resblocks.{match[1]}.{own}{joint}{match[3]}"] = value
        else:
            left.append(name)
    return named, left
