"""Bad images and bad disks while a run is labelled."""

from __future__ import annotations

import errno
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from methods.toys import Neighbourly, TinyData, TrainingFree, forbidden, make_data
from run_folders import artefacts
from stages.toy_runs import quiet, toy
from tag2mask.data.png import read_mask
from tag2mask.run import files
from tag2mask.run.folder import Run
from tag2mask.run.manifest import Manifest
from tag2mask.types import MaskRule, Sample, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path) -> TinyData:
    return make_data(tmp_path / "images")


# --- bad images never stop a run ---------------------------------------------------------------------------------


def test_bad_images_are_put_on_record_and_the_rest_is_done(tmp_path):
    data = make_data(tmp_path / "images", count=4)
    folder = tmp_path / "images"
    photo = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photo, "JPEG")
    (folder / "truncated.jpg").write_bytes(photo.getvalue()[: len(photo.getvalue()) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "x.jpg").mkdir()
    (folder / "text.jpg").write_text("no image")
    bad = ["truncated", "empty", "x", "text", "missing"]
    Image.new("RGB", (1, 1), (255, 0, 0)).save(folder / "dot.png")
    Image.new("RGB", (20000, 30), (255, 0, 0)).save(folder / "wide.png")
    samples = [Sample(name, folder / f"{name}.jpg", (1,), forbidden) for name in bad]
    samples += [Sample(name, folder / f"{name}.png", (1,), forbidden) for name in ("dot", "wide")]
    samples.append(Sample("truncated-empty", folder / "truncated.jpg", (), forbidden))
    data = TinyData([*samples[:4], *data.samples, *samples[4:]], data.root)
    summary = quiet(data, tmp_path / "run", batch_size=4)
    assert (summary.total, summary.done, summary.failed, summary.complete) == (12, 6, 6, True)
    run = Run.open(tmp_path / "run")
    records = run.records()
    assert {id for id, record in records.items() if record.status == "failed"} == {*bad, "truncated-empty"}
    assert "0 bytes" in records["empty"].error
    assert "folder" in records["x"].error
    assert "exist" in records["missing"].error
    assert set(run.ids()) == {sample.id for sample in data} - {*bad, "truncated-empty"}
    assert read_mask(run.mask_path("wide")).shape == (30, 20000)
    assert read_mask(run.mask_path("dot")).shape == (1, 1)
    text = summary.text()
    assert "6 of 12 images labelled, 6 failed" in text
    assert f"failed: empty: {records['empty'].error}" in text
    # mended, they are done by the next run, and nothing else is
    Image.fromarray(noise).save(folder / "empty.jpg")
    again = quiet(data, tmp_path / "run", batch_size=4)
    assert (again.done, again.skipped, again.failed) == (1, 6, 5)
    assert run.records()["empty"].status == "ok"


@pytest.mark.parametrize("problem", ["raise", "memory", "nan", "tags", "size", "shape", "count"])
def test_an_image_too_much_for_the_method_fails_alone(data, tmp_path, problem):
    class Picky(TrainingFree):
        def scores(self, items):
            found = super().scores(items)
            for i, item in enumerate(items):
                if item.id != data[4].id:
                    continue
                if problem == "raise":
                    raise RuntimeError("a strange\nimage")
                if problem == "memory" and len(items) > 1:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                if problem == "count":
                    return found[:-1]
                wrong = {
                    "nan": {"maps": found[i].maps * float("nan")},
                    "tags": {"tags": found[i].tags + 1},
                    "size": {"size": (1, 1)},
                    "shape": {"maps": found[i].maps[0]},
                }
                found[i] = replace(found[i], **wrong.get(problem, {}))
            return found

    summary = quiet(data, tmp_path / "run", toy(Picky), batch_size=4)
    if problem == "memory":  # alone there is room
        assert (summary.done, summary.failed) == (12, 0)
        return
    assert (summary.done, summary.failed) == (11, 1)
    id, reason = summary.errors[0]
    assert id == data[4].id
    assert "\n" not in reason
    assert problem != "nan" or "not finite" in reason
    if problem == "raise":
        assert "RuntimeError: a strange image (test_label_faults.py:" in reason
    reference = tmp_path / "reference"
    quiet(data, reference, batch_size=1)
    found, expected = artefacts(tmp_path / "run"), artefacts(reference)
    assert found == {name: value for name, value in expected.items() if data[4].id not in name}


def test_a_method_without_its_own_background_fails_image_by_image(data, tmp_path):
    from tag2mask.types import Own

    summary = quiet(data, tmp_path / "run", rule=MaskRule(background=Own()))
    assert (summary.done, summary.failed, len(summary.errors)) == (0, 12, 10)
    assert "background" in summary.errors[0][1]
    assert not artefacts(tmp_path / "run")


def test_an_id_too_long_for_the_disk_fails_alone(data, tmp_path):
    data.samples[3] = replace(data[3], id="long/" + "x" * 300)
    summary = quiet(data, tmp_path / "run")
    assert (summary.done, summary.failed) == (11, 1)
    assert "too long" in summary.errors[0][1]


# --- the disk ----------------------------------------------------------------------------------------------------


class FullDisk:
    """Stands for open(): after so many files, only half of each fits."""

    def __init__(self, good: int):
        self.left = good

    def __call__(self, path, mode):
        file = open(path, mode)  # noqa: SIM115
        self.left -= 1
        if self.left < 0:
            write = file.write

            class Half:
                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    file.close()

                def write(self, data):
                    write(data[: len(data) // 2])
                    raise OSError(errno.ENOSPC, "No space left on device")

            return Half()
        return file


@pytest.mark.parametrize("good", [1, 2, 3, 4, 8, 9])
def test_a_full_disk_stops_the_run_and_loses_nothing(data, tmp_path, monkeypatch, good):
    quiet(data, tmp_path / "whole", toy(Neighbourly), batch_size=2)
    with monkeypatch.context() as patch:
        patch.setattr(files, "open", FullDisk(good), raising=False)
        with pytest.raises(UserError) as stop:
            quiet(data, tmp_path / "run", toy(Neighbourly), batch_size=2)
    if good > 1:  # the first two files are run.yaml and classes.json
        saved = (good - 2) // 3
        assert f"{saved} of 12 images are saved" in str(stop.value)
        assert "same command again" in str(stop.value)
        assert len(Run.open(tmp_path / "run").ids()) == saved
    assert "No space left on device" in str(stop.value)
    assert not list((tmp_path / "run").rglob("*.tmp"))
    whole = artefacts(tmp_path / "whole")
    assert artefacts(tmp_path / "run").items() <= whole.items()
    quiet(data, tmp_path / "run", toy(Neighbourly), batch_size=2)
    assert artefacts(tmp_path / "run") == whole


def test_a_manifest_without_room_stops_the_run_too(data, tmp_path, monkeypatch):
    appended = []
    keep = Manifest.append

    def append(self, record):
        if len(appended) == 4:
            self._lines._file.write(b'{"id": "to')
            raise OSError(errno.ENOSPC, "No space left on device")
        appended.append(record)
        keep(self, record)

    monkeypatch.setattr(Manifest, "append", append)
    with pytest.raises(UserError, match="No space left on device"):
        quiet(data, tmp_path / "run")
    monkeypatch.undo()
    run = Run.open(tmp_path / "run")
    assert len(run.records()) == 4
    assert len(run.ids()) == 5  # the fifth is there without its line
    again = quiet(data, tmp_path / "run")
    assert again.done == 8  # nothing says what the fifth's mask is of
    assert "made again: 1 image without a manifest entry" in again.text()
    assert len(run.ids()) == 12


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_a_disk_that_turns_read_only(data, tmp_path, monkeypatch, number):
    quiet(data, tmp_path / "whole")
    keep, renamed = files.os.replace, []

    def replace_file(source, target):
        renamed.append(target)
        if len(renamed) > 6:
            raise OSError(number, files.os.strerror(number))
        keep(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", replace_file)
        with pytest.raises(UserError, match=files.os.strerror(number)):
            quiet(data, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.tmp"))
    quiet(data, tmp_path / "run")
    assert artefacts(tmp_path / "run") == artefacts(tmp_path / "whole")


def test_after_a_stop_the_folder_is_free_and_the_threads_are_gone(data, tmp_path, monkeypatch):
    import threading

    before = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr(files, "open", FullDisk(5), raising=False)
        with pytest.raises(UserError):
            quiet(data, tmp_path / "run")
    assert threading.active_count() == before
    summary = json.loads((tmp_path / "run" / "manifest.0-of-1.jsonl").read_text().splitlines()[0])
    assert summary["status"] == "ok"
    assert quiet(data, tmp_path / "run").complete
