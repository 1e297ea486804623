"""The same work on many things in several processes, with results in order."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any, TypeVar

from tag2mask.types import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


def cores() -> int:
    """Those that this process may use: not all of the machine's need be ours (taskset, cpusets)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launched() -> bool:
    """Whether Lightning started this process, or its others, for a training on several devices (torchrun did not)."""
    return "LOCAL_RANK" in os.environ and "RANK" not in os.environ


def helping() -> bool:
    """Whether this process is one of those others: it takes part in one training, and writes nothing."""
    return launched() and int(os.environ["LOCAL_RANK"]) > 0


def in_order(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int | None = None,
    *,
    prepare: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """``map(function, jobs)``, in several processes where there is more than one job.

    The others end with this one, however that ends, and when the caller stops asking for results. A terminal's Ctrl-C
    reaches all of them, and is this one's to answer; concurrent.futures would print what it makes of it.

    Args:
        function: of a module, so that another process finds it; jobs and results are pickled.
        workers: processes; None is one a core. One works in this process.
        prepare: called as each other process begins.

    Raises:
        UserError: one of the processes ended before its work.
    """
    workers = min(workers or cores(), len(jobs))
    if workers <= 1:
        yield from map(function, jobs)
        return
    # spawned, not forked: the caller may hold threads (torch does), which a fork would break
    context = multiprocessing.get_context("spawn")
    if os.name == "posix":  # there is none on Windows
        resource_tracker.ensure_running()  # begun by the first process, it would let that one hear Ctrl-C
    pipes: list[Any] = []  # Connection; on Windows of another class
    begun = []
    try:
        with _without_interrupts():
            for _ in range(workers):
                here, there = context.Pipe()
                pipes.append(here)
                process = context.Process(target=_work, args=(function, prepare, there), daemon=True)
                begun.append(process)
                process.start()
                there.close()
        yield from _share_out(jobs, pipes)
    finally:
        for process in begun:
            if process.pid is not None:
                process.terminate()
                process.join()
        for pipe in pipes:
            pipe.close()


def _share_out(jobs: Sequence[Any], pipes: Sequence[Any]) -> Iterator[Any]:
    """One job after the other to whoever is idle; results in the order of the jobs."""
    idle, busy, done, sent = list(pipes), {}, {}, 0  # busy: pipe -> number of the job; done: number -> result
    for number in range(len(jobs)):
        while number not in done:
            try:
                while idle and sent < len(jobs):
                    pipe = idle.pop()
                    pipe.send(jobs[sent])
                    busy[pipe] = sent
                    sent += 1
                ready: list[Any] = wait(list(busy))
                answers = {pipe: pipe.recv() for pipe in ready}
            except (EOFError, OSError) as error:
                raise UserError(
                    f"one of {len(pipes)} processes ended by itself: is there too little memory, or does the script "
                    'that calls lack `if __name__ == "__main__":`? One process alone (workers=1) says more'
                ) from error
            for pipe, (result, failure) in answers.items():
                if failure is not None:
                    raise failure
                done[busy.pop(pipe)] = result
                idle.append(pipe)
        yield done.pop(number)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C waits until it is over, and processes that are begun meanwhile never get it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(function: Callable[[Any], Any], prepare: Callable[[], None] | None, pipe: Any) -> None:
    """One of the processes: a job comes, its result or its error goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for where nothing could be blocked
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare()
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        result, failure = None, None
        try:
            result = function(job)
        except Exception as error:
            failure = _sendable(error)
        pipe.send((result, failure))


def _sendable(error: Exception) -> Exception:
    """The error itself, where it can be pickled and made again."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_parent() -> None:
    """End with the parent in the middle of a job, too: after a kill -9 nobody else would end this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
