"""What a run is made with, and an image in it."""

from __future__ import annotations

from dataclasses import replace

import torch

from tag2mask.run.folder import Run
from tag2mask.types import Scores

SETTINGS = {"method": "toy", "options": {"t": 2}, "keep_scores": True}


def some_scores(**more) -> Scores:
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(2, 3, 5, generator=generator)
    return replace(Scores(torch.tensor([3, 7]), maps, (40, 50)), **more)


def put(run: Run, id: str, scores: Scores | None = None) -> None:
    run.write(id, mask=b"mask", confidence=b"confidence", scores=scores or some_scores())
    run.record(id, "ok", {"method": 0.5})
