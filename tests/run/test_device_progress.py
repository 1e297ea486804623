from __future__ import annotations

import re
import threading
import time
from mmap import mmap

import pytest
import torch

from tag2mask.run import device as devices
from tag2mask.run import progress as bars
from tag2mask.run.ahead import ahead
from tag2mask.run.device import find_device, find_precision, peak_memory, resident_memory
from tag2mask.run.progress import progress
from tag2mask.types import UserError


def test_devices():
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type in {"cpu", "cuda", "mps"}
    for name in ("gpu", "cuda:99", "meta"):
        with pytest.raises(UserError, match=f'device "{name}"'):
            find_device(name)


@pytest.mark.parametrize(
    ("rank", "gpus", "expected"),
    [("2", 4, "cuda:2"), ("0", 1, "cuda:0"), ("3", 1, "cuda:0"), ("5", 4, "cuda:1"), (None, 4, "cuda")],
)
def test_each_process_of_torchrun_has_its_own_gpu(monkeypatch, rank, gpus, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert find_device("auto") == torch.device(expected)
    assert find_device("cuda:0") == torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto").type in {"cpu", "mps"}


def test_precisions(monkeypatch):
    cpu = torch.device("cpu")
    assert find_precision("float32", cpu) is torch.float32
    with pytest.raises(UserError, match="expected float32, bfloat16, float16"):
        find_precision("fp8", cpu)
    with pytest.raises(UserError, match="use float32 or bfloat16"):
        find_precision("float16", cpu)
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: False)
    with pytest.warns(UserWarning, match="quicker"):
        assert find_precision("bfloat16", cpu) is torch.bfloat16


def test_memory_is_in_bytes():
    peak, now = peak_memory(), resident_memory()
    assert peak is not None
    block = mmap(-1, 64 << 20)  # fresh pages: an array may land on memory that was freed but kept
    block.write(b"1" * (64 << 20))
    assert peak_memory() >= peak
    if now is not None:
        assert 48 << 20 < resident_memory() - now < 128 << 20
    block.close()


def test_plain_lines_where_there_is_no_terminal(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: clock[0])
    with progress(200, "label") as bar:
        bar.advance(100, worked=False)  # found finished: no measure of speed
        for _ in range(20):
            clock[0] += 1
            bar.advance()
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "label: 105/200, 1 images/s, 1:35 left"
    assert len(set(lines)) == len(lines) == 4  # the last count is told once
    assert lines[-1].startswith("label: 120/200, 1 images/s")


def test_steps_are_counted_and_the_speed_is_of_images(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: clock[0])
    with progress(200, "train", counted="steps", each=8) as bar:
        bar.advance(100, worked=False)
        for _ in range(10):
            clock[0] += 1
            bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 105/200 steps, 8 images/s, 1:35 left"  # the time is by the step
    monkeypatch.setattr(bars.sys.stderr, "isatty", lambda: True, raising=False)
    with progress(2, "train", counted="steps", each=8) as bar:
        clock[0] += 1
        bar.advance(2)
    shown = re.sub(r"\x1b\[\S*?[a-zA-Z]", "", capsys.readouterr().err)
    assert "2/2 steps 16 images/s" in shown
    with progress(3, "evaluate") as bar:
        clock[0] += 1e-5
        bar.advance(3)
    assert "300,000 images/s" in capsys.readouterr().err


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(bars.sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress(["a", "b"], "read", unit="files")) == ["a", "b"]
    err = capsys.readouterr().err
    assert "2/2" in err
    assert "files/s" in err


def test_what_is_refused_before_it_began_shows_no_progress(capsys):
    with pytest.raises(ZeroDivisionError), progress(3, "render"):
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""

    def stop_after_one():
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(progress(stop_after_one(), "render"))
    assert "render: 1" in capsys.readouterr().err


def test_silence(capsys):
    assert list(progress(iter("abc"), "read", enabled=False)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_ahead_keeps_order_and_bounds():
    made = []

    def slow():
        for i in range(20):
            made.append(i)
            yield i

    reader = ahead(slow(), depth=2)
    assert next(reader) == 0
    time.sleep(0.2)
    assert len(made) <= 4  # one taken, two waiting, one in hand
    assert list(reader) == list(range(1, 20))


def test_ahead_passes_errors_on_in_their_place():
    def failing():
        yield 1
        raise ValueError("second")

    reader = ahead(failing())
    assert next(reader) == 1
    with pytest.raises(ValueError, match="second"):
        next(reader)


def test_ahead_ends_its_thread_when_the_reader_stops():
    before = threading.active_count()
    reader = ahead(iter(range(10**9)))
    next(reader)
    reader.close()
    assert threading.active_count() == before
