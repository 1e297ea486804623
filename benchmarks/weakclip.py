"""WeakCLIP on Storybook beside its seeds, a control and floors; its ablations and its cost. As Markdown.

    python benchmarks/weakclip.py [--scenes 200] [--steps 600] [--minutes 170] [--work FOLDER] [--out FILE]

It also draws how words and pixels match, before and after the fit, beside the page (weakclip.jpg).

A fit sees images and seeds of the scenes that are then labelled, as in the paper; tags restrict what is labelled, and
exact masks are read for the measuring alone. Rows are made in the order of the tables. The work folder keeps what is
done, and the same command goes on with it: when the minutes are over, what was not run says so on the page.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from tag2mask.process import tune_process

tune_process()  # as the command line does, before torch is loaded

import torch
from page import section, write_page
from weakclip_looks import pictures

from tag2mask import __version__
from tag2mask.data import read_voc
from tag2mask.data.png import read_mask
from tag2mask.lab.demo import Everything
from tag2mask.methods import METHODS, make_method
from tag2mask.methods.weakclip import STORYBOOK
from tag2mask.models.weights import CLIP, load_clip
from tag2mask.run.folder import Run
from tag2mask.segment.examples import Batch
from tag2mask.segment.recipe import TrainRecipe
from tag2mask.segment.supervised import SupervisedTraining
from tag2mask.segment.test_time import TestTime
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.label import label
from tag2mask.stages.predict import predict
from tag2mask.stages.train import train
from tag2mask.storybook import render
from tag2mask.types import IGNORE

NOT_RUN = "not run"
LAST = ("fit_seconds", "rate")
"""What cells of fits know beside their masks."""

DIRECT: dict[str, Any] = {"match": "direct", "decoder": "none", "prompts": 0}
"""Options of matching as CLIP has it, nothing added."""

SEEDS = {"classifier-cam": {}, "clip-es": {}, "mctformer": {}}
"""Methods that make seeds, and their options."""


@cache
def clip() -> CLIP:
    return load_clip("storybook-clip", device="cpu")


@dataclass
class Bench:
    """The scenes, and a folder with everything that was made of them."""

    work: Path
    scenes: int
    steps: int
    ends: float

    def __post_init__(self) -> None:
        root = render(self.work / "scenes", self.scenes, split="train")
        render(root, self.scenes // 4, split="val")
        self.data, self.unseen = (read_voc(root, split=split, classes="voc12") for split in ("train", "val"))

    def cell(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """What ``make`` finds, once for all calls; None where there is no time for it any more."""
        path = self.work / "cells" / f"{name}.json"
        if not path.exists():
            if time.monotonic() > self.ends:
                return None
            began = time.monotonic()
            found = make()
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({**found, "seconds": round(time.monotonic() - began)}))
            print(f"{name}: {path.read_text()}", file=sys.stderr)
        found_before: dict[str, Any] = json.loads(path.read_text())
        return found_before

    def measured(self, run: Run) -> dict[str, float]:
        """mIoU, and the shares of pixels that are 255, in %."""
        ignored = total = 0
        for id in run.ids():
            mask = read_mask(run.mask_path(id))
            ignored, total = ignored + int((mask == IGNORE).sum()), total + mask.size
        found = evaluate(run, self.data, boundary=False, thresholds=False)
        return {"miou": 100 * found.miou, "ignored": 100 * ignored / total}

    # --- what is measured ------------------------------------------------------------------------------

    def seeds(self, method: str, refiner: str | None) -> Run:
        """Masks of a method, with a refiner or without."""
        made = make_method(method, self.data.classes, clip=clip() if method == "clip-es" else None, **SEEDS[method])
        out = self.work / f"seeds-{method}-{refiner}"
        label(self.data, made, out, rule=replace(made.mask_rule, refiner=refiner, mu=None), progress=False)
        return Run.open(out)

    def fitted(self, name: str, seeds: str, others: str = "never", **options: Any) -> dict[str, Any]:
        """One fit on seeds without a CRF, and masks of these scenes with one."""
        method = make_method("weakclip", self.data.classes, clip=clip(), **{"steps": self.steps, **options})
        rule = replace(method.mask_rule, others=others)
        fit = self.work / f"fit-{name}"
        prior = self.seeds(seeds, None)
        began = time.monotonic()
        label(self.data, method, fit, prior=prior, fit_only=True, progress=False)
        fitted = time.monotonic() - began
        out = self.work / f"masks-{name}-{others}"
        began = time.monotonic()
        label(self.data, method, out, fitted=fit, rule=rule, keep_scores=False, progress=False)
        rate = len(self.data) / (time.monotonic() - began)
        return {**self.measured(Run.open(out)), "fit_seconds": round(fitted), "rate": round(rate, 2)}

    def untrained(self, name: str, **options: Any) -> dict[str, Any]:
        """Masks without any training: one step at a rate of nothing."""
        return self.fitted(name, "clip-es", steps=1, lr=1e-12, weight_decay=0.0, lr_floor=0.0, **options)

    def direct(self) -> dict[str, Any]:
        """Cosines of names and cells as CLIP gives them."""
        return self.untrained("direct", **DIRECT)

    def control(self, seeds: str) -> dict[str, Any]:
        """The small network with the same losses, steps and crops, its masks restricted by tags in the same way."""
        recipe = TrainRecipe(
            steps=self.steps,
            batch=STORYBOOK["batch"],
            crop=STORYBOOK["crop"],
            scale=STORYBOOK["size"],
            loss="seed+boundary",
            loss_stride=STORYBOOK["loss_stride"],
        )
        net = train(self.seeds(seeds, None), self.work / f"small-{seeds}", recipe, data=self.data, progress=False)
        views = TestTime(STORYBOOK["scales"], flip=True)
        out = self.work / f"small-{seeds}-masks"
        predict(net.network, self.data, out, test=views, refiner="weakclip", use_tags=True, progress=False)
        return self.measured(Run.open(out))

    def retrained(self, others: str) -> dict[str, Any]:
        """The small network on WeakCLIP's masks under one reading of Eq. 14, on unseen scenes without tags."""
        self.fitted("main-clip-es", "clip-es", others)
        masks = Run.open(self.work / f"masks-main-clip-es-{others}")
        recipe = TrainRecipe(steps=self.steps)
        net = train(masks, self.work / f"retrained-{others}", recipe, data=self.data, progress=False)
        out = self.work / f"retrained-{others}-masks"
        predict(net.network, self.unseen, out, progress=False)
        found = evaluate(Run.open(out), self.unseen, boundary=False, thresholds=False)
        return {"miou": 100 * found.miou}

    def draw(self, path: Path) -> bool:
        """Six scenes, once the fits for them are there: whether they were drawn."""
        methods = []
        for name, options in (("direct", DIRECT), ("main-clip-es", {})):
            method = make_method("weakclip", self.data.classes, clip=clip(), **options)
            if not (self.work / "cells" / f"{name}.json").exists():
                return False
            method.load(Run.open(self.work / f"fit-{name}").checkpoints)
            methods.append(method)
        masks = Run.open(self.work / "masks-main-clip-es-never")
        many = [sample for sample in self.data if len(sample.tags) > 1]
        pictures(many[:6], (methods[0], methods[1]), (self.seeds("clip-es", None), masks), path)
        return True

    def floor(self) -> dict[str, Any]:
        """Every pixel the first tag."""
        out = self.work / "floor"
        label(self.data, Everything(self.data.classes), out, progress=False)
        return self.measured(Run.open(out))

    # --- the tables ------------------------------------------------------------------------------------

    def main_rows(self) -> list[list[object]]:
        """Seeds, what becomes of them, and floors."""
        rows = [self.row("floor: every pixel the first tag", "floor", self.floor)]
        for seeds in ("clip-es", "classifier-cam", "mctformer"):
            if seeds not in METHODS:
                rows.append([f"everything on {seeds}'s seeds", "no such method yet", "", "", ""])
                continue
            for name, key, make in (
                (f"seeds of {seeds}", f"seeds-{seeds}", lambda s=seeds: self.measured(self.seeds(s, None))),
                (
                    "the same with a dense CRF",
                    f"crf-{seeds}",
                    lambda s=seeds: self.measured(self.seeds(s, "weakclip")),
                ),
                (f"WeakCLIP on {seeds}'s seeds", f"main-{seeds}", lambda s=seeds: self.fitted(f"main-{s}", s)),
                ("control: the small network on them", f"small-{seeds}", lambda s=seeds: self.control(s)),
            ):
                rows.append(self.row(name, key, make))
            if seeds == "clip-es":
                rows += [
                    self.row("direct matching, nothing learned", "direct", self.direct),
                    self.row("floor: WeakCLIP before its first step", "blank", lambda: self.untrained("blank")),
                ]
        return rows

    def row(self, name: str, key: str, make: Callable[[], dict[str, Any]]) -> list[object]:
        """One line of a table of fits."""
        found = self.cell(key, make)
        if found is None:
            return [name, NOT_RUN, "", "", ""]
        return [name, found["miou"], found.get("ignored", ""), *(str(found.get(key, "")) for key in LAST)]

    def fits(self, prefix: str, changes: dict[str, dict[str, Any]]) -> list[list[object]]:
        """A row for each change of the options, all on CLIP-ES's seeds."""
        rows = []
        for place, (name, options) in enumerate(changes.items()):
            if not options:
                rows.append(self.row(name, "main-clip-es", lambda: self.fitted("main-clip-es", "clip-es")))
                continue
            key = f"{prefix}-{place}"
            rows.append(self.row(name, key, lambda k=key, o=options: self.fitted(k, "clip-es", **o)))
        return rows

    def eq14_rows(self) -> list[list[object]]:
        """One fit under three readings of Eq. 14."""
        rows: list[list[object]] = []
        for name, others in (("suppress", "never"), ("ignore: 255", "ignore"), ("off: as they win", "keep")):
            masks = self.cell(f"eq14-{others}", lambda o=others: self.fitted("main-clip-es", "clip-es", o))
            after = self.cell(f"retrained-{others}", lambda o=others: self.retrained(o))
            cells = [NOT_RUN, ""] if masks is None else [masks["miou"], masks["ignored"]]
            rows.append([name, *cells, NOT_RUN if after is None else after["miou"]])
        return rows


