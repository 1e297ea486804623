"""CLIMS against the classifier CAM that it starts from, on Storybook: tables, ablation of its losses, a picture.

    python benchmarks/clims.py [-n 120] [--steps 45] [--variant paper] [--out docs/clims.md]

The fit sees images and tags alone, of the scenes that are then labelled, as in the papers. mIoU is over all classes
and background, at the best background threshold (chosen with ground truth, as the papers do) and at CLIMS's own.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from tag2mask.process import tune_process

tune_process()  # as the command line does, before torch is loaded

import numpy as np
import torch
from page import begin, section, write_page
from page import options as page_options

from tag2mask.data import read_voc
from tag2mask.data.pixels import read_pixels
from tag2mask.methods.clims import CLIMS, STORYBOOK_LOSS, CLIMSOptions
from tag2mask.models.classifier import Classifier, load_classifier, save_classifier
from tag2mask.models.embedded import STORYBOOK_RESNET
from tag2mask.models.untrained import untrained
from tag2mask.models.weights import CLIP, load_clip
from tag2mask.ops.masks import upsample
from tag2mask.ops.metrics import BackgroundSweep, metrics
from tag2mask.run.folder import Run
from tag2mask.stages.machinery.fit import fit
from tag2mask.storybook import render
from tag2mask.types import Constant, Dataset, Item, Scores

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 19))
FIXED = 0.15
OCCURS = ("boat", "train")
"""Classes that are drawn on water and on a railway: what is found there beside them is a fault."""


@dataclass
class Found:
    """mIoU (%) at the best threshold and at ``FIXED``; precision and IoU (%) of classes at the best one."""

    best: float
    at: float
    fixed: float
    precision: dict[str, float]
    iou: dict[str, float]

    def cells(self) -> list[object]:
        """As in ``HEAD``."""
        return [
            self.best,
            f"{self.at:.2f}",
            self.fixed,
            *(value for name in OCCURS for value in (self.precision[name], self.iou[name])),
        ]


HEAD = ["mIoU, best threshold", "at", f"mIoU at {FIXED}", *(f"{n} {w}" for n in OCCURS for w in ("precision", "IoU"))]


class Scenes:
    """A data set in memory, with its truth."""

    def __init__(self, data: Dataset) -> None:
        self.data = data
        self.items, self.truths = [], []
        for sample in data:
            if sample.tags and sample.truth:
                image = read_pixels(sample.image).contiguous()  # (3, H, W)
                self.items.append(Item(sample.id, image, torch.tensor(sample.tags)))
                self.truths.append(torch.from_numpy(sample.truth()))

    def measure(self, method: CLIMS | None) -> Found:
        """method: None is every pixel the tags' own, the floor."""
        sweep = BackgroundSweep([Constant(t) for t in THRESHOLDS], len(self.data.classes))
        for item, truth in zip(self.items, self.truths, strict=True):
            everything = torch.ones(len(item.tags), *truth.shape)
            maps = everything if method is None else full(method.scores([item])[0])
            sweep.update(truth, maps, item.tags)
        counts = sweep.confusion()
        found = [metrics(count) for count in counts]
        best = max(range(len(found)), key=lambda i: found[i].miou)
        tables = {name: counts[best][:, self.data.classes.names.index(name)] for name in OCCURS}
        return Found(
            100 * found[best].miou,
            THRESHOLDS[best],
            100 * found[THRESHOLDS.index(FIXED)].miou,
            {n: 100 * float(c[self.data.classes.names.index(n)] / c.sum().clamp_min(1)) for n, c in tables.items()},
            {n: 100 * float(found[best].iou[self.data.classes.names.index(n)]) for n in OCCURS},
        )


def full(scores: Scores) -> torch.Tensor:
    """Maps at the image's size: (K, H, W)."""
    return upsample(scores.maps, scores.size, scores.frame).clamp(0, 1)


def start(data: Dataset, clip: CLIP, options: CLIMSOptions) -> CLIMS:
    """CLIMS before its first step: the maps of the classifier alone."""
    method = CLIMS(data.classes, options, clip=clip)
    method.ready = True
    return method


def fitted(data: Dataset, clip: CLIP, options: CLIMSOptions) -> tuple[CLIMS, float]:
    """CLIMS after its training, and how many seconds that took."""
    method = CLIMS(data.classes, options, clip=clip)
    began = time.perf_counter()
    with TemporaryDirectory() as folder, Run.create(folder, {"method": "clims", "options": options}) as run:
        fit(method, data, run)
    return method, time.perf_counter() - began


def blank_classifier(folder: str) -> str:
    """The classifier's network with random weights, whose norms keep what they begin with."""
    known, _ = load_classifier(STORYBOOK_RESNET)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_classifier(Classifier(known.names, known.backbone.layout), folder, "")
    return folder


