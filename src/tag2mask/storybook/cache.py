"""Rendered scenes kept for a training: pictures and what is in them, and no mask at all.

images.npy     (n, H, W, 3) uint8, read as a memory map
scenes.jsonl   names, things and numbers of each scene, from which captions are drawn anew each time
cache.json     the settings; written last, so who finds it finds everything
.lock          held by the process that draws
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from tag2mask.run.files import atomic_path, write_atomic
from tag2mask.run.lock import locked
from tag2mask.run.processes import in_order
from tag2mask.storybook.render import kind_of, scene_seed
from tag2mask.storybook.scenes import CLASSES, Scene, draw_scene
from tag2mask.types import UserError

_CHUNK = 64  # scenes drawn between two marks; what is lost by a kill
_DRAWING = ("canvas.py", "cast.py", "grain.py", "layout.py", "light.py", "places.py", "scenes.py")


class Told(NamedTuple):
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
        """Of these settings and of the code that draws: equal keys are equal pictures."""
        text = json.dumps([asdict(self), drawing_version()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SceneCache:
    """Scenes on disk, in ``folder``. images: (n, H, W, 3) uint8, a memory map."""

    folder: Path
    images: NDArray[np.uint8]
    told: tuple[Told, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its folder: a process that is spawned opens the same file instead of being sent gigabytes."""
        return open_cache, (self.folder.absolute(),)

    def __len__(self) -> int:
        return len(self.told)


def drawing_version() -> str:
    """A digest of the code that draws; a cache of other code is another cache."""
    room = resources.files("tag2mask.storybook")
    files = [room / name for name in _DRAWING]
    figures = (f for f in (room / "figures").iterdir() if f.name.endswith(".py"))
    files += sorted(figures, key=lambda file: file.name)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def render_cache(
    root: Path,
    wanted: Rendered,
    *,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> SceneCache:
    """The cache of these scenes under ``root``, drawn as far as it is not there yet.

    Stopped at any moment, it goes on where it was; finished, it is opened in no time.

    Args:
        root: the folder of all caches; this one lies in ``root/scenes-<key>``.
        wanted: what it shall hold.
        workers: processes; None is one a core.
        progress: called with the number of scenes just finished.

    Raises:
        UserError: an impossible number of scenes, no room for them, or another process that draws them now.
    """
    if wanted.n < 1:
        raise UserError(f"cannot render {wanted.n} scenes; take at least 1")
    folder = root / f"scenes-{wanted.key}"
    if not _finished(folder):
        _fill(folder, wanted, workers, progress)
    elif progress is not None:
        progress(wanted.n)
    return open_cache(folder)


def open_cache(folder: Path) -> SceneCache:
    """A finished cache.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        lines = (folder / "scenes.jsonl").read_text(encoding="utf-8").splitlines()
        told = tuple(Told(*(tuple(part) for part in json.loads(line))) for line in lines)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}: is no cache of scenes ({error}); remove it, and it is drawn again") from error
    if images.ndim != 4 or len(images) != len(told):
        raise UserError(f"{folder}: {len(images)} pictures and {len(told)} scenes; remove it, and it is drawn again")
    return SceneCache(folder, images, told)


def tell(scene: Scene) -> Told:
    """What a caption may be made of."""
    return Told(scene.names, scene.things, scene.counts)


def _fill(folder: Path, wanted: Rendered, workers: int | None, progress: Callable[[int], None] | None) -> None:
    """Draw what is missing. Only one process does at a time: two would remove each other's files."""
    with locked(folder, f"The cache of scenes {folder}", "--cache"):
        if not _finished(folder):  # by another process, since we last looked
            _draw_missing(folder, wanted, workers, progress)
        elif progress is not None:
            progress(wanted.n)


def _draw_missing(
    folder: Path, wanted: Rendered, workers: int | None, progress: Callable[[int], None] | None
) -> None:
    try:
        if not (folder / "images.npy").is_file():
            _make_images(folder, wanted)
    except OSError as error:
        raise _no_place(folder, error) from error
    jobs = []
    for first in range(0, wanted.n, _CHUNK):
        if _part(folder, first).is_file():
            if progress is not None:
                progress(min(_CHUNK, wanted.n - first))
        else:
            jobs.append((folder, wanted, first))
    for done in in_order(_draw, jobs, workers):
        if progress is not None:
            progress(done)
    parts = [_part(folder, first) for first in range(0, wanted.n, _CHUNK)]
    write_atomic(folder / "scenes.jsonl", b"".join(part.read_bytes() for part in parts))
    write_atomic(folder / "cache.json", json.dumps({**asdict(wanted), "drawing": drawing_version()}).encode())
    for part in parts:
        part.unlink()


def _no_place(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: no scenes can be kept there ({error}); choose another folder with --cache")


def _finished(folder: Path) -> bool:
    return (folder / "cache.json").is_file()


def _make_images(folder: Path, wanted: Rendered) -> None:
    for part in folder.glob("part-*.jsonl"):
        part.unlink()  # the pictures that it says are there are gone
    size = wanted.n * wanted.size[0] * wanted.size[1] * 3
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{folder}: {wanted.n} scenes take {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free there; "
            "make room, take fewer or smaller scenes, or choose another folder with --cache"
        )
    with atomic_path(folder / "images.npy", token="images") as partial:
        open_memmap(partial, "w+", np.uint8, (wanted.n, *wanted.size, 3)).flush()


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
        lines.append(json.dumps(tell(scene)) + "\n")
    images.flush()
    write_atomic(_part(folder, first), "".join(lines).encode())
    return last - first
