"""Work in threads: in order, a bounded number of steps ahead, and under a bounded weight."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from tag2mask.run.ahead import side_by_side


@pytest.fixture
def begun(monkeypatch):
    """What was begun, as futures."""
    futures = []

    class Noted(ThreadPoolExecutor):
        def submit(self, *args, **more):
            futures.append(super().submit(*args, **more))
            return futures[-1]

    monkeypatch.setattr("tag2mask.run.ahead.ThreadPoolExecutor", Noted)
    return futures


class Counting:
    """Work that notes what is worked on at once."""

    def __init__(self, parties=1):
        self.now, self.seen, self.lock = [], [], threading.Lock()
        self.together = threading.Barrier(parties)

    def __call__(self, item):
        with self.lock:
            self.now.append(item)
            self.seen.append(tuple(self.now))
        if self.together.parties > 1:
            self.together.wait(timeout=60)
        with self.lock:
            self.now.remove(item)
        return item, -item


def test_results_come_in_order():
    assert list(side_by_side(lambda i: -i, range(50), 4)) == [-i for i in range(50)]


def test_no_finished_result_waits_for_more_than_the_next_item(begun):
    """However few items wait: what is given out can be written, and a killed run keeps it."""
    given, behind = [], []

    def items():
        for i in range(8):
            wait(begun)  # slow enough that all before is finished
            behind.append(i - len(given))
            yield i

    for result in side_by_side(lambda i: i, items(), 4):
        given.append(result)
    assert given == list(range(8))
    assert max(behind) <= 1  # the one that was begun last


def test_an_unfinished_result_lets_the_others_begin(begun):
    """As many as there may be; the first is finished once these are begun."""
    release, taken = threading.Event(), []

    def items():
        for i in range(20):
            taken.append(i)
            if i == 8:
                release.set()
            yield i

    def work(i):
        if i == 0:
            assert release.wait(timeout=60)
        return i

    assert list(side_by_side(work, items(), 4)) == list(range(20))
    assert len(begun) == len(taken) == 20


def test_few_results_wait(begun):
    reader = side_by_side(lambda i: i, iter(range(10**9)), 2)
    assert [next(reader) for _ in range(10)] == list(range(10))
    assert len(begun) <= 10 + 5
    reader.close()


@pytest.mark.parametrize("most", [1, 10, 12])
def test_what_is_worked_on_at_once_weighs_no_more_than_it_may(most):
    items = [5, 5, 5, 3, 30, 1, 1, 9, 2, 4, 30, 30, 6] * 4
    work = Counting()
    found = list(side_by_side(work, items, 4, weigh=lambda item: item, most=most))
    assert found == [(item, -item) for item in items]
    assert all(len(now) == 1 or sum(now) <= most for now in work.seen)


def test_results_that_wait_weigh_too(begun):
    """They hold as much memory as what is worked on."""
    weights, given, held = [4, 4, 4, 4, 30, 4], [], []

    def work(i):
        if i == 0:
            while len(begun) < 2:
                threading.Event().wait(0.001)
            wait(begun[1:])  # those that may begin beside it are finished, and wait for it
        held.append(weights[len(given) : len(begun)])
        return i

    for result in side_by_side(work, range(6), 2, weigh=weights.__getitem__, most=9):
        given.append(result)
    assert given == list(range(6))
    assert [4, 4] in held
    assert all(len(each) <= 1 or sum(each) <= 9 for each in held)


def test_light_items_are_worked_on_at_once():
    work = Counting(parties=3)
    assert len(list(side_by_side(work, [1] * 9, 3, weigh=lambda item: item, most=3))) == 9
    assert max(map(len, work.seen)) == 3


def test_an_error_comes_in_its_place_and_ends_the_threads():
    before = threading.active_count()
    reader = side_by_side(lambda i: 1 // (3 - i), range(100), 2)
    assert [next(reader) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(reader)
    assert threading.active_count() == before


@pytest.mark.parametrize("where", ["work", "reader"])
def test_a_reader_that_stops_early_is_told_of_a_wait(where):
    told, begun, may_end = [], threading.Event(), threading.Event()

    def stopping():
        told.append("stopping")
        may_end.set()

    def work(item):
        if where == "work" and item == 1:
            assert begun.wait(60)
            raise KeyboardInterrupt
        if item == 2:
            begun.set()
            assert may_end.wait(60)
        return item

    results = side_by_side(work, range(9), 2, stopping=stopping)
    assert next(results) == 0
    if where == "work":
        with pytest.raises(KeyboardInterrupt):
            list(results)
    else:
        next(results)  # 1, and 2 is submitted by then
        results.close()
    assert told == ["stopping"]


def test_where_nothing_is_waited_for_nothing_is_said():
    told = []
    assert list(side_by_side(lambda i: i, range(3), 2, stopping=lambda: told.append(1))) == [0, 1, 2]
    results = side_by_side(lambda i: i, range(1), 2, stopping=lambda: told.append(1))
    next(results)
    results.close()
    assert not told
