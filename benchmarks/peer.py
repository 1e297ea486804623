"""pydensecrf as the released codes use it, and CLIP-ES's second step with it. Neither torch nor tag2mask is loaded.

python benchmarks/peer.py MAPS PHOTOGRAPHS OUT [--processes 2]   a mask of each MAPS/ID.npz, in processes

pydensecrf has no wheels; ``pip install pydensecrf2==1.1`` compiles it on Python 3.11 (g++ needed).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

try:
    import pydensecrf.densecrf as peer
except ImportError:
    peer = None

MEAN = (104.008, 116.669, 122.675)  # blue, green, red


class Kernels(Protocol):
    """What ``tag2mask.ops.crf.CRF`` has."""

    spatial: tuple[float, float] | None
    bilateral: tuple[float, float, float] | None
    iterations: int


class ClipES(NamedTuple):
    """The kernels of CLIP-ES."""

    spatial: tuple[float, float] = (1, 3)
    bilateral: tuple[float, float, float] = (67, 3, 4)
    iterations: int = 10


def run_peer(image: NDArray[np.uint8], energy: NDArray[np.float32], kernels: Kernels) -> NDArray[np.float32]:
    """What the released codes do: image (H, W, 3), energy (C, H W) -> marginals (C, H, W)."""
    height, width = image.shape[:2]
    crf = peer.DenseCRF2D(width, height, len(energy))
    crf.setUnaryEnergy(energy)
    (sxy, weight), (bxy, brgb, bweight) = kernels.spatial, kernels.bilateral
    crf.addPairwiseGaussian(sxy=sxy, compat=weight)
    crf.addPairwiseBilateral(sxy=bxy, srgb=brgb, rgbim=image, compat=bweight)
    return np.array(crf.inference(kernels.iterations)).reshape(-1, height, width)


def one(maps: Path, photographs: Path, out: Path) -> tuple[int, int]:
    """The mask of one photograph from its maps (K, H, W) float16; this process and the most kB that it ever had."""
    with np.load(maps) as kept:
        keys, scores = kept["keys"], kept["maps"]
    with Image.open(photographs / f"{maps.stem}.jpg") as picture:
        bgr = np.asarray(picture.convert("RGB"))[..., ::-1]
    # the cast of the released code, whose negative values wrap around
    image = np.ascontiguousarray(((bgr.astype(np.float32) - MEAN).astype(np.int32) & 255).astype(np.uint8))
    probs = np.concatenate([1 - scores.max(0, keepdims=True), scores])  # (1 + K, H, W) float16
    energy = -np.log(np.clip(probs, 1e-5, 1)).astype(np.float32)
    marginals = run_peer(image, np.ascontiguousarray(energy.reshape(len(energy), -1)), ClipES())
    mask = np.concatenate([[0], keys + 1])[marginals.argmax(0)].astype(np.uint8)  # (H, W)
    mask[marginals.max(0) < 0.95] = 255
    Image.fromarray(mask).save(out / f"{maps.stem}.png")
    return os.getpid(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if peer is None:
        raise SystemExit("pydensecrf is not installed; see the top of benchmarks/peer.py")
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = sorted(args.maps.glob("*.npz"))
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        work = partial(one, photographs=args.photographs, out=args.out)
        peaks = dict(pool.imap_unordered(work, jobs))  # the last of each process is its peak
        pool.close()
        pool.join()
    seconds = time.perf_counter() - start
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    took = {"seconds": seconds, "processor": sum(each.ru_utime + each.ru_stime for each in usage)}
    print(json.dumps({"images": len(jobs), **took, "peak_mb": (usage[0].ru_maxrss + sum(peaks.values())) / 1024}))


if __name__ == "__main__":
    main()
