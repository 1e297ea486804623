"""Scenes and their tags, drawn once and kept as arrays that are mapped into memory: no mask is ever among them."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tag2mask.run.files import write_atomic
from tag2mask.storybook.render import scene_seed
from tag2mask.storybook.scenes import draw_scene

_CHUNK = 64
_FEW = 256  # scenes that are drawn before other processes have started


@dataclass(frozen=True)
class TaggedScenes:
    """Pictures (N, H, W, 3) uint8 and tags (N, C) bool: tag v is column v - 1."""

    pictures: NDArray[np.uint8]
    tags: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.pictures)


@dataclass(frozen=True)
class _Job:
    """What decides the content of the arrays."""

    n: int
    seed: int
    split: str
    size: tuple[int, int]
    classes: tuple[str, ...]


def tagged_scenes(
    folder: Path | str,
    n: int,
    *,
    size: tuple[int, int],
    classes: Sequence[str],
    split: str = "train",
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> TaggedScenes:
    """``n`` scenes of a split, from ``folder`` if they are there, else drawn into it.

    Args:
        folder: of pictures.npy, tags.npy and scenes.json, which is written last. Others in it are replaced.
        size: (H, W) of every scene, in pixels.
        workers: processes; None is one a core.
        progress: called with the number of scenes just drawn, now and then.
    """
    folder = Path(folder)
    job = _Job(n, seed, split, size, tuple(classes))
    note, stamp = folder / "scenes.json", json.dumps(asdict(job), sort_keys=True)
    if not note.is_file() or note.read_text(encoding="utf-8") != stamp:
        folder.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        _fill(folder, job, workers, progress)
        write_atomic(note, stamp.encode())
    return TaggedScenes(np.load(folder / "pictures.npy", mmap_mode="r"), np.load(folder / "tags.npy"))


def _fill(folder: Path, job: _Job, workers: int | None, progress: Callable[[int], None] | None) -> None:
    shape = (job.n, *job.size, 3)
    pictures = np.lib.format.open_memmap(folder / "pictures.npy", mode="w+", dtype=np.uint8, shape=shape)
    tags = np.zeros((job.n, len(job.classes)), np.bool_)
    starts = range(0, job.n, _CHUNK)
    jobs = [job] * len(starts)
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers == 1 or job.n <= _FEW:
        _take(zip(starts, map(_draw, jobs, starts), strict=True), pictures, tags, progress)
    else:
        # Spawned, not forked: the caller may hold threads (torch does), which a fork would break.
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            _take(zip(starts, pool.map(_draw, jobs, starts), strict=True), pictures, tags, progress)
    pictures.flush()
    np.save(folder / "tags.npy", tags)


def _take(
    chunks: zip[tuple[int, tuple[NDArray[np.uint8], NDArray[np.bool_]]]],
    pictures: NDArray[np.uint8],
    tags: NDArray[np.bool_],
    progress: Callable[[int], None] | None,
) -> None:
    for start, (drawn, shown) in chunks:
        pictures[start : start + len(drawn)] = drawn
        tags[start : start + len(drawn)] = shown
        if progress is not None:
            progress(len(drawn))


def _draw(job: _Job, start: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Pictures and tags of some scenes."""
    count = min(_CHUNK, job.n - start)
    pictures = np.empty((count, *job.size, 3), np.uint8)
    tags = np.zeros((count, len(job.classes)), np.bool_)
    for i in range(count):
        scene = draw_scene(scene_seed(job.split, job.seed, start + i), job.size, job.classes)
        pictures[i] = scene.image
        tags[i, [tag - 1 for tag in scene.tags]] = True
    return pictures, tags
