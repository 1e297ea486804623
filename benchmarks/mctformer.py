"""MCTformer on Storybook: its kinds of maps, V1, V2 and MCTformer+, and PSA on them, beside their floors.

    python benchmarks/mctformer.py --work runs/mctformer [-n 1000] [--test 100] [--steps 300]

It starts from the image tower of storybook-clip and learns from the tags of ``-n`` scenes of Storybook's train split;
figures are of ``--test`` scenes of its val split, which no fit has seen. A row is kept in the work folder once it is
made, and a command that was stopped goes on: rows and fits that are there are not made again. ``--page`` writes the
page with the rows that there are.
"""

from __future__ import annotations

import json
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tag2mask.process import tune_process

tune_process()  # as the command line does, before torch is loaded

import torch
from page import options, section, write_page
from torch import Tensor

from tag2mask import __version__
from tag2mask.data import read_voc
from tag2mask.data.image import read_image
from tag2mask.lab.pretrain_deit import DeitRecipe, make_vit
from tag2mask.methods import make_method
from tag2mask.methods.mctformer import SCENES
from tag2mask.models.mctformer_files import read_start
from tag2mask.models.save import save_clip, save_vit
from tag2mask.models.untrained import untrained
from tag2mask.models.weights import load_clip
from tag2mask.ops.masks import normalise_maps, pseudo_mask, upsample
from tag2mask.ops.metrics import BackgroundSweep, confusion_matrix, metrics
from tag2mask.run.files import write_atomic
from tag2mask.run.folder import Run
from tag2mask.stages.label import label
from tag2mask.storybook import CLASSES, render
from tag2mask.types import Constant, Dataset, MaskRule, Scores

RULES = tuple(Constant(round(0.03 * step, 2)) for step in range(1, 31))
HEAD = ["", "mIoU, own rule", "mIoU, best", "at", "fit, s", "label, images/s"]


@dataclass(frozen=True)
class Row:
    """A line of the tables: which fit (a key of ``FITS``), and how its maps are read."""

    name: str
    fit: str
    options: dict[str, Any]


OTHERS = {key: value for key, value in SCENES.items() if key != "epochs"}
"""Of fits that start from another tower: what storybook-clip's follow."""

FITS: dict[str, dict[str, Any]] = {
    "v2": {"version": "v2"},
    "v1": {"version": "v1"},
    "plus": {"variant": "plus", "scales": [1.0]},
    "floor": {"version": "v2", "weights": "untrained", **OTHERS},
    "deit": {"version": "v2", "weights": "deit", **OTHERS},
    "deit-floor": {"version": "v2", "weights": "deit-untrained", **OTHERS},
}
"""Fits by what is given beside the number of steps; "untrained" is a tower of the same shape that learned nothing."""

ROWS = (
    Row("V2, fused + affinity", "v2", {"maps": "fused"}),
    Row("V2, fused", "v2", {"maps": "fused", "affinity": False}),
    Row("V2, class-to-patch", "v2", {"maps": "class-to-patch", "affinity": False}),
    Row("V2, PatchCAM", "v2", {"maps": "patchcam", "affinity": False}),
    Row("V1, class-to-patch + affinity", "v1", {"maps": "class-to-patch"}),
    Row("V1, class-to-patch", "v1", {"maps": "class-to-patch", "affinity": False}),
    Row("MCTformer+, fused + affinity, one scale", "plus", {"maps": "fused"}),
    Row("MCTformer+, fused, one scale", "plus", {"maps": "fused", "affinity": False}),
    Row("floor: V2, fused + affinity, from an untrained tower", "floor", {"maps": "fused"}),
)

DEIT_ROWS = (
    Row("V2, fused + affinity, from the DeiT", "deit", {"maps": "fused"}),
    Row("V2, PatchCAM, from the DeiT", "deit", {"maps": "patchcam", "affinity": False}),
    Row("floor: V2, fused + affinity, from a DeiT of that shape, untrained", "deit-floor", {"maps": "fused"}),
    Row("floor: V2, PatchCAM, from it", "deit-floor", {"maps": "patchcam", "affinity": False}),
)
"""Where there is a DeiT of these scenes (``--deit``): do its seeds owe anything to what it learned?"""


