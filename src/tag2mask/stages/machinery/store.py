"""Writing in a thread of its own, so that the method does not wait for the disk."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from tag2mask.data.png import encode_confidence, encode_mask
from tag2mask.run.files import cannot_write
from tag2mask.run.folder import Run
from tag2mask.run.inputs import Inputs
from tag2mask.stages.machinery.errors import describe
from tag2mask.types import Color, Scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WAITING = 8  # outcomes in memory before the method has to wait for the disk

_ONE_FILE = {errno.ENAMETOOLONG, errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EILSEQ}
"""What can be wrong with a single name; every other error of writing would meet the next image too."""


class CannotWrite(Exception):  # noqa: N818 (what it says)
    """The disk is full, read-only or gone: going on would fail for every image."""


@dataclass(frozen=True)
class Outcome:
    """What became of one image: its mask (H, W) uint8, confidence (H, W) in [0, 1] and scores, or why not.

    inputs: what it was made of.
    """

    id: str
    status: Literal["ok", "failed", "skipped"]
    seconds: dict[str, float]
    mask: NDArray[np.uint8] | None = None
    confidence: NDArray[np.float32] | None = None
    scores: Scores | None = None
    error: str | None = None
    inputs: Inputs | None = None


class Store:
    """Takes outcomes, and tells ``written`` of each, without its arrays, once it is in folder and manifest.

    ``written`` is called in the thread that calls the store.
    """

    def __init__(
        self,
        run: Run,
        palette: Sequence[Color],
        written: Callable[[Outcome], None],
    ):
        self._run, self._palette, self._written = run, palette, written
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._waiting: deque[Future[Outcome]] = deque()
        self._broken: CannotWrite | None = None

    def put(self, outcome: Outcome) -> None:
        """Queue one, waiting for the disk if it is far behind.

        Raises:
            CannotWrite: an earlier one met a disk that cannot be written.
        """
        self._waiting.append(self._thread.submit(self._write, outcome))
        self._report_written(_WAITING)

    def finish(self) -> None:
        """Write what is left. Raises as :meth:`put`."""
        self._report_written(0)
        self._thread.shutdown()

    def abandon(self) -> None:
        """Finish the one being written and drop the rest."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        for each in self._waiting:
            if each.done() and not each.cancelled() and each.exception() is None:
                self._written(each.result())

    def _report_written(self, left: int) -> None:
        while self._waiting and (len(self._waiting) > left or self._waiting[0].done()):
            outcome = self._waiting[0].result()  # Ctrl-C may come here, so it is not removed before
            self._waiting.popleft()
            self._written(outcome)

    def _write(self, outcome: Outcome) -> Outcome:
        if self._broken is not None:
            raise self._broken  # what was queued behind the failure must not be written around it
        start = perf_counter()
        status, error = outcome.status, outcome.error
        try:
            if outcome.mask is not None and outcome.confidence is not None:
                try:
                    self._run.write(
                        outcome.id,
                        mask=encode_mask(outcome.mask, self._palette),
                        confidence=encode_confidence(outcome.confidence),
                        scores=outcome.scores,
                    )
                except OSError as problem:
                    if problem.errno not in _ONE_FILE:
                        raise
                    status, error = "failed", describe(problem)
                except Exception as problem:  # one bad image never stops a run
                    status, error = "failed", describe(problem)
            if status == "failed":
                self._discard(outcome.id)  # what an earlier picture or other tags left there is not its mask
            seconds = {**outcome.seconds, "write": perf_counter() - start}
            self._run.record(outcome.id, status, seconds, error, outcome.inputs if status == "ok" else None)
        except OSError as problem:
            self._broken = CannotWrite(str(cannot_write(self._run.path, problem)))
            raise self._broken from problem
        return replace(outcome, status=status, error=error, seconds=seconds, mask=None, confidence=None, scores=None)

    def _discard(self, id: str) -> None:
        try:
            self._run.discard(id)
        except OSError as problem:
            if problem.errno not in _ONE_FILE:
                raise
