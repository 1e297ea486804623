"""The same work in several processes."""

from __future__ import annotations

import importlib
import os
import sys

import pytest

from tag2mask.run import processes
from tag2mask.run.processes import cores, in_order

WORK = """
import os

PREPARED = []

def prepare():
    PREPARED.append(os.getpid())

def told(job):
    if job < 0:
        raise ValueError(f"no job {job}")
    return job * job, os.getpid(), os.getpid() in PREPARED
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A module that other processes find, too."""
    (tmp_path / "some_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("some_work")
    del sys.modules["some_work"]


def test_several_processes_answer_in_order(work):
    answers = list(in_order(work.told, range(20), 2, prepare=work.prepare))
    assert [square for square, _, _ in answers] == [job * job for job in range(20)]
    assert all(prepared and process != os.getpid() for _, process, prepared in answers)


@pytest.mark.parametrize(("jobs", "workers"), [(5, 1), (1, 4), (0, 4)])
def test_one_works_here_and_is_not_prepared(work, jobs, workers):
    answers = list(in_order(work.told, range(jobs), workers, prepare=work.prepare))
    assert answers == [(job * job, os.getpid(), False) for job in range(jobs)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_is_the_callers(work, workers):
    with pytest.raises(ValueError, match="no job -1"):
        list(in_order(work.told, [1, 2, -1], workers))


def test_cores_are_ours(monkeypatch):
    assert 1 <= cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(processes.os, "sched_getaffinity", raising=False)
    assert cores() == os.cpu_count()
