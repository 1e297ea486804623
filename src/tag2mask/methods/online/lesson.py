"""What a decoder is shown and taught of a batch: by the frozen towers anew, or, of fixed views, from the disk.

``Live`` runs the towers at every step: of a picture that is scaled and cut at random no view ever comes again. With
``--set views=N`` each picture has N fixed views. ``Fixed`` then runs the towers once a view, a picture at a time, and
keeps what they say beside the training's state: all that the decoder is shown, and the finished labels where the
decoder has no part in them, or what these are made of where it has (RFM, feedback). All is kept in float32, so that a
training ends in the same bits whether a view was kept or looked at again.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from zipfile import ZipFile

import numpy as np
import torch
from torch import Tensor

from tag2mask.methods.online.boundaries import Boundaries, BoundaryLabel
from tag2mask.methods.online.recipe import OnlineRecipe
from tag2mask.methods.online.teacher import Ground, Teacher
from tag2mask.models.weclip import Structure
from tag2mask.ops.affinity import Affinity
from tag2mask.run.files import write_atomic
from tag2mask.types import UserError

FOLDER = ".views"
"""In a fit's folder, hidden as its other working files are."""

Taught = tuple[Tensor, list[BoundaryLabel]]
"""Labels (B, H, W) of a batch, and those of its boundaries."""


@dataclass(frozen=True)
class Lesson:
    """Of one batch: tokens that the decoder works on, their grid, what a DINO sees, and

    teach: (affinity, the decoder's affinity (B, N, N) or None, its probabilities (B, C + 1, h, w) or None) to what
        the decoder is to learn.
    """

    taps: tuple[Tensor, ...]
    grid: tuple[int, int]
    structure: Structure | None
    teach: Callable[[Affinity, Tensor | None, Tensor | None], Taught]


class Lessons(Protocol):
    """Makes lessons of pictures."""

    def __call__(self, images: Tensor, tags: Sequence[Tensor], known: Tensor) -> Lesson:
        """Of images (B, 3, H, W) RGB 0-255 with their tags (K,) each; known as ``Teacher.labels`` has it."""
        ...


@dataclass(frozen=True)
class Live:
    """By the towers, at every step.

    structure: from standardised pixels to what a DINO sees, or to None.
    """

    teacher: Teacher
    structure: Callable[[Tensor], Structure | None]
    boundaries: Boundaries | None = None

    def __call__(self, images: Tensor, tags: Sequence[Tensor], known: Tensor) -> Lesson:
        """See ``Lessons``."""
        teacher = self.teacher
        pixels = teacher.pixels(images)
        seen = teacher.look(pixels)

        def teach(settings: Affinity, decoder: Tensor | None, probs: Tensor | None) -> Taught:
            maps = teacher.maps(seen, tags, settings, decoder, probs)
            labels = teacher.labels(pixels, [each.refined for each in maps], tags, known)
            if self.boundaries is None or not self.boundaries.settings.weight:
                return labels, []
            return labels, self.boundaries.labels(images, seen, maps, tags, settings, known)

        return Lesson(seen.taps, seen.grid, self.structure(pixels), teach)


