"""What CLIP-ES costs at ViT-B/16, and what bfloat16 changes. No network: random weights of ViT-B/16's shape.

python benchmarks/clip_es.py speed [--photographs FOLDER]   seconds an image by stage, against the obvious way
python benchmarks/clip_es.py precision [-n 200]             mask pixels that bfloat16 changes, on Storybook
python benchmarks/clip_es.py memory [-n 2000] [--photographs FOLDER]   growth of resident memory
python benchmarks/clip_es.py photographs FOLDER [FOLDER]    the whole command line on real photographs
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from tag2mask.process import tune_process

tune_process()  # as the command line does, before torch is loaded

import numpy as np
import torch
from PIL import Image
from reference import the_obvious_way
from vit_b16 import write_checkpoint

from tag2mask import __version__
from tag2mask.classes import load_classes
from tag2mask.data import read_dataset, read_voc
from tag2mask.data.image import image_size
from tag2mask.data.pixels import read_pixels
from tag2mask.data.png import read_confidence, read_mask
from tag2mask.methods.clip_es import ClipES
from tag2mask.models.weights import load_clip
from tag2mask.ops.masks import pseudo_mask
from tag2mask.run.device import resident_memory
from tag2mask.run.folder import Run
from tag2mask.storybook import render
from tag2mask.types import Item

MB = 2**20


def pictures(folder: Path | None, count: int) -> list[torch.Tensor]:
    """500x375 images (3, 375, 500): photographs of a folder cut or enlarged to that size, else drawn noise."""
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        return [torch.randint(0, 256, (3, 375, 500), generator=generator, dtype=torch.uint8) for _ in range(count)]
    paths = sorted(folder.rglob("*.jpg"))[:count]
    images = [Image.open(path).convert("RGB").resize((500, 375), Image.Resampling.BICUBIC) for path in paths]
    return [torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous() for image in images]


def seconds(work: Callable[[Item], object], items: Sequence[Item]) -> list[float]:
    out = []
    for item in items:
        start = time.perf_counter()
        work(item)
        out.append(time.perf_counter() - start)
    return out


def speed(folder: Path | None) -> None:
    """Seconds an image, two tags, 500x375, ViT-B/16, medians; ours and the obvious way interleaved."""
    with TemporaryDirectory() as there:
        path = write_checkpoint(Path(there))
        clip = load_clip(path, device="cpu", cache=None)
        method = ClipES(load_classes("voc12"), clip=clip)
        images = pictures(folder, 11)
        tags = torch.tensor([9, 15])
        items = [Item(str(i), image, tags) for i, image in enumerate(images)]
        method.scores(items[:1])
        the_obvious_way(method, items[0])
        ours, obvious, gemm = [], [], []
        a, b = torch.randn(769, 768), torch.randn(768, 3072)
        for item in items[1:]:
            ours += seconds(lambda item: method.scores([item]), [item])
            obvious += seconds(lambda item: the_obvious_way(method, item), [item])
            start = time.perf_counter()
            for _ in range(10):
                a @ b
            gemm.append(10 * 2 * 769 * 768 * 3072 / (time.perf_counter() - start) / 1e9)
        (mine,), theirs = method.scores(items[:1]), the_obvious_way(method, items[0])
        difference = max(float((m.flatten() - t).abs().max()) for m, t in zip(mine.maps, theirs, strict=True))
        rate = statistics.median(gemm)
        print("| 500x375, 2 tags, ViT-B/16, float32, no CRF | s an image (median of 10) |\n| --- | --- |")
        print(f"| tag2mask | {statistics.median(ours):.2f} |")
        print(f"| the obvious way (autograd once a class) | {statistics.median(obvious):.2f} |")
        print(f"| ratio | {statistics.median(obvious) / statistics.median(ours):.2f} |")
        print(f"| floor: 172 GFLOP at the {rate:.0f} GFLOP/s of this machine's matrix product | {172 / rate:.2f} |")
        print(f"\nlargest difference of a map: {difference:.1e}; peak memory {peak():.0f} MB. {where()}")
        if native_bfloat16():
            half = ClipES(load_classes("voc12"), clip=load_clip(path, device="cpu", precision="bfloat16", cache=None))
            half.scores(items[:1])
            print(f"bfloat16: {statistics.median(seconds(lambda i: half.scores([i]), items[1:])):.2f} s an image")
        else:
            print("bfloat16: not timed, this processor has none")


def precision(n: int) -> None:
    """Share of mask pixels (CLIP-ES + CRF) that are the same in bfloat16 as in float32."""
    with TemporaryDirectory() as scenes, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = read_voc(render(scenes, n, split="val"), split="val", classes="voc12")
        full, half = (
            ClipES(data.classes, clip=load_clip("storybook-clip", device="cpu", precision=p))
            for p in ("float32", "bfloat16")
        )
        rule = replace(full.mask_rule, mu=None)
        same = []
        for sample in data:
            if not sample.tags:
                continue
            image = read_pixels(sample.image).contiguous()
            item = Item(sample.id, image, torch.tensor(sample.tags))
            a, b = (pseudo_mask(m.scores([item])[0], image, rule)[0] for m in (full, half))
            same.append(((a == b).float().mean().item(), sample.id))
        worst = min(same)
        mean = statistics.mean(share for share, _ in same)
        print(f"{len(same)} scenes: {100 * mean:.3f} % of mask pixels are equal")
        print(f"worst scene, {worst[1]}: {100 * worst[0]:.2f} %")
        print(where())


def memory(n: int, folder: Path | None) -> None:
    """Resident memory over n Storybook scenes, and over 100 photographs at ViT-B/16.

    Photographs differ in size, and memory follows the largest one so far; so they are seen twice, and growth is
    that of the second time.
    """
    with TemporaryDirectory() as there, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = read_voc(render(Path(there) / "scenes", n, split="val"), split="val", classes="voc12")
        method = ClipES(data.classes, clip=load_clip("storybook-clip", device="cpu"))
        growth("Storybook scenes, storybook-clip", method, ((s.image, s.tags) for s in data if s.tags), 100)
        if folder is not None:
            clip = load_clip(write_checkpoint(Path(there) / "clip"), device="cpu", cache=None)
            paths = sorted(folder.rglob("*.jpg"))[:100]
            twice = ((path, (9, 15)) for path in [*paths, *paths])
            growth("photographs, ViT-B/16", ClipES(load_classes("voc12"), clip=clip), twice, len(paths))
    print(where())


def growth(title: str, method: ClipES, samples: Iterable[tuple[Path, tuple[int, ...]]], settle: int) -> None:
    """A line fitted to resident memory after ``settle`` images, in MB per 1,000 images."""
    seen, resident = [], []
    for i, (path, tags) in enumerate(samples):
        image = read_pixels(path).contiguous()
        (scores,) = method.scores([Item(str(i), image, torch.tensor(tags))])
        pseudo_mask(scores, image, method.mask_rule)
        if i >= settle:
            seen.append(i)
            resident.append((resident_memory() or 0) / MB)
    slope = 1000 * np.polyfit(seen, resident, 1)[0]
    print(
        f"{title}: {len(seen) + settle} images, resident {resident[0]:.0f} -> {resident[-1]:.0f} MB, "
        f"{slope:+.1f} MB per 1,000 images after the first {settle}; peak {peak():.0f} MB"
    )


def photographs(folders: Sequence[Path]) -> None:
    """The whole command line at full size on each folder; every file is opened and its size compared."""
    with TemporaryDirectory() as there:
        path = write_checkpoint(Path(there) / "clip")
        for folder in folders:
            out = Path(there) / folder.name
            command = [sys.executable, "-m", "tag2mask", "label", str(folder), "-o", str(out), "--clip", str(path)]
            classes = "coco14" if "coco" in folder.name else "voc12"
            done = subprocess.run([*command, "--kind", "folder", "--classes", classes], check=False)
            data = read_dataset(folder, kind="folder", classes=classes)
            run, checked = Run.open(out), 0
            for sample in data:
                if sample.tags is None:
                    continue
                mask, size = read_mask(run.mask_path(sample.id)), image_size(sample.image)
                confidence = read_confidence(run.confidence_path(sample.id))
                if mask.shape != size or confidence.shape != size:
                    raise SystemExit(f"{sample.id}: mask {mask.shape}, confidence {confidence.shape}, image {size}")
                if not set(np.unique(mask)) <= {0, 255, *sample.tags}:
                    raise SystemExit(f"{sample.id}: values {np.unique(mask)} for tags {sample.tags}")
                if sample.tags:
                    run.scores(sample.id)
                checked += 1
            (summary,) = (json.loads(p.read_text()) for p in out.glob("summary.*.json"))
            print(
                f"{folder.name}: exit {done.returncode}, {checked} images checked, "
                f"{summary['images_per_second']:.2f} images/s, peak {summary['peak_memory'] / MB:.0f} MB"
            )
    print(where())


def peak() -> float:
    """Peak memory of this process, MB."""
    from tag2mask.run.device import peak_memory

    return (peak_memory() or 0) / MB


def native_bfloat16() -> bool:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags or " bf16" in flags


def where() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{date.today()}, {name}, 2 threads, torch {torch.__version__}, tag2mask {__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "precision", "memory", "photographs"])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("-n", type=int)
    parser.add_argument("--photographs", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    if args.what == "speed":
        speed(args.photographs)
    elif args.what == "precision":
        precision(args.n or 200)
    elif args.what == "memory":
        memory(args.n or 2000, args.photographs)
    else:
        photographs(args.folders)


if __name__ == "__main__":
    main()
