"""Networks of ours (CLIP, DINO, ViT) as folders in Hugging Face layout, which our readers and transformers read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tag2mask.models.clip import CLIPModel
from tag2mask.models.convert import hf_source
from tag2mask.models.dino import DINOTower
from tag2mask.models.mctformer import MCTformer
from tag2mask.models.transformer import Block
from tag2mask.models.weights import MEAN, STD
from tag2mask.run.files import write_atomic


def save_clip(folder: Path, model: CLIPModel, *, start: int, end: int, pad: int) -> None:
    """Write float16 weights (model.safetensors), config.json and preprocessor_config.json; the tokenizer is apart.

    Args:
        folder: made where it is missing; the weights are written last.
        model: with a transformer as its image tower, over a square native grid.
        start, end, pad: token ids of the start and the end of a text, and of what follows it.

    Raises:
        ValueError: the image tower is none that this layout can hold.
    """
    import safetensors.torch

    vision = model.vision
    if not vision.blocks or vision.native_grid[0] != vision.native_grid[1]:
        raise ValueError("only a vision transformer over a square grid can be kept in Hugging Face layout")
    side = vision.native_grid[0] * vision.patch
    embed = model.text.text_projection.shape[1]
    config: dict[str, Any] = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float16",
        "projection_dim": embed,
        "logit_scale_init_value": round(float(model.logit_scale.detach()), 4),
        "text_config": {
            "model_type": "clip_text_model",
            **_tower(model.text.transformer.blocks),
            "vocab_size": model.text.token_embedding.num_embeddings,
            "max_position_embeddings": model.text.context,
            "projection_dim": embed,
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": pad,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            **_tower(vision.blocks),
            "image_size": side,
            "patch_size": vision.patch,
            "num_channels": 3,
            "projection_dim": embed,
        },
    }
    pixels: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }
    write_atomic(folder / "config.json", _json(config))
    write_atomic(folder / "preprocessor_config.json", _json(pixels))
    # not save_file: that leaves a file which nobody but its owner may read
    write_atomic(folder / "model.safetensors", safetensors.torch.save(hf_state(model), metadata={"format": "pt"}))


def hf_state(model: CLIPModel) -> dict[str, torch.Tensor]:
    """The weights under Hugging Face's names, float16, in main memory."""
    state = {}
    for name, value in model.state_dict().items():
        names, transposed = hf_source(name)
        value = value.detach().to("cpu", torch.float16)
        value = value.T if transposed else value
        parts = value.chunk(len(names)) if len(names) > 1 else (value,)
        state.update({theirs: part.contiguous() for theirs, part in zip(names, parts, strict=True)})
    return state


