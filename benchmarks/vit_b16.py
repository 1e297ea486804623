"""A checkpoint of ViT-B/16's shape with random weights, in Hugging Face layout: the real cost, without a download."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

CONTEXT, VOCABULARY, START, END = 77, 49408, 49406, 49407


def write_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write config, tokenizer (one token a byte) and 149.6 M weights in float16; about 300 MB."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)

    def matrix(*shape: int, std: float | None = None) -> torch.Tensor:
        inputs = shape[0] if len(shape) == 1 else int(torch.tensor(shape[1:]).prod())
        return ((std or inputs**-0.5) * torch.randn(*shape, generator=generator)).half()

    state = {"logit_scale": torch.tensor(100.0).log().half()}
    for tower, width, layers in (("vision_model", 768, 12), ("text_model", 512, 12)):
        for i in range(layers):
            block = f"{tower}.encoder.layers.{i}"
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                state[f"{block}.self_attn.{name}.weight"] = matrix(width, width)
                state[f"{block}.self_attn.{name}.bias"] = matrix(width, std=0.02)
            for name, shape in (("fc1", (4 * width, width)), ("fc2", (width, 4 * width))):
                state[f"{block}.mlp.{name}.weight"] = matrix(*shape)
                state[f"{block}.mlp.{name}.bias"] = matrix(shape[0], std=0.02)
            for name in ("layer_norm1", "layer_norm2"):
                state[f"{block}.{name}.weight"] = torch.ones(width).half()
                state[f"{block}.{name}.bias"] = matrix(width, std=0.02)
    for name, width in (
        ("vision_model.pre_layrnorm", 768),
        ("vision_model.post_layernorm", 768),
        ("text_model.final_layer_norm", 512),
    ):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.ones(width).half(), matrix(width, std=0.02)
    state |= {
        "vision_model.embeddings.class_embedding": matrix(768, std=0.3),
        "vision_model.embeddings.patch_embedding.weight": matrix(768, 3, 16, 16),
        "vision_model.embeddings.position_embedding.weight": matrix(197, 768, std=0.3),
        "text_model.embeddings.token_embedding.weight": matrix(VOCABULARY, 512, std=0.3),
        "text_model.embeddings.position_embedding.weight": matrix(CONTEXT, 512, std=0.3),
        "visual_projection.weight": matrix(512, 768),
        "text_projection.weight": matrix(512, 512),
    }
    save_file(state, folder / "model.safetensors")
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 512,
        "text_config": {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "max_position_embeddings": CONTEXT,
            "vocab_size": VOCABULARY,
            "bos_token_id": START,
            "eos_token_id": END,
            "hidden_act": "quick_gelu",
        },
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 224,
            "patch_size": 16,
            "hidden_act": "quick_gelu",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(alphabet)} | {"<|startoftext|>": START, "<|endoftext|>": END}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", START), ("<|endoftext|>", END)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
