"""Scenes on disk, in the layout of the VOC devkit: any VOC reader takes the folder.

JPEGImages/<id>.jpg            the picture, quality 95
SegmentationClass/<id>.png     the exact mask, indexed, VOC's colour for each class
SegmentationDetail/<id>.png    things of the background (1 up, as in THINGS) and faces and wheels (255), indexed
Annotations/<id>.xml           one object a visible class, with the box around it
ImageSets/Segmentation/<split>.txt
tags.csv  captions.jsonl  classes.txt  classes.yaml
storybook.json                 what is drawn there: edition, size, classes, and of each split its seed and number
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from tag2mask.classes import load_classes
from tag2mask.data.png import encode_mask
from tag2mask.run.files import write_atomic
from tag2mask.run.lock import locked
from tag2mask.run.processes import cores, in_order
from tag2mask.run.progress import Advance, no_progress
from tag2mask.run.settings import check_own, describe_differences
from tag2mask.storybook.captions import caption
from tag2mask.storybook.cast import TRAPS
from tag2mask.storybook.scenes import CLASSES, EDITION, SMALLEST, Scene, check_scene, draw_scene
from tag2mask.types import Color, UserError

SPLITS: dict[str, range] = {
    split: range(i * 10**9, (i + 1) * 10**9) for i, split in enumerate(("train", "val", "test", *TRAPS))
}
"""The scene seeds of each split; no two splits share one."""

MOST_SCENES = 10**6
"""Scenes of one render; render ``seed`` s takes the split's seeds from ``s * MOST_SCENES`` on."""

HELD = "storybook.json"
"""In a folder of scenes: what is drawn there, or is being drawn."""

_FOLDERS = ("JPEGImages", "SegmentationClass", "SegmentationDetail", "Annotations", "ImageSets/Segmentation")
_CHUNK = 16
_FEW = 64  # starting a process takes as long as drawing about this many scenes


class _Row(NamedTuple):
    """What the lists say of one scene."""

    id: str
    names: tuple[str, ...]
    caption: str


