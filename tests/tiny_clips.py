"""Tiny random CLIPs, made on the fly, in the layouts that users have; and a pickle that does harm."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPConfig
from transformers import CLIPModel as Oracle

WORDS = ("<pad>", "<s>", "a", "photo", "of", "cat", "dog", "the", "red", "</s>")


@torch.no_grad()
def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a size that matters: norms off 1, biases off 0, attention far from uniform."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif parameter.ndim > 1:
            spread = 0.5 if "embedding" in name else 1.5 * parameter[0].numel() ** -0.5
            parameter.copy_(spread * torch.randn_like(parameter))
    return model


def oracle(*, hidden_act: str = "quick_gelu", eos: int = 9, layer_norm_eps: float = 1e-5) -> Oracle:
    """A small random CLIPModel of transformers; its heads are not width / 64, as in other people's CLIPs."""
    shared = {"hidden_act": hidden_act, "layer_norm_eps": layer_norm_eps}
    config = CLIPConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": len(WORDS),
            "max_position_embeddings": 8,
            "bos_token_id": 1,
            "eos_token_id": eos,
            "pad_token_id": 0,
            **shared,
        },
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "image_size": 32,
            "patch_size": 8,
            **shared,
        },
        projection_dim=24,
        attn_implementation="eager",
    )
    torch.manual_seed(0)  # shake adds to some of what the constructor drew
    return shake(Oracle(config)).eval()


def write_tokenizer(folder: Path) -> None:
    """A word-level tokenizer whose unknown token is <pad>, as small CLIPs have it."""
    backend = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(".", " ")])
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 9)]
    )
    backend.enable_padding(length=8)
    backend.enable_truncation(6)
    backend.save(str(folder / "tokenizer.json"))


def write_clip(folder: Path, **settings: str | float) -> Path:
    """``oracle`` as transformers saves it, with that tokenizer."""
    oracle(**settings).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def openai_state(kind: str = "vit", seed: int = 0) -> dict[str, Tensor]:
    """A random state dict with OpenAI's names, in float16 as OpenAI ships them."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        spread = 0.1 if len(shape) == 1 else 1.0 / torch.Size(shape[1:]).numel() ** 0.5
        return spread * torch.randn(shape, generator=g)

    state: dict[str, Tensor] = {}

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + draw(width), draw(width)

    def linear(name: str, outputs: int, inputs: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = draw(outputs, inputs), draw(outputs)

    def blocks(prefix: str, width: int, layers: int) -> None:
        for i in range(layers):
            at = f"{prefix}transformer.resblocks.{i}"
            norm(f"{at}.ln_1", width)
            norm(f"{at}.ln_2", width)
            state[f"{at}.attn.in_proj_weight"] = draw(3 * width, width)
            state[f"{at}.attn.in_proj_bias"] = draw(3 * width)
            linear(f"{at}.attn.out_proj", width, width)
            linear(f"{at}.mlp.c_fc", 4 * width, width)
            linear(f"{at}.mlp.c_proj", width, 4 * width)

    if kind == "vit":
        state["visual.class_embedding"] = draw(128)
        state["visual.positional_embedding"] = draw(1 + 9, 128)
        state["visual.proj"] = draw(128, 24)
        state["visual.conv1.weight"] = draw(128, 3, 8, 8)
        norm("visual.ln_pre", 128)
        norm("visual.ln_post", 128)
        blocks("visual.", 128, 3)
    else:
        width = 8

        def conv_bn(at: str, conv: str, bn: str, *shape: int) -> None:
            state[f"{at}{conv}.weight"] = draw(*shape)
            norm(f"{at}{bn}", shape[0])
            state[f"{at}{bn}.running_mean"] = draw(shape[0])
            state[f"{at}{bn}.running_var"] = 1 + draw(shape[0]).abs()
            state[f"{at}{bn}.num_batches_tracked"] = torch.tensor(3)

        conv_bn("visual.", "conv1", "bn1", width // 2, 3, 3, 3)
        conv_bn("visual.", "conv2", "bn2", width // 2, width // 2, 3, 3)
        conv_bn("visual.", "conv3", "bn3", width, width // 2, 3, 3)
        inputs = width
        for stage, count in enumerate((1, 2, 1, 1)):
            planes = width * 2**stage
            for i in range(count):
                at = f"visual.layer{stage + 1}.{i}."
                conv_bn(at, "conv1", "bn1", planes, inputs, 1, 1)
                conv_bn(at, "conv2", "bn2", planes, planes, 3, 3)
                conv_bn(at, "conv3", "bn3", 4 * planes, planes, 1, 1)
                if i == 0:
                    conv_bn(at, "downsample.0", "downsample.1", 4 * planes, inputs, 1, 1)
                inputs = 4 * planes
        state["visual.attnpool.positional_embedding"] = draw(1 + 4, inputs)
        for letter in "kqv":
            linear(f"visual.attnpool.{letter}_proj", inputs, inputs)
        linear("visual.attnpool.c_proj", 24, inputs)
    state["token_embedding.weight"] = draw(len(WORDS), 64)
    state["positional_embedding"] = draw(8, 64)
    state["text_projection"] = draw(64, 24)
    state["logit_scale"] = torch.tensor(3.0)
    norm("ln_final", 64)
    blocks("", 64, 2)
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


class Tree(nn.Module):
    """Modules nested by dotted names, as a scripted CLIP is."""

    def __init__(self) -> None:
        super().__init__()
        self.input_resolution = 224
        self.sizes = [1, 2]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.input_resolution


def script(state: dict[str, Tensor], path: Path) -> Path:
    root = Tree()
    for name, value in state.items():
        at = root
        *parents, leaf = name.split(".")
        for parent in parents:
            if parent not in dict(at.named_children()):
                at.add_module(parent, Tree())
            at = getattr(at, parent)
        if value.is_floating_point():
            at.register_parameter(leaf, nn.Parameter(value))
        else:
            at.register_buffer(leaf, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit itself; its archives stay in use
        torch.jit.script(root).save(str(path))
    return path


class Evil:
    """Makes a file when it is unpickled by a reader that runs what it reads."""

    def __init__(self, marker: Path, how: str) -> None:
        self.marker, self.how = marker, how

    def __reduce__(self):
        if self.how == "system":
            return os.system, (f'echo x > "{self.marker}"',)
        if self.how == "eval":
            return eval, (f"open({str(self.marker)!r}, 'w')",)
        return open, (str(self.marker), "w")
