"""Ground truth drawn on a photograph's stored pixels is turned upright, as the photograph is.

EXIF says how a camera was held, and photographs are read upright; some drawing tools ignore that. Orientations 5 to
8 exchange width and height, so there a mask's size tells which pixels it was drawn on. For 2, 3 and 4, and for
square photographs, size tells nothing: those of 5 to 8 in the same data decide, else the run's own masks, else the
user.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tag2mask.data.image import BadImage, stored_form
from tag2mask.types import IGNORE, Dataset, UserError

__all__ = ["Read", "Settled", "Truth", "TruthOf", "Turn", "settle_turn", "upright"]

Turn = Literal["stored", "upright"]
"""Which pixels truth was drawn on, where its size does not tell."""

WITNESSES = 100
"""So many masks are looked at to find out which pixels the truth was drawn on."""

CLEARLY = 0.1
"""By so much must the run's masks fit the truth better as it is than turned, to be taken for upright."""


class Read(NamedTuple):
    """A true mask, (H, W) uint8; what its values were read by, if not by its numbers; whether it was turned."""

    mask: NDArray[np.uint8]
    by: str = ""
    turned: bool = False


Truth = Callable[[str], "NDArray[np.uint8] | Read"]
"""Reads the ground truth of a sample by its id, (H, W) uint8. Picklable."""


@dataclass(frozen=True)
class TruthOf:
    """Reads the ground truth of one sample; picklable."""

    reader: Truth
    name: str
    image: Path
    turn: Turn | None = None

    def __call__(self) -> NDArray[np.uint8]:
        """The mask (H, W) uint8, upright."""
        return self.read().mask

    def stored(self) -> Read:
        """The mask as it was drawn."""
        found = self.reader(self.name)
        return found if isinstance(found, Read) else Read(found)

    def read(self) -> Read:
        """The mask, upright, and how it was read."""
        found = self.stored()
        try:
            orientation, size = stored_form(self.image)
        except BadImage:  # masks can be compared without the photographs
            return found
        if orientation == 1:
            return found
        shape = found.mask.shape
        turned = shape == size and (self.turn == "stored" or _size_tells(orientation, size))
        return found._replace(mask=upright(found.mask, orientation), turned=True) if turned else found


