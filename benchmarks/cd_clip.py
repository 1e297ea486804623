"""WeCLIP and CD-CLIP (a reconstruction) on Storybook: maps, networks, and the cost of a step.

    python benchmarks/cd_clip.py [-n 40] [--steps 200] [--parts cost maps fits] [--work runs/cd-clip] [--out FILE]

Every row is kept in the work folder when it is measured; the same command goes on with the others, and the page is
written of what is there: rows that are not there are said to be. Masks are made by the methods' own rule (background
1 - max, PAR); nothing is chosen with ground truth. mIoU is over all classes and background.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

from tag2mask.process import tune_process

tune_process()  # as the command line does, before torch is loaded

import torch
import torch.nn.functional as F
from page import section, write_page
from torch import Tensor

from tag2mask import __version__
from tag2mask.data import read_voc
from tag2mask.data.image import read_image
from tag2mask.methods import make_method
from tag2mask.methods.cd_clip import SETTINGS
from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.methods.online.method import Online
from tag2mask.methods.online.training import OnlineTraining
from tag2mask.models.tower import Each
from tag2mask.models.untrained import untrained
from tag2mask.models.vjp import read_out
from tag2mask.models.weights import CLIP, load_clip
from tag2mask.ops.cam import min_max, normalise_cam
from tag2mask.ops.class_distributions import class_shares
from tag2mask.ops.masks import pseudo_mask, upsample
from tag2mask.ops.metrics import confusion_matrix, metrics
from tag2mask.ops.par import PAR, PARSettings
from tag2mask.run.folder import Run
from tag2mask.segment.test_time import TestTime, predict_labels
from tag2mask.stages.machinery.fit import fit
from tag2mask.storybook import render
from tag2mask.types import Dataset, Item, Scores

ROWS = ("#0 none", "#1 CAA", "#2 RFM", "#3 CDA", "#4 CDA + CAA", "#5 CDA + RFM", "#6 CDA + boundaries")
BEFORE = {
    "#0 none": {"setting": 0},
    "attention alone (MHSA)": {"setting": 3, "tau": 1e9},
    "#1 CAA": {"setting": 1},
    "#3 CDA": {"setting": 3},
    "#4 CDA + CAA": {"setting": 4},
    "CDA, KL": {"setting": 3, "distance": "kl"},
    "CDA, Wasserstein on the index": {"setting": 3, "distance": "ws_index"},
    "CDA, cosine of the features": {"setting": 3, "distance": "cos"},
    "CDA, tau = the median": {"setting": 3, "tau": 1.0},
    "CDA, tau = a sixteenth of it": {"setting": 3, "tau": 1 / 16},
    "CDA, read literally": {"setting": 3, "combine": "matmul", "tau": 0.1, "tau_of": "one"},
    "CDA, classes alone": {"setting": 3, "compared": "classes"},
    "CDA, four super-classes": {"setting": 3, "superclasses": "four"},
    "CDA, seven (a guess)": {"setting": 3, "superclasses": "seven-guess"},
}
"""Maps that need no training: row -> options of cd-clip."""

Row = dict[str, Any]


class Kept:
    """Measured rows in a folder, one file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, measure: Callable[[], Row]) -> Row:
        """The row of that name, measured now if it is not there."""
        found = self.find(name)
        if found is None:
            found = {"name": name, **measure()}
            (self.folder / f"{_file(name)}.json").write_text(json.dumps(found))
            print(f"{name}: {found}", flush=True)
        return found

    def find(self, name: str) -> Row | None:
        """The row of that name, if it was measured."""
        path = self.folder / f"{_file(name)}.json"
        return json.loads(path.read_text()) if path.exists() else None


