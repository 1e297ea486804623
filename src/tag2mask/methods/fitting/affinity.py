"""What an affinity network learns from: an earlier run's maps, made into confident labels, image by image.

Labels are made once, kept beside the checkpoints, and cut and mirrored together with the pictures. Ground truth is
never read. IRN keeps label maps, PSA the CRF's scores: it averages them over cells only after they were cut.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from tag2mask.data.image import BadImage
from tag2mask.data.pixels import read_pixels
from tag2mask.ops.cam_fusion import strided_size
from tag2mask.ops.image import resize_bicubic, working_size
from tag2mask.ops.masks import background_score, full_maps, upsample
from tag2mask.run.current import STALE, Current
from tag2mask.run.files import write_atomic
from tag2mask.run.folder import Run
from tag2mask.run.progress import progress
from tag2mask.run.sampling import Draw, sample_dice
from tag2mask.run.warn import warn
from tag2mask.segment.augment import Augment, Example, augment
from tag2mask.types import IGNORE, Background, Constant, Dataset, MaskRule, Own, Power, Sample, Scores, UserError

PAPER_THRESHOLD = 0.15
"""The constant background under which classifier CAMs are best (IRN, CLIMS): what both papers' settings go with."""

_DONE = "labels.json"


@dataclass(frozen=True)
class PriorMaps:
    """How an earlier run's maps are read: as that run makes masks of them, with its threshold moved to the papers'.

    The papers' numbers (IRN's 0.30, 0.05 and 0.25, PSA's alphas) are meant for classifier CAMs, which are right at a
    constant background of 0.15. Another method decides elsewhere: CLIP-ES, with background 1 - max, at 0.5. A power
    of the maps moves that point to 0.15; then the papers' numbers mean the same for every method.

    rule: the earlier run's background and normalisation, of which its untagged map may be a part. A background of its
        own b turns maps m into m / (m + b), which decide at 0.5.
    threshold: the value at which a map is to overtake the background; None: as the maps are.
    """

    rule: MaskRule
    threshold: float | None = PAPER_THRESHOLD

    @classmethod
    def of(cls, run: Run, threshold: float | None = PAPER_THRESHOLD) -> PriorMaps:
        """As that run's settings say.

        Raises:
            UserError: it is no run with maps.
        """
        if not run.settings.get("keep_scores", True):
            raise UserError(f"{run.path} was made without score maps; label it again with scores kept")
        return cls.from_plain(run.settings.get("mask_rule"), threshold, str(run.path))

    @classmethod
    def from_plain(cls, kept: Any, threshold: float | None, where: str) -> PriorMaps:
        """From what run.yaml has of a mask rule. Raises UserError if it is none."""
        try:
            background, normalise = kept["background"], kept["normalise"]
            if normalise not in ("class", "image", "none"):
                raise ValueError(normalise)
            found = Background.from_plain(background)
            others = kept.get("others", "never")
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{where} does not say how its maps become masks; give a run that `label` made") from None
        return cls(MaskRule(background=found, normalise=normalise, others=others), threshold)

    @property
    def exponent(self) -> float:
        """Of the maps, so that the decision moves to ``threshold``."""
        if self.threshold is None:
            return 1.0
        return math.log(self.threshold) / math.log(min(max(decision(self.rule.background), 0.01), 0.99))

    def of_image(
        self, scores: Scores, tags: Tensor, size: tuple[int, int], within: tuple[int, int], called: str = "it"
    ) -> Tensor:
        """As ``read`` at ``within`` (h, w), of an image that has ``size`` (H, W) and is ``called`` so in messages.

        Raises:
            UserError: it had another size when the earlier run saw it; or as ``read``.
        """
        if tuple(scores.size) != tuple(size):
            raise UserError(f"the earlier run saw {called} at {scores.size}, but it is {size}; label it again")
        return self.read(scores, tags, within)

    def read(self, scores: Scores, tags: Tensor, size: tuple[int, int]) -> Tensor:
        """The maps of ``tags`` at ``size`` (H, W): (K, H, W) float32 in [0, 1].

        Raises:
            UserError: the run has no map of one of the tags.
        """
        there = scores.tags.tolist()
        missing = [tag for tag in tags.tolist() if tag not in there]
        if missing:
            raise UserError(f"the earlier run has maps of tags {there}, expected {tags.tolist()}; make it with these")
        maps = full_maps(scores, self.rule)[: len(there)]  # (C, H', W')
        if isinstance(self.rule.background, Own):
            own = None if scores.background is None else scores.background[None]
            full = None if own is None else upsample(own, scores.size, scores.frame)[0]
            maps = maps / (maps + background_score(maps, self.rule.background, full) + 1e-7)
        if tuple(scores.size) != tuple(size):
            maps = upsample(maps, size)  # of an image that is worked on at a smaller size
        maps = maps[[there.index(tag) for tag in tags.tolist()]]  # (K, H, W)
        return maps.clamp(0, 1).pow(self.exponent)


def check_finished(earlier: Run) -> None:
    """Refuse to learn from a part of a run: once a fit has learned from it, it would not learn from the rest.

    Raises:
        UserError: the run lacks images.
    """
    images, done = earlier.images or 0, len(earlier.last_words())
    if done < images:
        raise UserError(f"{earlier.path} is unfinished ({done} of {images} images); give its command again first")


def decision(background: Background) -> float:
    """The value of the highest map at which it overtakes the background."""
    if not isinstance(background, Power):
        return background.value if isinstance(background, Constant) else 0.5
    low, high = 0.0, 1.0
    for _ in range(50):  # (1 - m)^a falls and m grows: halve the interval
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - middle) ** background.exponent > middle else (low, middle)
    return low


