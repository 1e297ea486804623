from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from pydantic import BaseModel

from tag2mask.run import files
from tag2mask.run.artefacts import check_id
from tag2mask.run.files import atomic_path, write_atomic
from tag2mask.run.folder import Run
from tag2mask.run.lock import Lock
from tag2mask.run.manifest import LastWords, Manifest, Record, merge_manifests, read_manifest
from tag2mask.run.scores import encode_scores, read_scores
from tag2mask.run.settings import describe_differences, plain
from tag2mask.run.shard import find_shard, in_shard, parse_shard
from tag2mask.types import Constant, MaskRule, Own, Power, Scores, UserError

SETTINGS = {"method": "toy", "options": {"t": 2}, "keep_scores": True}


def some_scores(**more) -> Scores:
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(2, 3, 5, generator=generator)
    return replace(Scores(torch.tensor([3, 7]), maps, (40, 50)), **more)


def put(run: Run, id: str, scores: Scores | None = None) -> None:
    run.write(id, mask=b"mask", confidence=b"confidence", scores=scores or some_scores())
    run.record(id, "ok", {"method": 0.5})


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


# --- ids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["", "/etc/passwd", "../a", "a/../../b", "a//b", "./a", "a/", "a\\b", "a\0b"])
def test_ids_cannot_leave_the_folder(tmp_path, id):
    with pytest.raises(UserError, match="image id"):
        Run(tmp_path, {}, {}).mask_path(id)


@pytest.mark.parametrize("id", ["2007_000032", "train/a.b.c", "..a", "a..", "ü/日本 1"])
def test_ids_name_files_below_the_folder(tmp_path, id):
    run = Run(tmp_path, {}, {})
    assert check_id(id) == id
    assert run.mask_path(id) == tmp_path / "masks" / f"{id}.png"
    assert run.confidence_path(id) == tmp_path / "confidence" / f"{id}.png"
    assert run.scores_path(id) == tmp_path / "scores" / f"{id}.npz"


# --- the folder --------------------------------------------------------------------------------------------------


def test_a_run_is_read_back(tmp_path):
    with Run.create(tmp_path / "deep" / "run", SETTINGS, noted={"torch": "2"}) as run:
        assert not run.finished("b/x.1")
        put(run, "b/x.1")
        put(run, "a")
        run.record("c", "failed", error="is empty")
        assert run.finished("b/x.1")
    read = Run.open(tmp_path / "deep" / "run")
    assert read.ids() == ["a", "b/x.1"]
    assert read.settings == SETTINGS
    assert read.noted["torch"] == "2"
    assert read.records()["c"].error == "is empty"
    assert read.records()["a"].seconds == {"method": 0.5}
    assert read.scores("a").size == (40, 50)
    assert not list(read.path.rglob("*.tmp"))
    with pytest.raises(RuntimeError, match="opened to read"):
        read.record("a", "ok")


def test_the_mask_is_written_last(tmp_path, monkeypatch):
    order = []
    keep = os.replace
    with Run.create(tmp_path, SETTINGS) as run:
        monkeypatch.setattr(files.os, "replace", lambda a, b: (order.append(b.parent.name), keep(a, b)))
        put(run, "a")
    assert order == ["scores", "confidence", "masks"]


@pytest.mark.parametrize("kind", ["mask", "confidence", "scores"])
@pytest.mark.parametrize("how", ["gone", "empty"])
def test_an_image_without_one_of_its_artefacts_is_not_finished(tmp_path, kind, how):
    with Run.create(tmp_path, SETTINGS) as run:
        put(run, "a")
        path = getattr(run, f"{kind}_path")("a")
        path.unlink() if how == "gone" else path.write_bytes(b"")
        assert not run.finished("a")


def test_without_scores_kept_none_are_missed(tmp_path):
    with Run.create(tmp_path, {**SETTINGS, "keep_scores": False}) as run:
        run.write("a", mask=b"m", confidence=b"c", scores=None)
        assert run.finished("a")


def test_other_settings_are_refused_and_named(tmp_path):
    with Run.create(tmp_path, SETTINGS) as run:
        put(run, "a")
    before = (tmp_path / "run.yaml").read_bytes()
    with pytest.raises(UserError, match=r"options\.t is 2 there and 3 now.*--overwrite"):
        Run.create(tmp_path, {**SETTINGS, "options": {"t": 3}})
    with pytest.raises(UserError, match="extra is absent there and 1 now"):
        Run.create(tmp_path, {**SETTINGS, "extra": 1})
    assert (tmp_path / "run.yaml").read_bytes() == before
    with Run.create(tmp_path, SETTINGS) as run:  # the refusals have let go of the lock
        assert run.finished("a")