LADDER: dict[str, dict[str, Any]] = {
    "encoders not frozen, plain head (58.1 in the paper)": {
        "encoders": "trained",
        "match": "direct",
        "decoder": "plain",
        "prompts": 0,
    },
    "co-attention alone (67.4)": {"decoder": "none", "prompts": 0},
    "+ learnt prompts (68.9)": {"decoder": "none"},
    "+ pyramid adapter, a decoder beside the scores (70.3)": {"decoder": "plain"},
    "+ text-guided decoder: all (72.6)": {},
    "variant released": {"variant": "released"},
}
SCALES: dict[str, dict[str, Any]] = {
    "1": {"scale": 1.0},
    "0.1": {},
    "0.01": {"scale": 0.01},
    "0.001": {"scale": 0.001},
}
PROMPTS: dict[str, dict[str, Any]] = {"2": {"prompts": 2}, "4": {"prompts": 4}, "8": {}, "16": {"prompts": 16}}


# --- cost ---------------------------------------------------------------------------------------------------


def step_of(encoders: str) -> Callable[[], None]:
    """One training step of 8 crops, with or without gradients through the towers; all else is the same."""
    from tag2mask.classes import load_classes

    method = make_method("weakclip", load_classes("voc12"), clip=clip(), encoders=encoders)
    module = SupervisedTraining(method.recipe, method.start())
    optimizer = module.configure_optimizers()
    dice = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 128, 128, generator=dice) * 255
    labels = torch.randint(0, 21, (8, 16, 16), generator=dice).repeat_interleave(8, 1).repeat_interleave(8, 2).byte()
    batch = Batch(images, labels, None, torch.zeros(8), torch.arange(8), 0)

    def step() -> None:
        optimizer.zero_grad()
        torch.stack([*module.batch_losses(batch).values()]).sum().backward()
        optimizer.step()

    return step


