"""Time both engines of the dense CRF on 500x375 pictures, beside pydensecrf where the running Python has it.

    python benchmarks/crf.py [--image FOLDER] [--pictures 6]      medians by preset and kind of labels, per core
    python benchmarks/crf.py cores [--image FOLDER]               pictures side by side on several cores
    python benchmarks/crf.py odd                                  flat, noise, 12 megapixels, 3x2000: time and memory

Prints Markdown tables. All run on the same picture one right after the other, so that other work on the machine slows
each; times of the first table are seconds of one core, which others do not share. The spatial lattice is cached by
picture size, as in any run over a data set, and the loops are compiled before.

pydensecrf has no wheels; ``pip install pydensecrf2==1.1`` compiles it on Python 3.11 (g++ needed). With both in
one environment: ``PYTHONPATH=src python benchmarks/crf.py --image FOLDER``.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tag2mask.process import tune_process

tune_process()  # as the command line does, before torch is loaded

import numpy as np
import torch
import torch.nn.functional as F
from peer import peer, run_peer
from PIL import Image
from torch import Tensor

from tag2mask.ops import crf as ops

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
    """Seconds of this process's core, and the result."""
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result


def ours(engine: str, image: Tensor, energy: Tensor, settings: ops.CRF) -> Tensor:
    os.environ["TAG2MASK_CRF"] = engine
    return ops.dense_crf(image, energy, settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("kinds", "cores", "odd", "one"), default="kinds")
    parser.add_argument("--image", type=Path, help="folder of photographs (.jpg); procedural pictures without it")
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--preset", choices=("clip-es", "irn"), help="this one only")
    parser.add_argument("--odd", help="name and engine, for one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "one":
        return one(*args.odd.split("/"))
    source = "photographs" if args.image else "procedural pictures"
    load = "/".join(f"{x:.1f}" for x in os.getloadavg())
    print(
        f"{datetime.date.today()}, {processor()}, {os.cpu_count()} cores, load {load}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, numba {numba_version()}; "
        f"{source} of {WIDTH}x{HEIGHT}\n"
    )
    if args.what == "odd":
        return odd()
    pictures = photographs(args.image, args.pictures) if args.image else [procedural(i) for i in range(args.pictures)]
    for name in ("clip-es", "irn"):
        for count in (2, 5):
            ours("loops", pictures[0], unary("soft", count, 0), ops.preset(name))  # compiles, makes the lattice
            ours("torch", pictures[0], unary("soft", count, 0), ops.preset(name))
    return kinds(pictures, args.preset) if args.what == "kinds" else cores(pictures)


def kinds(pictures: list[Tensor], only: str | None) -> None:
    """Every preset and kind of labels: both engines and the peer, one thread each."""
    print("| preset | unary | labels | loops, ms | torch, ms | pydensecrf, ms | loops | torch | same label, worst |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kind, classes, name in CASES:
        if only not in (None, name):
            continue
        settings = ops.preset(name)
        rows = []  # seconds of loops, torch, peer; agreement of loops with the peer
        for i, picture in enumerate(pictures):
            energy = unary(kind, classes, i)
            rgb = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
            flat = np.ascontiguousarray(energy.flatten(1).numpy())
            fast, q = timed(partial(ours, "loops", picture, energy, settings))
            other, reference = timed(partial(run_peer, rgb, flat, settings)) if peer else (float("nan"), q.numpy())
            slow, _ = timed(partial(ours, "torch", picture, energy, settings))
            same = float((q.numpy().argmax(axis=0) == reference.argmax(axis=0)).mean())
            rows.append((fast, slow, other, same))
        fast, slow, other = (1e3 * statistics.median(row[k] for row in rows) for k in range(3))
        times = [statistics.median(row[2] / row[k] for row in rows) for k in range(2)]
        same = min(row[3] for row in rows)
        print(
            f"| {name} | {kind} | {classes} | {fast:.0f} | {slow:.0f} | {other:.0f} "
            f"| {times[0]:.2f} | {times[1]:.2f} | {100 * same:.3f} % |",
            flush=True,
        )


def cores(pictures: list[Tensor]) -> None:
    """Pictures a second by the clock: loops one after another and side by side, torch with all threads."""
    count = os.cpu_count() or 1
    print(f"| preset | labels | loops, 1 thread | loops, {count} side by side | gain | torch, {count} threads |")
    print("|---|---|---|---|---|---|")
    for name in ("clip-es", "irn"):
        for classes in (2, 5, 21):
            settings = ops.preset(name)
            work = [(p, unary("soft", classes, i)) for i, p in enumerate(pictures)] * 2

            def all_by(engine: str, threads: int, work=work, settings=settings) -> float:
                begin = time.perf_counter()
                with ThreadPoolExecutor(threads) as pool:
                    list(pool.map(lambda each: ours(engine, *each, settings), work))
                return len(work) / (time.perf_counter() - begin)

            alone, beside = all_by("loops", 1), all_by("loops", count)
            torch.set_num_threads(count)
            whole = all_by("torch", 1)
            torch.set_num_threads(1)
            print(
                f"| {name} | {classes} | {alone:.2f} | {beside:.2f} | {beside / alone:.2f} | {whole:.2f} |",
                flush=True,
            )


ODD = {"500x375": (375, 500), "flat": (375, 500), "noise": (375, 500), "12 MP": (3000, 4000), "3x2000": (3, 2000)}


def odd() -> None:
    """Pictures that might have been forgotten, two soft labels, CLIP-ES's preset: each in a process of its own."""
    print("| picture | engine | first, s | again, s | peak memory above the inputs, MB |\n|---|---|---|---|---|")
    for name in ODD:
        for engine in ops.ENGINES:
            subprocess.run([sys.executable, __file__, "one", "--odd", f"{name}/{engine}"], check=True)


def one(name: str, engine: str) -> None:
    """One row of ``odd``."""
    height, width = ODD[name]
    g = torch.Generator().manual_seed(0)
    if name == "flat":
        picture = torch.full((3, height, width), 128, dtype=torch.uint8)
    elif name == "noise":
        picture = torch.randint(0, 256, (3, height, width), generator=g, dtype=torch.uint8)
    else:
        tile = procedural(0)
        picture = tile.repeat(1, -(-height // HEIGHT), -(-width // WIDTH))[:, :height, :width].contiguous()
    energy = ops.unary_from_probs(torch.rand(2, height, width, generator=g).softmax(dim=0))
    settings = ops.preset("clip-es")
    small = picture[:, :20, :20].contiguous()
    ours(engine, small, energy[:, : small.shape[1], :20].contiguous(), settings)  # what is compiled is loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first, again = (timed(partial(ours, engine, picture, energy, settings))[0] for _ in range(2))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"| {name} | {engine} | {first:.2f} | {again:.2f} | {peak:.0f} |", flush=True)


def numba_version() -> str:
    try:
        return version("numba")
    except PackageNotFoundError:
        return "absent"


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
