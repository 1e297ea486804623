"""A run of label or predict in progress.

Decoding is in a thread before it, results are made here or side by side in threads, and written in a thread behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Any, Protocol

import torch

from tag2mask.run.ahead import side_by_side
from tag2mask.run.device import peak_device_memory, peak_memory
from tag2mask.run.folder import Run
from tag2mask.run.progress import Bar
from tag2mask.stages.machinery.plan import Loaded
from tag2mask.stages.machinery.store import CannotWrite, Outcome, Store
from tag2mask.types import ClassSet, UserError
from tag2mask.words import Some, in_line

LACKS_END = "JPEGs whose last bytes are missing, read all the same"

MOST_PIXELS = 24_000_000
"""Of the images that are worked on at once or wait to be written, unless one has more: each pixel takes some 50 bytes
while its mask is made."""

_SHOWN_ERRORS = 10


@dataclass(frozen=True)
class Summary:
    """What a call of ``label`` or ``predict`` did, also written as ``summary.<shard>.json``.

    did: with the images, in one word.
    total: images of the shard = done + skipped (finished before) + failed + no_tags, if ``complete``.
    seconds: by stage (decode, method, masks, write); stages overlap, so their sum may exceed ``elapsed``.
    peak_memory, peak_device_memory: bytes, None where not known. images_per_second: of those done.
    errors: the first failed ids, each with its reason. notes: what else a user should know, a line each.
    """

    path: str
    did: str
    total: int
    done: int = 0
    skipped: int = 0
    failed: int = 0
    no_tags: int = 0
    complete: bool = False
    elapsed: float = 0.0
    images_per_second: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory: int | None = None
    peak_device_memory: int | None = None
    errors: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there were images, and none has a mask now."""
        return self.complete and self.total > 0 and self.done + self.skipped == 0

    def text(self) -> str:
        """The summary for people, in a few lines."""
        besides = [
            f"{count} {what}"
            for count, what in [
                (self.skipped, "were finished before"),
                (self.failed, "failed"),
                (self.no_tags, "have no tags and were skipped"),
            ]
            if count
        ]
        lines = [
            f"{self.path}: {self.done} of {self.total} images {self.did}" + "".join(f", {each}" for each in besides)
        ]
        if self.done:
            stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items())
            memory = "" if self.peak_memory is None else f"; peak memory {self.peak_memory / 2**20:.0f} MB"
            lines.append(f"{self.elapsed:.1f} s, {self.images_per_second:.3g} images/s ({stages}){memory}")
        lines += self.notes
        lines += [f"failed: {in_line(id)}: {reason}" for id, reason in self.errors]
        if self.failed > len(self.errors):
            lines.append(f"and {self.failed - len(self.errors)} more; the manifest in the folder names all")
        if self.empty:
            lines.append(f"no image has a mask: {'none has tags' if not self.failed else 'see above'}")
        return "\n".join(lines)


class Worker(Protocol):
    """What makes masks: of a batch, the outcome of each image that is not finished. Several threads may call it.

    An image that cannot be done is an outcome too, not an exception.
    """

    @property
    def steps(self) -> Sequence[str]:
        """What is timed for each image."""

    @property
    def device(self) -> torch.device:
        """Where results are computed."""

    def __call__(self, loaded: Loaded, /) -> Iterator[Outcome]: ...  # noqa: D102


