"""Which images a segmentation network is trained on, and their masks: those that a run made, or true ones.

True masks are read for the images that a list names, and for no other; what they were used for is in
``Targets.supervision``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tag2mask.data.agreement import Agreement
from tag2mask.data.columns import Columns
from tag2mask.data.image import BadImage, image_size
from tag2mask.data.lists import read_list
from tag2mask.data.png import read_confidence, read_mask
from tag2mask.data.truth import read_truth, reading_notes, refuses
from tag2mask.data.truth_turn import settle_turn
from tag2mask.run.corrected import Counting
from tag2mask.run.current import STALE, Current
from tag2mask.run.folder import Run
from tag2mask.segment.counting_masks import BadCorrection, naming_corrections, read_counting
from tag2mask.segment.losses import check_labels
from tag2mask.types import IGNORE, Dataset, Sample, UserError
from tag2mask.words import counted, listing, many

__all__ = ["Targets", "check_targets", "find_targets"]

VALUES_CHECKED = 1000
"""Masks whose values are looked at before training; of more, as many are taken at equal distances."""

_BLOCK = 1024


@dataclass(frozen=True)
class Targets:
    """Which images of a data set are trained on, and where their masks are.

    data: the images. run: where masks are; None: they are true ones, or blank.
    indices: (N,) int64, ascending, of ``data``. pixels: (N,) bool, True where a person drew the mask.
    corrected: (N,) bool, True where that is the run's mask, corrected; the others of ``pixels`` are true masks.
    left_out: how many images of the data are not trained on, by reason. notes: how true masks are read.
    blank: the masks that nobody drew are not read, every pixel of theirs is ignored.
    """

    data: Dataset
    run: Run | None
    indices: NDArray[np.int64]
    pixels: NDArray[np.bool_]
    corrected: NDArray[np.bool_]
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    blank: bool = False

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, position: int) -> Sample:
        """The sample at ``position`` of those that are trained on."""
        return self.data[int(self.indices[position])]

    def part(self, *, pixels: bool) -> Targets:
        """Those whose masks a person drew or corrected, or the others alone (CCT takes them apart)."""
        return self.take(np.flatnonzero(self.pixels == pixels))

    def take(self, positions: NDArray[np.int64]) -> Targets:
        """Those at these positions, which ascend; one may come twice."""
        columns = {name: getattr(self, name)[positions] for name in ("indices", "pixels", "corrected")}
        return replace(self, **columns)

    @property
    def supervision(self) -> str:
        """What people gave to these masks: "tags", "tags+pixels(100)" or, where all are true, "pixels(100)"."""
        count = int(self.pixels.sum())
        read = self.run is not None and not (self.blank and not self.corrected.any())
        source = [str(self.run.settings.get("supervision", "tags"))] if self.run is not None and read else []
        return "+".join([*source, *([f"pixels({count})"] if count else [])])

    @property
    def fingerprint(self) -> str:
        """Stands for the ids, in order, for which of them have true masks, and for the corrected masks themselves."""
        return self._fingerprint(corrections=True)

    @property
    def examples(self) -> dict[str, Any]:
        """What a training notes of its examples: how many there are, and what stands for them.

        Where some are corrected, also how many, and what would stand for them if none were.
        """
        noted: dict[str, Any] = {"images": len(self), "fingerprint": self.fingerprint}
        if self.corrected.any():
            made = self._fingerprint(corrections=False)
            noted |= {"corrected": int(self.corrected.sum()), "without_corrections": made}
        return noted

    def _fingerprint(self, *, corrections: bool) -> str:
        digest = hashlib.sha256()
        for position in range(len(self)):
            id, whose = self.sample(position).id, str(int(self.is_true(position)))
            if corrections and self.corrected[position] and isinstance(self.run, Counting):
                whose = f"2\0{self.run.corrected.digest(id)}"
            digest.update(f"{id}\0{whose}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]

    def labels(self, position: int) -> Tensor:
        """The mask of one image, (H, W) uint8.

        Raises:
            BadImage: it cannot be read; a BadCorrection where a person corrected it.
            UserError: it has values outside the class set.
        """
        sample = self.sample(position)
        if self.is_true(position) and sample.truth is not None:
            mask, name = sample.truth(), f"the true mask of {sample.id}"
        elif self.run is None or (self.blank and not self.corrected[position]):
            return torch.full(image_size(sample.image), IGNORE, dtype=torch.uint8)
        else:
            mask, name = read_counting(self.run, sample.id), str(self.mask_path(sample))
        labels = torch.from_numpy(np.array(mask))
        check_labels(labels, len(self.data.classes), name)
        return labels

    def confidence(self, position: int, labels: Tensor) -> Tensor:
        """How sure each pixel of the mask is, (H, W) float32 within [0, 1].

        True masks and corrected ones are sure everywhere.

        Raises:
            BadImage: it cannot be read.
        """
        if self.pixels[position] or self.run is None or self.blank:
            return torch.ones(labels.shape)
        return torch.from_numpy(read_confidence(self.run.confidence_path(self.sample(position).id)))

    def mask_path(self, sample: Sample) -> Path:
        """Where the pseudo mask of a sample is, or the corrected one."""
        if self.run is None:
            raise RuntimeError("without a run there are no pseudo masks")
        return self.run.mask_path(sample.id)

    def is_true(self, position: int) -> bool:
        """Whether the mask is the true one."""
        return bool(self.pixels[position] and not self.corrected[position])

    def is_made(self, position: int) -> bool:
        """Whether the mask is the run's as it was made."""
        return self.run is not None and not self.blank and not bool(self.pixels[position])


