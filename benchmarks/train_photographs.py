"""Real files go through: each network learns some steps on photographs of a VOC devkit, from random weights.

    python benchmarks/train_photographs.py --data VOC2012 --network small
    python benchmarks/train_photographs.py --data VOC2012 --network deeplabv1-resnet38 --crop 129 --batch 2

Targets are the devkit's own masks (pixel supervision). It shows that files are read, augmented and learnt from, and
how fast, and nothing of quality: 50 steps are no training.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import tempfile
import warnings
from pathlib import Path

from tag2mask.process import tune_process

tune_process()  # before torch is loaded

import torch

from tag2mask.data import read_dataset
from tag2mask.run.device import peak_memory
from tag2mask.segment.recipe import TrainRecipe
from tag2mask.stages.train import train

NETWORKS = ("small", "deeplabv2-resnet101", "deeplabv1-resnet38")


def recipe_for(network: str, steps: int, crop: int, batch: int) -> TrainRecipe:
    """From random weights nothing is learnt through frozen norms, so they learn here, too."""
    small = network == "small"
    return TrainRecipe(
        architecture=network,
        options={} if small else {"frozen_norm": False},
        init="random",
        steps=steps,
        batch=batch,
        crop=crop,
        optimiser="adamw" if small else "sgd",
        lr=1e-3 if small else 1e-2,
        weight_decay=5e-4,
        warmup=5,
        resize="logits" if small else "labels",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a VOC devkit with SegmentationClass")
    parser.add_argument("--network", choices=NETWORKS, default="small")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--crop", type=int, default=160)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--minutes", type=float, help="stop after so long")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    data = read_dataset(args.data, kind="voc")
    ids = [sample.id for sample in data if sample.truth is not None][: args.images]
    recipe = recipe_for(args.network, args.steps, args.crop, args.batch)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        listed = Path(folder) / "ids.txt"
        listed.write_text("\n".join(ids), encoding="utf-8")
        out = Path(folder) / "net"
        made = train(
            None,
            out,
            recipe,
            data=data,
            pixel_labels=listed,
            device=args.device,
            minutes=args.minutes,
            log_steps=1,
        )
        rows = (out / "log" / "version_0" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    losses = [float(row["loss"]) for row in csv.DictReader(rows) if row["loss"]]
    few = max(1, min(5, len(losses) // 2))
    first, last = (sum(part) / few for part in (losses[:few], losses[-few:]))
    print(
        f"{args.network}: {made.step} of {made.steps} steps on {made.examples} photographs "
        f"({made.supervision}), batch {args.batch}, crop {args.crop}: "
        f"loss {first:.3f} (first {few}) -> {last:.3f} (last {few}), {made.images_per_second} images/s, "
        f"{made.seconds:.0f} s, peak memory {(peak_memory() or 0) / 2**20:.0f} MB"
    )
    machine = f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"  {datetime.date.today()}, {machine}")


if __name__ == "__main__":
    main()
