"""What POT costs: images a second, peak memory, and the share of k-means and transport in a training step."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tag2mask.process import tune_process

tune_process()  # as the command line does, before torch is loaded

import torch

from tag2mask.data import read_voc
from tag2mask.data.image import read_image
from tag2mask.methods import make_method
from tag2mask.methods.fitting.classifier import Descent, tag_training
from tag2mask.methods.fitting.pot import POTExamples, POTTraining, pot_losses
from tag2mask.methods.fitting.settings import FitSettings
from tag2mask.methods.fitting.tagged import TaggedImages
from tag2mask.ops import pot, pot_batch
from tag2mask.run.sampling import Draw, sample_indices
from tag2mask.segment.augment import Augment, LongSide
from tag2mask.types import Item

if TYPE_CHECKING:
    from pot import Bench

STEPS, LABELLED = 6, 6
NAMES = {"classifier-cam": "classifier CAM", "pot": "POT, paper, the classifier's own seeds"}


def cost(bench: Bench) -> dict[str, Any]:
    """Each method in a process of its own, for its memory."""
    found = {}
    for name in NAMES:
        scales = [f"{scale:g}" for scale in bench.scales]
        arguments = [str(bench.data.root), name, str(torch.get_num_threads()), *scales]
        done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    rows = [[NAMES[name], each["row"]] for name, each in found.items()]
    return {**found["pot"]["step"], "rows": [(name, row) for name, row in rows]}


def timed(place: Any, name: str, spent: Counter[str]) -> None:
    """Count the seconds within a function."""
    inner: Callable[..., Any] = getattr(place, name)

    def outer(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return inner(*given, **named)
        finally:
            spent[name] += time.perf_counter() - began

    setattr(place, name, outer)


def one(root: Path, name: str, scales: tuple[float, ...]) -> dict[str, Any]:
    """Fit some steps, label some images, and say what it took."""
    data = read_voc(root, split="val", classes="voc12")
    spent: Counter[str] = Counter()
    learn = {"seeds": "classifier"} if name == "pot" else {}
    method = make_method(name, data.classes, scales=scales, steps=STEPS, **learn)
    settings = FitSettings(STEPS, 8, 0.1, 1e-4)
    module: Any
    examples: Any
    if name == "pot":
        for place, what in ((pot, "cosine_kmeans"), (pot, "transport_plan"), (pot_batch, "draw_members")):
            timed(place, what, spent)
        timed(pot, "draw_members", spent)
        module = POTTraining(method.start(), method.recipe, settings)
        examples = POTExamples.of(data, None, method.recipe, 0)
        step = lambda batch: pot_losses(module.network, batch, method.recipe).total  # noqa: E731
    else:
        shapes = Augment(192, scale=LongSide(192, 256), place="anywhere", resample="bicubic")
        examples = TaggedImages(data, shapes, 0, tagged_only=True)
        module = tag_training(method.start(), len(data.classes) - 1, Descent(settings, True, 1))
        step = lambda batch: module.loss_of(module.network, *module.look(batch))  # noqa: E731
    optimizer = module.configure_optimizers()["optimizer"]

    def go(number: int) -> None:
        drawn = sample_indices(0, number, 8, len(examples))
        batch = examples.collate([examples[Draw(number, int(index))] for index in drawn])
        optimizer.zero_grad()
        step(batch).backward()
        optimizer.step()

    go(0)  # warms up
    spent.clear()
    began = time.perf_counter()
    for number in range(1, STEPS):
        go(number)
    fit = time.perf_counter() - began
    shares = {part: 100 * seconds / fit for part, seconds in spent.items()}
    method.ready = True
    items = [
        Item(s.id, torch.from_numpy(read_image(s.image)).permute(2, 0, 1), torch.tensor(s.tags))
        for s in list(data)[:LABELLED]
    ]
    method.net = module.network.eval() if name == "pot" else None
    began = time.perf_counter()
    method.scores(items)
    labelled = LABELLED / (time.perf_counter() - began)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    kmeans = shares.get("cosine_kmeans", 0.0) + shares.get("draw_members", 0.0)
    about = {"kmeans": kmeans, "transport": shares.get("transport_plan", 0.0), "size": 192, "batch": 8}
    return {"row": [8 * (STEPS - 1) / fit, labelled, memory], "step": about}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("name", choices=list(NAMES))
    parser.add_argument("threads", type=int)
    parser.add_argument("scales", type=float, nargs="+")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps(one(given.root, given.name, tuple(given.scales))))