def upright(mask: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """A mask of stored pixels as EXIF ``orientation`` (1 to 8) shows it: (H, W) -> (H, W), or (W, H) from 5 on."""
    if orientation >= 5:
        mask = mask.T
    if orientation in (3, 4, 7, 8):
        mask = mask[::-1]
    if orientation in (2, 3, 6, 7):
        mask = mask[:, ::-1]
    return np.ascontiguousarray(mask)


def _size_tells(orientation: int, size: tuple[int, int]) -> bool:
    return orientation >= 5 and size[0] != size[1]


class Settled(NamedTuple):
    """Which pixels truth was drawn on where its size does not tell, and what a user should know of it."""

    turn: Turn | None
    notes: tuple[str, ...] = ()


def settle_turn(data: Dataset, masks: Callable[[str], NDArray[np.uint8] | None] | None = None) -> Settled:
    """Find out whether the truth of turned photographs was drawn on their stored pixels, where its size cannot tell.

    The headers of all photographs with truth are read. Truth of your own Dataset class is taken as it is. What the
    user chose holds where sizes do not tell; a note counts the masks whose size says otherwise.

    Args:
        data: the samples.
        masks: the run's mask (H, W) uint8 of a sample id, or None where it has none.

    Raises:
        UserError: nothing tells, so the user must.
    """
    unclear, witnesses = array("Q"), array("Q")
    kinds: Counter[str] = Counter()
    chosen: Turn | None = None
    for index, sample in enumerate(data):
        if not isinstance(sample.truth, TruthOf):
            continue
        chosen = sample.truth.turn
        try:
            orientation, size = stored_form(sample.image)
        except BadImage:
            continue
        if _size_tells(orientation, size):
            witnesses.append(index)
        elif orientation > 1:
            unclear.append(index)
            kinds[f"{orientation}, square" if orientation >= 5 else str(orientation)] += 1
    if chosen is not None:
        doubts = _overruled(data, chosen, witnesses, len(unclear))
        fits = None if masks is None or not unclear else _compare(data, unclear, masks)
        return Settled(chosen, (*doubts, *_doubted(chosen, fits)))
    if not unclear:
        return Settled(None)
    listed = ", ".join(f"{count} of {kind}" for kind, count in sorted(kinds.items()))
    who = f"{len(unclear)} photographs whose EXIF turns them so that the size of a mask does not show it ({listed})"
    stored, as_shown = _witness(data, _few(witnesses))
    if bool(stored) != bool(as_shown):
        drawn = "on the stored pixels, so it is turned" if stored else "upright, so it is left as it is"
        other = "upright" if stored else "stored"
        return Settled(
            "stored" if stored else "upright",
            (
                f"{who}: their truth is taken to be drawn {drawn}, as that of the {stored or as_shown} photographs "
                f"of orientation 5 to 8 is by its size; if not, give --truth-turn {other}",
            ),
        )
    fits = None if masks is None else _compare(data, unclear, masks)
    if fits is not None and fits.same:
        return Settled("upright")
    figures = "" if fits is None else f" (mean IoU with the run's masks: {fits.text})"
    if fits is not None and fits.upright - fits.stored >= CLEARLY:
        return Settled(
            "upright", (f"{who}: their truth is taken to be upright{figures}; if not, give --truth-turn stored",)
        )
    raise UserError(
        f"{data.root} has {who}; was their truth drawn on the upright photographs or on the pixels as stored? "
        f"Give --truth-turn upright or --truth-turn stored{figures}"
    )


def _overruled(data: Dataset, chosen: Turn, witnesses: array[int], unclear: int) -> tuple[str, ...]:
    """A note on masks whose size contradicts what the user chose: their size decides."""
    stored, as_shown = _witness(data, witnesses)
    against, fitting = (stored, as_shown) if chosen == "upright" else (as_shown, stored)
    if not against:
        return ()
    other = (
        "the pixels as stored, and are turned"
        if chosen == "upright"
        else "the upright photograph, and are not turned"
    )
    rest = (
        f"the option decides {unclear} others alone, whose size does not show it"
        if unclear
        else "it decides no other mask"
    )
    return (
        f"--truth-turn {chosen} does not fit the size of {against} of {against + fitting} true masks of photographs "
        f"of orientation 5 to 8: these have the size of {other}; {rest}",
    )


def _doubted(chosen: Turn, fits: _Fits | None) -> tuple[str, ...]:
    """A note where the run's masks fit the turn that was not chosen much better."""
    if fits is None or (fits.stored - fits.upright) * (1 if chosen == "upright" else -1) < CLEARLY:
        return ()
    other = "stored" if chosen == "upright" else "upright"
    return (
        f"--truth-turn {chosen} is as you chose, but --truth-turn {other} fits the run's masks far better (mean IoU: "
        f"{fits.text}); is it the right one?",
    )


def _few(indices: array[int]) -> list[int]:
    picked = np.linspace(0, len(indices) - 1, min(len(indices), WITNESSES)).astype(int)
    return [indices[position] for position in dict.fromkeys(picked.tolist())]


def _witness(data: Dataset, witnesses: Sequence[int]) -> tuple[int, int]:
    """How many true masks have the size of the stored pixels, and how many that of the upright photograph."""
    stored = as_shown = 0
    for index in witnesses:
        sample = data[index]
        if isinstance(sample.truth, TruthOf):
            size, shape = stored_form(sample.image)[1], sample.truth.stored().mask.shape
            stored += shape == size
            as_shown += shape == size[::-1]
    return stored, as_shown


class _Fits(NamedTuple):
    """Mean IoU of the run's masks with truth as it is and turned, and whether the two are the same."""

    upright: float
    stored: float
    same: bool

    @property
    def text(self) -> str:
        return f"{100 * self.upright:.1f} % upright, {100 * self.stored:.1f} % turned"


def _compare(data: Dataset, unclear: array[int], masks: Callable[[str], NDArray[np.uint8] | None]) -> _Fits | None:
    """None where no mask of the run can be compared."""
    counts = np.zeros((2, 256, 256), np.int64)  # (as it is or turned, true value, found value)
    same = True
    for index in _few(unclear):
        sample = data[index]
        if not isinstance(sample.truth, TruthOf):
            continue
        truth, found = sample.truth.stored().mask, masks(sample.id)
        turned = upright(truth, stored_form(sample.image)[0])
        if found is None or found.shape != truth.shape or turned.shape != truth.shape:
            continue
        same = same and np.array_equal(truth, turned)
        for row, mask in enumerate((truth, turned)):
            pairs = mask.astype(np.intp) * 256 + found
            counts[row] += np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)
    if not counts.any():
        return None
    return _Fits(_mean_iou(counts[0]), _mean_iou(counts[1]), same)


def _mean_iou(counts: NDArray[np.int64]) -> float:
    """Over the classes in the truth, background left out."""
    counts = counts[:IGNORE]  # (255, 256)
    true, found = counts.sum(1)[1:], counts.sum(0)[1:IGNORE]
    hit = np.diag(counts)[1:]
    union = true + found - hit
    present = true > 0
    return float((hit[present] / union[present]).mean()) if present.any() else 0.0
