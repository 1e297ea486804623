"""Tiny segmentation networks in folders, and photographs for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tag2mask.segment.network import build_network, save_network
from tag2mask.segment.saved import NetworkConfig
from tag2mask.types import ClassSet

SIZES = [(40, 56), (64, 33), (24, 24), (1, 1)]
TINY = {"width": 4, "blocks": (1, 1, 1, 1), "channels": 8}


def tiny_network(folder: Path, classes: ClassSet, *, seed: int = 0, supervision: str = "tags") -> Path:
    """A network of random weights whose classes all occur: its last layer is loud and centred on noise."""
    net = build_network(NetworkConfig.of("small", classes, **TINY), seed=seed)
    noise = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 255
    with torch.no_grad():
        for _ in range(3):  # batch norms get to know what pixels are like
            net(noise)
        net.eval()
        logits = net(noise)  # (4, K, h, w)
        last = [module for module in net.modules() if isinstance(module, torch.nn.Conv2d)][-1]
        gain = 3 / logits.std()
        last.weight *= gain
        assert last.bias is not None
        last.bias.sub_(logits.mean((0, 2, 3))).mul_(gain)
    save_network(folder, net, supervision=supervision, noted={"step": 7})
    return folder


def photographs(folder: Path, sizes: list[tuple[int, int]], seed: int = 3) -> Path:
    """Soft blobs of colour, ``<number>.png``, without tags."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number, (height, width) in enumerate(sizes):
        coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.png")
    return folder