def find_targets(data: Dataset, run: Run | None, pixel_labels: Path | None = None, *, blank: bool = False) -> Targets:
    """The images of a data set that a network can be trained on.

    Args:
        data: what the run was made on.
        run: the masks, those that a person corrected among them where it is ``run.corrected.counting`` them; None:
            none but the true ones (the upper bound).
        pixel_labels: a text file that names the images, one a line, whose true masks are read.
        blank: take the images whose mask nobody drew or corrected, too, and do not read it: every pixel of theirs is
            ignored (CCT).

    Raises:
        UserError: a list that cannot be read, or names images that are not there or have no true mask; a run on
            other classes; nothing left to train on; true masks of turned photographs that could be meant either way.
    """
    drawn = run.corrected if isinstance(run, Counting) and len(run.corrected) else None
    if blank and drawn is None:
        run = None  # nothing of it is read
    if run is not None:
        names = run.settings.get("classes", {}).get("names")
        if names != list(data.classes.names):
            raise UserError(
                f"{run.path} has masks of {len(names or [])} classes ({listing(names or [], 3)}), but {data.root} is "
                f"read as {data.classes.id} with {len(data.classes)}; name the data and classes of the run"
            )
    true = set() if pixel_labels is None else _listed(pixel_labels, data)
    others = {} if run is None else {each.id: each.status for each in run.last_words() if each.status != "ok"}
    current = None if run is None else Current(run)
    indices, pixels, corrected, left_out = [], [], [], Counter[str]()
    for index, sample in enumerate(data):
        by_hand = False
        if index in true:
            pass
        elif current is None:
            if not blank:
                continue
        else:
            by_hand = drawn is not None and drawn.path(sample.id) is not None
            reason = current.why_none(sample) if by_hand or not blank else None
            by_hand = by_hand and reason is None
            if reason is not None and not blank:
                left_out[STALE.get(reason, others.get(sample.id, "not labelled"))] += 1
                continue
        indices.append(index)
        pixels.append(index in true or by_hand)
        corrected.append(by_hand)
    if not indices:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "the data set is empty"
        where = pixel_labels if run is None else run.path
        raise UserError(f"{where}: no image of {data.root} has a mask to train on ({why}); label the images first")
    data, notes = _settled(data, run, sorted(true))
    columns = np.array(indices), np.array(pixels), np.array(corrected)
    return Targets(data, run, *columns, dict(left_out), notes, blank)


def _settled(data: Dataset, run: Run | None, true: Sequence[int]) -> tuple[Dataset, tuple[str, ...]]:
    """The data with its true masks upright also where their size does not tell."""
    if not true or not isinstance(data, Columns):
        return data, ()

    def mask(id: str) -> NDArray[np.uint8] | None:
        try:
            return None if run is None else read_mask(run.mask_path(id))
        except BadImage:
            return None

    settled = settle_turn(data.subset(true), mask)
    return replace(data, truth_turn=settled.turn), settled.notes


