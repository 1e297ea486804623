"""Files of a run: written whole or not at all, and read back."""

from __future__ import annotations

import io
import json
import os
import zipfile

import numpy as np
import pytest
import torch

from run.small_runs import SETTINGS, put, some_scores
from tag2mask.run import files
from tag2mask.run.files import atomic_path, write_atomic
from tag2mask.run.folder import Run
from tag2mask.run.manifest import LastWords, Manifest, Record, read_manifest
from tag2mask.run.scores import encode_scores, read_scores
from tag2mask.types import UserError

# --- files -------------------------------------------------------------------------------------------------------


def test_write_atomic_makes_folders_and_leaves_only_the_file(tmp_path):
    write_atomic(tmp_path / "a" / "b.bin", b"123", sync=True)
    write_atomic(tmp_path / "a" / "b.bin", b"45")
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"45"
    assert os.listdir(tmp_path / "a") == ["b.bin"]


@pytest.mark.parametrize("where", ["replace", "write"])
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, where):
    path = tmp_path / "b.bin"
    write_atomic(path, b"old")
    if where == "replace":
        monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "no")))
        failing = lambda: write_atomic(path, b"new")  # noqa: E731
    else:

        def failing():
            with atomic_path(path) as temporary:
                temporary.write_bytes(b"half")
                raise KeyboardInterrupt

    with pytest.raises((PermissionError, KeyboardInterrupt)):
        failing()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["b.bin"]


def test_a_name_of_the_greatest_length_can_be_written(tmp_path):
    write_atomic(tmp_path / ("x" * 251 + ".png"), b"1")
    assert len(os.listdir(tmp_path)) == 1


def test_with_a_token_the_next_writer_takes_up_what_a_killed_one_left(tmp_path):
    (tmp_path / ".shard.tmp").write_bytes(b"half of something much longer")
    write_atomic(tmp_path / "b.bin", b"whole", token="shard")
    assert (tmp_path / "b.bin").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["b.bin"]


# --- scores ------------------------------------------------------------------------------------------------------


def test_scores_come_back(tmp_path):
    given = some_scores(
        background=torch.rand(3, 5),
        frame=(48, 64),
        initial=torch.rand(2, 3, 5),
        boundary=torch.rand(3, 5),
        displacement=torch.rand(2, 3, 5) - 0.5,
    )
    (tmp_path / "a.npz").write_bytes(encode_scores(given))
    found = read_scores(tmp_path / "a.npz")
    assert found.tags.tolist() == [3, 7]
    assert found.tags.dtype == torch.int64
    assert (found.size, found.frame) == ((40, 50), (48, 64))
    for name in ("maps", "background", "initial", "boundary", "displacement"):
        assert getattr(found, name).dtype == torch.float32
        torch.testing.assert_close(getattr(found, name), getattr(given, name), atol=2**-11, rtol=0)
    (tmp_path / "b.npz").write_bytes(encode_scores(some_scores()))
    bare = read_scores(tmp_path / "b.npz")
    assert (bare.background, bare.frame, bare.initial) == (None, None, None)
    assert (bare.boundary, bare.displacement) == (None, None)


