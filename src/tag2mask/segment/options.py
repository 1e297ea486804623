"""What the options of every architecture are, and words for where its first weights come from."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

RANDOM = "random"
LATER = "later"
"""For those who fill the network themselves: as random, without a warning."""

WITH_HEAD = "whole:"
"""Before the path of a checkpoint: take its head too, not the backbone alone."""

Names = tuple[str, ...]


class Options(BaseModel):
    """What every architecture's options are."""

    model_config = ConfigDict(extra="forbid", frozen=True)
