"""Rendered scenes kept for a training: pictures and what is in them, and no mask at all.

images.npy     (n, H, W, 3) uint8, read as a memory map
scenes.jsonl   names, things and numbers of each scene, from which captions are drawn again each time
cache.json     the settings; written last, so who finds it finds everything, and what was drawn by then
.lock          held by the process that draws
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from tag2mask.run.files import make_array, write_atomic
from tag2mask.run.lock import locked
from tag2mask.run.processes import in_order
from tag2mask.run.progress import Advance, no_progress
from tag2mask.storybook.render import check_render, kind_of, scene_seed
from tag2mask.storybook.scenes import CLASSES, EDITION, Scene, draw_scene
from tag2mask.types import UserError

_CHUNK = 64  # scenes that a process draws between two marks, and loses by a kill


class Facts(NamedTuple):
    """What is known of one scene besides its picture."""

    names: tuple[str, ...]
    things: tuple[str, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Rendered:
    """What a cache holds.

    size: (H, W) in pixels. split, seed: as in ``render``.
    """

    n: int
    size: tuple[int, int]
    split: str = "train"
    seed: int = 0
    classes: tuple[str, ...] = CLASSES

    @property
    def key(self) -> str:
        """Of these settings and of the drawings' edition: equal keys are equal pictures."""
        text = json.dumps([asdict(self), EDITION], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SceneCache:
    """Scenes on disk, in ``folder``. images: (n, H, W, 3) uint8, a memory map."""

    folder: Path
    images: NDArray[np.uint8]
    facts: tuple[Facts, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its folder: a process that is spawned opens the same file instead of being sent gigabytes."""
        return open_cache, (self.folder.absolute(),)

    def __len__(self) -> int:
        return len(self.facts)


def render_cache(
    root: Path,
    wanted: Rendered,
    *,
    workers: int | None = None,
    progress: Advance | None = None,
) -> SceneCache:
    """The cache of these scenes under ``root``, drawn as far as it is not there yet.

    Stopped at any moment, it resumes where it was; finished, it is opened in no time.

    Args:
        root: the folder of all caches; this one lies in ``root/scenes-<key>``.
        wanted: what it is to hold.
        workers: processes; None is one a core.
        progress: called with the number of scenes just finished.

    Raises:
        UserError: scenes that cannot be drawn, no room for them, another process that draws them now, or what is
            there is damaged.
    """
    check_render(wanted.n, wanted.seed, wanted.split, wanted.size, wanted.classes, workers)
    folder, advance = root / f"scenes-{wanted.key}", progress or no_progress
    if _finished(folder):
        advance(wanted.n, worked=False)
    else:
        _fill(folder, wanted, workers, advance)
    return open_cache(folder)


def open_cache(folder: Path) -> SceneCache:
    """A finished cache.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        lines = (folder / "scenes.jsonl").read_text(encoding="utf-8").splitlines()
        facts = tuple(Facts(*(tuple(part) for part in json.loads(line))) for line in lines)
        wanted = json.loads((folder / "cache.json").read_text(encoding="utf-8"))
        there = (len(facts), images.dtype.name, *images.shape)
        if there != (expected := (wanted["n"], "uint8", wanted["n"], *wanted["size"], 3)):
            raise ValueError(f"scenes and pictures are {there}, expected {expected}")
        if strange := {name for scene in facts for name in scene.names}.difference(wanted["classes"]):
            raise ValueError(f"scenes of unknown classes: {', '.join(sorted(strange)[:5])}")
    except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
        raise UserError(f"{folder}: is no cache of scenes ({error}); remove it, and it is drawn again") from error
    return SceneCache(folder, images, facts)


def facts_of(scene: Scene) -> Facts:
    """What a caption may be made of."""
    return Facts(scene.names, scene.things, scene.counts)


def _fill(folder: Path, wanted: Rendered, workers: int | None, progress: Advance) -> None:
    """Draw what is missing. Only one process does at a time: two would remove each other's files."""
    with locked(folder, f"The cache of scenes {folder}", "--cache"):
        if _finished(folder):  # by another process, since we last looked
            progress(wanted.n, worked=False)
        else:
            _draw_missing(folder, wanted, workers, progress)


def _draw_missing(folder: Path, wanted: Rendered, workers: int | None, progress: Advance) -> None:
    shape = (wanted.n, *wanted.size, 3)
    if not _fits(folder / "images.npy", shape):
        for part in folder.glob("part-*.jsonl"):
            part.unlink()  # the pictures that it says are there are gone
        make_array(folder / "images.npy", shape, token="images")
    jobs = []
    for first in range(0, wanted.n, _CHUNK):
        if _part(folder, first).is_file():
            progress(min(_CHUNK, wanted.n - first), worked=False)
        else:
            jobs.append((folder, wanted, first))
    for done in in_order(_draw, jobs, workers):
        progress(done)
    parts = [_part(folder, first) for first in range(0, wanted.n, _CHUNK)]
    write_atomic(folder / "scenes.jsonl", b"".join(part.read_bytes() for part in parts))
    write_atomic(folder / "cache.json", json.dumps({**asdict(wanted), "edition": EDITION}).encode())
    for part in parts:
        part.unlink()


def _fits(file: Path, shape: tuple[int, ...]) -> bool:
    """Whether the pictures' file is there and whole: one that is too short would be made longer, by black."""
    try:
        images = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return bool(images.shape == shape and images.dtype == np.uint8)


def _finished(folder: Path) -> bool:
    return (folder / "cache.json").is_file()


def _part(folder: Path, first: int) -> Path:
    return folder / f"part-{first:08d}.jsonl"


def _draw(job: tuple[Path, Rendered, int]) -> int:
    """Draw one chunk; its list is written last and says that the pictures are there."""
    folder, wanted, first = job
    images = open_memmap(folder / "images.npy", "r+")
    last = min(first + _CHUNK, wanted.n)
    lines = []
    for index in range(first, last):
        seed = scene_seed(wanted.split, wanted.seed, index)
        scene = draw_scene(seed, wanted.size, wanted.classes, kind_of(wanted.split))
        images[index] = scene.image
        lines.append(json.dumps(facts_of(scene)) + "\n")
    images.flush()
    write_atomic(_part(folder, first), "".join(lines).encode(), token=f"part-{first}")
    return last - first
