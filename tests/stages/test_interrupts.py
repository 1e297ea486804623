"""kill -9 at any moment and start again: the folder ends up with the bytes of a run that was never killed.

The toy's results depend on which images share a batch, far more than any rounding does, so a batch that is put
together differently after the kill does not go unnoticed. Where the system allows, children are forked from a
server that has everything imported.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from methods.toys import CLASSES, Neighbourly, make_data
from run_folders import artefacts, die_at_file
from tag2mask.run.folder import Run
from tag2mask.stages.label import label
from tag2mask.types import UserError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no kill -9")

COUNT = 26
IMAGES_OF_A_BATCH = 3


def start_method() -> str:
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


context = multiprocessing.get_context(start_method())
if start_method() == "forkserver":
    context.set_forkserver_preload(["tag2mask.stages.label", "methods.toys"])


def work(images: Path, out: Path, seconds: float = 0.0, die_at: int | None = None, shard: tuple[int, int] = (0, 1)):
    """Label in a process of its own; ``die_at``: kill -9 just before the so-manieth file gets its name."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs start with Ctrl-C ignored
    die_at_file(die_at)
    method = Neighbourly(CLASSES)
    method.seconds = seconds
    try:
        label(
            make_data(images, COUNT),
            method,
            out,
            shard=shard,
            batch_size=IMAGES_OF_A_BATCH,
            progress=False,
        )
    except KeyboardInterrupt as stop:
        (out / ".said").write_text(str(stop))
        sys.exit(130)


def start(*arguments, **more):
    process = context.Process(target=work, args=arguments, kwargs=more)
    process.start()
    return process


def finish(*arguments, **more) -> int:
    process = start(*arguments, **more)
    process.join(60)
    return process.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("whole")
    make_data(folder / "images", COUNT)
    assert finish(folder / "images", folder / "run") == 0
    found = artefacts(folder / "run")
    assert len(found) == 3 * COUNT
    return folder / "images", found


def test_the_toy_notices_another_batch(whole, tmp_path):
    """Otherwise the other tests would show nothing."""
    images, expected = whole
    method = Neighbourly(CLASSES)
    label(make_data(images, COUNT), method, tmp_path / "run", batch_size=IMAGES_OF_A_BATCH + 1, progress=False)
    found = artefacts(tmp_path / "run")
    assert sum(found[name] != expected[name] for name in expected) > len(expected) / 2


@pytest.mark.parametrize("die_at", [1, 2, 3, 4, 5, 12, 40])
def test_killed_before_a_given_file_is_there(whole, tmp_path, die_at):
    images, expected = whole
    assert finish(images, tmp_path / "run", die_at=die_at) == -signal.SIGKILL
    left = artefacts(tmp_path / "run")
    assert {name: data for name, data in left.items() if not name.endswith(".tmp")}.items() <= expected.items()
    masks = list((tmp_path / "run").glob("masks/*/*.png"))
    assert len(masks) == max(0, die_at - 3) // 3  # run.yaml and classes.json, then three an image, the mask last
    assert finish(images, tmp_path / "run") == 0
    assert artefacts(tmp_path / "run") == expected


def test_killed_again_and_again_at_random_moments(whole, tmp_path):
    images, expected = whole
    chance = random.Random(7)
    kills = 0
    while True:
        process = start(images, tmp_path / "run", seconds=0.01)
        done = len(list((tmp_path / "run").glob("masks/*/*.png")))
        wanted = done + chance.randint(1, 6)
        deadline = time.monotonic() + 30
        while process.is_alive() and len(list((tmp_path / "run").glob("masks/*/*.png"))) < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(chance.random() * 0.02)
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        kills += 1
    assert kills >= 3
    assert artefacts(tmp_path / "run") == expected
    records = Run.open(tmp_path / "run").records()
    assert {record.status for record in records.values()} <= {"ok"}


def test_ctrl_c_says_what_is_saved_and_how_to_go_on(whole, tmp_path):
    images, expected = whole
    process = start(images, tmp_path / "run", seconds=0.05)
    while len(list((tmp_path / "run").glob("masks/*/*.png"))) < 4:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130
    said = (tmp_path / "run" / ".said").read_text()
    saved = len(Run.open(tmp_path / "run").ids())
    assert 4 <= saved < COUNT
    assert f"{saved} of {COUNT} images are saved" in said
    assert "same command again" in said
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert (tmp_path / "run" / "summary.0-of-1.json").exists()
    assert finish(images, tmp_path / "run") == 0
    assert artefacts(tmp_path / "run") == expected


def test_two_shards_at_once_and_one_of_them_killed(whole, tmp_path):
    """Shards side by side do not disturb each other; a shard that is killed goes on like a whole run."""
    images, _ = whole
    for name in ("calm", "killed"):
        pair = [start(images, tmp_path / name, shard=(i, 2)) for i in (0, 1) if name == "calm" or i == 0]
        if name == "killed":
            assert finish(images, tmp_path / name, shard=(1, 2), die_at=8) == -signal.SIGKILL
        for process in pair:
            process.join(60)
            assert process.exitcode == 0
    assert finish(images, tmp_path / "killed", shard=(1, 2)) == 0
    found = artefacts(tmp_path / "calm")
    assert len(found) == 3 * COUNT
    assert artefacts(tmp_path / "killed") == found


def test_a_second_writer_is_kept_out_while_the_first_lives(whole, tmp_path):
    images, expected = whole
    process = start(images, tmp_path / "run", seconds=0.05)
    while not list((tmp_path / "run").glob("masks/*/*.png")):
        time.sleep(0.005)
    method = Neighbourly(CLASSES)
    with pytest.raises(UserError, match=f"is being written by process {process.pid} on"):
        label(make_data(images, COUNT), method, tmp_path / "run", batch_size=IMAGES_OF_A_BATCH, progress=False)
    process.kill()
    process.join()
    assert finish(images, tmp_path / "run") == 0
    assert artefacts(tmp_path / "run") == expected