def test_overwrite_removes_what_we_made_and_nothing_else(tmp_path):
    with Run.create(tmp_path, SETTINGS) as run:
        put(run, "deep/a")
        run.write_summary(b"{}")
        write_atomic(run.checkpoints / "net" / "last.pt", b"1")
        write_atomic(tmp_path / "metrics.json", b"{}")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "masks" / "deep" / "notes.txt").write_text("mine too")
    with Run.create(tmp_path, {**SETTINGS, "method": "other"}, overwrite=True) as run:
        assert run.ids() == []
        assert run.records() == {}
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert [name for name in left if not name.startswith(".")] == [
        "manifest.0-of-1.jsonl",
        "masks/deep/notes.txt",
        "notes.txt",
        "run.yaml",
    ]
    assert Run.open(tmp_path).settings["method"] == "other"


def test_overwrite_of_one_shard_with_equal_settings_spares_the_other(tmp_path):
    ids = [f"image{i}" for i in range(20)]
    for index in (0, 1):
        with Run.create(tmp_path, SETTINGS, shard=(index, 2)) as run:
            for id in ids:
                if in_shard(id, (index, 2)):
                    put(run, id)
    Run.create(tmp_path, SETTINGS, shard=(0, 2), overwrite=True).close()
    assert Run.open(tmp_path).ids() == sorted(id for id in ids if in_shard(id, (1, 2)))
    assert set(Run.open(tmp_path).records()) == {id for id in ids if in_shard(id, (1, 2))}


def test_overwrite_with_other_settings_waits_for_no_living_shard(tmp_path):
    with Run.create(tmp_path, SETTINGS, shard=(0, 2)) as run:
        put(run, "a")
        with pytest.raises(UserError, match="is being written by process"):
            Run.create(tmp_path, {"method": "other"}, shard=(1, 2), overwrite=True)
        assert run.finished("a")


@pytest.mark.parametrize("run_yaml", [None, "lr: 0.1\n", "[1, 2]\n"])
def test_a_foreign_folder_is_never_used(tmp_path, run_yaml):
    (tmp_path / "thesis.docx").write_text("precious")
    if run_yaml:
        (tmp_path / "run.yaml").write_text(run_yaml)
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not empty and is no run of ours"):
            Run.create(tmp_path, SETTINGS, overwrite=overwrite)
    with pytest.raises(UserError, match="is no run of tag2mask"):
        Run.open(tmp_path)
    assert sorted(name for name in os.listdir(tmp_path) if not name.startswith(".")) == sorted(
        ["thesis.docx", *(["run.yaml"] if run_yaml else [])]
    )


def test_a_folder_with_hidden_files_alone_counts_as_empty(tmp_path):
    (tmp_path / ".DS_Store").write_text("")
    Run.create(tmp_path, SETTINGS).close()


def test_a_damaged_run_yaml_is_said(tmp_path):
    (tmp_path / "run.yaml").write_text("made_by: tag2mask 0\nsettings: {a: [1")
    with pytest.raises(UserError, match="not readable"):
        Run.create(tmp_path, SETTINGS)


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Run.create(tmp_path / "file" / "run", SETTINGS)

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir", read_only)
    with pytest.raises(UserError, match=r"Read-only file system\); choose a folder"):
        Run.create(tmp_path / "new", SETTINGS)


def test_changed_circumstances_warn(tmp_path):
    Run.create(tmp_path, SETTINGS, noted={"threads": 2, "data_root": "a"}).close()
    with pytest.warns(UserWarning, match="threads is 2 there and 4 now"):
        Run.create(tmp_path, SETTINGS, noted={"threads": 4, "data_root": "b"}).close()
    assert Run.open(tmp_path).noted["threads"] == 2


# --- the lock ----------------------------------------------------------------------------------------------------


def test_a_living_writer_keeps_others_out_of_its_shard_only(tmp_path):
    with Run.create(tmp_path, SETTINGS, shard=(0, 2)):
        with pytest.raises(UserError, match=rf"shard 0/2 of .* is being written by process {os.getpid()} on "):
            Run.create(tmp_path, SETTINGS, shard=(0, 2))
        Run.create(tmp_path, SETTINGS, shard=(1, 2)).close()
    Run.create(tmp_path, SETTINGS, shard=(0, 2)).close()


