"""The same work on many things in several processes, with results in order."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def cores() -> int:
    """Those that this process may use: not all of the machine's need be ours (taskset, containers)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int | None = None,
    *,
    prepare: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """``map(function, jobs)``, in several processes where there is more than one job.

    Args:
        function: of a module, so that another process finds it; jobs and results are pickled.
        workers: processes; None is one a core. One works in this process.
        prepare: called as each other process begins.
    """
    workers = min(workers or cores(), len(jobs))
    if workers <= 1:
        yield from map(function, jobs)
        return
    # spawned, not forked: the caller may hold threads (torch does), which a fork would break
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=prepare) as pool:
        yield from pool.map(function, jobs)
