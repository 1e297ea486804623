"""The same work in several processes."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time

import pytest

from tag2mask.run import processes
from tag2mask.run.processes import cores, in_order
from tag2mask.types import UserError

WORK = """
import os
import time

PREPARED = []

def prepare():
    PREPARED.append(os.getpid())

def told(job):
    if job < 0:
        raise ValueError(f"no job {job}")
    return job * job, os.getpid(), os.getpid() in PREPARED

def die(job):
    os._exit(7)

def large(job):
    return bytes(1_000_000)

class Odd(Exception):
    def __init__(self, one, two):
        super().__init__(one)

def odd(job):
    raise Odd(1, 2)

def sleep(job):
    if job:
        time.sleep(600)
    return os.getpid()
"""
SCRIPT = """
import signal
import some_work
from tag2mask.run.processes import in_order
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    for pid in in_order(some_work.sleep, [0, 1, 1, 1], 2):
        print(pid, flush=True)
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


def test_a_process_that_dies_is_named(work):
    with pytest.raises(UserError, match="one of 2 processes ended by itself"):
        list(in_order(work.die, [1, 2, 3], 2))


def test_large_results_and_a_stop_in_their_middle(work):
    for _ in range(6):
        answers = in_order(work.large, range(50), 2)
        assert len(next(answers)) == 1_000_000
        answers.close()
    assert len(list(in_order(work.large, range(5), 2))) == 5


def test_an_error_that_cannot_be_sent_is_told(work):
    with pytest.raises(RuntimeError, match="Odd: 1"):
        list(in_order(work.odd, [1, 2], 2))


def test_nobody_works_on_when_the_caller_stops_asking(work):
    began = time.monotonic()
    answers = in_order(work.sleep, [0, 1, 1, 1], 2)
    pid = next(answers)
    answers.close()
    assert time.monotonic() - began < 300  # not the ten minutes of a job
    assert _gone(pid)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no POSIX signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_the_caller_and_without_a_word(work, tmp_path, how):
    (tmp_path / "script.py").write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        start_new_session=True,
    ) as script:
        pid = int(script.stdout.readline())
        if how == signal.SIGINT:
            os.killpg(script.pid, how)  # as a terminal does it: to all of them
        else:
            script.kill()
        _, said = script.communicate(timeout=300)
    assert _gone(pid)
    assert said.count("Traceback") == (how == signal.SIGINT)  # the script's own


def _gone(pid: int) -> bool:
    for _ in range(600):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_cores_are_ours(monkeypatch):
    assert 1 <= cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(processes.os, "sched_getaffinity", raising=False)
    assert cores() == os.cpu_count()