class Bench:
    """What makes the rows.

    work: where scenes, runs and finished rows are. steps: of a fit. psa: steps of PSA's. deit: a further start.
    """

    def __init__(self, work: Path, scenes: int, test: int, steps: int, psa: int, deit: Path | None = None) -> None:
        self.work, self.scenes, self.test, self.steps, self.psa, self.deit = work, scenes, test, steps, psa, deit

    @cached_property
    def train_data(self) -> Dataset:
        """Scenes that are learned from."""
        return read_voc(render(self.work / "train", self.scenes, split="train"), split="train", classes="voc12")

    @cached_property
    def test_data(self) -> Dataset:
        """Scenes that are labelled and scored."""
        return read_voc(render(self.work / "val", self.test, split="val"), split="val", classes="voc12")

    def kept(self, name: str) -> Path:
        """Where a row is kept."""
        return self.work / "rows" / f"{''.join(c if c.isalnum() else '-' for c in name)}.json"

    def cell(self, name: str, make: Callable[[], list[Any]]) -> None:
        """Make a row where it is not there."""
        path = self.kept(name)
        if not path.exists():
            made = make()
            print(f"{name}: {made}", flush=True)
            write_atomic(path, json.dumps(made).encode())

    def fitted(self, fit: str) -> tuple[Run, dict[str, Any], float]:
        """A fit with its options, and the seconds that it took in all its calls."""
        options = {**FITS[fit], "steps": self.steps}
        if options.get("weights") == "untrained":
            options["weights"] = str(self.untrained)
        elif options.get("weights") == "deit":
            options["weights"] = str(self.deit)
        elif options.get("weights") == "deit-untrained":
            options["weights"] = str(self.untrained_deit)
        folder, clock = self.work / "fits" / fit, self.work / "fits" / f"{fit}.seconds"
        method = make_method("mctformer", self.train_data.classes, device="cpu", **options)
        before, began = float(clock.read_text()) if clock.exists() else 0.0, time.perf_counter()
        done = (folder / "checkpoints" / "fitted.json").exists()
        try:
            label(self.train_data, method, folder, fit_only=True)
        finally:
            if not done:
                write_atomic(clock, str(before + time.perf_counter() - began).encode())
        return Run.open(folder), options, float(clock.read_text())

    def labelled(self, row: Row) -> tuple[Run, MaskRule, float, float]:
        """The run of a row, its rule, seconds of its fit and images a second of its labelling."""
        fit, options, took = self.fitted(row.fit)
        method = make_method("mctformer", self.test_data.classes, device="cpu", **{**options, **row.options})
        run = self.work / "runs" / self.kept(row.name).stem
        speed = label(self.test_data, method, run, fitted=fit).images_per_second
        return Run.open(run), method.mask_rule, took, speed

    def mctformer(self, row: Row) -> list[Any]:
        """Figures of a row of ``ROWS``."""
        run, rule, took, speed = self.labelled(row)
        return [*self.measure(run, rule), took, speed]

    def refined(self, row: Row) -> list[Any]:
        """The same after PSA, with MCTformer's numbers, fitted on the maps of the scenes that are labelled."""
        seeds = self.labelled(row)[0]
        options = {"low": 1, "high": 12, "background": "constant:0.39", "threshold": None, "lr": 0.01}
        psa = make_method("psa", self.test_data.classes, device="cpu", steps=self.psa, **options)
        folder, began = self.work / "runs" / "psa", time.perf_counter()
        label(self.test_data, psa, folder, prior=seeds, fit_only=True)
        took = time.perf_counter() - began
        speed = label(self.test_data, psa, folder, prior=seeds).images_per_second
        return [*self.measure(Run.open(folder), psa.mask_rule), took, speed]

    def other(self, method: str) -> list[Any]:
        """A method that learns nothing here."""
        clip = load_clip("storybook-clip", device="cpu") if method == "clip-es" else None
        made = make_method(method, self.test_data.classes, clip=clip, device="cpu")
        rule = MaskRule(background=made.mask_rule.background, normalise=made.mask_rule.normalise)
        summary = label(self.test_data, made, self.work / "runs" / method, rule=rule)
        return [*self.measure(Run.open(self.work / "runs" / method), rule), "", summary.images_per_second]

    @cached_property
    def untrained(self) -> Path:
        """The folder of a CLIP of storybook-clip's shape with weights drawn anew."""
        clip, folder = load_clip("storybook-clip", device="cpu"), self.work / "untrained"
        if not (folder / "model.safetensors").exists():
            folder.mkdir(parents=True, exist_ok=True)
            save_clip(folder, untrained(clip, 0).model, start=1, end=clip.tokenizer.end or 231, pad=0)
        return folder

    @cached_property
    def untrained_deit(self) -> Path:
        """The folder of a DeiT of the given one's shape with weights drawn anew."""
        assert self.deit is not None
        folder = self.work / "untrained-deit"
        if not (folder / "model.safetensors").exists():
            shape = read_start(self.deit).shape
            fresh = make_vit(
                DeitRecipe(
                    width=shape.width,
                    layers=shape.layers,
                    heads=shape.heads,
                    patch=shape.patch,
                    side=shape.grid[0] * shape.patch,
                )
            )
            folder.mkdir(parents=True, exist_ok=True)
            save_vit(folder, fresh.tower, fresh.norm, fresh.head, CLASSES)
        return folder

    def measure(self, run: Run | None, rule: MaskRule) -> list[Any]:
        """mIoU (%) by the rule and by the best threshold, and that threshold. run: None is every pixel the tags'."""
        sweep = BackgroundSweep(RULES, len(self.test_data.classes))
        own = torch.zeros(len(self.test_data.classes), len(self.test_data.classes) + 1, dtype=torch.int64)
        for sample in self.test_data:
            if not sample.tags or sample.truth is None:
                continue
            truth, tags = torch.from_numpy(sample.truth()), torch.tensor(sample.tags)
            scores = everything(tags, truth) if run is None else run.scores(sample.id)
            image = torch.from_numpy(read_image(sample.image)).permute(2, 0, 1)  # (3, H, W)
            own += confusion_matrix(truth, pseudo_mask(scores, image, rule)[0], len(own))
            maps = normalise_maps(upsample(scores.maps, scores.size, scores.frame), rule.normalise)
            sweep.update(truth, maps.clamp(0, 1), scores.tags)
        found = [100 * metrics(count).miou for count in sweep.confusion()]
        best = max(range(len(RULES)), key=lambda i: found[i])
        return [100 * metrics(own).miou, found[best], f"{RULES[best].number:.2f}"]

    def rows(self) -> list[tuple[str, Callable[[], list[Any]]]]:
        """Names of all rows and what makes each, the most telling first."""
        further = DEIT_ROWS if self.deit is not None else ()
        made = {row.name: partial(self.mctformer, row) for row in (*ROWS, *further)}
        first = ROWS[0]
        return [
            (FOREGROUND, lambda: [*self.measure(None, MaskRule(background=Constant(0.39))), "", ""]),
            *((row.name, made[row.name]) for row in ROWS if row.fit == "v2"),
            (f"{first.name} + PSA", partial(self.refined, first)),
            ("classifier CAM", partial(self.other, "classifier-cam")),
            ("CLIP-ES", partial(self.other, "clip-es")),
            *((row.name, made[row.name]) for row in (*ROWS, *further) if row.fit != "v2"),
        ]


