"""The page of what was measured of CD-CLIP."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import torch
from cd_clip_fits import GATES, LAMBDAS, SETS, SETTINGS, WECLIP
from cd_clip_maps import BEFORE, FIRST_TAG, FLOOR, JOINED, KINDS, PAIRED, STARTS
from cd_clip_scenes import NEAR, REACH, Kept, fit_row
from page import section

from tag2mask import __version__
from tag2mask.models.weights import CLIP
from tag2mask.run.files import file_sha256

COLUMNS = ("maps", "network", "against")
CONTACTS = ("maps, two", "maps, one", "network, two", "network, one", "network there")


def page(args: argparse.Namespace, kept: Kept, fits: Kept, clip: CLIP, others: Mapping[str, Path]) -> str:
    """All of it. kept: rows of the maps; fits: of the fits."""
    picture = args.out.with_suffix(".jpg")
    parts = [_head(args, clip, others), _cost(kept), *_maps(kept, others), *_fits(fits, args)]
    if picture.exists():
        parts.append(_PICTURE.format(steps=args.steps, name=picture.name))
    return "\n".join(part for part in parts if part)


_PICTURE = """## How it looks

![maps spread in four ways, and networks with and without boundaries]({name})

*Above, the supplement's Figure 1: the largest class of four scenes, its initial map, and that map spread by CAA, RFM
(by the decoder of row 2) and CDA. Below, its Figure 2: somebody on a horse, a motorbike or a bicycle: the labels of
CDA, the boundary label (a colour for each super-class), and the networks of rows 3 and 6 after {steps} steps.*
"""


def _head(args: argparse.Namespace, clip: CLIP, others: Mapping[str, Path]) -> str:
    named = "".join(
        f"\n- {name}: sha256 {file_sha256(folder / 'model.safetensors')[:16]}" for name, folder in others.items()
    )
    further = f"\nFurther CLIPs (`--other`):\n{named}\n" if others else ""
    return f"""# CD-CLIP on Storybook

**A reconstruction.** No code of CD-CLIP is public; what its text leaves open was filled in by us (see `tag2mask
methods cd-clip`). No figure here is the authors', and none repeats theirs.

