"""The mask of one picture in memory, as ``label`` would make it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tag2mask.classes import class_index, fold, load_classes, plain_classes
from tag2mask.data.image import upright_pixels
from tag2mask.methods import make_method
from tag2mask.stages.machinery.asked import REFINE_MAX_PIXELS
from tag2mask.stages.machinery.labeller import Labeller
from tag2mask.stages.machinery.plan import Loaded, SampleBatch
from tag2mask.types import ClassSet, MaskRule, Sample, Scores, UserError
from tag2mask.words import did_you_mean

if TYPE_CHECKING:
    from tag2mask.models.weights import CLIP


class Masked(NamedTuple):
    """What ``mask`` makes of a picture.

    mask: (H, W) uint8, 0 is background, 255 where it is not sure. confidence: (H, W) float32 in [0, 1].
    scores: the method's maps of the tags, on their grid.
    """

    mask: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    scores: Scores


def mask(
    image: NDArray[np.uint8] | Image.Image,
    tags: Sequence[str],
    *,
    clip: CLIP | str | None = None,
    classes: ClassSet | str | Path | None = None,
    method: str = "clip-es",
    rule: MaskRule | None = None,
    device: str = "auto",
    **options: Any,
) -> Masked:
    """The mask of one picture, from the names of what is in it: equal to the one that ``label`` writes.

    For many pictures load the CLIP once (``load_clip``) and give it here; folders are for ``label``.

    Args:
        image: (H, W, 3) uint8, RGB, upright; or an image of Pillow, which is turned as its EXIF says.
        tags: the classes in it; none at all is background alone.
        clip: a loaded CLIP, or its name or folder; None: the default one, if it is on this machine.
        classes: the class set, its name or file, whose mask values are taken. None: the tags alone, so that mask
            value 1 is the first of them, 2 the second.
        method: one that needs neither a fit nor an earlier run.
        rule: how maps become a mask; default: the method's own.
        device: where it computes, if the CLIP is not loaded yet.
        options: the method's own.

    Raises:
        UserError: no such picture, tags that are no class, a method that learns, or settings that cannot work.
    """
    if isinstance(tags, str):
        raise UserError(f"tags are {tags!r}: expected a list of names, such as {tags.split(';')!r}")
    pixels = torch.from_numpy(_pixels(image)).permute(2, 0, 1).contiguous()  # (3, H, W)
    named = _classes(tags, classes)
    where = device if clip is None or isinstance(clip, str) else str(clip.device)
    made = make_method(method, named, clip=clip, device=where, **options)
    if made.learns or made.earlier_run(made.options).needed:
        raise UserError(f"{method} learns from many images, or starts from an earlier run: use `label` on a folder")
    sample = Sample("image", Path("image"), _values(tags, named))
    labeller = Labeller(made, rule or made.mask_rule, refine_max_pixels=REFINE_MAX_PIXELS)
    loaded = Loaded(SampleBatch((sample,), frozenset([sample.id])), {sample.id: pixels})
    loaded.seconds[sample.id] = 0.0
    (outcome,) = labeller(loaded)
    if outcome.mask is None or outcome.confidence is None or outcome.scores is None:
        raise UserError(f"no mask could be made: {outcome.error}")
    return Masked(outcome.mask, outcome.confidence, outcome.scores)


def _pixels(image: NDArray[np.uint8] | Image.Image) -> NDArray[np.uint8]:
    if isinstance(image, Image.Image):
        try:
            return upright_pixels(image)
        except (ValueError, OSError) as error:
            raise UserError(f"the image cannot be used: {error}") from error
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise UserError(
            f"the image is {pixels.dtype} {pixels.shape}: expected uint8 (height, width, 3), red, green and blue, or "
            "an image of Pillow"
        )
    return pixels.copy()


def _classes(tags: Sequence[str], classes: ClassSet | str | Path | None) -> ClassSet:
    if isinstance(classes, ClassSet):
        return classes
    if classes is not None:
        return load_classes(classes)
    if not tags:
        raise UserError("no tags and no classes: name the classes that could be in the picture (classes=)")
    return plain_classes(list(tags), "tags")


def _values(tags: Sequence[str], classes: ClassSet) -> tuple[int, ...]:
    index = class_index(classes)
    unknown = [f"{tag!r}{did_you_mean(tag, classes.foreground)}" for tag in tags if fold(tag) not in index]
    if unknown:
        raise UserError(f"tags that are not in the class set {classes.id!r}: {', '.join(unknown)}")
    return tuple(sorted({index[fold(tag)] for tag in tags}))
