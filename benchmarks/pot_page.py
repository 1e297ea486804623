"""The page of benchmarks/pot.py, from the figures that are at hand."""

from __future__ import annotations

import argparse
import platform
from datetime import date
from typing import TYPE_CHECKING, Any

import torch
from page import section, write_page

from tag2mask import __version__
from tag2mask.lab.bench import RULES

if TYPE_CHECKING:
    from pot import Bench

NOT_RUN = "not run"


def write(bench: Bench, args: argparse.Namespace) -> None:
    """All tables; what was not measured says so."""
    scales = " ".join(f"{scale:g}" for scale in args.scales)
    command = f"-n {args.n} --steps {args.steps} --scales {scales} --threads {args.threads} --seed {args.seed}"
    head = f"""# POT on Storybook

Made by `python benchmarks/pot.py rows {command}`,
and `oracle`, `pictures`, `cost` in the place of `rows`; this page on {date.today()}: {args.n} scenes of Storybook's
val split, 256x192; weights storybook-resnet and storybook-clip; tag2mask {__version__}, torch {torch.__version__},
{platform.machine()} with {args.threads} thread(s). mIoU in %, over all classes and background. "own": under the
method's own background rule (classifier CAM: 0.18, chosen with ground truth on other scenes). "best": under the best
of {len(RULES)} rules, chosen with ground truth on these scenes. "+ CRF": own, refined by the method's own dense CRF.
A fit is {args.steps} steps of 8 images, without ground truth; images at {args.scales} times their size are labelled.
"""
    parts = [_rows(bench), _networks(bench), _oracle(bench), _cost(bench)]
    if args.out.with_suffix(".jpg").exists():
        parts.append(
            "## Six scenes\n\nImage and exact mask; clusters of the confident pixels of one class; what the plan "
            f"gives to each cluster; the seed map before, and POT's after.\n\n![six scenes]({args.out.stem}.jpg)\n"
        )
    write_page(args.out, "\n".join([head, *parts]))


def _rows(bench: Bench) -> str:
    from pot import ROWS

    rows: list[list[object]] = []
    for row in ROWS:
        found = bench.find(row.name)
        if found is None:
            rows.append([row.name, NOT_RUN, *[""] * 5])
            continue
        crf = "" if found["crf"] is None else found["crf"]
        fit = found["fit"] or ""
        speed = f"{found['speed']:.2f}" if found["speed"] else ""  # a run that was there says nothing
        rows.append([row.name, found["own"], found["best"], found["at"], crf, fit, speed])
    note = "Rows named POT start from CLIP-ES's maps and have K = 3 and tau = 0.7 where they do not say otherwise."
    return section("Rows", ["", "own", "best", "at", "+ CRF", "fit, s", "label, images/s"], rows, note)


def _networks(bench: Bench) -> str:
    from pot import ROWS

    rows: list[list[object]] = [
        [row.name, found["miou"]] for row in ROWS if (found := bench.find(f"network {row.name}")) is not None
    ]
    note = "The `small` network, trained on masks with the CRF, on 60 scenes of the test split without tags."
    return section("Networks trained on the best three", ["masks", "mIoU"], rows or [[NOT_RUN, ""]], note)


def _oracle(bench: Bench) -> str:
    found: dict[str, Any] | None = bench.find("oracle")
    note = (
        "Exact masks are used here for looking only, at scale 1. Purity: the share of pixels (cells of 16 pixels) "
        "that are of the class. The maps of the last rows are made of what the row says, by the network before and "
        "after the fit; mIoU at the best background."
    )
    if found is None:
        return section("Where it is lost", ["", "before the fit", "after it"], [[NOT_RUN, "", ""]], note)
    rows = [[name, *values] for name, values in found["rows"].items()]
    return section("Where it is lost", ["", "before the fit", "after it"], rows, note)


def _cost(bench: Bench) -> str:
    found: dict[str, Any] | None = bench.find("cost")
    head = ["", "fit, images/s", "label, images/s", "peak memory, MB"]
    if found is None:
        return section("Cost", head, [[NOT_RUN, "", "", ""]])
    rows = [[name, *(f"{value:.2f}" for value in values[:2]), f"{values[2]:.0f}"] for name, values in found["rows"]]
    note = (
        f"k-means takes {found['kmeans']:.1f} % and the transport {found['transport']:.1f} % of a training step "
        f"({found['size']} pixels, batch {found['batch']}); both treat all classes of the batch at once."
    )
    return section("Cost", head, rows, note)
