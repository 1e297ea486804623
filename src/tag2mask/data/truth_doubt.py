"""Whether true masks number the classes otherwise than the data, as far as a few images show it."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from tag2mask.data.agreement import Agreement
from tag2mask.data.columns import Columns
from tag2mask.data.image import BadImage
from tag2mask.data.truth import refuses
from tag2mask.types import UserError

__all__ = ["doubt_of_truth"]


def doubt_of_truth(data: Columns, most: int = 24) -> str | None:
    """For what ``eval`` would refuse the truth, or None where the first images show nothing.

    A run keeps the classes that it was made with, so what does not fit is better known before it is made. All images
    are looked at by ``check`` and by ``eval``.

    Args:
        data: images, some of which have true masks; what cannot be read is passed over here.
        most: how many of these are looked at.
    """
    seen = Agreement(data.classes)
    for index in np.flatnonzero(data.has_truth)[:most]:
        sample = data[int(index)]
        if sample.truth is not None:
            with suppress(BadImage, OSError, UserError):
                seen.add(sample.id, sample.truth(), sample.tags)
    found = seen.finding()
    return str(found) if refuses(found, data) else None