def _file(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def items_of(data: Dataset) -> Iterator[tuple[Item, Tensor]]:
    """Tagged scenes with their truth."""
    for sample in data:
        if sample.tags and sample.truth:
            image = torch.from_numpy(read_image(sample.image)).permute(2, 0, 1).contiguous()
            yield Item(sample.id, image, torch.tensor(sample.tags)), torch.from_numpy(sample.truth())


def percent(counts: Tensor) -> float:
    return round(100 * metrics(counts).miou, 2)


# --- maps without training ----------------------------------------------------------------------------------------


@torch.no_grad()
def untrained_maps(method: Online, data: Dataset) -> Row:
    """mIoU of the masks of maps that no decoder has a part in."""
    counts = torch.zeros(len(data.classes), len(data.classes) + 1, dtype=torch.int64)
    for item, truth in items_of(data):
        size = (item.image.shape[1], item.image.shape[2])
        seen = method.teacher.look(method.teacher.pixels(item.image[None]))
        maps = method.teacher.maps(seen, [item.tags], method.recipe.early)[0].refined
        mask, _ = pseudo_mask(Scores(item.tags, maps, size), item.image, method.mask_rule)
        counts += confusion_matrix(truth, mask, len(data.classes))
    return {"maps": percent(counts)}


def everything(data: Dataset) -> Row:
    """The floor: the first tag everywhere."""
    counts = torch.zeros(len(data.classes), len(data.classes) + 1, dtype=torch.int64)
    for item, truth in items_of(data):
        counts += confusion_matrix(truth, torch.full_like(truth, int(item.tags[0])), len(data.classes))
    return {"maps": percent(counts)}


# --- fits ---------------------------------------------------------------------------------------------------------


def fitted(method: Online, data: Dataset, folder: Path) -> Row:
    """mIoU of the maps after a training, and of the network's own masks at one scale, without CRF."""
    began = time.perf_counter()
    settings = {"method": method.name, "options": method.options}
    with Run.create(folder, settings) as run:
        fit(method, data, run)
    seconds = time.perf_counter() - began
    size = len(data.classes)
    maps, network, own = (torch.zeros(size, size + 1, dtype=torch.int64) for _ in range(3))
    net = method.net
    assert net is not None
    for item, truth in items_of(data):
        mask, _ = pseudo_mask(method.scores([item])[0], item.image, method.mask_rule)
        labels, _ = predict_labels(net, item.image, TestTime())
        maps += confusion_matrix(truth, mask, size)
        network += confusion_matrix(truth, labels, size)
        own += confusion_matrix(mask, labels, size)
    images = method.recipe.steps * method.recipe.batch
    return {
        "maps": percent(maps),
        "network": percent(network),
        "against": percent(own),
        "images/s": round(images / seconds, 2),
    }


# --- the cost of a step -------------------------------------------------------------------------------------------


def obvious_labels(method: Online, pixels: Tensor, tags: list[Tensor]) -> Tensor:
    """The labels of a batch as one would write them first: image by image, class by class, by autograd."""
    teacher, vision, settings = method.teacher, method.vision, method.recipe.early
    labels = []
    for one, own in zip(pixels, tags, strict=True):
        with torch.no_grad():
            seen = vision(
                one[None], attention=Each(teacher.layers), stop_before_last=True, positions=teacher.positions
            )
            x = seen.tokens
            tokens, last = vision.last_block(x, need_weights=True)
            features = F.normalize(vision.project(tokens[0, 1:]), dim=-1)
        texts = torch.cat([teacher.texts.classes[own - 1], teacher.texts.background])
        cams = torch.stack([autograd_cam(vision, x, texts, k, teacher.scale) for k in range(len(own))])  # (K, N)
        attention = torch.cat([seen.attention[0], last])[-settings.layers :, 1:, 1:].mean(0)
        shares = class_shares(features, teacher.texts.compared, settings.distributions)
        middle = (shares[:, None] + shares[None]) / 2  # (N, N, T)
        entropy = torch.special.entr(shares).sum(-1)
        apart = torch.special.entr(middle).sum(-1) - (entropy[:, None] + entropy[None]) / 2
        outside = ~torch.eye(len(apart), dtype=torch.bool)
        matrix = attention * torch.exp(-apart / (settings.distributions.tau * apart[outside].median()))
        refined = []
        for cam in normalise_cam(cams):
            a = matrix
            for _ in range(settings.rounds):
                a = a / a.sum(0, keepdim=True)
                a = a / a.sum(1, keepdim=True)
            a = (a + a.T) / 2
            refined.append(min_max((a @ a) @ cam))  # steps: 2
        maps = upsample(torch.stack(refined).view(-1, *seen.grid), (pixels.shape[2], pixels.shape[3]))
        scores = torch.cat([1 - maps.amax(0, keepdim=True), maps])
        values = torch.cat([own.new_zeros(1), own])
        labels.append(values[obvious_par(one, scores).argmax(0)])
    return torch.stack(labels)


def obvious_par(pixels: Tensor, scores: Tensor, settings: PARSettings = PAR) -> Tensor:
    """PAR of one image with all neighbours side by side, as its formulas read: scores (S, H, W)."""
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]

    def neighbours(x: Tensor) -> Tensor:  # (C, H, W) -> (C, 48, H, W)
        out = []
        for d in settings.dilations:
            wide = F.pad(x[None], (d, d, d, d), mode="replicate")[0]
            for dy, dx in around:
                out.append(wide[:, d + dy * d : d + dy * d + x.shape[1], d + dx * d : d + dx * d + x.shape[2]])
        return torch.stack(out, 1)

    near = neighbours(pixels)
    like = -((((near - pixels[:, None]) / (near.std(1, keepdim=True) + 1e-8) / settings.colour) ** 2).mean(0))
    far = torch.tensor([d * (dy * dy + dx * dx) ** 0.5 for d in settings.dilations for dy, dx in around])
    place = (-((far / (far.std() + 1e-8) / settings.colour) ** 2)).softmax(0)
    weights = like.softmax(0) + settings.place * place[:, None, None]  # (48, H, W)
    for _ in range(settings.iterations):
        scores = (neighbours(scores) * weights).sum(1)
    return scores