def save_dino(folder: Path, tower: DINOTower) -> None:
    """Write float16 weights (model.safetensors) and config.json, which ``load_dino`` reads.

    Args:
        folder: made where it is missing; the weights are written last.
        tower: over a square native grid, without registers.

    Raises:
        ValueError: the tower is none that this layout can hold.
    """
    import safetensors.torch

    grid = tower.native_grid
    if grid[0] != grid[1] or len(tower.registers):
        raise ValueError(f"a grid {grid} and {len(tower.registers)} registers: expected a square and none")
    block = _tower(tower.blocks)
    config: dict[str, Any] = {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "dtype": "float16",
        **{name: block[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act")},
        "mlp_ratio": 4,
        "layer_norm_eps": tower.norm.eps,
        "image_size": grid[0] * tower.patch,
        "patch_size": tower.patch,
        "num_channels": 3,
        "use_swiglu_ffn": False,
        "layerscale_value": 1.0,
    }
    write_atomic(folder / "config.json", _json(config))
    write_atomic(folder / "model.safetensors", safetensors.torch.save(dino_state(tower), metadata={"format": "pt"}))


def dino_state(tower: DINOTower) -> dict[str, torch.Tensor]:
    """The weights under transformers' names, float16, in main memory; LayerScales, which it has none of, are 1."""
    own = {name: value.detach().to("cpu", torch.float16) for name, value in tower.state_dict().items()}
    width = tower.norm.normalized_shape[0]
    state = {
        "embeddings.cls_token": own["class_embedding"][None],
        "embeddings.mask_token": torch.zeros(1, width, dtype=torch.float16),
        "embeddings.position_embeddings": own["positional_embedding"][None],
    }
    for end in ("weight", "bias"):
        state[f"embeddings.patch_embeddings.projection.{end}"] = own[f"conv1.{end}"]
        state[f"layernorm.{end}"] = own[f"norm.{end}"]
        for i in range(len(tower.blocks)):
            at, to = f"resblocks.{i}.", f"encoder.layer.{i}."
            parts = own[f"{at}attn.in_proj_{end}"].chunk(3)
            for part, value in zip(("query", "key", "value"), parts, strict=True):
                state[f"{to}attention.attention.{part}.{end}"] = value
            for ours, theirs in _DINO_BLOCK.items():
                state[f"{to}{theirs}.{end}"] = own[f"{at}{ours}.{end}"]
            for scale in (1, 2):
                state[f"{to}layer_scale{scale}.lambda1"] = torch.ones(width, dtype=torch.float16)
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}


def save_vit(folder: Path, tower: MCTformer, norm: nn.LayerNorm, head: nn.Linear, names: Sequence[str]) -> None:
    """Write float16 weights (model.safetensors) and config.json of a classifier that MCTformer can start from.

    Args:
        folder: made where it is missing; the weights are written last.
        tower: with one class token, without PatchCAM, over a square grid.
        norm, head: from its class token to one score a class.
        names: of the classes.

    Raises:
        ValueError: the tower is none that this layout can hold.
    """
    import safetensors.torch

    shape = tower.shape
    if tower.classes != 1 or tower.head is not None or shape.grid[0] != shape.grid[1] or shape.pre_norm:
        raise ValueError(f"{tower.classes} class tokens, {shape}: expected one, a square grid, and no norm before")
    config: dict[str, Any] = {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "dtype": "float16",
        **_tower(tower.blocks),
        "image_size": shape.grid[0] * shape.patch,
        "patch_size": shape.patch,
        "num_channels": 3,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "multi_label_classification",
    }
    del config["attention_dropout"]
    own = {name: value.detach().to("cpu", torch.float16) for name, value in tower.state_dict().items()}
    state = {
        "vit.embeddings.cls_token": own["class_embedding"][None],
        "vit.embeddings.position_embeddings": own["positional_embedding"][None],
    }
    for end in ("weight", "bias"):
        state[f"vit.embeddings.patch_embeddings.projection.{end}"] = own[f"conv1.{end}"]
        state[f"vit.layernorm.{end}"] = getattr(norm, end).detach().to("cpu", torch.float16)
        state[f"classifier.{end}"] = getattr(head, end).detach().to("cpu", torch.float16)
        for i in range(len(tower.blocks)):
            at, to = f"transformer.resblocks.{i}.", f"vit.encoder.layer.{i}."
            for part, value in zip(("query", "key", "value"), own[f"{at}attn.in_proj_{end}"].chunk(3), strict=True):
                state[f"{to}attention.attention.{part}.{end}"] = value
            for ours, theirs in _VIT_BLOCK.items():
                state[f"{to}{theirs}.{end}"] = own[f"{at}{ours}.{end}"]
    write_atomic(folder / "config.json", _json(config))
    whole = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    write_atomic(folder / "model.safetensors", safetensors.torch.save(whole, metadata={"format": "pt"}))


_VIT_BLOCK = {
    "ln_1": "layernorm_before",
    "ln_2": "layernorm_after",
    "attn.out_proj": "attention.output.dense",
    "mlp.c_fc": "intermediate.dense",
    "mlp.c_proj": "output.dense",
}

_DINO_BLOCK = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.out_proj": "attention.output.dense",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _tower(blocks: Sequence[Block]) -> dict[str, Any]:
    block = blocks[0]
    width = block.ln_1.normalized_shape[0]
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": block.attn.heads,
        "hidden_act": block.mlp.activation,
        "layer_norm_eps": block.ln_1.eps,
        "attention_dropout": 0.0,
    }


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
