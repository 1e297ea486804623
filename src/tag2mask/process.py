"""How this process waits and where it keeps memory. Both cost more than arithmetic when left at their defaults."""

from __future__ import annotations

import ctypes
import os
import sys

MB = 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h


def tune_process() -> None:
    """Set up threads and memory for long runs of tensor arithmetic. Call it before torch is loaded.

    Threads sleep while they wait for each other: spinning, they make every small operation a hundred times slower
    as soon as another process wants one of the cores. And memory that was freed is kept for the next tensor, up to
    256 MB: glibc otherwise asks the system for every larger tensor again, and the system clears each page first,
    which takes longer than to fill the tensor. It is kept for all threads together, not for each alone. What the
    environment says (OMP_WAIT_POLICY, MALLOC_*, GLIBC_TUNABLES) stays as it is.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from other C libraries than glibc
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 64 * MB)
        mallopt(_M_TRIM_THRESHOLD, 256 * MB)
        mallopt(_M_ARENA_MAX, 1)
