"""How far it is, on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Generic, Protocol, TypeVar, overload

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

T = TypeVar("T")

_LINE_EVERY = 5.0  # seconds
_SILENT = ContextVar("silent", default=False)


@contextmanager
def silent() -> Iterator[None]:
    """No progress is shown by what runs inside, whatever it asks for: for callers who cannot say so themselves."""
    before = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(before)


class Advance(Protocol):
    """What a long call reports its progress to; as ``Bar.advance``."""

    def __call__(self, count: int = 1, *, worked: bool = True) -> None:
        """``count`` more are done. worked: False for those found finished."""
        ...


def no_progress(count: int = 1, *, worked: bool = True) -> None:
    """An ``Advance`` that shows nothing."""


class Bar(Generic[T]):
    """Counts work. A context manager with :meth:`advance`, or, over an iterable, an iterator that counts itself."""

    def __init__(
        self, work: Iterable[T] | int | None, label: str, unit: str, enabled: bool, counted: str = "", each: int = 1
    ):
        self._items = None if isinstance(work, int) or work is None else work
        self._total = work if isinstance(work, int) else len(work) if isinstance(work, Sized) else None
        self._label, self._unit, self._enabled = label, unit, enabled
        self._counted, self._each = f" {counted}" if counted else "", each
        self._done = self._worked = 0
        self._told = -1
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Bar[T]:
        self._start = self._last = time.monotonic()
        if self._enabled and sys.stderr.isatty():
            columns = [
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[counted]}{task.fields[rate]}"),
            ]
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(
                self._label, total=self._total, rate="", counted=f"{self._counted.strip()} " if self._counted else ""
            )
            self._bar.start()
        return self

    def __exit__(self, error: object = None, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif error is not None and not self._done:
            return  # refused before it began
        elif self._enabled and self._told != self._done:
            self._line()

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self._items or ():
                yield item
                self.advance()

    def advance(self, count: int = 1, *, worked: bool = True) -> None:
        """``count`` more are behind us. worked: False for those found finished, which say nothing of the speed."""
        self._done += count
        self._worked += count if worked else 0
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=self._rate())
        elif self._enabled and time.monotonic() - self._last >= _LINE_EVERY:
            self._line()

    def say(self, line: str) -> None:
        """A line beside the count, where that is shown."""
        say(line, enabled=self._enabled)

    def _speed(self) -> float:
        return self._worked / max(time.monotonic() - self._start, 1e-9)

    def _rate(self) -> str:
        if not self._worked:
            return ""
        speed = self._each * self._speed()
        text = f"{speed:,.0f} {self._unit}/s" if speed >= 1000 else f"{speed:.3g} {self._unit}/s"
        if self._total is not None and self._done < self._total:
            text += f", {_duration((self._total - self._done) / self._speed())} left"
        return text

    def _line(self) -> None:
        self._last, self._told = time.monotonic(), self._done
        count = f"{self._done}" + (f"/{self._total}" if self._total is not None else "") + self._counted
        text = ", ".join(filter(None, [f"{self._label}: {count}", self._rate()]))
        print(text, file=sys.stderr, flush=True)


@overload
def progress(work: Iterable[T], label: str, *, unit: str = "images", enabled: bool = True) -> Bar[T]: ...
@overload
def progress(
    work: int | None, label: str, *, unit: str = "images", enabled: bool = True, counted: str = "", each: int = 1
) -> Bar[None]: ...
def progress(
    work: Any, label: str, *, unit: str = "images", enabled: bool = True, counted: str = "", each: int = 1
) -> Bar[Any]:
    """Show progress through ``work``: an iterable, a number of things to come, or None when not known.

    ``for x in progress(items, "evaluate")``, or ``with progress(300, "label") as bar: bar.advance()``.

    unit: what the speed is of. counted, each: what is counted where that is something else, and how many units it
    holds: of ``progress(600, "train", counted="steps", each=8)`` a line is "train: 60/600 steps, 40 images/s".
    """
    return Bar(work, label, unit, enabled and not _SILENT.get(), counted, each)


def say(line: str, *, enabled: bool = True) -> None:
    """A line on stderr, where progress is shown."""
    if enabled and not _SILENT.get():
        with suppress(OSError):  # who reads it may have been stopped, too
            print(line, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def minutes_left(minutes: float | None, began: float) -> float | None:
    """Of so many minutes since ``began``, on the monotonic clock: 0 where they are over, None of None."""
    return None if minutes is None else max(0.0, minutes - (time.monotonic() - began) / 60)
