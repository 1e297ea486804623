"""WeCLIP and CD-CLIP (a reconstruction) on Storybook: maps, networks, boundaries, and the cost of a step.

    python benchmarks/cd_clip.py [-n 40] [--fitted 24] [--steps 100] [--minutes 170] [--parts cost maps fits pictures]
        [--other NAME=FOLDER ...] [--work runs/cd-clip] [--out FILE]

Every row is kept in the work folder when it is measured; the same command goes on with the others, and the page is
written of what is there: rows that are not there are said to be. Masks are made by the methods' own rule (background
1 - max, PAR); nothing is chosen with ground truth. mIoU is over all classes and background. ``--other`` names further
CLIPs in Hugging Face layout, whose attention was taught less.
"""

from __future__ import annotations

import time
import warnings
from argparse import Namespace
from pathlib import Path

from tag2mask.process import tune_process

tune_process()  # as the command line does, before torch is loaded

import torch
from cd_clip_cost import cost
from cd_clip_fits import FITS, SETTINGS, WECLIP, measure_fits
from cd_clip_looks import pictures
from cd_clip_maps import measure_maps
from cd_clip_page import page
from cd_clip_scenes import Kept, fit_row, scenes
from page import options, write_page

from tag2mask.models.weights import load_clip

PARTS = ("cost", "maps", "fits", "pictures")
DRAWN = ("#1 CAA", "#2 RFM", "#3 CDA", "#6 CDA + boundaries")
"""The fits that the pictures need."""


def arguments() -> Namespace:
    """Of the command."""
    parser = options(__doc__)
    parser.add_argument("-n", type=int, default=40, help="scenes of the maps")
    parser.add_argument(
        "--fitted", type=int, default=24, help="scenes of the fits, and of two kinds of contacts each"
    )
    parser.add_argument("--steps", type=int, default=100, help="of each fit")
    parser.add_argument("--views", type=int, default=2, help="fixed views of each scene in the fits")
    parser.add_argument("--lr", type=float, default=2e-4, help="base rate of the fits")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", nargs="*", choices=[*FITS], default=[*FITS], metavar="ROW", help="of the fits")
    parser.add_argument("--other", nargs="*", default=[], metavar="NAME=FOLDER", help="further CLIPs, for the maps")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes")
    parser.add_argument("--minutes", type=float, default=170, help="no row is begun after so long")
    parser.add_argument("--work", type=Path, default=Path("runs/cd-clip"), help="where rows are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/cd-clip.md"))
    return parser.parse_args()


def main() -> None:
    args = arguments()
    began = time.monotonic()
    torch.set_num_threads(1)
    # rows of other scenes are other rows
    work, fits = (args.work / f"n{n}-lr{args.lr:g}-views{args.views}-seed{args.seed}" for n in (args.n, args.fitted))
    kept, kept_fits = (Kept(folder, lambda: time.monotonic() - began < 60 * args.minutes) for folder in (work, fits))
    how = {"steps": args.steps, "lr": args.lr, "views": args.views}
    others = {name: Path(folder) for name, folder in (each.split("=", 1) for each in args.other)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = scenes(work / "scenes", args.n, "val", args.seed)
        learned = scenes(fits / "scenes", args.fitted, "val", args.seed)
        touching = [scenes(fits / split, args.fitted, split, args.seed) for split in ("adjacency", "contact")]
        clip = load_clip("storybook-clip", device="cpu")
        if "cost" in args.parts:
            kept("cost", lambda: cost(clip, data))
        table3 = [name for name in args.rows if name in (*SETTINGS, WECLIP)]
        if "fits" in args.parts:  # what says most comes first
            measure_fits(kept_fits, clip, learned, touching, table3, **how)
        if "maps" in args.parts:
            measure_maps(kept, clip, data, others)
        if "fits" in args.parts:
            measure_fits(kept_fits, clip, learned, touching, args.rows, **how)
        drawn = all(kept_fits.find(fit_row(name, args.steps)) for name in DRAWN)
        if "pictures" in args.parts and drawn and kept.left():
            folder = fits / f"fits-{args.steps}"
            pictures(clip, learned, touching[0], folder, args.out.with_suffix(".jpg"), **how)
    write_page(args.out, page(args, kept, kept_fits, clip, others))
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
