"""A tenth of the pixel labels, tags of the rest: what CCT and pseudo masks add to each other, on Storybook.

    python benchmarks/cct.py [-n 300] [--test 100] [--steps 360] [--work DIR] [--out docs/cct.md]

The same network, number of steps, labelled images and held-out scenes in every row. No setting is chosen by the
figures that are shown: the recipe is fixed here, and the last weights count. With --work what was drawn, labelled and
trained is kept, and the same command resumes it where it was.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from tag2mask.process import tune_process

tune_process()  # as the command line does, before torch is loaded

import torch
from page import begin, options, table, write_page
from torch import Tensor

from tag2mask.data import read_voc
from tag2mask.data.columns import Columns
from tag2mask.data.pixels import read_pixels
from tag2mask.methods.clip_es import ClipES
from tag2mask.models.weights import load_clip
from tag2mask.ops.metrics import confusion_matrix, metrics
from tag2mask.run.folder import Run
from tag2mask.run.progress import progress
from tag2mask.segment.cct import PUBLISHED
from tag2mask.segment.network import SegmentationNet, build_network, load_network
from tag2mask.segment.recipe import CCT, TrainRecipe
from tag2mask.segment.saved import NetworkConfig
from tag2mask.segment.test_time import TestTime, predict_labels
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.label import label
from tag2mask.stages.train import train
from tag2mask.storybook import render

SHARE = 10
"""One of so many training scenes is labelled by pixels."""


ONE_EACH = CCT(decoders=dict.fromkeys(PUBLISHED, 1))
"""Seven auxiliary decoders, one of each kind, in the place of thirty: two cores, not a GPU."""


def recipe(steps: int, crop: int, seed: int) -> TrainRecipe:
    """Of every row."""
    return TrainRecipe(
        architecture="cct-small",
        steps=steps,
        batch=8,
        crop=crop,
        scale="uniform:0.75,1.5",
        optimiser="sgd",
        lr=0.003,
        weight_decay=1e-4,
        warmup=0,
        seed=seed,
    )


def label_scenes(data: Columns, out: Path) -> Run:
    """Pseudo masks from tags: CLIP-ES with the embedded CLIP, unsure pixels ignored as the paper's rule has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that storybook-clip knows no photographs: these are none
        method = ClipES(data.classes, clip=load_clip("storybook-clip", device="cpu"))
    label(data, method, out, rule=method.mask_rule)
    return Run.open(out)


def on_scenes(data: Columns, predict: object, what: str) -> float:
    """mIoU (%) of masks that ``predict`` makes of a sample's picture (3, H, W) and tags."""
    total = torch.zeros(len(data.classes), len(data.classes) + 1, dtype=torch.int64)
    with progress(len(data), what, unit="scenes") as bar:
        for sample in data:
            picture = read_pixels(sample.image)  # (3, H, W)
            truth = torch.from_numpy(sample.truth())
            total += confusion_matrix(truth, predict(picture, sample.tags), len(data.classes))
            bar.advance()
    return 100 * metrics(total).miou


def network_score(data: Columns, net: SegmentationNet, what: str) -> float:
    def masks(picture: Tensor, tags: object) -> Tensor:
        return predict_labels(net, picture, TestTime(multiple=8))[0]

    return on_scenes(data, masks, what)


def first_tag(picture: Tensor, tags: tuple[int, ...] | None) -> Tensor:
    return torch.full(picture.shape[1:], tags[0] if tags else 0, dtype=torch.uint8)


def background(picture: Tensor, tags: object) -> Tensor:
    return torch.zeros(picture.shape[1:], dtype=torch.uint8)


def measure(args: argparse.Namespace, work: Path) -> list[str]:
    data, test = (
        read_voc(
            render(work / f"{split}-{n}", n, split=split, size=(args.height, args.width)),
            split=split,
            classes="voc12",
        )
        for split, n in (("train", args.n), ("val", args.test))
    )
    run = label_scenes(data, work / "run")
    pseudo = evaluate(run, data, thresholds=False, boundary=False)
    ids = [sample.id for sample in data][::SHARE]
    listed = work / "pixel-labels.txt"
    listed.write_text("".join(f"{id}\n" for id in ids))
    plain = recipe(args.steps, args.crop, args.seed)
    cct_masks = replace(plain, semi="cct", cct=ONE_EACH)
    cct_alone = replace(plain, semi="cct", cct=replace(ONE_EACH, weak="none"))
    rows = [
        (f"supervised only: {len(ids)} true masks", "supervised", None, plain, listed),
        ("CCT: + the other images, without masks", "cct", run, cct_alone, listed),
        ("CCT + pseudo masks of the other images", "cct-masks", run, cct_masks, listed),
        ("pseudo masks only, of all images", "pseudo", run, plain, None),
        ("true and pseudo masks in one cross entropy", "mixed", run, plain, listed),
    ]
    lines: list[list[object]] = []
    for name, folder, masks, how, pixels in rows:
        done = train(masks, work / folder, how, data=data, pixel_labels=pixels)
        miou = network_score(test, load_network(work / folder, "cpu"), folder)
        lines.append([name, done.supervision, miou, done.seconds / 60])
        print(*lines[-1], flush=True)
    config = NetworkConfig.of(plain.architecture, data.classes)
    blank = build_network(config, init=plain.start, seed=args.seed).eval()
    floors = [
        ("floor: the same network before training", network_score(test, blank, "floor")),
        ("floor: every pixel is background", on_scenes(test, background, "floor")),
        ("floor: every pixel is the first tag", on_scenes(test, first_tag, "floor")),
    ]
    lines += [[name, "", miou, ""] for name, miou in floors]
    head = ["", "supervision", "mIoU %", "minutes"]
    return [
        table(head, lines),
        "",
        f"The pseudo masks themselves, on the training scenes: {100 * pseudo.miou:.1f} mIoU.",
    ]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("-n", type=int, default=300, help=f"training scenes; one of {SHARE} has its true mask")
    parser.add_argument("--test", type=int, default=100, help="held-out scenes")
    parser.add_argument("--steps", type=int, default=360)
    parser.add_argument("--crop", type=int, default=80)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--height", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder to keep and to go on with")
    parser.add_argument("--out", type=Path, help="also write the page there")
    args = parser.parse_args()
    measured_with = begin()
    with TemporaryDirectory() as scratch:
        lines = measure(args, args.work or Path(scratch))
    given = f"-n {args.n} --test {args.test} --steps {args.steps} --crop {args.crop} --width {args.width}"
    head = f"""# A tenth of the pixel labels

Made by `python benchmarks/cct.py {given} --height {args.height} --seed {args.seed}` on
{date.today()}: {args.n} scenes of Storybook's `train` split, {args.test} of `val`, {args.width}x{args.height} pixels;
network cct-small from storybook-resnet, {args.steps} steps of 8 images (CCT: 8 labelled and 8 unlabelled), crops of
{args.crop} pixels; pseudo masks of CLIP-ES with storybook-clip;
{measured_with()}. mIoU over all classes and background;
the last weights, one scale.
"""
    page = "\n".join([head, *lines, ""])
    print(page)
    if args.out:
        write_page(args.out, page)


if __name__ == "__main__":
    main()
