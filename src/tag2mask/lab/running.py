"""How a training of the lab runs here, which decides nothing of what its weights become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tag2mask.lab.cache import Rendered, SceneCache, render_cache
from tag2mask.run.checkpoint import LAST
from tag2mask.run.lock import locked
from tag2mask.run.progress import progress as show_progress
from tag2mask.run.settings import check_own, claim
from tag2mask.storybook.scenes import EDITION
from tag2mask.types import UserError


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


@contextmanager
def claimed(
    out: Path, settings: Mapping[str, Any], wanted: Rendered, running: Running, *, scenes: int, workers: int | None
) -> Iterator[SceneCache]:
    """Hold the folder of a training of these settings while it lasts, its scenes drawn.

    The state is kept in ``out / "training"``. scenes: how many the result is measured on. workers: processes that
    draw; None is one a core.

    Raises:
        UserError: no scene to measure on; the folder cannot be written, or holds other things, or the training of
            other settings or of other drawings.
    """
    work = out / "training"
    if scenes < 1:
        raise UserError(f"the result is measured on {scenes} scenes: expected at least 1")
    check_own(out, "training/recipe.json")
    with locked(work, f"The training in {out}"):
        claim(work / "recipe.json", {**settings, "drawing": EDITION}, begun=(work / LAST).exists())
        with show_progress(wanted.n, "draw scenes", unit="scenes", enabled=running.progress) as bar:
            drawn = render_cache(running.cache or work, wanted, workers=workers, progress=bar.advance)
        yield drawn
