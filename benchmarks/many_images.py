"""Time and memory of `report` and `eval` over runs of more and more small images, as Markdown.

    python benchmarks/many_images.py [2000 20000 ...] [--work FOLDER]

Images of 64 x 48 pixels, each with a true mask, 1,000 in a folder; their masks are those of a floor (every pixel the
first tag). Each command is a process of its own, and its peak of memory is the system's figure. What is in the work
folder is used again.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from page import begin, options, section
from PIL import Image

from tag2mask.data import read_folder
from tag2mask.lab.demo import Everything
from tag2mask.run.folder import Run
from tag2mask.run.inputs import Inputs, Stamp
from tag2mask.stages.label import label

PICTURES = 16
"""So many differ; they come again and again."""

_TAGS = ("cat;dog", "dog", "person", "cat;person")
_IN_A_FOLDER = 1000


def make(folder: Path, count: int) -> Path:
    """Photographs, tags, true masks and a run of so many images."""
    if (folder / "done").exists():
        return folder
    photos, truth = folder / "photos", folder / "truth"
    rng, pictures, masks = np.random.default_rng(0), [], []
    for _ in range(PICTURES):
        pixels = np.kron(rng.integers(0, 255, (6, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
        true = np.kron(rng.integers(0, 4, (6, 8), np.uint8), np.ones((8, 8), np.uint8))
        pictures.append(_encoded(pixels, "JPEG"))
        masks.append(_encoded(true, "PNG"))
    ids = [f"{index // _IN_A_FOLDER:04}/{index:07}" for index in range(count)]
    for index, id in enumerate(ids):
        if index % _IN_A_FOLDER == 0:
            for place in (photos, truth):
                (place / id).parent.mkdir(parents=True, exist_ok=True)
        (photos / f"{id}.jpg").write_bytes(pictures[index % PICTURES])
        (truth / f"{id}.png").write_bytes(masks[index % PICTURES])
    rows = (f"{id}.jpg,{_TAGS[index % len(_TAGS)]}\n" for index, id in enumerate(ids))
    (photos / "tags.csv").write_text("image,labels\n" + "".join(rows))
    data = read_folder(photos)
    label(data.subset(range(PICTURES)), Everything(data.classes), folder / "run", keep_scores=False, progress=False)
    first = Run.open(folder / "run")
    made = [(first.mask_path(id).read_bytes(), first.confidence_path(id).read_bytes()) for id in ids[:PICTURES]]
    with Run.create(first.path, first.settings, noted=first.noted, images=count) as run:
        for index in range(PICTURES, count):
            sample, (mask, confidence) = data[index], made[index % PICTURES]
            run.write(sample.id, mask=mask, confidence=confidence, scores=None)
            inputs = Inputs(Stamp.of(sample.image), sample.tags)
            run.record(sample.id, "ok", {"read": 0.001, "scores": 0.002, "write": 0.001}, inputs=inputs)
    (folder / "done").touch()
    return folder


def measured(*words: object) -> tuple[float, float]:
    """Seconds of a command, and its peak of memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "tag2mask", *map(str, words)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{words}: exit code {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("images", nargs="*", type=int, default=[2000, 20000])
    parser.add_argument("--work", type=Path, default=Path("many-images"))
    given, said = parser.parse_args(), begin()
    rows: list[list[object]] = []
    for count in given.images:
        folder = make(given.work / str(count), count)
        run, data = folder / "run", ["--data", folder / "photos"]
        commands = {
            "report": ["report", run, *data],
            "report --no-gallery": ["report", run, *data, "--no-gallery"],
            "eval": ["eval", run, *data, "--truth", folder / "truth"],
        }
        for name, words in commands.items():
            seconds, peak = measured(*words)
            rows.append([f"{count:,}", f"`{name}`", seconds, f"{1000 * seconds / count:.2f}", f"{peak:,.0f}"])
    head = ["images", "command", "s", "ms an image", "peak memory, MB"]
    print(section("Many images", head, rows, said()))


if __name__ == "__main__":
    main()
