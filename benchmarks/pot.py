"""POT on Storybook: what each part of it is worth, where it loses, what it costs, and how it looks.

    python benchmarks/pot.py rows [-n 100] [--steps 100] [--scales 1 0.5 1.5 2] [--minutes 170] [--out docs/pot.md]
    python benchmarks/pot.py oracle | pictures | cost      with the same -n, --steps, --scales and --work

Each command writes the whole page anew from what is in ``--work``; rows that are there are not made again, and those
that are not say "not run". A fit sees images, tags and the seeds' maps, and no ground truth. mIoU is over all classes
and background; "own" is under the method's own background rule, "best" under the best of many, chosen with ground
truth. The first rows say most, so that a run that is stopped by ``--minutes`` still says something.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tag2mask.process import tune_process

tune_process()  # as the command line does, before torch is loaded

import torch
from pot_page import write
from stored_maps import measure

from tag2mask.config import read_recipe
from tag2mask.data import read_voc
from tag2mask.lab.demo import Everything
from tag2mask.methods import make_method
from tag2mask.methods.protocol import Method
from tag2mask.models.classifier import Classifier, load_classifier, save_classifier
from tag2mask.models.weights import load_clip
from tag2mask.run.folder import Run
from tag2mask.segment.recipe import TrainRecipe
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.label import label
from tag2mask.stages.predict import predict
from tag2mask.stages.train import train
from tag2mask.storybook import render
from tag2mask.types import Constant, Dataset, MaskRule

CLIP_ES, CAM = "CLIP-ES with CAA", "classifier CAM"
RECIPE = Path(__file__).parent.parent / "recipes" / "train_storybook.yaml"


@dataclass(frozen=True)
class Row:
    """A method with options and the row whose maps it starts from."""

    name: str
    method: str
    earlier: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def pot(name: str, earlier: str | None = CLIP_ES, **options: Any) -> Row:
    return Row(name, "pot", earlier, options)


ROWS = [
    Row(CAM, "classifier-cam"),
    Row(CLIP_ES, "clip-es"),
    Row("floor: everything foreground", "everything"),
    pot("POT, K = 1 (SIPE's single prototype)", clusters=1),
    pot("POT, paper (K = 3)"),
    pot("POT, released (K = 2, no plan)", variant="released"),
    pot("POT, K = 2", clusters=2),
    pot("POT, the classifier's own seeds", None, seeds="classifier"),
    pot("POT, without the consistency loss", consistency_weight=0),
    pot("POT, all pixels renew prototypes", population="all"),
    pot("POT, fused with CLIP-ES while labelling", fuse=True),
    pot("POT, uniform marginals", marginal="uniform"),
    pot("POT, K = 4", clusters=4),
    pot("POT, each pixel by its own cluster (hard)", combine="hard"),
    pot("POT, mean of the clusters", combine="mean"),
    pot("POT, soft allocation", allocation="soft"),
    pot("POT, tau = 0.6", threshold=0.6),
    pot("POT, tau = 0.8", threshold=0.8),
    pot("POT, tau = 0.65", threshold=0.65),
    pot("POT, tau = 0.75", threshold=0.75),
    pot("POT, released, the classifier's own seeds", None, variant="released", seeds="classifier"),
    pot("floor: POT over random weights", weights="random", batch=8, size=192),
]

NETWORKS = 3
"""Of so many rows, the best by their masks with the CRF, chosen with ground truth, a network is trained."""


@dataclass
class Bench:
    """What makes the rows. scales: of classifier CAM and POT."""

    work: Path
    scenes: int
    steps: int
    scales: tuple[float, ...]
    seed: int

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        folder = self.work / f"scenes-{self.scenes}-{self.seed}"
        render(folder, self.scenes, split="val", seed=self.seed)
        self.data: Dataset = read_voc(folder, split="val", classes="voc12")
        held_out = self.work / f"held-out-{self.seed}"
        self.held_out = lambda: read_voc(
            render(held_out, 60, split="test", seed=self.seed), split="test", classes="voc12"
        )

    # --- results -----------------------------------------------------------------------------------------------

    @property
    def kept(self) -> Path:
        """Where the figures of rows lie; other settings have another folder."""
        scales = "-".join(f"{scale:g}" for scale in self.scales)
        return self.work / f"n{self.scenes}-steps{self.steps}-scales{scales}-seed{self.seed}"

    def find(self, name: str) -> dict[str, Any] | None:
        """The figures of a row; None where it was not made yet."""
        path = self.kept / f"{slug(name)}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def keep(self, name: str, figures: dict[str, Any]) -> None:
        """Put the figures of a row where ``find`` finds them."""
        self.kept.mkdir(parents=True, exist_ok=True)
        (self.kept / f"{slug(name)}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")

    # --- rows --------------------------------------------------------------------------------------------------

    def method(self, row: Row) -> Method:
        """A row's method, not fitted yet."""
        if row.method == "everything":
            return Everything(self.data.classes)
        if row.method == "clip-es":
            return make_method(row.method, self.data.classes, clip=load_clip("storybook-clip", device="cpu"))
        options = {"scales": self.scales, **row.options}
        if options.get("weights") == "random":
            options["weights"] = random_weights(self.work / "random")
        if row.method == "pot":
            options["steps"] = self.steps
        return make_method(row.method, self.data.classes, **options)

    def rule(self, method: Method) -> MaskRule:
        """The method's own, without a refiner; of classifier CAM the one that docs/refine.md has."""
        rule = replace(method.mask_rule, refiner=None, mu=None)
        return replace(rule, background=Constant(0.18)) if rule.background == Constant(0.15) else rule

    def run(self, row: Row) -> tuple[Run, Method, float, float]:
        """A row's run, its method, seconds of its fit and images a second of its labelling."""
        method, folder = self.method(row), self.kept / slug(row.name)
        earlier = None
        if row.earlier is not None:
            earlier = Run.open(self.kept / slug(row.earlier))
        rule, began, took = self.rule(method), time.perf_counter(), 0.0
        if method.learns:
            label(self.data, method, folder, rule=rule, prior=earlier, fit_only=True, progress=False)
            took = time.perf_counter() - began
        summary = label(self.data, method, folder, rule=rule, prior=earlier, progress=False)
        return Run.open(folder), method, took, summary.images_per_second

    def make(self, row: Row) -> None:
        """The figures of a row, where they are not there yet."""
        if self.find(row.name) is not None:
            return
        run, method, took, speed = self.run(row)
        rule = self.rule(method)
        crf = replace(rule, refiner={"clip-es": "clip-es", "everything": None}.get(row.method, "pot"))
        own, best, at = measure(run, self.data, rule)
        self.keep(
            row.name,
            {
                "own": own,
                "best": best,
                "at": at,
                "crf": measure(run, self.data, crf, sweep=False)[0] if crf.refiner else None,
                "fit": took,
                "speed": speed,
            },
        )

    def network(self, row: Row) -> None:
        """mIoU of a network that is trained on a row's masks, with the CRF, on scenes that nothing has seen."""
        name = f"network {row.name}"
        if self.find(name) is not None:
            return
        made = self.method(row)
        rule = replace(self.rule(made), refiner="clip-es" if row.method == "clip-es" else "pot")
        earlier = None if row.earlier is None else Run.open(self.kept / slug(row.earlier))
        masks = self.kept / f"{slug(row.name)}-crf"
        fitted = self.kept / slug(row.name) if made.learns else None
        label(self.data, made, masks, rule=rule, prior=earlier, fitted=fitted, progress=False)
        recipe = replace(read_recipe(TrainRecipe, [], RECIPE), steps=2 * self.steps)
        found = train(Run.open(masks), self.kept / slug(name), recipe, data=self.data)
        held_out = self.held_out()
        out = predict(found.network, held_out, self.kept / f"{slug(name)}-predicted").path
        miou = evaluate(Run.open(out), held_out, boundary=False, thresholds=False).miou
        self.keep(name, {"miou": 100 * miou, "steps": recipe.steps})