class Fixed:
    """By the towers once a view; what they say is kept in a folder.

    Args:
        live: who looks where nothing is kept.
        taps: so many last ones are all that the decoder works on.
        folder: made where it is missing.
        described: all that decides what is kept, but for the picture: towers, texts, settings. Views that were kept
            under another description are removed.
    """

    def __init__(self, live: Live, taps: int, folder: Path, described: str) -> None:
        self.live, self.taps, self.folder = live, taps, folder
        self.key = hashlib.sha256(described.encode()).hexdigest()[:12]
        self.keeps = True
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.npz"):
            if not path.name.startswith(f"{self.key}-"):
                with suppress(OSError):
                    path.unlink()

    def __call__(self, images: Tensor, tags: Sequence[Tensor], known: Tensor) -> Lesson:
        """See ``Lessons``. A view is known by its pixels, its padding and its tags, whichever draw it comes by."""
        views = [_View(self, *each) for each in zip(images, tags, known, strict=True)]
        towers = [view.towers() for view in views]
        device = images.device

        def together(name: str) -> Tensor:
            return torch.from_numpy(np.stack([each[name] for each in towers])).to(device)

        def teach(settings: Affinity, decoder: Tensor | None, probs: Tensor | None) -> Taught:
            alone = not settings.decoder and probs is None
            if not alone and self.live.boundaries is not None and self.live.boundaries.settings.weight:
                raise ValueError("kept views have no boundary labels of maps that the decoder has a part in")
            found = [
                view.taught(settings, i)
                if alone
                else view.retaught(
                    settings, None if decoder is None else decoder[i], None if probs is None else probs[i]
                )
                for i, view in enumerate(views)
            ]
            labels = torch.stack([labels for labels, _ in found]).to(device)
            return labels, [each for _, edges in found for each in edges]

        taps = tuple(together(f"tap{i}") for i in range(self.taps))
        grid = (int(towers[0]["grid"][0]), int(towers[0]["grid"][1]))
        structure = None
        if "structure" in towers[0]:
            own = towers[0]["structure_grid"]
            structure = Structure(together("structure"), (int(own[0]), int(own[1])))
        return Lesson(taps, grid, structure, teach)

    def keep(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """As far as the disk allows; after a write that failed nothing more is kept, and what is there is used."""
        if not self.keeps:
            return
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        try:
            write_atomic(self.folder / name, buffer.getvalue())
        except OSError as error:
            self.keeps = False
            reason = os.strerror(error.errno) if error.errno else str(error)
            warnings.warn(  # not by ``warn``: the caller outside is Lightning, whose warnings nobody sees
                f"{self.folder}: a view cannot be kept ({reason}); no more are, and the towers run at every step for "
                "those that are not there",
                stacklevel=2,
            )

    def forget(self) -> None:
        """Remove what was kept."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _View:
    """One picture of a batch, as it is kept."""

    def __init__(self, fixed: Fixed, image: Tensor, tags: Tensor, known: Tensor) -> None:
        self.fixed, self.image, self.tags, self.known = fixed, image, tags, known
        parts = (image, tags, known)
        digest = hashlib.sha256(b"".join(part.cpu().contiguous().numpy().tobytes() for part in parts))
        self.name = f"{fixed.key}-{digest.hexdigest()[:32]}"
        self.lesson: Lesson | None = None

    def towers(self) -> dict[str, np.ndarray]:
        """What the decoder is shown."""
        needed = {"grid", *(f"tap{i}" for i in range(self.fixed.taps))}
        return self._kept("towers", self._look, needed, {"structure", "structure_grid"})

    def taught(self, settings: Affinity, place: int) -> Taught:
        """Labels that the decoder has no part in; boundaries are those of image ``place`` of the batch."""
        kept = self._kept(
            f"labels-{_short(settings)}", lambda: self._labels(settings), {"labels"}, {"edges", "groups"}
        )
        edges = []
        if "edges" in kept:
            groups = tuple(tuple(int(v) for v in row[row >= 0]) for row in kept["groups"])
            edges.append(BoundaryLabel(place, groups, torch.from_numpy(kept["edges"]).to(self.image.device)))
        return torch.from_numpy(kept["labels"]), edges

    def retaught(self, settings: Affinity, decoder: Tensor | None, probs: Tensor | None) -> Taught:
        """Labels by what the decoder says now."""
        teacher, device = self.fixed.live.teacher, self.image.device
        needed = {"attentions", "initial"}
        kept = self._kept(f"ground-{_short(settings)}", lambda: self._ground(settings), needed, {"factor"})
        arrays = {name: torch.from_numpy(array).to(device) for name, array in kept.items()}
        ground = Ground(arrays["attentions"], (arrays["initial"],), arrays.get("factor"))
        few = [None if each is None else each[None] for each in (decoder, probs)]
        maps = teacher.refined(ground, [self.tags], settings, few[0], few[1])
        pixels = teacher.pixels(self.image[None])
        return teacher.labels(pixels, [each.refined for each in maps], [self.tags], self.known[None])[0], []

    def _kept(
        self, kind: str, make: Callable[[], dict[str, np.ndarray]], needed: set[str], others: set[str]
    ) -> dict[str, np.ndarray]:
        """From the disk; made, and put there, where it is not there or is damaged.

        needed: names of arrays that are always there. others: of those that come all together or not at all.
        """
        name = f"{self.name}.{kind}.npz"
        try:
            found = _read(self.fixed.folder / name)
            if set(found) in (needed, needed | others):
                return found
        except Exception:  # a damaged file can raise anything, and all of it can be made again
            pass
        made = make()
        self.fixed.keep(name, made)
        return made

    def _alone(self) -> Lesson:
        """By the towers, a batch of one: then it does not matter beside which others a view came first."""
        if self.lesson is None:
            self.lesson = self.fixed.live(self.image[None], [self.tags], self.known[None])
        return self.lesson

    def _look(self) -> dict[str, np.ndarray]:
        lesson = self._alone()
        last = lesson.taps[-self.fixed.taps :]
        found = {f"tap{i}": _array(tap[0].float()) for i, tap in enumerate(last)}
        found["grid"] = np.array(lesson.grid)
        if lesson.structure is not None:
            found["structure"] = _array(lesson.structure.tokens[0])
            found["structure_grid"] = np.array(lesson.structure.grid)
        return found

    def _labels(self, settings: Affinity) -> dict[str, np.ndarray]:
        labels, edges = self._alone().teach(settings, None, None)
        found = {"labels": _array(labels[0])}
        for each in edges:  # one at most
            width = max(map(len, each.groups))
            found["edges"] = _array(each.labels)
            found["groups"] = np.array([[*values, *[-1] * (width - len(values))] for values in each.groups])
        return found

    def _ground(self, settings: Affinity) -> dict[str, np.ndarray]:
        teacher = self.fixed.live.teacher
        seen = teacher.look(teacher.pixels(self.image[None]))
        ground = teacher.ground(seen, [self.tags], settings)
        found = {"attentions": _array(ground.attentions), "initial": _array(ground.initial[0])}
        return found if ground.factor is None else {**found, "factor": _array(ground.factor)}


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().contiguous().numpy()


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz, whose bytes are all held against their checksums, which ``np.load`` alone does not."""
    with ZipFile(path) as kept:
        members = {name.removesuffix(".npy"): io.BytesIO(kept.read(name)) for name in kept.namelist()}
    return {name: np.load(member, allow_pickle=False) for name, member in members.items()}


def _short(settings: Affinity) -> str:
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:12]


