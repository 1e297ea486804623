"""Files that are either whole or absent: written under a temporary name, then renamed. Some of them read back."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from tag2mask.types import UserError


@contextmanager
def atomic_path(path: Path | str, *, token: str | None = None, sync: bool = False) -> Iterator[Path]:
    """A temporary path in the folder of ``path``; it becomes ``path`` when the block ends well.

    Folders above are made. When the block raises, the temporary file is removed and ``path`` is as before.

    Args:
        path: where the file is to appear.
        token: makes the temporary name the same each time (``.token.tmp``), so that what a killed writer
            left is taken up by the next one instead of staying for ever. Only for a writer that is alone in
            using the token. None: a random name.
        sync: also ask the disk to keep it, which matters in a power cut, not when a process is killed.

    Raises:
        OSError: the disk is full, read-only, or the name is not possible.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # not built from the file's name: that may already have the greatest length a file system takes
    temporary = path.parent / f".{token or f'{os.getpid()}-{secrets.token_hex(4)}'}.tmp"
    try:
        yield temporary
        if sync:
            _flush_to_disk(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_atomic(path: Path | str, data: bytes, *, token: str | None = None, sync: bool = False) -> None:
    """Write ``data`` to ``path``, whole or not at all. Arguments as in :func:`atomic_path`."""
    with atomic_path(path, token=token, sync=sync) as temporary, open(temporary, "wb") as file:
        file.write(data)


def file_sha256(path: Path | str) -> str:
    """The sha256 of a file's content, in hexadecimal. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or holds something else.
    """
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return value


def cannot_write(where: object, error: OSError) -> UserError:
    """What to say where something cannot be written.

    where: a path, with its option before it where one chooses it ("--out runs/photos").
    """
    reason = os.strerror(error.errno) if error.errno else str(error)
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = "there is a file in its place"
    advice = "make room there" if error.errno == errno.ENOSPC else "choose a folder that you may write to"
    return UserError(f"{where}: cannot be written ({reason}); {advice}")


def make_array(path: Path, shape: tuple[int, ...], *, token: str) -> None:
    """A .npy file of zeros, uint8, to be opened as a memory map and filled bit by bit.

    Its room is reserved: where a write through a memory map finds none, the process is killed without a word.

    Raises:
        UserError: there is not so much room, or nothing can be written there.
    """
    try:
        _make_array(path, shape, token)
    except OSError as error:
        raise cannot_write(path, error) from error


def _make_array(path: Path, shape: tuple[int, ...], token: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size, free = math.prod(shape), shutil.disk_usage(path.parent).free
    if size > free:
        raise UserError(
            f"{path}: {shape[0]} of {math.prod(shape[1:]):,} bytes take {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB "
            "are free there; make room, take fewer or smaller ones, or choose another folder"
        )
    with atomic_path(path, token=token) as partial:
        open_memmap(partial, "w+", np.uint8, shape).flush()
        if hasattr(os, "posix_fallocate"):
            with open(partial, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