def slug(name: str) -> str:
    """A row's name as a folder's."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")


def random_weights(folder: Path) -> str:
    """The folder of a network shaped as storybook-resnet, with random weights."""
    if not folder.exists():
        trained, _ = load_classifier()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            save_classifier(Classifier(trained.names, trained.backbone.layout), folder, "random weights: a floor")
    return str(folder)


def rows(bench: Bench, args: argparse.Namespace) -> None:
    """All rows, then the networks, until the minutes are over; the page is written after each."""
    began = time.monotonic()

    def go(job: Callable[[Row], None], row: Row) -> bool:
        if time.monotonic() - began > 60 * args.minutes:
            print(f"time is over; {row.name} and what follows it are not run: give the same command again to go on")
            return False
        job(row)
        write(bench, args)
        return True

    if all(go(bench.make, row) for row in ROWS):
        ranked = sorted(ROWS, key=lambda row: -((bench.find(row.name) or {}).get("crf") or 0))
        all(go(bench.network, row) for row in ranked[:NETWORKS])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rows", "oracle", "pictures", "cost"])
    parser.add_argument("-n", type=int, default=100, help="scenes")
    parser.add_argument("--steps", type=int, default=100, help="of each fit")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 0.5, 1.5, 2.0])
    parser.add_argument("--minutes", type=float, default=170, help="no row is begun after so long")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the scenes")
    parser.add_argument("--work", type=Path, default=Path("pot-work"), help="where everything is kept")
    parser.add_argument("--out", type=Path, default=Path("docs/pot.md"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the weights know no photographs: these are none
        bench = Bench(args.work, args.n, args.steps, tuple(args.scales), args.seed)
        if args.what == "rows":
            rows(bench, args)
        elif args.what == "cost":
            from pot_cost import cost

            bench.keep("cost", cost(bench))
        else:
            import pot_looks

            for needed in (ROWS[1], ROWS[4]):  # CLIP-ES, and POT on it
                bench.make(needed)
            if args.what == "oracle":
                bench.keep("oracle", pot_looks.oracle(bench, ROWS[4]))
            else:
                pot_looks.pictures(bench, ROWS[4], args.out.with_suffix(".jpg"))
        write(bench, args)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