Made by `python benchmarks/cd_clip.py -n {args.n} --fitted {args.fitted} --steps {args.steps} --views {args.views}`
on {date.today()}: scenes of 256x192 of Storybook, seed {args.seed}, for the maps {args.n} of the val split, for the
fits {args.fitted} of it and, near contacts, {args.fitted} each of the splits `adjacency` and `contact`;
storybook-clip (sha256 {clip.sha256[:16]}); tag2mask {__version__}, torch {torch.__version__}, {platform.machine()}.
mIoU in %, masks by PAR with background 1 - max; nothing was chosen with ground truth. Boundaries stand on CLIP's own
patches, for no DINO that knows drawn scenes is at hand: row 6 cannot show what DINO's would do.
{further}"""


def _cost(kept: Kept) -> str:
    found = kept.find("cost")
    if found is None:
        return ""
    rows = [
        [name, found[f"{key}, labels"], found[key], 4 / found[key], 1 / found.get(f"{key}, a scene", float("nan"))]
        for name, key in (("the obvious way", "obvious"), ("ours", "ours"), ("ours, of views that are kept", "kept"))
    ]
    times = found["obvious"] / found["ours"], found["obvious, labels"] / found["ours, labels"]
    note = (
        f"CDA, a batch of {found['batch']}, {found['classes an image']} classes an image; median of three "
        "batches, in seconds of processor time on one thread, in turns in one run. The obvious way: GradCAM by "
        "autograd once per class and image, affinities squared per class, all pairs of distributions at "
        "once, PAR per image, a pass of the tower of its own for the decoder. Ours is "
        f"{times[0]:.1f} times as quick, for the labels alone {times[1]:.1f} times; {found['equal labels']} % of "
        f"the labels are equal. With `--set views=N` a view that came before is read from the disk, "
        f"{found['MB a view']} MB each, with its label: {found['ours'] / found['kept']:.1f} times as quick again. "
        f"`label` makes maps and masks of whole scenes. Peak memory of the run: {found['peak MB']} MB. Made by "
        f"`{found['command']}`."
    )
    texts = [[name, *("" if value != value else f"{value:.2f}" for value in values)] for name, *values in rows]
    head = ["", "labels, s", "whole step, s", "images/s of the step", "scenes/s of label"]
    return section("Cost of a step", head, texts, note)


def _maps(kept: Kept, others: Mapping[str, Path]) -> list[str]:
    found = []
    note = "No training. Rows 2 and 5 need a decoder, and row 6 differs from row 3 in the training alone."
    rows = [[name, kept.cell(f"maps {name}", "maps")] for name in (*BEFORE, FLOOR, FIRST_TAG)]
    found.append(section("Maps before any training", ["maps", "mIoU"], rows, note))
    note = (
        "mIoU of the masks. Of initial maps with a threshold only the highest patches are left, as of a CLIP that "
        "sees the most telling part alone."
    )
    names = [start.name for start in STARTS]
    rows = [[name, *(kept.cell(_start(name, kind), "maps") for kind in KINDS)] for name in (*names, *others)]
    found.append(section("Other starting points", ["", *KINDS], rows, note))
    note = (
        "Of all pairs of patches of a scene: how often a pair of one class (background is one) has the higher score "
        f"than a pair of two, in %; 50 is chance. Means of {PAIRED} scenes."
    )
    clips = ["storybook-clip", *others]
    rows = [[title, *(kept.cell(f"joined {name}", key) for name in clips)] for key, title in JOINED.items()]
    found.append(section("Which patches belong together", ["", *clips], rows, note))
    return found


def _start(name: str, kind: str) -> str:
    """Where a cell of the starting points is kept."""
    if name == STARTS[0].name or (kind == "none" and "layer" in name and "above" not in name):
        return "maps " + {"none": "#0 none", "MHSA": "attention alone (MHSA)", "CAA": "#1 CAA", "CDA": "#3 CDA"}[kind]
    if kind == "none" and name.endswith(", last layer"):
        return f"start {name.removesuffix(', last layer')} none"
    return f"start {name} {kind}"


def _fits(kept: Kept, args: argparse.Namespace) -> list[str]:
    steps = args.steps

    def row(title: str, name: str, keys: tuple[str, ...]) -> list[object]:
        return [title, *(kept.cell(fit_row(name, steps), key) for key in keys)]

    found = []
    note = (
        f"{steps} steps of 4 crops of the same scenes, each in {args.views} fixed views (`--set "
        f"views={args.views}`), base rate {args.lr:g}. Network: one scale, no CRF; against its masks: the network "
        "held against the masks of its own maps. The paper's training is of 30 000 steps, and no view comes twice."
    )
    head = ["setting", "maps", "network", "network against its masks"]
    found.append(section("After a training", head, [row(n, n, COLUMNS) for n in (*SETTINGS, WECLIP)], note))
    note = "WeCLIP before its switch is row 1, whose steps are the same; after it, maps are spread by RFM."
    rows = [row("CAA to the end (#1)", "#1 CAA", COLUMNS), row("RFM from half on", WECLIP, COLUMNS)]
    rows.append(row("RFM from the first step on (#2)", "#2 RFM", COLUMNS))
    found.append(section("WeCLIP's switch", head, rows, note))
    note = (
        f"Boundary IoU (%) of maps and networks in {2 * args.fitted} other scenes, with bands of {REACH} pixels, "
        f"counted within {NEAR} pixels of two objects of two super-classes and, as a control, of one; last, the "
        "network's mIoU on all of these scenes, on which it was not trained."
    )
    head = ["setting", "maps: two", "maps: one", "network: two", "network: one", "network, mIoU there"]
    found.append(section("Near contacts", head, [row(n, n, CONTACTS) for n in SETTINGS], note))
    keys = ("network", "network, two", "network, one")
    head = ["", "network", "boundary IoU, two", "one"]
    note = "Which images the boundary loss teaches, by how many super-classes their tags have (the paper's Table 4)."
    found.append(section("Gates", head, [row(title, name, keys) for title, name in GATES.items()], note))
    rows = [row(f"{weight:g}", name, keys) for weight, name in LAMBDAS.items()]
    found.append(section("Weight of the boundary loss", ["lambda", *head[1:]], rows))
    rows = [row(title, name, ("maps", *keys)) for title, name in SETS.items()]
    found.append(section("Sets of super-classes", ["", "maps", *head[1:]], rows))
    return found
