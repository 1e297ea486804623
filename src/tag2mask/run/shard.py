"""Which images are whose: one rule for ``--shard i/n``, torchrun and SLURM arrays."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from zlib import crc32

from tag2mask.types import UserError

Shard = tuple[int, int]
"""(index, count) with 0 <= index < count."""

WHOLE: Shard = (0, 1)


def in_shard(id: str, shard: Shard) -> bool:
    """Whether the image belongs to the shard: ``crc32(id) % count == index``.

    It depends on the name alone, so every machine agrees without talking, whatever else is in the folder.
    """
    index, count = shard
    return crc32(id.encode("utf-8", "surrogatepass")) % count == index


def shard_name(shard: Shard) -> str:
    """The shard as it stands in file names: ``0-of-1``."""
    return f"{shard[0]}-of-{shard[1]}"


def parse_shard(text: str) -> Shard:
    """``"i/n"`` as a pair; shards count from 0.

    Raises:
        UserError: not of that form, or i outside 0..n-1.
    """
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if not match:
        raise UserError(f'shard "{text}": expected i/n, such as 0/4 for the first of four')
    return check_shard((int(match[1]), int(match[2])))


def check_shard(shard: Shard) -> Shard:
    """The shard itself, if it is one.

    Raises:
        UserError: index outside 0..count-1.
    """
    index, count = shard
    if count < 1 or not 0 <= index < count:
        raise UserError(f"shard {index}/{count}: shards count from 0, so of {count} the last is {count - 1}/{count}")
    return shard


def find_shard(text: str | None = None, environ: Mapping[str, str] | None = None) -> Shard:
    """This process's shard: from ``text`` if given, else from torchrun's or SLURM's environment, else the whole.

    Raises:
        UserError: ``text`` or the environment makes no sense.
    """
    if text is not None:
        return parse_shard(text)
    env = os.environ if environ is None else environ
    try:
        if "RANK" in env and "WORLD_SIZE" in env:
            return check_shard((int(env["RANK"]), int(env["WORLD_SIZE"])))
        if "SLURM_ARRAY_TASK_ID" in env and "SLURM_ARRAY_TASK_COUNT" in env:
            first = int(env.get("SLURM_ARRAY_TASK_MIN", 0))  # --array=1-4 counts from 1, --array=0-6:2 in twos
            step = int(env.get("SLURM_ARRAY_TASK_STEP", 1))
            index = (int(env["SLURM_ARRAY_TASK_ID"]) - first) // step
            return check_shard((index, int(env["SLURM_ARRAY_TASK_COUNT"])))
    except ValueError as error:
        raise UserError(
            f"torchrun's or SLURM's environment variables name no shard ({error}); give --shard i/n"
        ) from None
    return WHOLE
