"""The same work on many things in several processes, with results in order."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from tag2mask.types import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


def cores() -> int:
    """Those that this process may use: not all of the machine's need be ours (taskset, cpusets)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int | None = None,
    *,
    prepare: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """``map(function, jobs)``, in several processes where there is more than one job.

    The others end with this one, however that ends, and when the caller stops asking for results. A terminal's Ctrl-C
    reaches all of them, and is this one's to answer.

    Args:
        function: of a module, so that another process finds it; jobs and results are pickled.
        workers: processes; None is one a core. One works in this process.
        prepare: called as each other process begins.

    Raises:
        UserError: one of the processes was ended from outside, or could not begin.
    """
    workers = min(workers or cores(), len(jobs))
    if workers <= 1:
        yield from map(function, jobs)
        return
    # spawned, not forked: the caller may hold threads (torch does), which a fork would break
    context = multiprocessing.get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(watched, prepare)) as pool:
        try:
            with _unheard():
                results = pool.map(function, jobs)  # starts the processes
            yield from results
        except BrokenProcessPool as error:
            raise UserError(
                f"one of {workers} processes ended by itself: is there too little memory or disk, or does the script "
                'that calls lack `if __name__ == "__main__":`? One process alone (workers=1) says more'
            ) from error
        finally:
            held.close()


@contextmanager
def _unheard() -> Iterator[None]:
    """Ctrl-C waits until it is over; processes that are begun meanwhile never hear it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(watched: multiprocessing.connection.Connection, prepare: Callable[[], None] | None) -> None:
    threading.Thread(target=_follow, args=(watched,), daemon=True).start()
    if prepare is not None:
        prepare()


def _follow(watched: multiprocessing.connection.Connection) -> None:
    """End when the other end of the pipe is closed: by the caller, or by its death, after which nobody else would."""
    multiprocessing.connection.wait([watched])
    os._exit(1)
