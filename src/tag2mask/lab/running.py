"""How a training of the lab runs here, which decides nothing of what its weights become."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Running:
    """Where and how long.

    device: auto, cpu, cuda, ...
    minutes: stop so long after the call, saved; None runs to the end. What is missing of the scenes is drawn in any
    case, and one step is done.
    cache: where drawn scenes lie, shared between trainings; None keeps them in the training's folder.
    compiled: compile the network (a GPU gains much by it, a processor a quarter; the first steps take two minutes).
    progress: show it on stderr.
    """

    device: str = "auto"
    minutes: float | None = None
    cache: Path | None = None
    compiled: bool = False
    progress: bool = True
