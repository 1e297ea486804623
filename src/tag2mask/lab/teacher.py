"""Pseudo masks of a cache's scenes, which a classifier that was trained on tags alone finds; exact ones are not read.

They are of half the pictures' size, and lie beside them in ``pseudo-<key>``: labels.npy (n, H / 2, W / 2) uint8, read
as a memory map, and done.json, how many of them are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from tag2mask.lab.cache import SceneCache
from tag2mask.models.classifier import Classifier, load_classifier
from tag2mask.ops.cam_fusion import max_normalise, scaled_size, strided_size
from tag2mask.ops.image import MEAN, STD, shrink_images, standardise
from tag2mask.ops.masks import pseudo_mask
from tag2mask.process import tune_process
from tag2mask.run.files import make_array, write_atomic
from tag2mask.run.lock import locked
from tag2mask.run.processes import in_order
from tag2mask.run.progress import Advance, no_progress
from tag2mask.types import Constant, MaskRule, Scores, UserError

EDITION = 1
"""Raised by whoever changes what maps, CRF or masks come out as: older pseudo masks are then made again."""

RULE = MaskRule(background=Constant(0.2), refiner="irn")
"""How class maps become a mask; constant and scales were chosen with ground truth, on 60 scenes of the test split."""

SCALES = (0.4, 0.6, 0.8)
"""Of the picture, for the class maps: around the size of figures that the classifier was trained on."""

_BATCH = 16
_SAVED = 64  # pictures of a process between two marks, which a kill loses


def check_teacher(source: str, classes: Sequence[str]) -> str:
    """That a classifier, by its folder or "storybook-resnet", knows these classes; the digest of its weights.

    Raises:
        UserError: there is none, or it does not know a class.
    """
    try:
        classifier, digest = load_classifier(source)
    except UserError as error:
        raise UserError(f"teacher: {error}") from error
    unknown = [name for name in classes if name not in classifier.names]
    if unknown:
        raise UserError(
            f"the teacher {source} does not know {', '.join(unknown[:5])}; it knows {', '.join(classifier.names)}; "
            "train one by `tag2mask storybook pretrain-resnet -o DIR` and name DIR"
        )
    return digest


def teach(
    scenes: SceneCache,
    source: str,
    classes: Sequence[str],
    *,
    workers: int | None = None,
    progress: Advance | None = None,
) -> NDArray[np.uint8]:
    """The pseudo mask of every scene, made as far as it is not there yet: (n, H / 2, W / 2), a memory map.

    A pixel is 0 for background, or the number of its class in ``classes``, from 1. Only classes that a scene shows
    can be in its mask.

    Args:
        scenes: the pictures, and what is in them.
        source: the classifier, as ``check_teacher`` takes it.
        classes: names, which the classifier knows.
        workers: processes; None is one a core.
        progress: called with the number of masks just made.

    Raises:
        UserError: there is no such classifier, no room, another process makes the masks now, or what is there is
            damaged.
    """
    digest = check_teacher(source, classes)
    how = json.dumps([EDITION, digest, list(classes), asdict(RULE), SCALES])
    folder = scenes.folder / f"pseudo-{hashlib.sha256(how.encode()).hexdigest()[:16]}"
    shape = (len(scenes), *strided_size(scenes.images.shape[1:3], 2))
    advance = progress or no_progress
    if _made(folder, shape) < len(scenes):
        with locked(folder, f"The pseudo masks {folder}", "--cache"):
            _fill(folder, shape, scenes, _Teacher(source, digest, tuple(classes)), workers, advance)
    else:
        advance(len(scenes), worked=False)
    return np.load(folder / "labels.npy", mmap_mode="r", allow_pickle=False)


def _made(folder: Path, shape: tuple[int, ...]) -> int:
    """How many masks are there."""
    if not (folder / "labels.npy").is_file():
        return 0
    try:
        labels = np.load(folder / "labels.npy", mmap_mode="r", allow_pickle=False)
        done = int(json.loads((folder / "done.json").read_text()))
        if (labels.shape, labels.dtype) != (shape, np.uint8) or not 0 <= done <= len(labels):
            raise ValueError(f"{done} of masks {labels.shape} {labels.dtype}, expected {shape} uint8")
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise UserError(f"{folder}: is damaged ({error}); remove it, and the masks are made again") from error
    return done


def _fill(
    folder: Path,
    shape: tuple[int, ...],
    scenes: SceneCache,
    teacher: _Teacher,
    workers: int | None,
    progress: Advance,
) -> None:
    file = folder / "labels.npy"
    if not file.is_file():
        write_atomic(folder / "done.json", b"0")
        make_array(file, shape, token="labels")
    done = _made(folder, shape)
    progress(done, worked=False)
    labels = open_memmap(file, "r+")
    jobs = []
    for first in range(done, len(scenes), _SAVED):
        facts = scenes.facts[first : first + _SAVED]
        shown = [[teacher.classes.index(name) for name in each.names] for each in facts]
        jobs.append(_Job(teacher, scenes.folder, first, shown))
    for job, masks in zip(jobs, in_order(_masks, jobs, workers, prepare=_prepare), strict=True):
        last = job.first + len(masks)
        labels[job.first : last] = masks
        labels.flush()
        write_atomic(folder / "done.json", str(last).encode(), sync=True)
        progress(len(masks))


class _Teacher(NamedTuple):
    """A classifier to load, whose weights have this digest, and the classes that it is asked for."""

    source: str
    digest: str
    classes: tuple[str, ...]


class _Job(NamedTuple):
    """Pictures of a cache's folder from ``first`` on, and the classes that each shows."""

    teacher: _Teacher
    folder: Path
    first: int
    shown: list[list[int]]


