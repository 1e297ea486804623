"""From a checkpoint's tensors to a CLIPModel: OpenAI's names and Hugging Face's, every tensor checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tag2mask.models.clip import CLIPModel, ImageTower, TextTransformer, VisionTransformer
from tag2mask.models.resnet import ModifiedResNet
from tag2mask.models.shapes import shapes_only
from tag2mask.models.transformer import Activation
from tag2mask.types import UserError

HEAD = 64  # channels a head in every CLIP of OpenAI; the weights do not tell

Source = tuple[tuple[str, ...], bool]
"""Names whose tensors, one below the other, make a parameter; and whether they are stored transposed."""


def from_openai_state(
    state: Mapping[str, Tensor],
    *,
    activation: Activation = "quick_gelu",
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> CLIPModel:
    """The model in a state dict with OpenAI's names (``visual.…``, ``transformer.…``), ViT or ResNet, in float32.

    Widths, layers, patch, grid, context and vocabulary are read off the weights; heads are width / 64 unless given.

    Raises:
        UserError: where this is no CLIP, or a tensor is missing, superfluous or of the wrong shape.
    """
    state = {name: value for name, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()}
    try:
        with shapes_only():
            vision = _openai_vision(state, activation, vision_heads)
            model = CLIPModel(vision, _openai_text(state, activation, text_heads))
    except (KeyError, IndexError, ValueError) as error:
        fault = f"{error} is missing" if isinstance(error, KeyError) else f"a tensor has the wrong rank ({error})"
        raise UserError(
            f"the weights are no CLIP of OpenAI's layout: {fault}; expected names such as visual.conv1.weight and "
            "text_projection. For a Hugging Face layout give the folder with config.json"
        ) from error
    return _filled(model, state, _openai_source)


def _openai_vision(state: Mapping[str, Tensor], activation: Activation, heads: int | None) -> ImageTower:
    embed = state["text_projection"].shape[1]
    if "visual.layer1.0.conv1.weight" in state:
        width = state["visual.layer1.0.conv1.weight"].shape[0]
        side = math.isqrt(state["visual.attnpool.positional_embedding"].shape[0] - 1)
        return ModifiedResNet(
            layers=[_count(state, f"visual.layer{stage}.") for stage in range(1, 5)],
            width=width,
            heads=_heads(width * 32),
            native_grid=(side, side),
            embed=embed,
        )
    width, _, patch, _ = state["visual.conv1.weight"].shape
    side = math.isqrt(state["visual.positional_embedding"].shape[0] - 1)
    return VisionTransformer(
        width=width,
        layers=_count(state, "visual.transformer.resblocks."),
        heads=heads or _heads(width),
        patch=patch,
        native_grid=(side, side),
        embed=embed,
        activation=activation,
    )


def _openai_text(state: Mapping[str, Tensor], activation: Activation, heads: int | None) -> TextTransformer:
    vocabulary, width = state["token_embedding.weight"].shape
    return TextTransformer(
        vocabulary=vocabulary,
        context=state["positional_embedding"].shape[0],
        width=width,
        layers=_count(state, "transformer.resblocks."),
        heads=heads or _heads(width),
        embed=state["text_projection"].shape[1],
        activation=activation,
    )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def _heads(width: int) -> int:
    if width % HEAD or not width:
        raise UserError(
            f"the weights are {width} wide, expected a multiple of {HEAD}, the channels a head in OpenAI's CLIPs; "
            "give such a checkpoint in Hugging Face layout, where config.json names the heads"
        )
    return width // HEAD


def _openai_source(name: str) -> Source:
    for own, theirs in (("vision.", "visual."), ("text.", "")):
        if name.startswith(own):
            return (theirs + name.removeprefix(own),), False
    return (name,), False


def from_hf_state(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> CLIPModel:
    """The model in a state dict with Hugging Face's names and the ``config.json`` beside it, in float32.

    Raises:
        UserError: where config.json describes no CLIP that this package reads, or a tensor does not fit it.
    """
    if config.get("model_type") != "clip":
        raise UserError(
            f"config.json says model_type {config.get('model_type')!r}, expected 'clip'; "
            "give a CLIP checkpoint (SigLIP and others are other models)"
        )
    vision = VISION_DEFAULTS | _section(config, "vision_config")
    text = TEXT_DEFAULTS | _section(config, "text_config")
    embed = config.get("projection_dim", 512)
    try:
        side = vision["image_size"] // vision["patch_size"]
        with shapes_only():
            tower = VisionTransformer(
                **_hf_tower(vision), patch=vision["patch_size"], native_grid=(side, side), embed=embed
            )
            reader = TextTransformer(
                **_hf_tower(text), vocabulary=text["vocab_size"], context=text["max_position_embeddings"], embed=embed
            )
            model = CLIPModel(tower, reader)
        for part, settings in ((tower, vision), (reader, text)):
            for module in part.modules():
                if isinstance(module, nn.LayerNorm):
                    module.eps = float(settings["layer_norm_eps"])
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise UserError(
            f"config.json holds sizes that make no model: {error}; take the file from its source again"
        ) from error
    return _filled(model, state, hf_source)


def _section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name) or {}
    if not isinstance(section, Mapping):
        raise UserError(
            f"config.json says {name} {section!r}, expected an object; take the file from its source again"
        )
    return dict(section)


# what transformers takes where config.json is silent
VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
TEXT_DEFAULTS: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}


def _hf_tower(settings: Mapping[str, Any]) -> dict[str, Any]:
    width, heads, activation = settings["hidden_size"], settings["num_attention_heads"], settings["hidden_act"]
    if activation not in ("quick_gelu", "gelu"):
        raise UserError(f"config.json says hidden_act {activation!r}; expected quick_gelu or gelu, CLIP's two")
    if settings["intermediate_size"] != 4 * width or width % heads:
        raise UserError(
            f"config.json says hidden_size {width}, intermediate_size {settings['intermediate_size']} and {heads} "
            "heads; expected an intermediate size of 4 times the hidden one, and heads that divide it"
        )
    return {"width": width, "layers": settings["num_hidden_layers"], "heads": heads, "activation": activation}


HF_NAMES = {
    "logit_scale": "logit_scale",
    "vision.class_embedding": "vision_model.embeddings.class_embedding",
    "vision.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "vision.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "vision.ln_pre": "vision_model.pre_layrnorm",  # so spelt
    "vision.ln_post": "vision_model.post_layernorm",
    "vision.proj": "visual_projection.weight",
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text.ln_final": "text_model.final_layer_norm",
    "text.text_projection": "text_projection.weight",
}
HF_BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def hf_source(name: str) -> Source:
    """Where Hugging Face keeps a parameter of CLIPModel; queries, keys and values lie apart there."""
    if name in HF_NAMES:
        return (HF_NAMES[name],), name in ("vision.proj", "text.text_projection")
    stem, _, kind = name.rpartition(".")
    if stem in HF_NAMES:
        return (f"{HF_NAMES[stem]}.{kind}",), False
    tower, _, rest = name.partition(".transformer.resblocks.")
    index, _, part = rest.partition(".")
    layer = f"{tower}_model.encoder.layers.{index}"
    if part.startswith("attn.in_proj_"):
        kind = part.removeprefix("attn.in_proj_")
        return tuple(f"{layer}.self_attn.{letter}_proj.{kind}" for letter in "qkv"), False
    module, _, kind = part.rpartition(".")
    return (f"{layer}.{HF_BLOCK_NAMES[module]}.{kind}",), False


def _filled(model: CLIPModel, state: Mapping[str, Tensor], source: Callable[[str], Source]) -> CLIPModel:
    """``model``, made on the meta device, with ``state``'s tensors copied in, frozen."""
    own: dict[str, Tensor] = {}
    used: set[str] = set()
    problems: list[str] = []
    for name, parameter in model.state_dict().items():
        if name.endswith("num_batches_tracked"):  # counts training steps; no part of the forward
            own[name] = torch.zeros((), dtype=torch.int64)
            continue
        pieces, transposed = source(name)
        used.update(pieces)
        shape = tuple(parameter.shape)
        if len(pieces) > 1:
            shape = (shape[0] // len(pieces), *shape[1:])
        shape = shape[::-1] if transposed else shape
        missing = [piece for piece in pieces if piece not in state]
        wrong = [piece for piece in pieces if piece in state and tuple(state[piece].shape) != shape]
        problems += [f"{piece} is missing, expected {shape}" for piece in missing]
        problems += [f"{piece} is {tuple(state[piece].shape)}, expected {shape}" for piece in wrong]
        if not missing and not wrong:
            parts = [state[piece].float() for piece in pieces]
            whole = torch.cat(parts) if len(parts) > 1 else parts[0].clone()
            own[name] = whole.T.contiguous() if transposed else whole.contiguous()
    superfluous = [name for name in state if name not in used and not name.endswith("position_ids")]
    problems += [f"{name} {tuple(state[name].shape)} is not expected" for name in superfluous]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"the weights do not fit the model: {'; '.join(problems[:3])}{more}. Take weights and config.json "
            "from the same checkpoint"
        )
    model.load_state_dict(own, assign=True)
    return model.eval().requires_grad_(False)
