"""CLIP-ES one image at a time, as its released code goes about it; written from its description, not taken from it.

python benchmarks/reference.py DATA CLIP MAPS   the maps of a folder with tags.csv, a .npz each, float16 at full size

The second step, masks by pydensecrf, is ``benchmarks/peer.py``. Memory and threads are as a script finds them:
``tag2mask.process.tune_process`` is the command line's own, and not called here.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from tag2mask.data import read_dataset
from tag2mask.data.pixels import read_pixels
from tag2mask.methods.clip_es import ClipES, ClipESOptions
from tag2mask.models.transformer import Block
from tag2mask.models.weights import load_clip
from tag2mask.ops.affinity import symmetric_affinity
from tag2mask.ops.boxes import box_masks
from tag2mask.ops.cam import min_max, normalise_cam
from tag2mask.run.device import peak_memory
from tag2mask.types import Item


def block_forward(block: Block, x: torch.Tensor, fed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A block as its formulas stand, from tokens x (B, T, D) and their first norm: tokens, mean attention."""
    attn, mlp = block.attn, block.mlp
    parts = F.linear(fed, attn.in_proj_weight, attn.in_proj_bias).unflatten(-1, (3, attn.heads, -1))
    q, k, v = parts.permute(2, 0, 3, 1, 4)  # (B, heads, T, dh) each
    p = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1)  # (B, heads, T, T)
    x = x + F.linear((p @ v).transpose(1, 2).flatten(2), attn.out_proj.weight, attn.out_proj.bias)
    hidden = F.linear(block.ln_2(x), mlp.c_fc.weight, mlp.c_fc.bias)
    return x + F.linear(hidden * torch.sigmoid(1.702 * hidden), mlp.c_proj.weight, mlp.c_proj.bias), p.mean(1)


def the_obvious_way(method: ClipES, item: Item) -> list[torch.Tensor]:
    """CLIP-ES as one would first write it: attention of every layer kept, the last block run forward and backward
    once a class by autograd, weights' gradients included, and A @ A formed for every class. Maps (N,), one a tag."""
    vision = method.vision
    last = vision.blocks[-1]
    for parameter in vision.parameters():
        parameter.requires_grad_(True)
    with torch.no_grad():
        x, grid = vision.embed(method._pixels([item], method.grid(tuple(item.image.shape[1:]))), method.positions)
        attentions = []
        for block in vision.blocks[:-1]:
            x, weights = block_forward(block, x, block.ln_1(x))
            attentions.append(weights)
    out = []
    texts = torch.cat([method.class_features[0][item.tags - 1], method.background_features])
    for k in range(len(item.tags)):
        fed = last.ln_1(x).detach().requires_grad_(True)
        tokens, attention = block_forward(last, x, fed)
        embedding = F.normalize(vision.ln_post(tokens)[:, 1:].mean(1) @ vision.proj, dim=-1)
        score = (method.scale * embedding @ texts.T).softmax(-1)[0, k]
        score.backward(retain_graph=True)
        with torch.no_grad():
            weights = fed.grad[0, 1:].mean(0)
            cam = normalise_cam(F.relu(fed[0, 1:] @ weights)[None])
            mean = torch.stack([*attentions, attention])[-8:].mean(0)[0, 1:, 1:]
            affinity = symmetric_affinity(mean)
            keep_edges = method.options.variant == "paper"
            mask = box_masks(cam.view(1, *grid), method.box_threshold, keep_edges=keep_edges).flatten(1)
            out.append(min_max(((affinity @ affinity) * mask) @ cam[0]))
    for parameter in vision.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("clip", type=Path)
    parser.add_argument("maps", type=Path)
    args = parser.parse_args()
    Block.pack = lambda *_, **__: None  # copies of the weights that are not used here
    data = read_dataset(args.data, kind="folder", classes="voc12")
    clip = load_clip(args.clip, device="cpu")
    method = ClipES(data.classes, ClipESOptions(variant="released"), clip=clip)
    args.maps.mkdir(parents=True, exist_ok=True)
    start, begin = time.perf_counter(), time.process_time()
    for sample in data:
        item = Item(sample.id, read_pixels(sample.image).contiguous(), torch.tensor(sample.tags))
        maps = torch.stack(the_obvious_way(method, item)).detach()  # (K, N)
        size = tuple(item.image.shape[1:])
        maps = maps.view(1, len(maps), *method.grid(size))
        full = F.interpolate(maps, size, mode="bilinear")[0].half().numpy()  # (K, H, W)
        np.savez(args.maps / f"{sample.image.stem}.npz", keys=np.array(sample.tags) - 1, maps=full)
    took = {"seconds": time.perf_counter() - start, "processor": time.process_time() - begin}
    print(json.dumps({"images": len(data), **took, "peak_mb": (peak_memory() or 0) / 2**20}))


if __name__ == "__main__":
    main()
