"""Which images go through a method together, decided in a way that an interrupt cannot change.

A sum of floating-point numbers may depend on what else is in the batch. So batches are planned over *all* images
of the shard and only then are the finished ones left out: a run that was killed and started again puts every
image among the same neighbours as a run that was never killed, and gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tag2mask.data.image import image_size
from tag2mask.data.pixels import decode_pixels
from tag2mask.run.artefacts import check_id
from tag2mask.run.inputs import Inputs, KnownInputs, content_of
from tag2mask.run.shard import Shard, in_shard
from tag2mask.stages.machinery.errors import describe
from tag2mask.stages.machinery.fit_data import Surveyed, as_rows, row
from tag2mask.types import Dataset, Sample, UserError

if TYPE_CHECKING:
    from torch import Tensor

WINDOW = 256
"""Images of equal grid are gathered within so many consecutive samples: enough to fill batches, few enough that
headers are read shortly before the pixels."""

Grid = tuple[int, int]


@dataclass(frozen=True)
class SampleBatch:
    """Samples for one call of a method; ``todo`` are those whose artefacts are not there yet.

    Samples without tags, and with none (``()``), are in batches of their own, since no method sees them. ``beyond``:
    neighbours that are not to be done in this call, finished or not.
    """

    samples: tuple[Sample, ...]
    todo: frozenset[str]
    beyond: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Loaded:
    """A batch with its images decoded: id -> (3, H, W) uint8, or in ``errors`` why not.

    lacks_end: ids of files whose last bytes are missing, and no more. seconds: id -> decoding. inputs: id -> what is
    decoded there, of those that are not finished.
    """

    batch: SampleBatch
    images: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    lacks_end: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, Inputs] = field(default_factory=dict)


def plan(
    samples: Iterable[Sample],
    grid: Callable[[tuple[int, int]], Grid],
    batch_size: int,
    finished: Callable[[Sample], bool],
    *,
    size: Callable[[Path], tuple[int, int]] = image_size,
    window: int = WINDOW,
    most: int | None = None,
) -> Iterator[SampleBatch]:
    """Every sample in exactly one batch, in an order that depends on the samples and the headers alone.

    Args:
        samples: the shard, in the order of the data set.
        grid: image size (H, W) -> grid (h, w); images of equal grid share a batch.
        batch_size: the most images in one.
        finished: whether an image's artefacts are there, and are of what it is now. In a window where all are, no
            header is read.
        size: (H, W) of an image file.
        window: the number of samples among which batches are gathered.
        most: only this many samples, from the first on, are to be done; each in the batch that it has without that.
    """
    samples = iter(samples)
    left = most
    while chunk := list(islice(samples, window)):
        inside = chunk if left is None else chunk[:left]
        if not inside:
            return
        left = None if left is None else left - len(inside)
        yield from _within(chunk, inside, grid, batch_size, finished, size)


def _within(
    chunk: list[Sample],
    inside: list[Sample],
    grid: Callable[[tuple[int, int]], Grid],
    batch_size: int,
    finished: Callable[[Sample], bool],
    size: Callable[[Path], tuple[int, int]],
) -> Iterator[SampleBatch]:
    """The batches of a window that hold a sample of ``inside``, which are the first of ``chunk``."""
    todo = frozenset(sample.id for sample in inside if not finished(sample))
    beyond = frozenset(sample.id for sample in chunk[len(inside) :])
    for gathered in _gather(chunk, grid, batch_size, size, work=any(s.tags and s.id in todo for s in inside)):
        ids = frozenset(sample.id for sample in gathered)
        if not ids <= beyond:
            yield SampleBatch(tuple(gathered), todo & ids, beyond & ids)


def _gather(
    chunk: list[Sample],
    grid: Callable[[tuple[int, int]], Grid],
    batch_size: int,
    size: Callable[[Path], tuple[int, int]],
    *,
    work: bool,
) -> Iterator[list[Sample]]:
    """Samples of a window by their grid. work: there is some, so headers are read."""
    waiting: dict[Grid, list[Sample]] = {}
    for sample in chunk:
        where = _grid_of(sample, grid, size) if work and sample.tags else None
        if where is None:
            yield [sample]
            continue
        group = waiting.setdefault(where, [])
        group.append(sample)
        if len(group) == batch_size:
            yield waiting.pop(where)
    yield from waiting.values()


def survey(
    data: Dataset,
    shard: Shard,
    *,
    tags: bool = True,
    files: Callable[[Sample], Iterable[Path]] | None = None,
    known: KnownInputs | None = None,
) -> Surveyed:
    """Counts the images, and notes the ids, tags and contents that a fit is of.

    tags: False: they play no part, not even in the fingerprint.
    files: of a sample, whose content is in the fingerprint: its image, and what an earlier run found of it.
    known: what is known of these files spares reading them again.

    Raises:
        UserError: an id that cannot name a file, or a tag outside the class set.
    """
    digest = hashlib.sha256()
    total = 0
    rows = bytearray()
    for sample in data:
        check_id(sample.id)
        if tags and sample.tags and not 1 <= min(sample.tags) <= max(sample.tags) < len(data.classes):
            raise UserError(f"{sample.id} has tags {sample.tags}; {data.classes.id} has 1 to {len(data.classes) - 1}")
        contents: list[str | None] = []
        if files is not None:
            found = None if known is None else known.find(sample.id)
            stamps = (None, None) if found is None else found.inputs_of
            contents = [content_of(path, before) for path, before in zip(files(sample), stamps, strict=False)]
        digest.update(json.dumps([sample.id, sample.tags if tags else None, *contents]).encode())
        rows += row(sample.id, sample.tags if tags else None, contents)
        total += in_shard(sample.id, shard)
    return Surveyed(total, len(data), digest.hexdigest()[:16], as_rows(rows))


def load(
    batches: Iterable[SampleBatch],
    inputs: Callable[[Sample], Inputs],
    *,
    untagged: bool = False,
) -> Iterator[Loaded]:
    """Decode what each batch needs: nothing if all is finished, else also the finished neighbours.

    inputs: what a sample's artefacts will be of, looked at before it is decoded.
    untagged: whether images of unknown tags are wanted too.
    """
    for batch in batches:
        loaded = Loaded(batch)
        first = [
            sample for sample in batch.samples if sample.id in batch.todo and (untagged or sample.tags is not None)
        ]
        for sample in first:
            with suppress(OSError):  # decoding will say why
                loaded.inputs[sample.id] = inputs(sample)
            _decode(sample, loaded)
        if loaded.images:
            for sample in batch.samples:
                if sample.id not in batch.todo:
                    _decode(sample, loaded)
        yield loaded


def _grid_of(
    sample: Sample, grid: Callable[[tuple[int, int]], Grid], size: Callable[[Path], tuple[int, int]]
) -> Grid | None:
    """The sample's grid, or None if its header cannot be read: then it must not disturb the others' batches."""
    try:
        return grid(size(sample.image))
    except Exception:  # whatever it is, decoding will meet it again and put it on record
        return None


def _decode(sample: Sample, loaded: Loaded) -> None:
    start = time.perf_counter()
    try:
        pixels, lacks_end = decode_pixels(sample.image)
        loaded.images[sample.id] = pixels.contiguous()  # (3, H, W)
        if lacks_end:
            loaded.lacks_end.add(sample.id)
    except Exception as error:  # one bad image never stops a run
        loaded.errors[sample.id] = describe(error)
    loaded.seconds[sample.id] = time.perf_counter() - start