def _listed(path: Path, data: Dataset) -> set[int]:
    try:
        listed = read_list(path, [sample.id for sample in data])
    except UserError as error:
        raise UserError(f"--pixel-labels {error}") from None
    positions, missing = listed.positions, listed.missing
    if missing:
        raise UserError(
            f"--pixel-labels {path}: {len(missing)} images are not in {data.root}: {listing(missing)}; its ids look "
            f"like {data[0].id if len(data) else 'nothing, it is empty'!r}"
        )
    blind = [data[position].id for position in positions if data[position].truth is None]
    if blind or not positions:
        raise UserError(
            f"--pixel-labels {path}: {len(blind)} of {len(positions)} images have no true mask "
            f"({listing(blind) or 'the list is empty'}); give ids of images that have one"
        )
    return set(positions)


def check_targets(
    targets: Targets, advance: Callable[[], None] = lambda: None, *, confidence: bool = False
) -> list[str]:
    """Refuse masks that do not fit their images, from the headers of the files; values from up to 1000 masks.

    Args:
        targets: what is to be trained on.
        advance: called for each image.
        confidence: the masks' confidence is trained on, too.

    Returns:
        what a user should know: images that cannot be read (others will stand in for them), how true masks are read,
        and where they do not fit the tags.

    Raises:
        UserError: a mask of another size than its image, or with values outside the class set; true masks that number
            the classes otherwise than the tags.
    """
    few = set(np.linspace(0, len(targets) - 1, min(len(targets), VALUES_CHECKED)).astype(int).tolist())
    wrong: list[str] = []
    unreadable: dict[str, str] = {}
    damaged: dict[str, str] = {}
    true = _TrueMasks(targets.data)

    def look(position: int) -> None:
        sample = targets.sample(position)
        try:
            size = image_size(sample.image)
            if not (targets.is_made(position) or targets.corrected[position]) and position not in few:
                return  # a true mask may have to be drawn; its size is seen when it is loaded
            labels = None
            if position in few:
                labels = true.read(sample) if targets.is_true(position) else targets.labels(position)
            with naming_corrections(targets.run, sample.id):
                masked = image_size(targets.mask_path(sample)) if labels is None else tuple(labels.shape)
            if confidence and targets.run is not None and targets.is_made(position):
                image_size(targets.run.confidence_path(sample.id))
        except BadImage as problem:
            unreadable[sample.id] = str(problem)
            if isinstance(problem, BadCorrection):
                damaged[sample.id] = str(problem)
            return
        if masked != size:
            wrong.append(f"{sample.id} ({_size(masked)}, image {_size(size)})")

    with ThreadPoolExecutor(max_workers=4) as pool:
        for start in range(0, len(targets), _BLOCK):
            for _ in pool.map(look, range(start, min(start + _BLOCK, len(targets)))):
                advance()
    if wrong:
        raise UserError(
            f"{many(len(wrong), 'mask')} {'is' if len(wrong) == 1 else 'are'} not of the size (height x width) of "
            f"the image: {listing(sorted(wrong), 3)}; "
            "make the masks from these very images"
        )
    if len(unreadable) == len(targets):
        raise UserError(
            f"no image of {targets.data.root} can be read together with its mask: {next(iter(unreadable.values()))}"
        )
    return [
        *targets.notes,
        *true.notes(),
        *counted("images or masks that cannot be read, others stand in for them", sorted(unreadable)),
        *counted("corrected masks among them, which are damaged", [damaged[id] for id in sorted(damaged)]),
    ]


class _TrueMasks:
    """Reads true masks, by several threads, and counts how they were read and how they fit the tags."""

    def __init__(self, data: Dataset) -> None:
        self.data = data
        self.agreement = Agreement(data.classes)
        self.read_by: Counter[str] = Counter()
        self.turned = 0
        self.lock = Lock()

    def read(self, sample: Sample) -> Tensor:
        """The mask, (H, W) uint8."""
        found = read_truth(sample)
        with self.lock:
            self.agreement.add(sample.id, found.mask, sample.tags)
            self.read_by.update([found.by] if found.by else [])
            self.turned += found.turned
        return torch.from_numpy(np.array(found.mask))

    def notes(self) -> list[str]:
        """What a user should know.

        Raises:
            UserError: the masks number the classes otherwise than the tags.
        """
        found = self.agreement.finding()
        if refuses(found, self.data):
            raise UserError(f"nothing is trained: {found}")
        return [*reading_notes(self.read_by, self.turned), *([] if found is None else [str(found)])]


def _size(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
