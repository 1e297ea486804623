"""Loops compiled on this machine by numba, where it is installed (the extra ``fast``).

Nothing here runs on several threads: numba's thread pools and torch's OpenMP do not get on under load and after a
fork, and cores are better spent on several pictures at once. The loops let go of the GIL, so threads of Python do.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_SUMS = {"contract", "reassoc", "nsz"}


def installed() -> bool:
    """Whether numba is there. It is not loaded for that."""
    return importlib.util.find_spec("numba") is not None


def compiled(sums: bool = False) -> Callable[[F], F]:
    """Compile a function of numbers and arrays at its first call, and keep the machine code on disk.

    It is kept beside the source, in the user's cache or in NUMBA_CACHE_DIR, whichever can be written. Where none
    can, each process compiles anew: a folder that others may write to is no place to load code from.

    sums: let the compiler change the order of sums and fuse products into them, where the last bit decides nothing.
    """

    def decorate(function: F) -> F:
        from numba import njit

        options: dict[str, Any] = {"nogil": True, "fastmath": _SUMS if sums else False}
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # "cannot cache function: no locator available"
            return njit(**options)(function)

    return decorate