def open_image(sample: Sample, max_pixels: int) -> tuple[Tensor, tuple[int, int]]:
    """The image at its working size, (3, H, W) uint8, and its own size."""
    image = read_pixels(sample.image)  # (3, H', W')
    size = (image.shape[1], image.shape[2])
    return resize_bicubic(image, working_size(size, max_pixels)).contiguous(), size


Label = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(image (3, H, W), maps (K, H, W), tags (K,)) -> what is kept of it, (H, W) or (n, H, W) uint8."""


def make_labels(
    data: Dataset,
    prior: Run,
    maps: PriorMaps,
    label: Label,
    folder: Path,
    *,
    max_pixels: int,
    minutes_left: Callable[[], float | None] = lambda: None,
) -> list[int]:
    """Labels of all images that have tags, in ``folder``; those that are there already are not made again.

    An image that cannot be read, or that the earlier run could not do, is left out with a warning. Which are left
    out is decided once: a training that is resumed has the same images.

    minutes_left: until it is to stop, see ``FitSettings``; at least one more image has labels then.

    Returns:
        the indices in ``data`` of the images that have labels.

    Raises:
        UserError: no image has any.
        Stopped: the minutes are over.
    """
    done = folder / _DONE
    if done.exists():
        names = frozenset(json.loads(done.read_text(encoding="utf-8")))
        return [index for index, sample in enumerate(data) if sample.id in names]
    found: list[int] = []
    left_out: list[str] = []
    current = Current(prior)
    tagged = [index for index, sample in enumerate(data) if sample.tags is not None]
    for index in progress(tagged, "labels to learn from"):
        sample = data[index]
        path = label_path(folder, sample.id)
        if not path.exists():
            try:
                if (reason := current.why_none(sample)) in STALE:
                    raise ValueError(f"one of the images {STALE[reason]} since {prior.path} labelled them")
                made = _label_of(sample, prior, maps, label, max_pixels)
            except (BadImage, OSError, UserError, ValueError) as error:  # one bad image never stops a run
                left_out.append(f"{sample.id}: {error}")
                continue
            write_atomic(path, encode_label(made), token="label")
            if minutes_left() == 0 and index != tagged[-1]:
                _stop(len(found) + 1, len(tagged), folder)
        found.append(index)
    if left_out:
        more = f" (and {len(left_out) - 3} more)" if len(left_out) > 3 else ""
        warn(f"{len(left_out)} images are not learned from: {'; '.join(left_out[:3])}{more}")
    if not any(data[index].tags for index in found):
        raise UserError(
            f"none of the {len(data)} images can be learned from: expected images with tags and with maps in "
            f"{prior.path}; label these images there first"
        )
    write_atomic(done, json.dumps([data[index].id for index in found]).encode())
    return found


def _stop(done: int, images: int, folder: Path) -> NoReturn:
    from tag2mask.run.training import Stopped  # which loads Lightning

    raise Stopped(
        f"labels to learn from: time is over at {done} of {images} images; all of it is saved in {folder}: give the "
        "same command again to resume"
    )


def _label_of(sample: Sample, prior: Run, maps: PriorMaps, label: Label, max_pixels: int) -> Tensor:
    image, size = open_image(sample, max_pixels)
    tags = torch.tensor(sample.tags or (), dtype=torch.int64)
    within = (image.shape[1], image.shape[2])
    if not len(tags):
        return label(image, torch.zeros(0, *within), tags)
    return label(image, maps.of_image(prior.scores(sample.id), tags, size, within), tags)


def label_path(folder: Path, id: str) -> Path:
    """Where an image's labels are."""
    return folder / f"{id}.npz"


def encode_label(label: Tensor) -> bytes:
    """Labels (..., h, w) uint8 as the bytes of a compressed .npz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, label=label.cpu().numpy())
    return buffer.getvalue()


def read_label(path: Path) -> Tensor:
    """What ``encode_label`` made: (..., h, w) uint8. Nothing is unpickled.

    Raises:
        OSError, ValueError, KeyError, BadZipFile: it cannot be read.
    """
    with np.load(path, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["label"])


@dataclass(frozen=True)
class AffinityExamples:
    """What a Trainer draws from: pictures, cut and mirrored, with labels on the network's grid.

    indices: in ``data``, of the images that have labels in ``folder``. unpack: a picture and what is kept of its
    labels as an Example; pack: the augmented example's labels on the grid, (h, w) uint8. cell: pixels of its cells.
    """

    data: Dataset
    indices: Sequence[int]
    folder: Path
    settings: Augment
    seed: int
    max_pixels: int
    unpack: Callable[[Tensor, Tensor], Example]
    pack: Callable[[Example], Tensor]
    cell: int

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Picture (3, H, W) float32 in 0-255 and labels (h, w), all unsure where a file cannot be read any more."""
        sample = self.data[self.indices[draw.sample]]
        try:
            image, _ = open_image(sample, self.max_pixels)
            labels = read_label(label_path(self.folder, sample.id))
        except (BadImage, OSError, ValueError, KeyError, BadZipFile) as error:
            warn(f"{sample.id} is no longer learned from: {error}")
            side = self.settings.crop or self.cell
            cells = strided_size((side, side), self.cell)
            return torch.zeros(3, side, side), torch.full(cells, IGNORE, dtype=torch.uint8)
        example = self.unpack(image, labels)
        seen = augment(example, self.settings, sample_dice(self.seed, draw))
        return seen.image, self.pack(seen)

    @staticmethod
    def collate(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Several of these as a batch: (B, 3, H, W) and (B, h, w)."""
        images, labels = zip(*samples, strict=True)
        return torch.stack(images), torch.stack(labels)