def view_bytes(recipe: OnlineRecipe, taps: int, towers: Sequence[tuple[int, int]]) -> int:
    """Of the disk, for one fixed view.

    Args:
        recipe: of the training.
        taps: of CLIP that the decoder works on.
        towers: patch and width of CLIP, and of the DINO where the decoder stands on one too.
    """
    cells = [(recipe.crop // patch) ** 2 for patch, _ in towers]
    numbers = sum(count * own * width for count, own, (_, width) in zip((taps, 1), cells, towers, strict=False))
    for affinity in {recipe.early, recipe.late}:
        if affinity.decoder or recipe.feedback:
            numbers += (affinity.layers + (affinity.distributions is not None)) * cells[0] ** 2
    return 4 * numbers + 2 * recipe.crop**2


def check_room(folder: Path, views: int, view: int, name: str) -> None:
    """Refuse views that do not fit on the disk, before any work is done.

    Args:
        folder: of the fit.
        views: of all pictures together.
        view: bytes of one.
        name: of the method, for the message.

    Raises:
        UserError: there is too little room.
    """
    kept = folder / FOLDER
    kept.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(kept).free + sum(path.stat().st_size for path in kept.iterdir())  # of a fit that goes on
    if views * view > free:
        raise UserError(
            f"{name}: {views} views of {view / 1e6:.1f} MB each need {views * view / 1e9:.3g} GB in {folder}, and "
            f"{free / 1e9:.3g} GB are free; take fewer (--set views=), or none, and the towers run at every step"
        )