def cost() -> dict[str, Any]:
    """Images a second, both kinds of step taking turns in one process; peak memory in a process for each."""
    torch.set_num_threads(1)  # else the time of threads that wait would be counted, too
    steps = {encoders: step_of(encoders) for encoders in ("frozen", "creep")}
    seconds: dict[str, list[float]] = {encoders: [] for encoders in steps}
    for _ in range(6):
        for encoders, step in steps.items():
            began = time.process_time()
            step()
            seconds[encoders].append(time.process_time() - began)
    found: dict[str, Any] = {k: 8 / statistics.median(v[1:]) for k, v in seconds.items()}
    return found | {f"{encoders}_mb": kept_mb(step) for encoders, step in steps.items()}


def kept_mb(step: Callable[[], None]) -> float:
    """What a step keeps until its backward pass, beside weights, gradients and the optimiser's numbers."""
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter):
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(sizes.values()) / 2**20


def cost_rows(found: dict[str, Any] | None) -> list[list[object]]:
    if found is None:
        return [["a step", NOT_RUN, ""]]
    names = {"frozen": "towers frozen, the image tower without gradients", "creep": "gradients through the towers"}
    rows: list[list[object]] = [[names[k], found[k], found[f"{k}_mb"]] for k in names]
    return [*rows, ["the first over the second", f"{found['frozen'] / found['creep']:.2f}", ""]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--steps", type=int, default=STORYBOOK["steps"])
    parser.add_argument("--minutes", type=float, default=170, help="no cell is begun later")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-weakclip"))
    parser.add_argument("--out", type=Path, default=Path("docs/weakclip.md"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # that storybook-clip knows no photographs: these are none
    work = args.work / f"{args.scenes}-{args.steps}"
    bench = Bench(work, args.scenes, args.steps, time.monotonic() + 60 * args.minutes)
    fits = ["", "mIoU", "255, %", "fit, s", "label, images/s"]
    tables: list[tuple[str, list[str], Callable[[], list[list[object]]], str]] = [
        (
            "Cost of a training step",
            ["8 crops of 128 pixels", "images a second of processor time", "kept for the backward pass, MB"],
            lambda: cost_rows(bench.cell("cost", cost)),
            "Both take turns in one process, with one thread.",
        ),
        ("Seeds, WeakCLIP and a control", fits, bench.main_rows, "Untagged classes cannot win in any row."),
        (
            "Where an absent class wins (Eq. 14)",
            ["", "mIoU of the masks", "255, %", "mIoU after retraining, unseen scenes"],
            bench.eq14_rows,
            "255 counts as wrong in the masks. The small network is trained on each, and tested without tags.",
        ),
        ("Parts (the paper's Table 4)", fits, lambda: bench.fits("part", LADDER), "In brackets: the paper's, VOC."),
        (
            "First scale of the co-attention (Table 8)",
            fits,
            lambda: bench.fits("scale", SCALES),
            "Paper: 0.1 is best.",
        ),
        ("Learnt vectors (Table 5)", fits, lambda: bench.fits("prompts", PROMPTS), "In the paper 8 are best."),
    ]
    parts = [head(args, bench)]
    for title, columns, rows, note in tables:
        parts.append(section(title, columns, rows(), note))
        write_page(args.out, "\n".join(parts))
    if bench.draw(args.out.with_suffix(".jpg")):
        parts.append(LOOKS.format(args.out.with_suffix(".jpg").name))
        write_page(args.out, "\n".join(parts))
    print(f"written: {args.out}")


LOOKS = """## How words and pixels match

As in the paper's Figure 4: the cosines of the class's text and each cell, of CLIP as it is and after the fit, each
from its least to its most.

![Six scenes: exact mask, seeds, direct matching, co-attention, masks]({})
"""


def head(args: argparse.Namespace, bench: Bench) -> str:
    return f"""# WeakCLIP on Storybook

Made by `python benchmarks/weakclip.py --scenes {args.scenes} --steps {args.steps}` on {date.today()}:
{len(bench.data)} scenes of Storybook's train split, 256x192, labelled by fits on these same scenes
({args.steps} steps of {STORYBOOK["batch"]} crops of {STORYBOOK["crop"]}); weights storybook-clip
(sha256 {clip().sha256[:16]}) and, in the classifier CAM and the small network, storybook-resnet; tag2mask
{__version__}, torch {torch.__version__}, {platform.machine()} with {torch.get_num_threads()} threads. mIoU in % over
background and VOC's 20 classes. Exact masks are read for these figures alone.
"""


if __name__ == "__main__":
    main()