def autograd_cam(vision: Any, x: Tensor, texts: Tensor, k: int, scale: float) -> Tensor:
    """GradCAM of one class, (N,)."""
    block = vision.blocks[-1]
    a = block.ln_1(x).detach().requires_grad_()
    y = x + block.attn(a)[0]
    y = y + block.mlp(block.ln_2(y))
    embedding = F.normalize(read_out(vision, y, "patches")[0], dim=-1)
    score = (scale * texts @ embedding).softmax(0)[k]
    (gradient,) = torch.autograd.grad(score, a)
    return F.relu(a[0, 1:].detach() @ gradient[0, 1:].mean(0))


def cost(clip: CLIP, data: Dataset, repeats: int = 3) -> Row:
    """Seconds of a step, ours and the obvious way's, in turns on the same batches; and whether labels agree."""
    method = make_method("cd-clip", data.classes, clip=clip, setting=3, steps=10)
    assert isinstance(method, Online)
    side, count = method.recipe.crop, 4
    chosen = [item for item, _ in items_of(data) if min(item.image.shape[1:]) >= side][: count * repeats]
    seconds: dict[str, list[float]] = {"ours": [], "obvious": [], "ours, labels": [], "obvious, labels": []}
    same = []
    module = alone(method)
    for start in range(0, count * repeats, count):
        some = chosen[start : start + count]
        images = torch.stack([item.image[:, :side, :side].float() for item in some])
        tags = [item.tags for item in some if item.tags is not None]
        pixels = method.teacher.pixels(images)

        def ours(pixels: Tensor = pixels, tags: list[Tensor] = tags) -> Tensor:
            seen = method.teacher.look(pixels)
            maps = method.teacher.maps(seen, tags, method.recipe.early)
            return method.teacher.labels(pixels, [each.refined for each in maps], tags, None)

        def step(images: Tensor = images, tags: list[Tensor] = tags) -> None:
            module.training_step((images, tags), 0).backward()

        def obvious_step(pixels: Tensor = pixels, tags: list[Tensor] = tags) -> None:
            labels = obvious_labels(method, pixels, tags)
            module.on_labels(pixels, labels)

        first, a = timed(ours)
        second, b = timed(lambda: obvious_labels(method, pixels, tags))  # noqa: B023  # called at once
        seconds["ours, labels"].append(first)
        seconds["obvious, labels"].append(second)
        same.append(float((a.long() == b).float().mean()))
        seconds["ours"].append(timed(step)[0])
        seconds["obvious"].append(timed(obvious_step)[0])
    row: Row = {name: round(sorted(values)[len(values) // 2], 3) for name, values in seconds.items()}
    classes = sum(len(item.tags) for item in chosen if item.tags is not None) / len(chosen)
    return {
        **row,
        "equal labels": round(100 * sum(same) / len(same), 3),
        "classes an image": round(classes, 2),
        "batch": f"{count} crops of {side}",
        "command": f"python benchmarks/cd_clip.py -n {len(data)} --parts cost",
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of processor time, which other programs do not add to, and the result."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def alone(method: Online) -> Any:
    """A training's module without a Trainer."""
    net = method.new_network().network

    class Alone(OnlineTraining):
        global_step = 0

        def log_dict(self, values: Any, **how: Any) -> None: ...

        def on_labels(self, pixels: Tensor, labels: Tensor) -> None:
            """The rest of a step, its decoder looking at the pictures by itself."""
            seen = self.teacher.look(pixels)
            self.teacher.labels = lambda *_: labels  # type: ignore[method-assign]
            self.teacher.maps = lambda *_: []  # type: ignore[method-assign]
            self.teacher.look = lambda _: seen  # type: ignore[method-assign]
            try:
                self.training_step((pixels, []), 0).backward()
            finally:
                for name in ("labels", "maps", "look"):
                    del self.teacher.__dict__[name]

    settings = FitSettings.of(method, steps=method.recipe.steps, batch=method.recipe.batch, lr=method.recipe.lr)
    return Alone(net, method.teacher, method.recipe, settings)


# --- the page -----------------------------------------------------------------------------------------------------


def measure_all(args: argparse.Namespace, kept: Kept, data: Dataset, clip: CLIP) -> None:
    """All parts that are asked for."""
    if "cost" in args.parts:
        kept("cost", lambda: cost(clip, data))
    if "maps" in args.parts:
        for name, options in BEFORE.items():
            kept(f"maps {name}", lambda o=options: untrained_maps(make(clip, data, **o), data))
        random = untrained(clip, seed=0)
        kept("maps floor: an untrained CLIP, #3", lambda: untrained_maps(make(random, data, setting=3), data))
        kept("maps floor: the first tag everywhere", lambda: everything(data))
    if "fits" in args.parts:
        for row in args.rows:
            name = f"fit {ROWS[row]} {args.steps}"
            how = {"setting": row, "steps": args.steps, "lr": args.lr}
            kept(name, lambda n=name, h=how: fitted(make(clip, data, **h), data, kept.folder / _file(n)))


def make(clip: CLIP, data: Dataset, **options: Any) -> Online:
    """CD-CLIP with these options; boundaries stand on CLIP's own patches, for want of a DINO that knows scenes."""
    own = {"structure": "clip"} if SETTINGS[options.get("setting", 6)][1] else {}
    method = make_method("cd-clip", data.classes, clip=clip, **own, **options)
    assert isinstance(method, Online)
    return method


def page(args: argparse.Namespace, kept: Kept, clip: CLIP) -> str:
    """The page of what was measured."""
    parts = []
    found = kept.find("cost")
    if found:
        rows = [
            [name, found[f"{key}, labels"], found[key], 4 / found[key]]
            for name, key in (("the obvious way", "obvious"), ("ours", "ours"))
        ]
        times = found["obvious"] / found["ours"], found["obvious, labels"] / found["ours, labels"]
        note = (
            f"CDA, a batch of {found['batch']}, {found['classes an image']} classes an image; median of three "
            "batches, in seconds of processor time on one thread, in turns in one run. The obvious way: GradCAM by "
            "autograd once per class and image, affinities squared per class, all pairs of distributions at "
            "once, PAR per image, a pass of the tower of its own for the decoder. Ours is "
            f"{times[0]:.1f} times as quick, for the labels alone {times[1]:.1f} times; {found['equal labels']} % of "
            f"the labels are equal. Peak memory of the run: {found['peak MB']} MB. Made by `{found['command']}`."
        )
        rows = [[n, f"{a:.2f}", f"{b:.2f}", f"{c:.2f}"] for n, a, b, c in rows]
        parts.append(section("Cost of a step", ["", "labels, s", "whole step, s", "images/s"], rows, note))
    floors = ["floor: an untrained CLIP, #3", "floor: the first tag everywhere"]
    rows = [[name, _cell(kept.find(f"maps {name}"), "maps")] for name in [*BEFORE, *floors]]
    note = "No training. Rows 2 and 5 need a decoder, and row 6 differs from row 3 in the training alone."
    parts.append(section("Maps before any training", ["maps", "mIoU"], rows, note))
    rows = []
    for name in ROWS:
        row = kept.find(f"fit {name} {args.steps}")
        rows.append([name, *(_cell(row, key) for key in ("maps", "network", "against", "images/s"))])
    note = (
        f"{args.steps} steps of 4 crops, base rate {args.lr:g}. Network: one scale, no CRF. The paper's training is "
        "of 30 000 steps; so short a one says nothing of its Table 3."
    )
    head = ["setting", "maps", "network", "network against its masks", "images/s of the fit"]
    parts.append(section("After a training", head, rows, note))
    head_text = f"""# CD-CLIP on Storybook

**A reconstruction.** No code of CD-CLIP is public; what its text leaves open was filled in by us (see `tag2mask
methods cd-clip`). No figure here is the authors', and none repeats theirs.

Made by `python benchmarks/cd_clip.py -n {args.n} --steps {args.steps}` on {date.today()}: {args.n} scenes of
Storybook's val split, seed {args.seed}, 256x192; storybook-clip (sha256 {clip.sha256[:16]}); tag2mask {__version__},
torch {torch.__version__}, {platform.machine()}. mIoU in %, masks by PAR with background 1 - max; nothing was chosen
with ground truth. Boundaries stand on CLIP's own patches, for no DINO that knows drawn scenes is at hand: row 6
cannot show what DINO's would do.
"""
    return "\n".join([head_text, *parts])


def _cell(row: Row | None, key: str) -> object:
    return "not run" if row is None else row[key]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=40, help="scenes")
    parser.add_argument("--steps", type=int, default=200, help="of each fit")
    parser.add_argument("--lr", type=float, default=2e-4, help="base rate of the fits")
    parser.add_argument("--parts", nargs="*", choices=["cost", "maps", "fits"], default=["cost", "maps", "fits"])
    parser.add_argument("--rows", nargs="*", type=int, choices=range(7), default=list(range(7)), help="of the fits")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes")
    parser.add_argument("--work", type=Path, default=Path("runs/cd-clip"), help="where rows are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/cd-clip.md"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work = args.work / f"n{args.n}-lr{args.lr:g}-seed{args.seed}"  # rows of other scenes are other rows
        kept = Kept(work)
        root = work / "scenes"
        if not root.exists():
            render(root, args.n, split="val", seed=args.seed)
        data = read_voc(root, split="val", classes="voc12")
        clip = load_clip("storybook-clip", device="cpu")
        measure_all(args, kept, data, clip)
    write_page(args.out, page(args, kept, clip))
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