class Work:
    """The run in progress.

    Args:
        run: open to write.
        classes: of the masks.
        worker: makes the masks.
        total: images of the shard.
        did: with the images, in one word, for the summary.
        beside: how many batches are worked off at once, in threads. threads: torch's, in each of these.
        made: called with the id of each image that has a new mask.
        notes: asked at the end for what a user should know of the run.
    """

    def __init__(
        self,
        run: Run,
        classes: ClassSet,
        worker: Worker,
        total: int,
        *,
        did: str,
        beside: int = 1,
        threads: int = 1,
        made: Callable[[str], None] = lambda _: None,
        notes: Callable[[], Sequence[str]] = tuple,
    ):
        self.run, self.worker, self.made, self.notes = run, worker, made, notes
        self.beside, self.threads = beside, threads
        self.store = Store(run, classes.palette, self._count)
        self.summary = Summary(str(run.path), did, total)
        self.seconds = dict.fromkeys(worker.steps, 0.0)
        self.lacks_end = Some()
        self.start = perf_counter()

    def through(self, batches: Iterator[Loaded], bar: Bar[Any]) -> Summary:
        """Work off all batches, whatever happens to single images.

        Raises:
            UserError: the disk cannot be written; the message says what is saved.
            KeyboardInterrupt: as the user asked; the message says what is saved.
        """
        self.bar = bar
        try:
            with bar, closing(self._made(batches)) as made:
                for loaded, outcomes in made:
                    for outcome in outcomes:
                        self.store.put(replace(outcome, inputs=loaded.inputs.get(outcome.id)))
                    batch = loaded.batch
                    for id in sorted(loaded.lacks_end & batch.todo):
                        self.lacks_end.add(id)
                    done_before = len(batch.samples) - len(batch.todo) - len(batch.beyond)
                    self._add(skipped=done_before)
                    bar.advance(done_before, worked=False)
                self.store.finish()
        except KeyboardInterrupt:
            self.store.abandon()
            raise KeyboardInterrupt(f"stopped; {self._saved()}") from None
        except CannotWrite as error:
            self.store.abandon()
            raise UserError(f"{error}. {self._saved()}") from error
        except BaseException:
            self.store.abandon()
            raise
        else:
            self._add(complete=1)
        finally:
            batches.close()  # type: ignore[attr-defined]  # a generator: its thread ends with it
            self._finish()
        return self.summary

    def _made(self, batches: Iterator[Loaded]) -> Generator[tuple[Loaded, Iterable[Outcome]]]:
        """The batches in order, each with its outcomes: made here one by one, or side by side in threads."""
        if self.beside == 1:
            yield from ((loaded, self.worker(loaded)) for loaded in batches)
            return
        total = torch.get_num_threads()
        prepare = partial(torch.set_num_threads, self.threads)
        try:
            yield from side_by_side(
                self._all,
                batches,
                self.beside,
                prepare=prepare,
                stopping=partial(self.bar.say, "stopping, once the images that are worked on are done"),
                weigh=_pixels,
                most=MOST_PIXELS,
            )
        finally:
            torch.set_num_threads(total)  # a thread that begins takes what was set last, in whichever thread

    def _all(self, loaded: Loaded) -> tuple[Loaded, Iterable[Outcome]]:
        return loaded, list(self.worker(loaded))

    def _count(self, outcome: Outcome) -> None:
        for stage, seconds in outcome.seconds.items():
            self.seconds[stage] += seconds
        if outcome.status == "ok":
            self._add(done=1)
            self.made(outcome.id)
        elif outcome.status == "skipped":
            self._add(no_tags=1)
        else:
            self._add(failed=1)
            if len(self.summary.errors) < _SHOWN_ERRORS:
                errors = (*self.summary.errors, (outcome.id, outcome.error or ""))
                self.summary = replace(self.summary, errors=errors)
        self.bar.advance()

    def _add(self, **counts: int) -> None:
        self.summary = replace(
            self.summary, **{name: getattr(self.summary, name) + count for name, count in counts.items()}
        )

    def _saved(self) -> str:
        saved = self.summary.done + self.summary.skipped
        return (
            f"{saved} of {self.summary.total} images are saved in {self.run.path} and none is half written; "
            "give the same command again to resume"
        )

    def _finish(self) -> None:
        """Complete the summary and store it, as far as the disk allows."""
        elapsed = perf_counter() - self.start
        self.summary = replace(
            self.summary,
            complete=bool(self.summary.complete),
            elapsed=elapsed,
            images_per_second=self.summary.done / elapsed,
            seconds=self.seconds,
            peak_memory=peak_memory(),
            peak_device_memory=peak_device_memory(self.worker.device),
            notes=(*self.notes(), *self.lacks_end.note(LACKS_END)),
        )
        with suppress(OSError):  # the summary can be made again from the manifest
            self.run.write_summary(json.dumps(asdict(self.summary), indent=1).encode())


def _pixels(loaded: Loaded) -> int:
    return sum(image.shape[1] * image.shape[2] for image in loaded.images.values())
