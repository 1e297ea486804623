"""``tag2mask label`` against CLIP-ES as its released code goes about it: both from photographs to masks on disk.

python benchmarks/against_reference.py JPEGS [--tags 2] [-n 12] [--rounds 3] [--precision bfloat16]

The same photographs at full size, the same random weights of ViT-B/16's shape, the same number of drawn tags each,
the same processor, in turn. The reference (``reference.py``, then ``peer.py``: pydensecrf, which must be installed,
in a process for each core) has float32; both take the released code's variant, whose masks must agree. Images a
second are counted from the first photograph on: weights and texts are loaded before. So are seconds of a core: what
``label`` takes for one photograph is subtracted. On a busy machine these say more than the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from peer import peer
from PIL import Image
from vit_b16 import write_checkpoint

from tag2mask import __version__
from tag2mask.classes import load_classes

HERE = Path(__file__).parent


class Took(NamedTuple):
    """What one way took: images, seconds, seconds of a core, the most memory of its steps (MB, of all processes)."""

    images: int
    seconds: float
    processor: float
    peak: float


def photographs(source: Path, folder: Path, count: int, tags: int) -> None:
    """Links to the first photographs of a folder, and a tags.csv of so many drawn tags each."""
    folder.mkdir()
    paths = sorted(source.glob("*.jpg"))[:count]
    if len(paths) < count:
        raise SystemExit(f"{source}: found {len(paths)} .jpg files, expected {count} or more")
    names, rows = load_classes("voc12").foreground, ["image,labels"]
    for path in paths:
        (folder / path.name).symlink_to(path.resolve())
        rows.append(f"{path.name},{';'.join(Random(path.name).sample(names, tags))}")
    (folder / "tags.csv").write_text("\n".join(rows))


def run(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)], check=False, capture_output=True, text=True, env=os.environ
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def reference(data: Path, clip: Path, out: Path) -> Took:
    """The released code's two steps, one after the other."""
    maps = json.loads(run(HERE / "reference.py", data, clip, out / "maps"))
    masks = json.loads(run(HERE / "peer.py", out / "maps", data, out / "masks"))
    seconds, processor = (maps[key] + masks[key] for key in ("seconds", "processor"))
    return Took(maps["images"], seconds, processor, max(maps["peak_mb"], masks["peak_mb"]))


def ours(data: Path, clip: Path, out: Path, precision: str, *more: object) -> Took:
    """``tag2mask label``."""
    words = ["-m", "tag2mask", "label", data, "--kind", "folder", "--classes", "voc12", "-o", out, "--clip", clip]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(*words, "--set", "variant=released", "--precision", precision, "--device", "cpu", *more)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    (summary,) = (json.loads(path.read_text()) for path in out.glob("summary.*.json"))
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Took(summary["done"], summary["elapsed"], processor, summary["peak_memory"] / 2**20)


def equal(ours: Path, theirs: Path) -> tuple[float, float]:
    """The share of equal mask pixels, of all photographs and of the worst; 255 is a value as any other."""
    shares = []
    for path in sorted(theirs.glob("*.png")):
        a, b = (np.asarray(Image.open(each)) for each in (ours / "masks" / path.name, path))
        shares.append((float((a == b).mean()), a.size))
    return sum(share * size for share, size in shares) / sum(size for _, size in shares), min(shares)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jpegs", type=Path, help="folder of photographs (.jpg)")
    parser.add_argument("--tags", type=int, default=2, help="of each photograph")
    parser.add_argument("-n", type=int, default=12, help="photographs")
    parser.add_argument("--rounds", type=int, default=3, help="of all ways in turn; medians are shown")
    parser.add_argument("--precision", action="append", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    if peer is None:
        raise SystemExit("pydensecrf is not installed; see the top of benchmarks/peer.py")
    precisions = args.precision or ["float32", "bfloat16"]
    took: dict[str, list[Took]] = {name: [] for name in ("reference", *precisions)}
    with TemporaryDirectory() as there:
        here = Path(there)
        data, clip = here / "photographs", write_checkpoint(here / "clip")
        photographs(args.jpegs, data, args.n, args.tags)
        start = {}
        for precision in precisions:  # what is compiled and the texts' features are kept from the first time on
            for i in range(2):
                start[precision] = ours(data, clip, here / f"one-{precision}-{i}", precision, "--limit", 1).processor
        for i in range(args.rounds):
            took["reference"].append(reference(data, clip, here / f"reference-{i}"))
            for precision in precisions:
                took[precision].append(ours(data, clip, here / f"{precision}-{i}", precision))
        print(f"{args.n} photographs of {args.jpegs.name}, {args.tags} tags each, {where()}\n")
        print(
            "| way | images/s | times the reference | core s an image | times less | peak memory, MB "
            "| equal mask pixels | in the worst |\n|---|---|---|---|---|---|---|---|"
        )
        base = statistics.median(one.processor for one in took["reference"]) / args.n
        for name, each in took.items():
            rate = statistics.median(one.images / one.seconds for one in each)
            pairs = zip(each, took["reference"], strict=True)
            times = statistics.median(other.seconds / one.seconds for one, other in pairs)
            peak = max(one.peak for one in each)
            cores = statistics.median(one.processor for one in each)
            cores = (cores - start[name]) / (args.n - 1) if name in start else cores / args.n
            row = f"| {'tag2mask, ' if name in precisions else ''}{name} | {rate:.3f} | {times:.2f} "
            row += f"| {cores:.2f} | {base / cores:.2f} | {peak:.0f} |"
            if name in precisions:
                same, worst = equal(here / f"{name}-0", here / "reference-0" / "masks")
                row += f" {100 * same:.3f} % | {100 * worst:.2f} % |"
            else:
                row += " | |"
            print(row)


def where() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "processor unknown")
    load = "/".join(f"{x:.1f}" for x in os.getloadavg())
    cores = os.cpu_count()
    return f"{date.today()}, {name}, {cores} cores, load {load}, torch {torch.__version__}, tag2mask {__version__}"


if __name__ == "__main__":
    main()
