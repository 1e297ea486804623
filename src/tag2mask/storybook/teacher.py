"""Pseudo masks of a cache's scenes, which a classifier that was trained on tags alone finds; truth is never read.

They lie beside the pictures, in ``pseudo-<key>``: labels.npy (n, H, W) uint8, read as a memory map, and done.json,
how many of them are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from tag2mask.models.classifier import Classifier, class_maps, load_classifier
from tag2mask.ops.masks import pseudo_mask
from tag2mask.run.files import atomic_path, write_atomic
from tag2mask.run.lock import Lock
from tag2mask.storybook.cache import SceneCache
from tag2mask.types import Constant, MaskRule, Scores, UserError

RULE = MaskRule(background=Constant(0.35), crf="irn")
"""How class maps become a mask; the constant was chosen with ground truth, on scenes of the test split."""

SCALES = (0.5, 1.0)
"""Of the picture, for the class maps; more of them make no better masks."""

_SAVED = 64  # pictures between two marks; what is lost by a kill


def load_teacher(source: str, classes: Sequence[str]) -> tuple[Classifier, str]:
    """A classifier that knows these classes, by its folder or "storybook-resnet", and the digest of its weights.

    Raises:
        UserError: there is none, or it does not know a class.
    """
    classifier, digest = load_classifier(source)
    unknown = [name for name in classes if name not in classifier.names]
    if unknown:
        raise UserError(
            f"the teacher {source} does not know {', '.join(unknown[:5])}; it knows {', '.join(classifier.names)}; "
            "train one by `tag2mask storybook pretrain-resnet -o DIR` and name DIR"
        )
    return classifier, digest


def teach(
    scenes: SceneCache,
    classifier: Classifier,
    digest: str,
    classes: Sequence[str],
    *,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.uint8]:
    """The pseudo mask of every scene, made as far as it is not there yet: (n, H, W), a memory map.

    A pixel is 0 for background, or the number of its class in ``classes``, from 1. Only classes that a scene shows
    can be in its mask.

    Args:
        scenes: the pictures, and what is in them.
        classifier: in evaluation mode. digest: of its weights.
        classes: names, which the classifier knows (see ``load_teacher``).
        progress: called with the number of masks just made.

    Raises:
        UserError: there is no room, or another process makes them now.
    """
    how = json.dumps([digest, list(classes), asdict(RULE), SCALES])
    folder = scenes.folder / f"pseudo-{hashlib.sha256(how.encode()).hexdigest()[:16]}"
    try:
        folder.mkdir(exist_ok=True)
        lock = Lock(folder / ".lock", f"The pseudo masks {folder}")
    except OSError as error:
        raise UserError(
            f"{folder}: no masks can be kept there ({error}); choose another folder by --cache"
        ) from error
    try:
        return _fill(folder, scenes, classifier, classes, progress or (lambda _: None))
    finally:
        lock.release()


def _fill(
    folder: Path,
    scenes: SceneCache,
    classifier: Classifier,
    classes: Sequence[str],
    progress: Callable[[int], None],
) -> NDArray[np.uint8]:
    file = folder / "labels.npy"
    if not file.is_file():
        write_atomic(folder / "done.json", b"0")
        with atomic_path(file, token="labels") as partial:
            open_memmap(partial, "w+", np.uint8, scenes.images.shape[:3]).flush()
    done = int(json.loads((folder / "done.json").read_text()))
    progress(done)
    labels = open_memmap(file, "r+")
    for first in range(done, len(scenes), _SAVED):
        last = min(first + _SAVED, len(scenes))
        for index in range(first, last):
            names = scenes.told[index].names
            labels[index] = pseudo(classifier, scenes.images[index], [classes.index(name) for name in names], classes)
            progress(1)
        labels.flush()
        write_atomic(folder / "done.json", str(last).encode())
    return np.load(file, mmap_mode="r", allow_pickle=False)


@torch.inference_mode()
def pseudo(
    classifier: Classifier, image: NDArray[np.uint8], shown: Sequence[int], classes: Sequence[str]
) -> NDArray[np.uint8]:
    """The pseudo mask (H, W) of one picture (H, W, 3); shown: its classes, as indices into ``classes``."""
    height, width = image.shape[:2]
    if not shown:
        return np.zeros((height, width), np.uint8)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (3, H, W)
    channels = torch.tensor([classifier.names.index(classes[i]) for i in shown])
    grid = (-(-height // 4), -(-width // 4))
    maps = class_maps(classifier, pixels, channels, scales=SCALES, grid=grid).cpu()
    found = Scores(torch.tensor(shown) + 1, maps, (height, width))
    mask: NDArray[np.uint8] = pseudo_mask(found, pixels, RULE)[0].numpy()
    return mask
