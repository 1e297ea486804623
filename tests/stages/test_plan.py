"""Which images go through a method together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tag2mask.data.image import BadImage
from tag2mask.stages.machinery.plan import plan
from tag2mask.types import Sample

pytestmark = pytest.mark.usefixtures("one_thread")


# --- planning ----------------------------------------------------------------------------------------------------


def samples_of(sizes: Sequence[int]) -> list[Sample]:
    """Samples whose path is their size."""
    return [Sample(f"{i}", size, (1,)) for i, size in enumerate(sizes)]


def planned(sizes, finished=(), batch_size=2, window=6, read=None):
    def size(path):
        if read is not None:
            read.append(path)
        if path == 0:
            raise BadImage(path, "no header")
        return path, path

    samples = samples_of(sizes)
    batches = list(
        plan(samples, lambda size: size, batch_size, lambda sample: sample.id in finished, size=size, window=window)
    )
    assert sorted((s.id for b in batches for s in b.samples), key=int) == [s.id for s in samples]
    return batches


def ids(batches):
    return [tuple(sample.id for sample in batch.samples) for batch in batches]


def test_equal_grids_share_a_batch_within_a_window():
    batches = planned([4, 4, 8, 4, 8, 4, 8, 4])
    assert ids(batches) == [("0", "1"), ("2", "4"), ("3", "5"), ("6",), ("7",)]


def test_the_plan_does_not_depend_on_what_is_finished():
    sizes = [4, 8, 4, 4, 8, 8, 4, 4, 8]
    whole = ids(planned(sizes))
    for finished in [{"0"}, {"2", "4"}, {"0", "1", "3", "5", "7"}]:
        batches = planned(sizes, finished)
        assert ids(batches) == whole
        for batch in batches:
            assert batch.todo == {sample.id for sample in batch.samples} - finished


def test_an_image_without_a_header_is_alone():
    assert ids(planned([4, 0, 4, 0])) == [("1",), ("0", "2"), ("3",)]


def test_a_finished_window_costs_no_header():
    read = []
    planned([4] * 12, finished={str(i) for i in range(6)}, read=read)
    assert len(read) == 6