def _prepare() -> None:
    """One thread a process: several processes share the cores better than threads, as most tensors are small."""
    tune_process()
    torch.set_num_threads(1)


def _masks(job: _Job) -> NDArray[np.uint8]:
    images = np.load(job.folder / "images.npy", mmap_mode="r", allow_pickle=False)
    classifier, classes = _load(job.teacher), job.teacher.classes
    parts = []
    for at in range(0, len(job.shown), _BATCH):
        shown = job.shown[at : at + _BATCH]
        first = job.first + at
        parts.append(pseudo_masks(classifier, images[first : first + len(shown)], shown, classes))
    return np.concatenate(parts)


@lru_cache(maxsize=1)
def _load(teacher: _Teacher) -> Classifier:
    """Once a process."""
    classifier, digest = load_classifier(teacher.source)
    if digest != teacher.digest:
        raise UserError(f"{teacher.source}: its weights have changed since the masks were begun; begin again")
    return classifier


@torch.inference_mode()
def pseudo_masks(
    classifier: Classifier, images: NDArray[np.uint8], shown: Sequence[Sequence[int]], classes: Sequence[str]
) -> NDArray[np.uint8]:
    """The pseudo masks (B, H / 2, W / 2) of pictures (B, H, W, 3).

    Class maps of several scales and their mirror images, each divided by its maximum, then the dense CRF: as the
    method ``classifier-cam``, but for many small pictures at a time.

    shown: the classes of each picture, as indices into ``classes``.
    """
    pictures = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)  # (B, 3, H, W)
    pixels = pictures.float()
    size = strided_size(images.shape[1:3], 2)
    small = shrink_images(pictures, size)
    order = torch.tensor([classifier.names.index(name) for name in classes])
    maps = torch.zeros(len(pixels), len(classes), *size)
    for scale in SCALES:
        view = standardise(_resize(pixels, scaled_size(images.shape[1:3], scale)), MEAN, STD)
        view = view.contiguous(memory_format=torch.channels_last)
        plain, mirrored = (F.relu(classifier.maps(each)[:, order]) for each in (view, view.flip(-1)))
        maps += _resize(plain + mirrored.flip(-1), size)
    maps = max_normalise(maps)
    out = np.zeros((len(images), *size), np.uint8)
    for mask, own, picture, each in zip(out, maps, small, shown, strict=True):
        if each:
            tags = torch.tensor(each)
            mask[:] = pseudo_mask(Scores(tags + 1, own[tags], size), picture, RULE)[0].numpy()
    return out


def _resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, blurred before it is made smaller: (B, C, H, W) -> (B, C, h, w)."""
    return F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
