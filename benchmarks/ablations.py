"""The ablation tables of the papers, on Storybook, through the code that runs on photographs.

    python benchmarks/ablations.py clip-es [-n 200] [--clip storybook-clip] [--out docs/ablations-clip-es.md]

mIoU is over all classes and background. For maps it is at the best background rule (powers and constants), chosen
with ground truth as the papers do; masks after the dense CRF have CLIP-ES's own, 1 - max, or the maps' best. Figures
marked "paper" are copied from CLIP-ES (VOC 2012 train, OpenAI's ViT-B/16): another world, another CLIP, there to
compare orderings.
"""

from __future__ import annotations

import warnings
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from tag2mask.process import tune_process

tune_process()  # as the command line does, before torch is loaded

from page import begin, options, section, write_page
from scipy.stats import spearmanr

from tag2mask.data import read_voc
from tag2mask.lab.bench import Bench, Figures
from tag2mask.methods.prompts import imagenet_templates
from tag2mask.models.untrained import untrained
from tag2mask.models.weights import load_clip
from tag2mask.run.progress import progress
from tag2mask.storybook import render


def clip_es(bench: Bench, figure: Path) -> list[str]:
    """Tables 2, 6, 8, S1, S2 and Figures 3 and S2 of CLIP-ES."""
    many = {"scales": (0.5, 1.0, 1.5), "flip": True}
    with progress(None, "ablations", unit="settings") as bar:

        def measure(**options: object) -> Figures:
            found = bench.measure(**options)
            bar.advance()
            return found

        initial, mhsa, caa = (measure(affinity="none"), measure(affinity="mhsa", crf=True), measure(crf=True))
        wide = [measure(affinity=kind, crf=kind != "none", **many) for kind in ("none", "mhsa", "caa")]
        floor = untrained(bench.clip, seed=0)
        blank = measure(clip=floor, crf=True)
        rows: list[list[object]] = [
            ["initial", initial.maps, wide[0].maps, "58.6 / 62.4"],
            ["initial + MHSA", mhsa.maps, wide[1].maps, "68.2 / 67.0"],
            ["initial + CAA", caa.maps, wide[2].maps, "70.8 / 70.5"],
            ["initial + MHSA + dCRF", mhsa.masks_own, wide[1].masks_own, "72.1 / 70.1"],
            ["initial + CAA + dCRF", caa.masks_own, wide[2].masks_own, "75.0 / 74.1"],
            ["initial + MHSA + dCRF, rule of the maps", mhsa.masks, wide[1].masks, ""],
            ["initial + CAA + dCRF, rule of the maps", caa.masks, wide[2].masks, ""],
            ["floor: untrained, initial", measure(clip=floor, affinity="none").maps, "", ""],
            ["floor: untrained, CAA", blank.maps, "", ""],
            ["floor: untrained, CAA + dCRF", blank.masks_own, "", ""],
            ["floor: untrained, CAA + dCRF, rule of the maps", blank.masks, "", ""],
            ["floor: everything foreground", bench.everything_foreground(), "", ""],
        ]
        out = [section("Table 2: refinement", ["", "one scale", "multi-scale", "paper"], rows)]

        rows = []
        for softmax in (False, True):
            score = "softmax" if softmax else "logits"
            without = {"background": False} if softmax else {}  # a logit competes with nothing
            alone = measure(affinity="none", score=score, **without).maps
            both = initial if softmax else measure(affinity="none", score=score)
            paper = "53.3 / 58.6, boat n/a, train 57.5" if softmax else "49.4 / 49.4, boat n/a, train 43.8"
            rows.append([score, alone, both.maps, both.by_class["boat"], both.by_class["train"], paper])
        head = ["", "classes only", "+ background set", "boat", "train", "paper"]
        out.append(section("Table 6: softmax (initial CAM)", head, rows))

        plain = measure(affinity="none", synonyms="none")
        names = [name for name in ("bird", "chair", "person", "tvmonitor") if name in initial.by_class]
        rows = [
            ["original name", *(plain.by_class[name] for name in names), plain.maps],
            ["synonym fusion", *(initial.by_class[name] for name in names), initial.maps],
            ["paper, original", 62.9, 40.7, 43.6, 37.0, ""],
            ["paper, fusion", 63.9, 44.1, 51.6, 40.3, ""],
        ]
        out.append(section("Table 8: synonym fusion (initial CAM)", ["", *names, "all classes"], rows))

        token = [measure(affinity=kind, readout="class").maps for kind in ("none", "caa")]
        template = ["a clean origami {}."]
        sharp = {r: bench.sharpness(template, readout=r).ranking()[0].sharpness for r in ("class", "patches")}
        rows = [
            ["RN50", "not run, no embedded weights", "", "", "38.2 / - / 0.019"],
            ["ViT, class token", *token, f"{sharp['class']:.4f}", "43.8 / 62.4 / 0.021"],
            ["ViT, mean of patch tokens", initial.maps, caa.maps, f"{sharp['patches']:.4f}", "58.6 / 70.8 / 0.004"],
        ]
        out.append(section("Table S1: architecture and token", ["", "initial", "CAA", "sharpness", "paper"], rows))

        rows = []
        for level in ("sentence", "feature", "cam"):
            found = caa if level == "sentence" else measure(synonyms=level)
            rows.append([level, *(found.by_class[name] for name in names), found.maps])
        rows += [
            ["paper, sentence", 76.7, 48.4, 63.2, 57.2, 70.8],
            ["paper, feature", 76.7, 48.4, 63.8, 57.2, 70.8],
            ["paper, CAM", 76.6, 47.7, 65.8, 53.9, 70.6],
        ]
        out.append(section("Table S2: level of synonym fusion (CAA)", ["", *names, "all classes"], rows))

        steps = [round(0.1 * i, 1) for i in range(9)]
        rows = [["CAA", *(measure(box_threshold=step).maps for step in steps)]]
        out.append(section("Figure S2: λ of the box mask", ["λ", *map(str, steps)], rows))

        seen = bench.sharpness(imagenet_templates())
        points = []
        for prompt in seen.ranking():
            points.append((prompt, measure(affinity="none", templates=(prompt.template,)).maps))
        rho = spearmanr([p.sharpness for p, _ in points], [miou for _, miou in points])
        rows = [[f"`{prompt.template}`", f"{prompt.sharpness:.5f}", miou] for prompt, miou in points]
        scatter(points, figure)
        note = (
            f"Spearman's rank correlation of sharpness and mIoU: {rho.statistic:.2f} (p = {rho.pvalue:.1g}, "
            f"{len(points)}\ntemplates; {len(seen.left_out)} of CLIP's templates have words that this CLIP does not "
            f"know and are left out).\nThe paper finds a roughly negative relation.\n\n"
            f"![sharpness against mIoU]({figure.name})"
        )
        out.append(section("Figure 3: sharpness and initial CAM", ["template", "sharpness", "mIoU"], rows, note))
    return out


