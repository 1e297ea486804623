"""The same network without what it learned: the floor that every figure is read against."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from tag2mask.models.clip import CLIPModel
from tag2mask.models.text import FeatureCache
from tag2mask.models.weights import CLIP


def untrained(clip: CLIP, seed: int) -> CLIP:
    """A copy of ``clip`` with new random weights: same shapes, temperature and tokenizer, nothing learned."""
    model = copy.deepcopy(clip.model)
    draw_weights(model, seed)
    return replace(
        clip, model=model, name=f"{clip.name} (untrained)", sha256=f"untrained-{seed}", cache=FeatureCache(None)
    )


def draw_weights(model: CLIPModel, seed: int) -> None:
    """Draw every matrix from a normal of variance 1 / inputs, in place; norms become 1 and 0, biases 0.

    The temperature stays. Position, class and token embeddings get a deviation of 0.3, so that tokens differ.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d) for p in m.parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if id(parameter) in norms:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            elif "embedding" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            elif parameter.ndim >= 2:
                inputs = parameter.shape[0] if name.endswith(("proj", "text_projection")) else parameter[0].numel()
                parameter.copy_(inputs**-0.5 * torch.randn(parameter.shape, generator=generator))
            elif name != "logit_scale":
                parameter.zero_()
