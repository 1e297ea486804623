"""What the parts of CD-CLIP's benchmark share: kept rows, scenes with their truth, and what is counted of masks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from tag2mask.data import read_voc
from tag2mask.data.image import read_image
from tag2mask.ops.metrics import boundary_band, boundary_iou, confusion_matrix, metrics
from tag2mask.ops.superclasses import superclass_values
from tag2mask.run.files import write_atomic
from tag2mask.storybook import render
from tag2mask.types import Dataset, Item

Row = dict[str, Any]

REACH = 6
"""Pixels: 2 % of the diagonal of 256x192, the width of boundary IoU's bands."""

NEAR = 2 * REACH
"""Pixels: what is within so many of both of two objects is near their contact."""


class Kept:
    """Measured rows in a folder, one file each."""

    def __init__(self, folder: Path, left: Callable[[], bool] = lambda: True) -> None:
        """left: whether there is time for one more row."""
        self.folder, self.left = folder, left
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, measure: Callable[[], Row]) -> None:
        """See that there is a row of that name, if there is time for it."""
        if self.find(name) is None and self.left():
            found = {"name": name, **measure()}
            write_atomic(self.folder / f"{slug(name)}.json", json.dumps(found).encode())
            print(f"{name}: {found}", flush=True)

    def find(self, name: str) -> Row | None:
        """The row of that name, if it was measured."""
        path = self.folder / f"{slug(name)}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def cell(self, name: str, key: str) -> object:
        """One figure of a row."""
        row = self.find(name)
        return "not run" if row is None else row[key]


def slug(name: str) -> str:
    """A file's name of a row's."""
    return "".join(c if c.isalnum() else "-" for c in name)


def fit_row(name: str, steps: int) -> str:
    """What a fit's row is kept as."""
    return f"fit {name} {steps}"


def scenes(root: Path, n: int, split: str, seed: int) -> Dataset:
    """So many scenes of a split, drawn where they are not there."""
    if not (root / "done").exists():
        render(root, n, split=split, seed=seed)
        (root / "done").touch()
    return read_voc(root, split=split, classes="voc12")


def items_of(data: Dataset) -> Iterator[tuple[Item, Tensor]]:
    """Tagged scenes with their truth."""
    for sample in data:
        if sample.tags and sample.truth:
            image = torch.from_numpy(read_image(sample.image)).permute(2, 0, 1).contiguous()
            yield Item(sample.id, image, torch.tensor(sample.tags)), torch.from_numpy(sample.truth())


def near_contacts(truth: Tensor, groups: Sequence[Sequence[int]], *, same: bool) -> Tensor:
    """Pixels within ``NEAR`` of two objects of one super-class (``same``), or of two: (H, W) bool."""
    home = {value: i for i, values in enumerate(groups) for value in values}
    here = [value for value in truth.unique().tolist() if value in home]
    around = {v: ndimage.maximum_filter(truth.numpy() == v, size=2 * NEAR + 1, mode="constant") for v in here}
    found = np.zeros(tuple(truth.shape), bool)
    for i, a in enumerate(here):
        for b in here[i + 1 :]:
            if (home[a] == home[b]) == same:
                found |= around[a] & around[b]
    return torch.from_numpy(found)


@dataclass
class Counts:
    """Pixels of masks against truth: all, and the boundary bands near contacts."""

    classes: int
    groups: tuple[tuple[int, ...], ...]
    confusion: Tensor = field(init=False)
    bands: dict[bool, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.confusion = torch.zeros(self.classes, self.classes + 1, dtype=torch.int64)
        self.bands = {same: torch.zeros(3, self.classes, dtype=torch.int64) for same in (False, True)}

    @classmethod
    def of(cls, data: Dataset) -> Counts:
        """For these classes, with the five super-classes."""
        return cls(len(data.classes), tuple(superclass_values(data.classes, "five")[0].values()))

    def add(self, truth: Tensor, mask: Tensor) -> None:
        """One scene."""
        self.confusion += confusion_matrix(truth, mask, self.classes)
        in_truth, in_mask = boundary_band(truth, REACH), boundary_band(mask, REACH)
        for same, counts in self.bands.items():
            near = near_contacts(truth, self.groups, same=same)
            if near.any():
                both = in_truth & in_mask & (truth == mask)
                for row, (values, where) in zip(
                    counts, ((truth, both), (truth, in_truth), (mask, in_mask)), strict=True
                ):
                    row += torch.bincount(values[where & near].long(), minlength=256)[: self.classes]

    @property
    def miou(self) -> float:
        """In %."""
        return round(100 * metrics(self.confusion).miou, 2)

    def boundary(self, *, same: bool) -> float:
        """Boundary IoU near contacts of one super-class, or of two, in %; NaN where there is no such contact."""
        counts = self.bands[same]
        return round(100 * boundary_iou(counts)[1], 2) if bool(counts[1].any()) else float("nan")