@pytest.mark.parametrize(("first", "second"), [((0, 2), (0, 1)), ((0, 1), (1, 2)), ((1, 3), (1, 2))])
@pytest.mark.parametrize("overwrite", [False, True])
def test_shards_of_another_count_share_images_and_are_kept_out(tmp_path, first, second, overwrite):
    id = next(id for id in map(str, range(99)) if in_shard(id, first) and in_shard(id, second))
    with Run.create(tmp_path, SETTINGS, shard=first) as run:
        put(run, id)
        with pytest.raises(UserError, match=rf"shard {first[0]}/{first[1]} of .* is being written by process"):
            Run.create(tmp_path, SETTINGS, shard=second, overwrite=overwrite)
        assert run.finished(id)
    with Run.create(tmp_path, SETTINGS, shard=second) as run:  # the dead lock is free, the refused one let go
        assert run.finished(id)


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from tag2mask.run.lock import Lock\n"
        "lock = Lock(Path(sys.argv[1]), 'it'); print('held', flush=True); sys.stdin.read()"
    )
    path = tmp_path / ".0-of-1.lock"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {child.pid} on"):
        Lock(path, "it")
    child.kill()
    child.wait()
    assert path.exists()
    Lock(path, "it").release()
    child.stdin.close()
    child.stdout.close()


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


def test_the_last_word_counts(tmp_path):
    one, two = Manifest(tmp_path / "manifest.0-of-2.jsonl"), Manifest(tmp_path / "manifest.1-of-2.jsonl")
    one.append(Record("a", "failed", at=5))
    one.append(Record("a", "ok", at=6))
    two.append(Record("a", "failed", at=4))
    two.append(Record("b", "ok", at=4))
    merged = merge_manifests([*tmp_path.glob("*.jsonl")])
    assert {id: record.status for id, record in merged.items()} == {"a": "ok", "b": "ok"}


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
    wanted = Run.open(tmp_path).records()
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


# --- settings and shards -----------------------------------------------------------------------------------------


def test_settings_survive_yaml():
    class Options(BaseModel):
        t: tuple[int, ...] = (1, 2)

    rule = MaskRule(background=Power(4), mu=0.95)
    settings = plain({"o": Options(), "rule": rule, "own": Own(), "c": Constant(1e-5), "p": files.Path("a/b")})
    assert settings["rule"]["background"] == {"power": 4}
    assert settings["own"] == "own"
    assert yaml.safe_load(yaml.safe_dump(settings)) == settings
    assert describe_differences(settings, settings) == ""
    with pytest.raises(TypeError, match="Tensor"):
        plain({"a": torch.zeros(1)})


def test_long_lists_show_where_they_differ():
    names = [f"a rather long name of class {i}" for i in range(9)]
    told = describe_differences({"texts": {"names": names}}, {"texts": {"names": [*names[:7], "cat", names[8]]}})
    assert told == "texts.names[7] is 'a rather long name of class 7' there and 'cat' now"
    assert describe_differences({"a": [1, 2]}, {"a": [1, 3]}) == "a is [1, 2] there and [1, 3] now"


def test_every_image_is_in_exactly_one_shard():
    ids = [f"2008_{i:06}" for i in range(500)]
    owners = [[i for i in range(7) if in_shard(id, (i, 7))] for id in ids]
    assert all(len(owner) == 1 for owner in owners)
    assert min(np.bincount([owner[0] for owner in owners])) > 40
    assert in_shard("123456789", (0xCBF43926 % 1000, 1000))  # the published check value of CRC-32


@pytest.mark.parametrize("text", ["1", "a/b", "2/2", "-1/2", "0/0"])
def test_what_is_no_shard(text):
    with pytest.raises(UserError, match="shard"):
        parse_shard(text)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "4"}, (2, 4)),
        ({"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}, (3, 4)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "14",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            (2, 3),
        ),
    ],
)
def test_the_shard_of_a_cluster_job(environ, expected):
    assert find_shard(None, environ) == expected
    assert find_shard("1/3", environ) == (1, 3)


def test_a_broken_environment_is_said():
    with pytest.raises(UserError, match="give --shard"):
        find_shard(None, {"RANK": "first", "WORLD_SIZE": "2"})
    with pytest.raises(UserError, match="count from 0"):
        find_shard(None, {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "4"})