def test_equal_scores_are_equal_bytes_whenever_written(monkeypatch):
    first = encode_scores(some_scores())
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert encode_scores(some_scores()) == first
    assert encode_scores(some_scores(size=(40, 51))) != first
    assert {info.date_time for info in zipfile.ZipFile(io.BytesIO(first)).infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_scores_with_objects_are_not_unpickled(tmp_path):
    with Run.create(tmp_path / "run", SETTINGS) as run:
        put(run, "a")
        np.savez(run.scores_path("a"), tags=np.array([{"evil": 1}], dtype=object), size=np.array([1, 1]))
        with pytest.raises(UserError, match="damaged"):
            run.scores("a")
        with pytest.raises(UserError, match="no scores of b"):
            run.scores("b")


# --- the manifest ------------------------------------------------------------------------------------------------


def test_a_torn_line_is_passed_over_and_not_continued(tmp_path):
    path = tmp_path / "manifest.0-of-1.jsonl"
    manifest = Manifest(path)
    manifest.append(Record("a", "ok", {"method": 1.23456}))
    manifest.append(Record("b", "ok"))
    manifest.close()
    path.write_bytes(path.read_bytes()[:-9])
    assert [record.id for record in read_manifest(path)] == ["a"]
    manifest = Manifest(path)
    manifest.append(Record("c", "failed", error="is empty\nor so ü"))
    manifest.close()
    assert [record.id for record in read_manifest(path)] == ["a", "c"]
    assert [*read_manifest(path)][1].error == "is empty\nor so ü"
    assert all(json.loads(line) for line in path.read_bytes().splitlines() if line.endswith(b"}"))


@pytest.mark.parametrize(
    "wrong",
    [{"at": at} for at in (None, "x", [1], float("nan"), float("inf"), True, 10**400)]
    + [{"id": 5}, {"status": "odd"}, {"status": []}, {"error": 5}]
    + [{"seconds": seconds} for seconds in (None, [], {"read": "x"})]
    + [{"inputs": inputs} for inputs in (5, [1], {}, {"image": 5}, {"image": [float("inf"), 1, "0" * 32]})],
)
def test_a_line_of_other_kinds_is_passed_over(tmp_path, wrong):
    path = tmp_path / "manifest.0-of-1.jsonl"
    line = {"id": "a", "status": "ok", "seconds": {"read": 1}, "error": None, "at": 1}
    later = {**line, "status": "failed", "at": 2.0}
    path.write_text(
        "".join(json.dumps(each) + "\n" for each in (line, {**later, **wrong}, 5, None, {**line, "id": "b"}))
    )
    read = [(record.id, record.status, record.seconds) for record in LastWords([path])]
    assert read == [("a", "ok", {"read": 1}), ("b", "ok", {"read": 1})]


def test_the_last_word_counts(tmp_path):
    one, two = Manifest(tmp_path / "manifest.0-of-2.jsonl"), Manifest(tmp_path / "manifest.1-of-2.jsonl")
    one.append(Record("a", "failed", at=5))
    one.append(Record("a", "ok", at=6))
    two.append(Record("a", "failed", at=4))
    two.append(Record("b", "ok", at=4))
    merged = [(record.id, record.status) for record in LastWords(tmp_path.glob("*.jsonl"))]
    assert merged == [("a", "ok"), ("b", "ok")]


def test_the_last_words_are_those_of_the_records_also_while_a_writer_goes_on(tmp_path):
    with Run.create(tmp_path, {"method": "toy"}, shard=(0, 2)) as one:
        rng = np.random.default_rng(0)
        for number in rng.integers(0, 30, 200):
            one.record(f"image/{number}", ("ok", "failed", "skipped")[number % 3], {"read": float(number)})
    other = Manifest(tmp_path / "manifest.1-of-2.jsonl")
    for number in range(20, 40):
        other.append(Record(f"image/{number}", "ok", at=1.0 if number < 25 else 0.0))  # older, and as old as others
    torn = (tmp_path / "manifest.0-of-2.jsonl").open("ab")
    torn.write(b'{"id": "tor')
    torn.flush()
    found = Run.open(tmp_path).last_words()
    wanted: dict[str, Record] = {}
    for path in sorted(tmp_path.glob("manifest.*.jsonl")):
        for record in read_manifest(path):
            if record.id not in wanted or record.at >= wanted[record.id].at:
                wanted[record.id] = record
    assert Run.open(tmp_path).records() == wanted
    for _ in range(2):
        assert {record.id: record for record in found} == wanted
        assert len([*found]) == len(found) == len(wanted)
        assert all(id in found for id in wanted)
        assert "image/99" not in found
        other.append(Record("image/99", "ok"))  # what comes later is another matter
    assert "image/99" in Run.open(tmp_path).last_words()
    assert len(LastWords([])) == 0
    assert "a" not in LastWords([])


def test_a_line_is_in_the_file_at_once_and_a_name_may_be_any_bytes(tmp_path):
    manifest = Manifest(tmp_path / "m.jsonl")
    manifest.append(Record("bad\udc80name", "ok"))
    assert [record.id for record in read_manifest(tmp_path / "m.jsonl")] == ["bad\udc80name"]
