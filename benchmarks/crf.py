"""Time the dense CRF on 500x375 pictures, beside pydensecrf where the running Python has it.

    python benchmarks/crf.py [--image FOLDER] [--pictures 10] [--threads 2]

Prints a Markdown table of medians. Both run on the same picture one right after the other, so that other work
on the machine slows both. pydensecrf is single-threaded; ours uses ``--threads``. The spatial lattice is
cached by picture size, as in any run over a data set: the time without it is under the table.

pydensecrf has no wheels; ``pip install pydensecrf2==1.1`` compiles it on Python 3.11 (g++ needed). With both in
one environment: ``PYTHONPATH=src python benchmarks/crf.py --image FOLDER``.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tag2mask.process import tune_process

tune_process()  # as the command line does, before torch is loaded

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tag2mask.ops import crf as ops
from tag2mask.ops import lattice

try:
    import pydensecrf.densecrf as peer
except ImportError:
    peer = None

HEIGHT, WIDTH = 375, 500
CASES = [
    (kind, classes, name)
    for name in ("clip-es", "irn")
    for kind, classes in (("soft", 2), ("soft", 5), ("peaked", 21), ("soft", 21), ("hard", 21), ("hard", 81))
]


def procedural(seed: int) -> Tensor:
    """A picture with regions, shading and fine texture: (3, H, W) uint8."""
    g = torch.Generator().manual_seed(seed)
    region = smooth(6, 60, g).argmax(dim=0)  # (H, W)
    colors = torch.rand(6, 3, generator=g) * 200 + 25
    shade = smooth(3, 120, g) * 18
    texture = smooth(3, 4, g) * 8 + torch.randn(3, HEIGHT, WIDTH, generator=g) * 4
    return (colors[region].permute(2, 0, 1) + shade + texture).clamp(0, 255).to(torch.uint8)


def smooth(channels: int, cell: int, g: torch.Generator) -> Tensor:
    """Unit noise on a grid of ``cell`` pixels, interpolated: (channels, H, W)."""
    size = (-(-HEIGHT // cell) + 1, -(-WIDTH // cell) + 1)
    noise = torch.randn(1, channels, *size, generator=g)
    return F.interpolate(noise, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)[0]


def photographs(folder: Path, count: int) -> list[Tensor]:
    pictures = []
    for path in sorted(folder.glob("*.jpg"))[:count]:
        with Image.open(path) as image:
            image = image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            pictures.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous())
    if not pictures:
        raise SystemExit(f"{folder}: found no .jpg file, expected a folder of photographs")
    return pictures


def unary(kind: str, classes: int, seed: int) -> Tensor:
    """Energies (C, H, W).

    Soft: every class is probable somewhere, none is pruned. Peaked: as a network has it, 12 classes are, the
    others stay below 1e-3. Hard: a label map in which five classes are seen.
    """
    g = torch.Generator().manual_seed(1000 * classes + seed)
    if kind != "hard":
        score = 3 * smooth(classes, 16, g)  # (C, H, W)
        if kind == "peaked":
            score[12:] -= 20
        return ops.unary_from_probs(score.softmax(dim=0))
    return ops.unary_from_labels(smooth(5, 40, g).argmax(dim=0) * ((classes - 1) // 4), classes)


def timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def run_peer(image: np.ndarray, energy: np.ndarray, settings: ops.CRF) -> Tensor:
    """What the released codes do: image (H, W, 3), energy (C, H W)."""
    crf = peer.DenseCRF2D(WIDTH, HEIGHT, len(energy))
    crf.setUnaryEnergy(energy)
    (sxy, weight), (bxy, brgb, bweight) = settings.spatial, settings.bilateral
    crf.addPairwiseGaussian(sxy=sxy, compat=weight)
    crf.addPairwiseBilateral(sxy=bxy, srgb=brgb, rgbim=image, compat=bweight)
    return torch.from_numpy(np.array(crf.inference(settings.iterations))).view(-1, HEIGHT, WIDTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, help="folder of photographs (.jpg); procedural pictures without it")
    parser.add_argument("--pictures", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pictures = photographs(args.image, args.pictures) if args.image else [procedural(i) for i in range(args.pictures)]

    source = "photographs" if args.image else "procedural pictures"
    print(f"Dense CRF, {len(pictures)} {source} of {WIDTH}x{HEIGHT}, medians.")
    print(
        f"{datetime.date.today()}, {processor()}, {args.threads} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, pydensecrf {'1 thread' if peer else 'absent'}.\n"
    )
    print("| preset | unary | labels | ours, ms | pydensecrf, ms | times as fast | same label, worst picture |")
    print("|---|---|---|---|---|---|---|")
    ops.dense_crf(pictures[0], unary("soft", 2, 0), ops.preset("clip-es"))  # the first call starts the threads
    for kind, classes, name in CASES:
        settings = ops.preset(name)
        lattice.SPATIAL.get(HEIGHT, WIDTH, settings.spatial[0], torch.device("cpu"))
        own, other, agreement = [], [], []
        for i, picture in enumerate(pictures):
            energy = unary(kind, classes, i)
            seconds, q = timed(partial(ops.dense_crf, picture, energy, settings))
            own.append(seconds)
            if peer:
                rgb = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
                flat = np.ascontiguousarray(energy.flatten(1).numpy())
                seconds, reference = timed(partial(run_peer, rgb, flat, settings))
                other.append(seconds)
                agreement.append((q.argmax(dim=0) == reference.argmax(dim=0)).float().mean().item())
        row = f"| {name} | {kind} | {classes} | {1e3 * statistics.median(own):.0f} "
        if peer:
            ratio = statistics.median(b / a for a, b in zip(own, other, strict=True))
            row += f"| {1e3 * statistics.median(other):.0f} | {ratio:.2f} | {100 * min(agreement):.3f} % |"
        else:
            row += "| - | - | - |"
        print(row, flush=True)

    cold = []
    for i, picture in enumerate(pictures):
        lattice.SPATIAL.clear()
        cold.append(timed(partial(ops.dense_crf, picture, unary("soft", 2, i), ops.preset("clip-es")))[0])
    median = 1e3 * statistics.median(cold)
    print(f"\nclip-es, soft, 2 labels, first picture of its size (nothing cached): {median:.0f} ms.")


def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
