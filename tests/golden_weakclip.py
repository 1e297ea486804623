"""The small WeakCLIP that golden data were recorded with."""

from __future__ import annotations

import torch

from tag2mask.models.clip import CLIPModel
from tag2mask.models.convert import from_openai_state
from tag2mask.models.text import Tokens
from tag2mask.models.weakclip import WeakCLIPNet, WeakCLIPSettings
from tag2mask.models.weakclip_files import fill_from_released, released_name

SMALL = WeakCLIPSettings(
    encoders="creep",
    adapter="as-encoders",
    taps=(4, 6, 8, 12),
    class_twice=True,
    drop_path=0.1,
    edges="cut",
    resolution=128,
    layers=3,
    chained=False,
    width=24,
    channels=16,
)
"""The recorded network, which is the released one made small."""


def clip_of(golden) -> CLIPModel:
    arrays = golden("weakclip/weights_clip")
    values, rows = (arrays.pop(f"token_embedding.{key}") for key in ("values", "rows"))
    arrays = {key: torch.from_numpy(value) for key, value in arrays.items() if value.dtype.kind == "f"}
    table = torch.zeros(49408, 32, dtype=torch.float16)
    table[torch.from_numpy(rows).long()] = torch.from_numpy(values)
    arrays |= {"token_embedding.weight": table, "logit_scale": torch.zeros(())}
    return from_openai_state(arrays, vision_heads=4, text_heads=4)


def tokens_of(ids) -> list[Tokens]:
    return [Tokens(tuple(row), max(range(len(row)), key=lambda i, row=row: row[i])) for row in ids.tolist()]


def learnt(golden) -> dict[str, torch.Tensor]:
    """What is not CLIP's, by the names of the checkpoint."""
    return {name: torch.from_numpy(value).float() for name, value in golden("weakclip/weights_weakclip").items()}


def recorded_network(golden) -> WeakCLIPNet:
    """In evaluation mode, with all the recorded weights."""
    clip, ids = clip_of(golden), golden("weakclip/forward_128", "tokens")["tokens"]
    net = WeakCLIPNet(clip.vision, clip.text, tokens_of(ids), 5, SMALL)
    state = {released_name(name): value for name, value in net.state_dict().items()} | learnt(golden)
    fill_from_released(net, state, "recorded")
    return net.eval()
