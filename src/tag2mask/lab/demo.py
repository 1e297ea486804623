"""The demo: the whole main job on the embedded world, measured against exact masks and beside its floors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tag2mask.data import read_voc
from tag2mask.methods.clip_es import ClipES
from tag2mask.methods.protocol import Method
from tag2mask.models.untrained import untrained
from tag2mask.models.weights import load_clip
from tag2mask.run.folder import Run
from tag2mask.run.progress import progress as show_progress
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.evaluation import Curve, Evaluation
from tag2mask.stages.label import label
from tag2mask.stages.report import report
from tag2mask.storybook import render
from tag2mask.types import Constant, Dataset, Item, MaskRule, Scores


@dataclass(frozen=True)
class DemoResult:
    """What the demo found. miou: CLIP-ES + CRF; initial, refined: the maps, at their best threshold on the truth;
    floor_random: the same code on untrained weights; floor_everything: every pixel foreground. All in [0, 1]."""

    miou: float
    initial: float
    refined: float
    floor_random: float
    floor_everything: float
    report: Path
    text: str


class Everything(Method):
    """A floor, not a method: every pixel belongs to every tag, so the first tag fills the image."""

    mask_rule = MaskRule(background=Constant(0.0))

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """One cell."""
        return 1, 1

    def scores(self, items: Sequence[Item]) -> list[Scores]:
        """Maps of ones."""
        out = []
        for item in items:
            assert item.tags is not None
            size = (item.image.shape[1], item.image.shape[2])
            out.append(Scores(item.tags, torch.ones(len(item.tags), 1, 1), size))
        return out


def demo(out: Path | str, n: int = 120, *, device: str = "auto", progress: bool = True) -> DemoResult:
    """Render ``n`` scenes, label them by CLIP-ES with dense CRF through the embedded CLIP, measure, report.

    Everything lies under ``out``: scenes (VOC layout), run, and the floors' runs. Called again, it starts afresh.
    """
    out = Path(out)
    with show_progress(n, "draw scenes", unit="scenes", enabled=progress) as bar:
        scenes = render(out / f"scenes-{n}", n, split="val", progress=bar.advance)
    data = read_voc(scenes, split="val", classes="voc12")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that storybook-clip knows no photographs: these are none
        clip = load_clip("storybook-clip", device=device)
    method = ClipES(data.classes, clip=clip)
    rule = replace(method.mask_rule, mu=None)  # every pixel gets a label, to be measured
    found, run = _measure(data, method, rule, out / f"run-{n}", progress)
    blank = ClipES(data.classes, clip=untrained(clip, seed=0))
    random, _ = _measure(data, blank, rule, out / f"floor-random-{n}", progress)
    everything, _ = _measure(
        data, Everything(data.classes), Everything.mask_rule, out / f"floor-everything-{n}", progress
    )
    page = report(
        run,
        data,
        evaluation=found,
        floors={"untrained weights": random.miou, "everything foreground": everything.miou},
        title="tag2mask demo: Storybook, CLIP-ES",
        progress=progress,
    )
    curves = {curve.source: curve for curve in found.curves}
    return DemoResult(
        miou=found.miou,
        initial=curves["initial"].best[1],
        refined=curves["maps"].best[1],
        floor_random=random.miou,
        floor_everything=everything.miou,
        report=page,
        text=_text(n, found, curves, random, everything),
    )


def _measure(data: Dataset, method: Method, rule: MaskRule, out: Path, progress: bool) -> tuple[Evaluation, Run]:
    label(data, method, out, rule=rule, progress=progress, overwrite=True)
    run = Run.open(out)
    return evaluate(run, data, progress=progress), run


def _text(n: int, found: Evaluation, curves: dict[str, Curve], random: Evaluation, everything: Evaluation) -> str:
    rows = [
        ("CLIP-ES + dense CRF: the masks", found.miou),
        ("its maps (CAA) without the CRF", curves["maps"].at_used),
        ("its maps (CAA), best threshold*", curves["maps"].best[1]),
        ("initial CAM, best threshold*", curves["initial"].best[1]),
        ("floor: untrained weights, same code", random.miou),
        ("floor: every pixel foreground", everything.miou),
    ]
    lines = [f"{n} Storybook scenes, labelled from their tags alone; mIoU against the exact masks:"]
    lines += [f"  {name:38} {100 * value:5.1f} %" for name, value in rows]
    lines += [
        "  * chosen with ground truth, as in the papers' tables",
        "The embedded CLIP is small and knows drawings alone: read the figures against the floors, not the papers.",
        "",
    ]
    return "\n".join(lines)