@dataclass(frozen=True)
class _Job:
    """Scenes ``first`` to ``last - 1`` of a render, as one process draws them."""

    out: Path
    split: str
    seed: int
    first: int
    last: int
    size: tuple[int, int]
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the chunk."""
        return f"{self.first:06d}-{self.last:06d}"

    @property
    def part(self) -> Path:
        """The rows of the chunk, from its end to the end of the render."""
        return _part(self.out, self.split, self.name)


def render(
    out: Path | str,
    n: int,
    *,
    seed: int = 0,
    split: str = "val",
    size: tuple[int, int] = (192, 256),
    classes: Sequence[str] = CLASSES,
    workers: int | None = None,
    progress: Advance = no_progress,
) -> Path:
    """Draws ``n`` scenes into a VOC-layout folder; equal arguments give equal bytes.

    Every file is written under another name and renamed; a call that was stopped resumes. Several splits may share a
    folder, and a split may grow. What was changed there by hand is drawn again.

    Args:
        out: the folder; it is made.
        n: number of scenes.
        seed: other seeds give other scenes, 0 to 999.
        split: "train", "val", "test", or one of ``TRAPS``, whose scenes each hold that difficulty.
        size: (H, W) of every scene, in pixels.
        classes: as in ``draw_scene``.
        workers: processes; None is one a core, and only this one for a few scenes. A script that renders
            with more than one needs the usual ``if __name__ == "__main__":``.
        progress: called with the number of scenes just finished, or found finished, now and then.

    Returns:
        The folder.

    Raises:
        UserError: an impossible argument; or a folder that cannot be written, or that holds other scenes or things.
    """
    out = Path(out)
    classes = check_render(n, seed, split, size, classes, workers)
    check_own(out, HELD)
    with locked(out, f"The scenes in {out}"):
        _claim(out, n, seed, split, size, classes)
        for folder in _FOLDERS:
            (out / folder).mkdir(parents=True, exist_ok=True)
        firsts = range(0, n, _CHUNK)
        jobs = [_Job(out, split, seed, first, min(first + _CHUNK, n), size, classes) for first in firsts]
        _write_lists(out, split, classes, _draw_missing(jobs, _workers(n, workers), progress))
        for part in out.glob(_part(out, split, "*").name):
            part.unlink()
    return out


def scene_seed(split: str, seed: int, index: int) -> int:
    """The ``draw_scene`` seed of scene ``index`` of a render."""
    return SPLITS[split][seed * MOST_SCENES + index]


def kind_of(split: str) -> str:
    """The kind of scene that a split holds."""
    return split if split in TRAPS else "mixed"


def _draw_missing(jobs: Sequence[_Job], workers: int, progress: Advance) -> list[_Row]:
    """What the lists say of each scene. Chunks that a stopped call has drawn are not drawn again."""
    left = [job for job in jobs if not job.part.is_file()]
    progress(jobs[-1].last - sum(job.last - job.first for job in left), worked=False)
    for done in in_order(_draw, left, workers):
        progress(done)
    rows = []
    for job in jobs:
        for line in job.part.read_text(encoding="utf-8").splitlines():
            name, names, said = json.loads(line)
            rows.append(_Row(name, tuple(names), said))
    return rows


# --- one process ---------------------------------------------------------------------------------------


def _draw(job: _Job) -> int:
    """Draws and writes some scenes; then, that they are there and what the lists say of them."""
    palette = _palette(job.classes)
    rows = []
    for index in range(job.first, job.last):
        name = f"{job.split}_{job.seed:03d}_{index:06d}"
        seed = scene_seed(job.split, job.seed, index)
        scene = draw_scene(seed, job.size, job.classes, kind_of(job.split))
        # A second stream, so that the words do not depend on how many numbers the drawing took.
        words = caption(scene, np.random.default_rng([seed, 1]))
        for path, data in (
            (f"JPEGImages/{name}.jpg", _jpeg(scene.image)),
            (f"Annotations/{name}.xml", _annotation(name, scene)),
            (f"SegmentationClass/{name}.png", encode_mask(scene.mask, palette)),
            (f"SegmentationDetail/{name}.png", encode_mask(scene.detail, ())),
        ):
            write_atomic(job.out / path, data, token=name)  # what a kill leaves is written over
        rows.append(_Row(name, scene.names, words))
    write_atomic(job.part, _lines(map(json.dumps, rows)), token=f"{job.split}-{job.name}")
    return len(rows)


def _part(out: Path, split: str, name: str) -> Path:
    return out / f".{split}-{name}.jsonl"


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    # Full colour resolution: figures are small, and halved chroma would smear their edges.
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def _annotation(name: str, scene: Scene) -> bytes:
    """VOC's XML; boxes count pixels from 1 and include their last row and column, as VOC's do."""
    root = ElementTree.Element("annotation")
    _texts(root, folder="Storybook", filename=f"{name}.jpg")
    height, width = scene.mask.shape
    _texts(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    _texts(root, segmented=1)
    for tag, label in zip(scene.tags, scene.names, strict=True):
        rows, columns = np.nonzero(scene.mask == tag)
        thing = ElementTree.SubElement(root, "object")
        _texts(thing, name=label, difficult=0)
        _texts(
            ElementTree.SubElement(thing, "bndbox"),
            xmin=columns.min() + 1,
            ymin=rows.min() + 1,
            xmax=columns.max() + 1,
            ymax=rows.max() + 1,
        )
    ElementTree.indent(root)
    return ElementTree.tostring(root) + b"\n"


def _texts(parent: ElementTree.Element, **texts: object) -> None:
    for tag, text in texts.items():
        ElementTree.SubElement(parent, tag).text = str(text)


# --- the folder ----------------------------------------------------------------------------------------


def check_render(
    n: int, seed: int, split: str, size: tuple[int, int], classes: Sequence[str], workers: int | None
) -> tuple[str, ...]:
    """The classes as a tuple, if such scenes can be drawn.

    Raises:
        UserError: they cannot.
    """
    if split not in SPLITS:
        raise UserError(f"no split {split!r}; take one of {', '.join(SPLITS)}")
    if not 1 <= n <= MOST_SCENES:
        raise UserError(f"cannot render {n} scenes; take 1 to {MOST_SCENES}")
    most_seeds = len(SPLITS[split]) // MOST_SCENES
    if not 0 <= seed < most_seeds:
        raise UserError(f"no seed {seed}; take 0 to {most_seeds - 1}")
    if workers is not None and workers < 1:
        raise UserError(f"cannot draw with {workers} processes; take at least 1")
    classes = check_scene(size, classes, kind_of(split))
    draw_scene(scene_seed(split, seed, 0), (SMALLEST, SMALLEST), classes, kind_of(split))  # can they show the trap?
    return classes


def _claim(out: Path, n: int, seed: int, split: str, size: tuple[int, int], classes: tuple[str, ...]) -> None:
    """Write down what the folder holds, before anything is drawn, or see that these scenes belong to it.

    A list of fewer scenes than there are pictures, or of two sizes, would contradict what lies beside it.
    """
    path = out / HELD
    own = {"edition": EDITION, "size": list(size), "classes": list(classes)}
    splits: dict[str, dict[str, int]] = {}
    if path.is_file():
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            splits = held.pop("splits")
            there = splits.get(split, {"seed": seed, "n": 0})
            differences = describe_differences({**held, "seed": there["seed"]}, {**own, "seed": seed})
            fewer = there["n"] > n
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error!r}); render into another folder") from error
        if differences:
            raise UserError(f"{out} holds other scenes: {differences}; render into another folder")
        if fewer:
            raise UserError(
                f"{out}: {there['n']} scenes of {split} were drawn or begun there, and {n} are asked for; give "
                f"{there['n']} or more to go on, or render into another folder"
            )
    write_atomic(path, json.dumps({**own, "splits": {**splits, split: {"seed": seed, "n": n}}}).encode())


def _workers(n: int, workers: int | None) -> int:
    """So many that each has something to do: a process takes longer to start than to draw a few scenes."""
    return max(1, min(cores(), n // _FEW)) if workers is None else workers


def _palette(classes: Sequence[str]) -> list[Color]:
    """Every class in the colour that it has in VOC, background first."""
    voc = load_classes("voc12")
    colors = dict(zip(voc.names, voc.palette, strict=True))
    return [voc.palette[0], *(colors[name] for name in classes)]


def _class_file(classes: tuple[str, ...]) -> bytes:
    """The class set that readers take for this folder."""
    if classes == CLASSES:
        return (resources.files("tag2mask.classes") / "voc12.yaml").read_bytes()
    content = {"id": "storybook", "names": list(classes), "palette": [list(c) for c in _palette(classes)]}
    return yaml.safe_dump(content, sort_keys=False).encode()


def _write_lists(out: Path, split: str, classes: tuple[str, ...], rows: Sequence[_Row]) -> None:
    """The classes, and what is in each scene; those of other splits stay."""
    tags = [f"JPEGImages/{row.id}.jpg,{';'.join(row.names) or 'background'}" for row in rows]
    said = [json.dumps({"image": f"JPEGImages/{row.id}.jpg", "caption": row.caption}) for row in rows]
    write_atomic(out / "classes.txt", _lines(classes))
    write_atomic(out / "classes.yaml", _class_file(classes))
    write_atomic(out / "tags.csv", _lines(["image,labels", *_of_other_splits(out / "tags.csv", split)[1:], *tags]))
    write_atomic(out / "captions.jsonl", _lines([*_of_other_splits(out / "captions.jsonl", split), *said]))
    # Last: who finds the list finds everything on it. One of fewer scenes, from before, was true as long.
    write_atomic(out / "ImageSets" / "Segmentation" / f"{split}.txt", _lines(row.id for row in rows))


def _of_other_splits(path: Path, split: str) -> list[str]:
    """The lines of a list that an earlier render of another split wrote."""
    if not path.is_file():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines() if f"JPEGImages/{split}_" not in line]


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
