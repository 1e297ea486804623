"""Loops compiled on this machine by numba, where it is installed (the extra ``fast``).

Nothing here runs on several threads: numba's thread pools and torch's OpenMP do not get on under load and after a
fork, and cores are better spent on several pictures at once. The loops let go of the GIL, so threads of Python do.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Hashable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from tag2mask.file_lock import acquire

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")

_SUMS = {"contract", "reassoc", "nsz", "nnan"}


@functools.cache
def trouble() -> str | None:
    """Why loops cannot be compiled here, or None. One is, to find out: numba may be there and not fit numpy."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed; run: pip install 'tag2mask[fast]'"
    try:
        from numba import config

        if config.DISABLE_JIT:
            return "NUMBA_DISABLE_JIT is set, so that nothing is compiled; unset it"
        found = first_alone("trial", lambda: compiled()(_next)(1))
    except Exception as error:  # whatever it raises, it is broken
        return (
            f"numba is installed but does not compile a loop ({' '.join(str(error).split())}); "
            "run: pip install --upgrade 'tag2mask[fast]'"
        )
    return None if found == 2 else f"numba is installed but what it compiles is wrong (1 + 1 gave {found})"


def _next(number: int) -> int:
    return number + 1


def compiled(sums: bool = False) -> Callable[[F], F]:
    """Compile a function of numbers and arrays at its first call, and keep the machine code on disk.

    sums: let the compiler change the order of sums and fuse products into them, where the last bit decides nothing.
    """

    def decorate(function: F) -> F:
        from numba import config, njit

        # A division by zero is no error, and nobody calls the loops from C: both would only be more to compile.
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
        options["fastmath"] = _SUMS if sums else False
        folder = _cache()
        if folder is None:
            return njit(**options)(function)
        before, config.CACHE_DIR = config.CACHE_DIR, str(folder)  # it is asked for here, at the decoration
        try:
            return njit(cache=True, **options)(function)
        finally:
            config.CACHE_DIR = before

    return decorate


def first_alone(kind: Hashable, run: Callable[[], R]) -> R:
    """What ``run`` makes. The first call of a kind, which compiles or reads what was compiled, has the cache alone.

    numba locks nothing: two processes that write at once may leave an index that names the other's code, and a file
    that is damaged would fail every later process, too. So one process at a time does it, and what cannot be used is
    thrown away and made anew, once.
    """
    folder = _cache()
    if kind in _begun or folder is None:
        return run()
    with (folder / "lock").open("w") as lock:
        with suppress(OSError):  # a file system without locks: as numba has it
            acquire(lock.fileno(), wait=True)
        try:
            found = run()
        except (OverflowError, MemoryError):  # of this picture, not of the cache
            raise
        except Exception:
            for file in folder.rglob("*.nb[ic]"):  # each source file has a folder of its own
                file.unlink(missing_ok=True)
            found = run()
    _begun.add(kind)
    return found


_begun: set[Hashable] = set()
"""Kinds whose loops this process has."""


@functools.cache
def _cache() -> Path | None:
    """Where machine code is kept: NUMBA_CACHE_DIR, else beside the source, else in the user's cache.

    None where neither can be written: then each process compiles again. A folder that others may write to is no place
    to load code from. The folder's name has the digest of all the loops: numba compares a function's own file only,
    and would keep what it has made of another file's functions when those change.
    """
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    places = [Path(chosen)] if chosen else [Path(__file__).parent / "__pycache__", _user_cache()]
    for place in places:
        folder = place / f"tag2mask-{_digest()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        return folder
    return None


def _digest() -> str:
    digest = hashlib.sha256()
    for path in sorted([Path(__file__), *Path(__file__).parent.glob("*_loops.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "tag2mask"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tag2mask"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tag2mask"
