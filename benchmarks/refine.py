"""Refinement of seeds by CRF, PSA and IRN on Storybook: one table.

    python benchmarks/refine.py [-n 100] [--steps 200] [--seeds NAME ...] [--out docs/refine.md] [--work FOLDER]

Seeds are CLIP-ES (initial CAM, and after CAA) and classifier CAM. IRN and PSA are fitted on the very seeds that they
refine, without ground truth. Two mIoUs: "fixed" with each method's own background rule (classifier CAM: 0.18, chosen
with ground truth on other scenes), "best" with the best of many constants and powers, chosen with ground truth on
these scenes as the papers do. Seeds are refined from their fixed rule. ``--work`` keeps the runs, and a second call
goes on with them.
"""

from __future__ import annotations

import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from tag2mask.process import tune_process

tune_process()  # as the command line does, before torch is loaded

import torch
from page import begin, options, table, write_page
from stored_maps import measure
from torch import Tensor

from tag2mask.data import read_voc
from tag2mask.lab.bench import RULES
from tag2mask.methods import make_method
from tag2mask.models.classifier import Classifier, load_classifier, save_classifier
from tag2mask.ops.metrics import confusion_matrix, metrics
from tag2mask.run.folder import Run
from tag2mask.stages.label import label
from tag2mask.storybook import render
from tag2mask.types import Background, Constant, Dataset, MaskRule

CAM_BACKGROUND = Constant(0.18)
"""Of classifier CAM with storybook-resnet: chosen with ground truth, on 100 scenes of the test split."""

SEEDS = {
    "CLIP-ES, initial": ("clip-es", {"affinity": "none"}, None),
    "CLIP-ES, CAA": ("clip-es", {}, None),
    "classifier CAM": ("classifier-cam", {}, CAM_BACKGROUND),
}
CRF_OF = {"clip-es": "clip-es", "classifier-cam": "irn", "irn": "irn"}
"""The preset that each method's maps are refined by."""


@dataclass
class Table:
    """Rows of the table, and what makes them.

    data: scenes with truth. work: where the runs are. steps: of a fit.
    """

    data: Dataset
    work: Path
    steps: int

    def run(
        self,
        name: str,
        method: str,
        prior: Run | None = None,
        background: Background | None = None,
        **options: object,
    ) -> tuple[Run, MaskRule, float, float]:
        """A run, its rule, seconds of its fit, and images a second of its labelling; 0 where it was there before."""
        made = make_method(method, self.data.classes, clip=self.clip(method), **options)
        rule = replace(made.mask_rule, refiner=None, mu=None, background=background or made.mask_rule.background)
        folder = self.work / name.replace(" ", "-").replace(",", "")
        began, took = time.perf_counter(), 0.0
        if made.earlier_run(made.options).needed:
            label(self.data, made, folder, rule=rule, prior=prior, fit_only=True)
            took = time.perf_counter() - began
        summary = label(self.data, made, folder, rule=rule, prior=prior)
        return Run.open(folder), rule, took, summary.images_per_second

    def clip(self, method: str) -> object:
        """The embedded CLIP, for the method that needs one."""
        if method != "clip-es":
            return None
        from tag2mask.models.weights import load_clip

        return load_clip("storybook-clip", device="cpu")

    def measure(self, run: Run, rule: MaskRule, *, best: bool = True) -> tuple[float, float]:
        """mIoU (%) under ``rule``, and for maps without CRF under the best rule; else NaN."""
        return measure(run, self.data, rule, sweep=best)[:2]

    def rows(self, seeds: str, *, floor: str | None = None) -> list[list[object]]:
        """Those of one kind of seeds. floor: IRN's backbone, the folder of random weights, for a last row."""
        method, options, background = SEEDS[seeds]
        first, rule, _, speed = self.run(seeds, method, background=background, **options)
        rows: list[list[object]] = [[seeds, *self.measure(first, rule), "", speed]]
        crf = replace(rule, refiner=CRF_OF[method])
        rows.append([f"{seeds} + CRF", *self.measure(first, crf, best=False), "", ""])
        for refiner in ("psa", "irn"):
            run, rule, took, speed = self.run(f"{seeds} + {refiner}", refiner, first, steps=self.steps)
            rows.append([f"{seeds} + {refiner.upper()}", *self.measure(run, rule), took, speed])
        crf = replace(rule, refiner=CRF_OF["irn"])
        rows.append([f"{seeds} + IRN + CRF", *self.measure(run, crf, best=False), "", ""])
        if floor is not None:
            run, rule, took, speed = self.run(f"{seeds} + floor", "irn", first, steps=self.steps, weights=floor)
            rows.append([f"floor: {seeds} + IRN over random weights", *self.measure(run, rule), took, speed])
        return rows

    def everything_foreground(self) -> float:
        """mIoU (%) when every pixel gets the image's first tag."""
        count = len(self.data.classes)
        total = torch.zeros(count, count + 1, dtype=torch.int64)
        for sample in self.data:
            if sample.tags and sample.truth is not None:
                truth: Tensor = torch.from_numpy(sample.truth())
                total += confusion_matrix(truth, torch.full_like(truth, sample.tags[0]), count)
        return 100 * metrics(total).miou


def random_weights(folder: Path) -> str:
    """The folder of a network shaped as storybook-resnet, with random weights."""
    if not folder.exists():
        trained, _ = load_classifier()
        torch.manual_seed(0)
        save_classifier(Classifier(trained.names, trained.backbone.layout), folder, "random weights: a floor")
    return str(folder)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("-n", type=int, default=100, help="scenes")
    parser.add_argument("--steps", type=int, default=200, help="of a fit")
    parser.add_argument("--seeds", nargs="+", choices=SEEDS, default=list(SEEDS))
    parser.add_argument("--out", type=Path, default=Path("docs/refine.md"))
    parser.add_argument("--work", type=Path, help="where the runs are kept; default: a temporary folder")
    args = parser.parse_args()
    measured_with = begin()
    with TemporaryDirectory() if args.work is None else nullcontext(args.work) as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scenes = render(Path(work) / "scenes", args.n, split="val")
        measured = Table(read_voc(scenes, split="val", classes="voc12"), Path(work), args.steps)
        blank = random_weights(Path(work) / "random")
        rows = [
            row
            for seeds in args.seeds
            for row in measured.rows(seeds, floor=blank if seeds == "classifier CAM" else None)
        ]
        rows.append(["floor: everything foreground", measured.everything_foreground(), "", "", ""])
    head = ["", "mIoU, fixed", "mIoU, best", "fit, s", "label, images/s"]
    write_page(
        args.out,
        f"""# Refinement: CRF, PSA and IRN on Storybook

Made by `python benchmarks/refine.py -n {args.n} --steps {args.steps}` on {date.today()}: {args.n} scenes of
Storybook's `val` split at 256x192; weights storybook-clip (CLIP-ES) and storybook-resnet (classifier CAM,
and the backbone of IRN and PSA);
{measured_with()} in all. mIoU in %, over all classes and background. "fixed": with each
method's own background rule (classifier CAM: {CAM_BACKGROUND.value}, chosen with ground truth on 100 scenes of the
test split); "best": with the best of {len(RULES)} rules, chosen with ground truth. "fit" is the
making of labels and {args.steps} steps; neither sees ground truth.

"""
        + table(head, rows),
    )
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