def scatter(points: list, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "tag2mask"
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.scatter([p.sharpness for p, _ in points], [miou for _, miou in points], s=24)
    for prompt, miou in points:
        axes.annotate(
            prompt.template, (prompt.sharpness, miou), fontsize=6, xytext=(3, 3), textcoords="offset points"
        )
    axes.set(xlabel="sharpness (Eq. 5)", ylabel="mIoU of the initial CAM, %")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("method", choices=["clip-es"])
    parser.add_argument("-n", type=int, default=200, help="scenes")
    parser.add_argument("--clip", default="storybook-clip")
    parser.add_argument("--out", type=Path, default=Path("docs/ablations-clip-es.md"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    measured_with = begin()
    with TemporaryDirectory() as scenes, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = read_voc(render(scenes, args.n, split="val"), split="val", classes="voc12")
        clip = load_clip(args.clip, device="cpu")
        parts = clip_es(Bench.read(data, clip), args.out.with_suffix(".svg"))
    head = f"""# CLIP-ES: the paper's ablations on Storybook

Made by `python benchmarks/ablations.py clip-es -n {args.n} --clip {args.clip}` on {date.today()}: {args.n} scenes of
Storybook's `val` split at 256x192, weights {args.clip} (sha256 {clip.sha256[:16]}), 
{measured_with()}.
mIoU in %, over all classes and background. Maps are taken at their best background rule, chosen with ground truth, as
the paper does; masks after the dense CRF have CLIP-ES's own, 1 - max, or where a row says so the one that was best
for the maps. "paper" columns are copied from CLIP-ES (VOC 2012 train, OpenAI's ViT-B/16; "one scale / multi-scale"):
another world and another CLIP, there to compare orderings. Of {args.n} scenes a figure may be a few points off those
of many. Multi-scale is 0.5, 1 and 1.5 with mirrored images.
"""
    write_page(args.out, "\n".join([head, *parts]))
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
