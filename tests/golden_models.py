"""The networks that golden data were recorded with, drawn anew: their weights are random."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tag2mask.models.clip import CLIPModel
from tag2mask.models.convert import from_openai_state
from tag2mask.models.pot import POTNetwork

Loader = Callable[..., dict[str, np.ndarray]]

WORDS, TEXT = 49408, 128  # the vocabulary; the width of the text tower and of the common space
MODELS = {
    "A": (101, 192, 6, 1 / 0.07, "8035dcf4105c9e9fb6d6e89b4279164977c0e70ddce52d55f963483d97efa73d"),
    "B": (202, 128, 10, 100, "f54d02918f756562dae0b62bcf3db082371e62e5ad9109155009ba950c1a29fc"),
}
"""Model -> seed, width and layers of the vision tower, scale of the logits, SHA-256 of the weights."""


def golden_state(golden: Loader, name: str) -> dict[str, Tensor]:
    """The state dict "A" or "B" of golden/clip-es, by OpenAI's names; of the tokens only the recorded ones have rows.

    Where numpy draws other weights than those of the recording, the recorded file is read, or the test skips.
    """
    ids = np.concatenate([a.flatten() for key, a in golden("clip-es/tokens").items() if key.startswith("ids_")])
    rows = np.unique(ids)
    arrays, digest = drawn(name, len(rows))
    if digest != MODELS[name][-1]:
        arrays = golden(f"clip-es/model_{name}")
        values, rows = (arrays.pop(f"token_embedding.{key}") for key in ("values", "rows"))
        del arrays["token_embedding.shape"]
    else:
        values = arrays.pop("token_embedding.weight")
    table = torch.zeros(WORDS, TEXT, dtype=torch.float16)
    table[torch.from_numpy(rows).long()] = torch.from_numpy(values)
    return {key: torch.from_numpy(value) for key, value in arrays.items()} | {"token_embedding.weight": table}


def golden_clip(golden: Loader, name: str) -> CLIPModel:
    """CLIP "A" or "B" of golden/clip-es in float32."""
    return from_openai_state(golden_state(golden, name))


def drawn(name: str, rows: int) -> tuple[dict[str, np.ndarray], str]:
    """The weights in float16, with ``rows`` rows of tokens, and the SHA-256 of their names and bytes."""
    seed, width, layers, scale, _ = MODELS[name]
    dice, digest, state = np.random.Generator(np.random.PCG64(seed)), hashlib.sha256(), {}
    for key, shape in sorted(shapes(width, layers, rows).items()):
        value = np.array(math.log(scale)) if key == "logit_scale" else spread(key, dice.standard_normal(shape))
        state[key] = value.astype(np.float32).astype(np.float16)  # rounded twice, as torch does
        digest.update(key.encode() + state[key].tobytes())
    return state, digest.hexdigest()


def spread(key: str, normal: np.ndarray) -> np.ndarray:
    """Standard normal numbers, brought to the size that weights of this name have."""
    if "ln_" in key:
        return 1 + 0.1 * normal if key.endswith("weight") else 0.05 * normal
    if key.endswith("bias"):
        return 0.05 * normal
    if key == "token_embedding.weight":
        return 0.25 * normal
    if key.endswith(("positional_embedding", "class_embedding")):
        return 0.3 * normal
    if key in ("visual.proj", "text_projection"):
        return normal / normal.shape[0] ** 0.5
    value = normal / np.prod(normal.shape[1:]) ** 0.5
    if key.endswith("in_proj_weight"):  # queries and keys
        value[: 2 * normal.shape[1]] *= 1.6
    return value


def shapes(width: int, layers: int, rows: int) -> dict[str, tuple[int, ...]]:
    """OpenAI's name of every tensor -> its shape."""
    found: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "positional_embedding": (77, TEXT),
        "text_projection": (TEXT, TEXT),
        "token_embedding.weight": (rows, TEXT),
        "visual.class_embedding": (width,),
        "visual.conv1.weight": (width, 3, 16, 16),
        "visual.positional_embedding": (14 * 14 + 1, width),
        "visual.proj": (width, TEXT),
    }
    for norm, wide in (("ln_final", TEXT), ("visual.ln_pre", width), ("visual.ln_post", width)):
        found |= {f"{norm}.weight": (wide,), f"{norm}.bias": (wide,)}
    for tower, wide, count in (("", TEXT, 3), ("visual.", width, layers)):
        for layer in range(count):
            block = f"{tower}transformer.resblocks.{layer}."
            for part, out, into in (
                ("attn.in_proj_", 3 * wide, wide),
                ("attn.out_proj.", wide, wide),
                ("mlp.c_fc.", 4 * wide, wide),
                ("mlp.c_proj.", wide, 4 * wide),
            ):
                found |= {f"{block}{part}weight": (out, into), f"{block}{part}bias": (out,)}
            for norm in ("ln_1", "ln_2"):
                found |= {f"{block}{norm}.{part}": (wide,) for part in ("weight", "bias")}
    return found


def recorded_pot(network: POTNetwork, expected: str) -> POTNetwork:
    """POT's full network with the weights of the recorded passes, or a skip where numpy draws others."""
    state, digest = _pot_weights(network)
    if digest != expected:
        pytest.skip("this numpy draws other weights than those of the recording")
    network.load_state_dict(state, strict=False)
    return network


def _pot_weights(network: POTNetwork) -> tuple[dict[str, Tensor], str]:
    """The weights that the recorded passes ran with, by our names, drawn as the arrays' README says."""
    ours = {name.removeprefix("backbone."): name for name in network.state_dict()}
    dice, digest, state = np.random.Generator(np.random.PCG64(611)), hashlib.sha256(), {}
    for name in sorted(name for name in ours if not name.endswith("num_batches_tracked")):
        shape = tuple(network.state_dict()[ours[name]].shape)
        z = dice.standard_normal(shape)
        if name.endswith("running_var"):
            z = 1 + 0.3 * abs(z)
        elif name.endswith("running_mean"):
            z = 0.1 * z
        elif len(shape) == 1 and name.endswith("weight"):
            z = (1 + 0.1 * z) * (0.3 if "bn3" in name else 1)
        elif name.endswith("bias"):
            z = 0.05 * z
        elif name.startswith(("side", "classifier")):
            z = z / np.sqrt(shape[1])
        else:
            z = z * np.sqrt(2 / np.prod(shape[1:]))
        half = z.astype(np.float16)
        digest.update(name.encode() + half.tobytes())
        state[ours[name]] = torch.from_numpy(half.astype(np.float32))
    return state, digest.hexdigest()
