"""From tags to a segmentation network on Storybook: label, train, predict held-out scenes, measure; as Markdown.

    python benchmarks/networks.py [--scenes 400] [--held-out 100] [--steps 600] [--work FOLDER] [--out FILE]

Every row is measured on scenes that no training saw. The pseudo masks get the tags there, the networks in the last
column alone. The work folder keeps runs and networks, and the same command resumes it with what is in it.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from tag2mask.process import tune_process

tune_process()  # as the command line does, before torch is loaded

from page import begin, options, section, write_page

from tag2mask.config import read_recipe
from tag2mask.data import read_voc
from tag2mask.lab.demo import Everything
from tag2mask.methods.clip_es import ClipES
from tag2mask.models.weights import load_clip
from tag2mask.run.folder import Run
from tag2mask.segment.network import build_network, save_network
from tag2mask.segment.recipe import TrainRecipe
from tag2mask.segment.saved import NetworkConfig
from tag2mask.stages.confidence import span
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.label import label
from tag2mask.stages.predict import predict
from tag2mask.stages.train import Trained, train
from tag2mask.storybook import render
from tag2mask.types import Dataset

RECIPE = Path(__file__).parent.parent / "recipes" / "train_storybook.yaml"


def pseudo_masks(data: Dataset, out: Path, floor: bool = False) -> Run:
    """CLIP-ES with dense CRF through storybook-clip, every pixel labelled; or every pixel the first tag."""
    if floor:
        label(data, Everything(data.classes), out)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that storybook-clip knows no photographs: these are none
            method = ClipES(data.classes, clip=load_clip("storybook-clip"))
        label(data, method, out, rule=replace(method.mask_rule, mu=None))
    return Run.open(out)


def measured(run: Run, data: Dataset) -> float:
    return 100 * evaluate(run, data, boundary=False, thresholds=False).miou


def tables(work: Path, scenes: int, held_out: int, recipe: TrainRecipe) -> list[str]:
    folder = render(work / "scenes", scenes, split="train")
    render(folder, held_out, split="val")
    seen, unseen = (read_voc(folder, split=split, classes="voc12") for split in ("train", "val"))
    masks, masks_unseen = pseudo_masks(seen, work / "run-train"), pseudo_masks(unseen, work / "run-val")
    ids = work / "ids.txt"
    ids.write_text("".join(f"{sample.id}\n" for sample in seen), encoding="utf-8")

    def network(name: str, run: Run | None, **changes: object) -> tuple[list[object], Trained]:
        """A row: its figures on unseen scenes without tags and with them, and how fast it was trained."""
        truth = ids if run is None else None
        found = train(run, work / name, replace(recipe, **changes), data=seen, pixel_labels=truth)  # type: ignore[arg-type]
        plain = Run.open(predict(found.network, unseen, work / f"{name}-predicted").path)
        tagged = Run.open(predict(found.network, unseen, work / f"{name}-tagged", use_tags=True).path)
        return [found.supervision, measured(plain, unseen), measured(tagged, unseen)], found

    blank = build_network(NetworkConfig.of(recipe.architecture, seen.classes, **recipe.options), init="random")
    save_network(work / "blank", blank, supervision="tags", noted={})
    untrained = Run.open(predict(work / "blank", unseen, work / "blank-predicted").path)
    everything = pseudo_masks(unseen, work / "floor", floor=True)

    plain, speed = network("cross-entropy", masks)
    rows: list[list[object]] = [
        ["pseudo masks (CLIP-ES + dense CRF) of these scenes", "tags", "needs tags", measured(masks_unseen, unseen)],
        ["network on pseudo masks, cross-entropy", *plain],
    ]
    for mu in (0.7, 0.8, 0.95):
        rows.append([f"network on pseudo masks, confidence-guided, μ = {mu}", *network(f"mu-{mu}", masks, mu=mu)[0]])
    rows += [
        ["network on exact masks: the upper bound", *network("truth", None)[0]],
        ["floor: untrained network", "", measured(untrained, unseen), ""],
        ["floor: every pixel the first tag", "tags", "needs tags", measured(everything, unseen)],
    ]
    out = [
        section(
            f"Networks on {held_out} held-out scenes",
            ["", "supervision", "mIoU, no tags given", "mIoU, tags given"],
            rows,
            f"The pseudo masks of the {scenes} training scenes have {measured(masks, seen):.1f} mIoU. Training: "
            f"{recipe.steps} steps of {recipe.batch} crops of {recipe.crop} pixels, {speed.images_per_second:.3g} "
            "images/s.",
        )
    ]
    sure = evaluate(masks, seen, boundary=False, thresholds=False, confidence=True).confidence
    out.append(
        section(
            "Confidence of the pseudo masks of the training scenes",
            ["μ", "pixels kept, %", "mIoU of the masks on the kept pixels"],
            [[f"{row.mu:g}", 100 * row.share, 100 * row.miou] for row in sure.kept],
            "Pixels by confidence, in %: "
            + ", ".join(f"{span(low, high)} {100 * share:.1f}" for low, high, share in sure.shares)
            + ". The networks trained at each μ are in the table above; together they are CLIP-ES's Table S3.",
        )
    )
    return out


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    measured_with = begin()
    settings = replace(read_recipe(TrainRecipe, [], RECIPE), steps=given.steps)
    with TemporaryDirectory() as scratch:
        parts = tables(given.work or Path(scratch), given.scenes, given.held_out, settings)
    head = (
        "# From tags to a network, on Storybook\n\n"
        f"Made by `python benchmarks/networks.py --scenes {given.scenes} --held-out {given.held_out} --steps "
        f"{given.steps}` on {date.today()}: {measured_with()}. Weights: storybook-clip (labels), "
        "storybook-resnet (start of the networks). mIoU in %, over background and VOC's 20 classes.\n"
    )
    page = "\n".join([head, *parts])
    print(page)
    if given.out:
        write_page(given.out, page)
