"""Do decoding, maps, CRF and writing overlap? ``tag2mask label`` on all cores against its parts one by one on one.

python benchmarks/overlap.py JPEGS [-n 60] [--alone 15] [--precision bfloat16] [--work FOLDER [--only alone]]

CLIP-ES with dense CRF on photographs at full size with drawn tags. The parts are measured in one thread, each alone,
in seconds of a core, on ``--alone`` of the photographs, spread evenly over all. The clock of the whole command, from
the shell to its end, is to be at most their sum over the cores / 0.85; it says so on a quiet machine alone. What is
compiled and the texts' features are there before.

With ``--work`` the two measurements can be made in two calls (``--only``); what is there is not made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from tag2mask.process import tune_process

tune_process()  # as the command line does, before torch is loaded

import torch
from against_reference import photographs, run, where
from page import options, table
from vit_b16 import write_checkpoint

from tag2mask.data import read_dataset
from tag2mask.data.pixels import decode_pixels
from tag2mask.data.png import encode_confidence, encode_mask
from tag2mask.methods.clip_es import ClipES
from tag2mask.models.weights import load_clip
from tag2mask.ops.masks import pseudo_mask
from tag2mask.run.files import write_atomic
from tag2mask.run.inputs import Stamp
from tag2mask.run.scores import encode_scores
from tag2mask.types import Item, Sample

T = TypeVar("T")
PARTS = ("decode", "maps", "masks", "write")
SHARE = 0.85  # of all cores' time that is to be work


def label(data: Path, clip: str, precision: str, out: Path, *more: object) -> dict[str, float]:
    """The command on all cores: seconds by the clock from the shell on, from the first photograph on; of a core."""
    words = ["-m", "tag2mask", "label", data, "--kind", "folder", "--classes", "voc12", "-o", out, "--clip", clip]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run(*words, "--precision", precision, "--device", "cpu", *more)
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    (summary,) = (json.loads(path.read_text()) for path in out.glob("summary.*.json"))
    if summary["failed"] or not summary["done"]:
        raise SystemExit(f"{out}: {summary['done']} photographs labelled, {summary['failed']} failed")
    cores = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "clock": clock,
        "elapsed": summary["elapsed"],
        "cores": cores,
        "peak": summary["peak_memory"] / 2**20,
        "photographs": summary["done"],
    }


def alone(data: Path, clip: str, precision: str, out: Path, count: int) -> dict[str, float]:
    """Seconds of a core of each part for one photograph, in one thread: the mean of so many, spread evenly."""
    torch.set_num_threads(1)
    dataset = read_dataset(data, kind="folder", classes="voc12")
    method = ClipES(dataset.classes, clip=load_clip(clip, device="cpu", precision=precision))
    count = min(count, len(dataset))
    samples = [dataset[i * len(dataset) // count] for i in range(count)]
    one_photograph(method, samples[0], out)  # what is loaded at its first use is no part
    took = [one_photograph(method, sample, out) for sample in samples]
    return {part: sum(each[part] for each in took) / count for part in PARTS}


def one_photograph(method: ClipES, sample: Sample, out: Path) -> dict[str, float]:
    """Seconds of a core of each part, one after the other."""
    took = {}

    def timed(part: str, work: Callable[[], T]) -> T:
        start = time.thread_time()
        found = work()
        took[part] = time.thread_time() - start
        return found

    def write() -> None:
        files = {
            "scores.npz": encode_scores(scores),
            "confidence.png": encode_confidence(confidence.numpy()),
            "mask.png": encode_mask(mask.numpy(), method.classes.palette),
        }
        for name, content in files.items():
            write_atomic(out / f"{sample.id}.{name}", content)

    image, _ = timed("decode", lambda: (decode_pixels(sample.image)[0], Stamp.of(sample.image)))
    item = Item(sample.id, image, torch.tensor(sample.tags))
    scores = timed("maps", lambda: method.scores([item])[0])
    mask, confidence = timed("masks", lambda: pseudo_mask(scores, image, method.mask_rule))
    timed("write", write)
    return took


def kept(path: Path, measure: Callable[[], dict[str, float]] | None) -> dict[str, float] | None:
    """What a file holds, or what is measured now and written there; None: it is not to be measured."""
    if measure is not None and not path.exists():
        path.write_text(json.dumps(measure()))
    found: dict[str, float] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def page(parts: dict[str, float], whole: dict[str, float]) -> str:
    """Both measurements side by side."""
    cores, count = os.cpu_count() or 1, int(whole["photographs"])
    each = sum(parts.values())
    bound = count * each / cores / SHARE
    rows = [[part, f"{parts[part]:.3f}", f"{count * parts[part]:.1f}"] for part in PARTS]
    rows += [
        ["all parts", f"{each:.3f}", f"{count * each:.1f}"],
        [f"the same over {cores} cores / {SHARE}: at most", f"{bound / count:.3f}", f"{bound:.1f}"],
        ["the command, from the shell to its end", f"{whole['clock'] / count:.3f}", f"{whole['clock']:.1f}"],
        ["from the first photograph on", f"{whole['elapsed'] / count:.3f}", f"{whole['elapsed']:.1f}"],
        ["its seconds of a core", f"{whole['cores'] / count:.3f}", f"{whole['cores']:.1f}"],
    ]
    share = count * each / cores / whole["clock"]
    return "\n".join(
        [
            table(["", "s a photograph", f"s, {count} photographs"], rows),
            f"\nThe parts are {100 * share:.0f} % of the cores' time; peak memory {whole['peak']:.0f} MB.",
        ]
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("jpegs", type=Path, help="folder of photographs (.jpg)")
    parser.add_argument("-n", type=int, default=60, help="photographs")
    parser.add_argument("--alone", type=int, default=15, help="of these, whose parts are measured one by one")
    parser.add_argument("--tags", type=int, default=2, help="of each photograph")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--clip", help="default: random weights of ViT-B/16's shape")
    parser.add_argument("--work", type=Path, help="folder for photographs, weights and what was measured")
    parser.add_argument("--only", choices=("alone", "label"), help="one of the two measurements")
    args = parser.parse_args()
    with TemporaryDirectory() as there:
        work = args.work or Path(there)
        work.mkdir(parents=True, exist_ok=True)
        asked = json.dumps([str(args.jpegs.resolve()), args.n, args.tags])
        data = work / f"photographs-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"
        if not data.exists():
            photographs(args.jpegs, data, args.n, args.tags)
        clip = args.clip or str(work / "clip")
        if args.clip is None and not (work / "clip").exists():
            write_checkpoint(work / "clip")

        def whole() -> dict[str, float]:
            label(data, clip, args.precision, Path(there) / "first", "--limit", 1)
            return label(data, clip, args.precision, Path(there) / "run")

        def one_by_one() -> dict[str, float]:
            return alone(data, clip, args.precision, Path(there), args.alone)

        asked = json.dumps([asked, args.alone, clip, args.precision])
        name = f"{args.precision}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.json"
        parts = kept(work / f"alone-{name}", None if args.only == "label" else one_by_one)
        measured = kept(work / f"label-{name}", None if args.only == "alone" else whole)
        for found in (parts, measured) if parts is None or measured is None else ():
            if found is not None:
                print(json.dumps(found))
        if parts is not None and measured is not None:
            print(f"{args.n} photographs of {args.jpegs.name}, {args.tags} tags each, {args.precision}, {where()}\n")
            print(page(parts, measured))


if __name__ == "__main__":
    main()