def picture(scenes: Scenes, before: CLIMS, after: CLIMS, path: Path, count: int = 3) -> None:
    """Image, classifier CAM and CLIMS's map of the first scenes with a train and with a boat."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = scenes.data.classes.names
    shown = [
        (item, names.index(name))
        for name in reversed(OCCURS)
        for item in [i for i in scenes.items if names.index(name) in i.tags.tolist()][:count]
    ]
    if not shown:
        return
    figure, axes = plt.subplots(3, len(shown), figsize=(2.6 * len(shown), 6.2), layout="constrained", squeeze=False)
    for column, (item, tag) in enumerate(shown):
        image = item.image.permute(1, 2, 0).numpy()
        axes[0, column].imshow(image)
        axes[0, column].set_title(names[tag])
        for row, method in ((1, before), (2, after)):
            (scores,) = method.scores([item])
            heat = full(scores)[scores.tags.tolist().index(tag)].numpy()
            blend = 0.4 * image / 255 + 0.6 * plt.get_cmap("inferno")(heat)[..., :3]
            axes[row, column].imshow(np.clip(blend, 0, 1))
    for row, text in enumerate(("image", "classifier CAM", "CLIMS")):
        axes[row, 0].set_ylabel(text)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(path, dpi=80, pil_kwargs={"quality": 85})


def main() -> None:
    parser = page_options(__doc__)
    parser.add_argument("-n", type=int, default=120, help="scenes")
    parser.add_argument("--steps", type=int, default=45, help="of each fit")
    parser.add_argument("--finetune", type=int, default=60, help="steps in which CLIP learns the tags, in one row")
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument(
        "--variant", choices=["paper", "released"], default="paper", help="of the second row, ablation and picture"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the scenes; 1 was used to find the defaults")
    parser.add_argument("--out", type=Path, default=Path("docs/clims.md"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    measured_with = begin()
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = render(f"{folder}/scenes", args.n, split="val", seed=args.seed)
        data = read_voc(root, split="val", classes="voc12")
        scenes, clip = Scenes(data), load_clip("storybook-clip", device="cpu")
        batch = {} if args.batch is None else {"batch": args.batch}

        def options(**more: object) -> CLIMSOptions:
            return CLIMSOptions.model_validate({"steps": args.steps, **batch, **more})

        before = start(data, clip, options(variant="released"))
        base = scenes.measure(before)
        chosen, seconds = fitted(data, clip, options(variant=args.variant))
        after = scenes.measure(chosen)
        other = "paper" if args.variant == "released" else "released"
        second, _ = fitted(data, clip, options(variant=other))
        tuned, _ = fitted(data, clip, options(variant=args.variant, finetune_clip=args.finetune))
        critic = untrained(clip, seed=0)
        # an untrained CLIP has no threshold of its own, and L_CBS could not be calibrated: variant paper
        floor, _ = fitted(data, critic, options(variant="paper", clip_size=128, **STORYBOOK_LOSS))
        blank = start(data, clip, options(variant="released", weights=blank_classifier(f"{folder}/blank")))
        rows: list[list[object]] = [
            ["classifier CAM (the start)", *base.cells()],
            [f"CLIMS, {args.variant}", *after.cells()],
            [f"CLIMS, {other}", *scenes.measure(second).cells()],
            [f"CLIMS, {args.variant}, CLIP first fine-tuned on the tags", *scenes.measure(tuned).cells()],
            ["floor: CLIMS, paper, with an untrained CLIP", *scenes.measure(floor).cells()],
            ["floor: untrained classifier's CAM", *scenes.measure(blank).cells()],
            ["floor: everything foreground", *scenes.measure(None).cells()],
        ]
        paper = (chosen if args.variant == "paper" else second).recipe.loss
        weights = f"{paper.object:g}, {paper.background:g}, {paper.suppression:g}, {paper.area:g}"
        note = (
            f"{args.steps} steps of {chosen.recipe.batch} images, fine-tuning {args.finetune}; the fit of the "
            f"second row took {seconds:.0f} s ({args.steps * chosen.recipe.batch / seconds:.2f} images/s). Precision "
            "of boat and train: the share of the pixels called so that is no water, railway or other thing. Variant "
            f"paper\nhas the losses' weights that are the default for storybook-clip, not the paper's: {weights}."
        )
        parts = [section("Maps", ["", *HEAD], rows, note)]
        rows = [["none (the start)", *base.cells()]]
        losses = ("object", "background", "suppression", "area")
        names = ("L_OTM", "L_BTM", "L_CBS", "L_REG")
        for count in range(1, 4):
            off = dict.fromkeys(losses[count:], 0)
            method, _ = fitted(data, clip, options(variant=args.variant, **off))
            rows.append([" + ".join(names[:count]), *scenes.measure(method).cells()])
        rows.append([" + ".join(names), *after.cells()])
        parts.append(section("Ablation of the losses", ["losses", *HEAD], rows, f"Variant {args.variant}."))
        figure = args.out.with_suffix(".jpg")
        picture(scenes, before, chosen, figure)
        parts.append(f"## Train and boat\n\n![image, classifier CAM, CLIMS]({figure.name})\n")
    command = f"python benchmarks/clims.py -n {args.n} --steps {args.steps} --finetune {args.finetune}"
    head = f"""# CLIMS on Storybook

Made by `{command} --variant {args.variant} --seed {args.seed}` on {date.today()}: {args.n} scenes
of Storybook's val split, 256x192; weights {STORYBOOK_RESNET}
(sha256 {before.resolved["weights_sha256"][:16]}) and
storybook-clip (sha256 {clip.sha256[:16]});
{measured_with()}. All figures in %.
"""
    write_page(args.out, "\n".join([head, *parts]))
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
