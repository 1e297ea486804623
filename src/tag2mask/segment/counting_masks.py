"""Reading the masks that count: of a damaged one that a person corrected it is said that it is such a one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from tag2mask.data.image import BadImage
from tag2mask.data.png import read_mask
from tag2mask.run.corrected import Counting
from tag2mask.run.folder import Run

__all__ = ["BadCorrection", "naming_corrections", "read_counting"]


class BadCorrection(BadImage):
    """A corrected mask that cannot be read, and what to do about it."""


def read_counting(run: Run, id: str) -> NDArray[np.uint8]:
    """The mask of an image that counts, (H, W); of a run as it is, the one that was made.

    Raises:
        BadCorrection: a person corrected it, and it cannot be read.
        BadImage: the made one cannot be read.
    """
    with naming_corrections(run, id):
        return read_mask(run.mask_path(id))


@contextmanager
def naming_corrections(run: Run | None, id: str) -> Iterator[None]:
    """Read nothing but the mask of that image within: a BadImage becomes a BadCorrection where it is corrected."""
    try:
        yield
    except BadImage as error:
        if isinstance(run, Counting) and run.corrected.path(id) is not None:
            raise BadCorrection(
                error.path,
                f"{error.reason}; this corrected mask is damaged: import it again, or remove the file, and the mask "
                "that was made counts",
            ) from error
        raise