FOREGROUND = "floor: everything foreground, the first tag"


def everything(tags: Tensor, truth: Tensor) -> Scores:
    """Every pixel belongs to the first tag."""
    maps = torch.zeros(len(tags), *truth.shape)
    maps[0] = 1
    return Scores(tags, maps, (truth.shape[0], truth.shape[1]))


def page(bench: Bench, command: str) -> str:
    """The page with the rows that there are."""
    done = {name: json.loads(path.read_text()) for name, _ in bench.rows() if (path := bench.kept(name)).exists()}
    rows = [[name, *done.get(name, ["not run", "", "", "", ""])] for name, _ in bench.rows()]
    note = f"""`python benchmarks/mctformer.py {command}`, {date.today()}: fits of {bench.steps} steps on the tags of
{bench.scenes} scenes of Storybook's train split, from the image tower of storybook-clip (not DeiT-S); PSA of
{bench.psa} steps; figures of {bench.test} scenes of val, 256x192, which no fit but PSA's has seen. tag2mask
{__version__}, torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} thread(s); other work ran on
the machine, so seconds say little. mIoU in %, over all classes and background: by the method's own rule (0.39;
classifier CAM and CLIP-ES theirs), and "best": by the best of {len(RULES)} thresholds, chosen with ground truth. No
CRF."""
    return f"# MCTformer on Storybook\n\n{note}\n\n" + section("Maps", HEAD, rows)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="where scenes, fits and finished rows are kept")
    parser.add_argument("-n", type=int, default=1000, help="scenes to learn from")
    parser.add_argument("--test", type=int, default=100, help="scenes to label and score")
    parser.add_argument("--steps", type=int, default=300, help="of each fit of MCTformer")
    parser.add_argument("--psa", type=int, default=200, help="steps of PSA's fit")
    parser.add_argument("--deit", type=Path, help="a folder of `storybook pretrain-deit`, for four rows more")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--page", action="store_true", help="make no rows; write the page with those there are")
    parser.add_argument("--out", type=Path, default=Path("docs/mctformer.md"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args.work, args.n, args.test, args.steps, args.psa, args.deit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, make in [] if args.page else bench.rows():
            bench.cell(name, make)
    sizes = (
        f"--work WORK -n {args.n} --test {args.test} --steps {args.steps} --psa {args.psa} --threads {args.threads}"
    )
    write_page(args.out, page(bench, sizes))
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
