"""A CLIP of ours as a folder in Hugging Face layout, which ``load_clip`` and transformers read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tag2mask.models.clip import CLIPModel
from tag2mask.models.convert import hf_source
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
