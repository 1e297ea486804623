"""The small CLIPs that golden data were recorded with, built from their recorded weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tag2mask.models.clip import CLIPModel
from tag2mask.models.convert import from_openai_state

Loader = Callable[[str], dict[str, np.ndarray]]


def golden_state(golden: Loader, name: str) -> dict[str, Tensor]:
    """The state dict "A" or "B" of golden/clip-es, by OpenAI's names; the token table is kept sparse there."""
    arrays = golden(f"clip-es/model_{name}")
    sparse = {key: arrays.pop(f"token_embedding.{key}") for key in ("rows", "values", "shape")}
    state = {key: torch.from_numpy(value) for key, value in arrays.items()}
    table = torch.zeros(tuple(sparse["shape"].tolist()), dtype=torch.float16)
    table[torch.from_numpy(sparse["rows"]).long()] = torch.from_numpy(sparse["values"])
    return state | {"token_embedding.weight": table}


def golden_clip(golden: Loader, name: str) -> CLIPModel:
    """CLIP "A" or "B" of golden/clip-es in float32, or a skip where golden data are absent."""
    return from_openai_state(golden_state(golden, name))
