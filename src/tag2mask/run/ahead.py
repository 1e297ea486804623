"""Work done ahead of its use, in threads, a bounded number of steps."""

from __future__ import annotations

import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

S = TypeVar("S")
T = TypeVar("T")

_END = object()


def ahead(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items in the same order, computed in a thread that is at most ``depth`` items in front.

    An exception of ``items`` is raised here, in its place. When the reader stops early (an error, Ctrl-C, a
    closed generator) the thread ends after the item it is at.
    """
    waiting: queue.Queue[tuple[object, BaseException | None]] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: object, error: BaseException | None = None) -> bool:
        while not stop.is_set():
            try:
                waiting.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as error:  # handed to the reader, whatever it is
            put(_END, error)
        else:
            put(_END)

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield cast(T, item)
    finally:
        stop.set()
        thread.join()


def side_by_side(
    work: Callable[[S], T],
    items: Iterable[S],
    threads: int,
    *,
    prepare: Callable[[], None] | None = None,
    stopping: Callable[[], None] = lambda: None,
    weigh: Callable[[S], float] = lambda _: 0.0,
    most: float = math.inf,
) -> Iterator[T]:
    """``work`` of each item, in order, computed by so many threads; few results wait in memory.

    A result is given out before the next item is begun, if it is its turn. An exception of ``work`` is raised here,
    in its place; what was not begun is then dropped.

    Args:
        work: called in the threads.
        items: taken as they are needed.
        threads: how many.
        prepare: called first in each thread.
        stopping: called where the reader stops early (an error, Ctrl-C), before the wait for what was begun.
        weigh: what an item weighs, from when it is begun until its result is given out.
        most: all of these together weigh no more, unless one alone does.
    """
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="side by side", initializer=prepare)
    waiting: deque[tuple[Future[T], float]] = deque()
    held = 0.0

    def first() -> T:
        nonlocal held
        future, weight = waiting.popleft()
        held -= weight
        return future.result()

    try:
        for item in items:
            weight = weigh(item)
            while waiting and held + weight > most:
                yield first()
            waiting.append((pool.submit(work, item), weight))
            held += weight
            while waiting and (len(waiting) > 2 * threads or waiting[0][0].done()):
                yield first()
        while waiting:
            yield first()
    except BaseException:
        if not all(future.done() for future, _ in waiting):
            stopping()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
