from __future__ import annotations

import errno
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from methods.toys import CLASSES, Neighbourly, Refiner, TinyData, TrainingFree, forbidden, make_data
from run_folders import artefacts
from tag2mask.data.image import BadImage
from tag2mask.data.png import read_confidence, read_mask
from tag2mask.methods import METHODS, known_methods, make_method, make_options
from tag2mask.run import files
from tag2mask.run.device import resident_memory
from tag2mask.run.folder import Run
from tag2mask.run.manifest import Manifest
from tag2mask.run.settings import plain
from tag2mask.stages.label import label
from tag2mask.stages.machinery.plan import plan
from tag2mask.types import Item, MaskRule, Sample, Scores, TextSet, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def toy(kind=TrainingFree, **options):
    return kind(CLASSES, kind.Options(**options))


def quiet(data, out, method=None, **more):
    return label(data, method or toy(), out, progress=False, **more)


@pytest.fixture
def data(tmp_path) -> TinyData:
    return make_data(tmp_path / "images")


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


# --- the stage ---------------------------------------------------------------------------------------------------


def test_what_a_run_leaves(data, tmp_path):
    summary = quiet(data, tmp_path / "run")
    assert (summary.total, summary.done, summary.complete) == (12, 12, True)
    assert set(summary.seconds) == {"decode", "method", "masks", "write"}
    assert min(summary.seconds.values()) > 0
    assert summary.images_per_second > 0
    assert summary.peak_memory > 10 << 20
    on_disk = json.loads((tmp_path / "run" / "summary.0-of-1.json").read_text())
    assert on_disk["done"] == 12
    run = Run.open(tmp_path / "run")
    assert run.ids() == sorted(sample.id for sample in data)
    assert run.settings["classes"]["names"] == list(CLASSES.names)
    assert run.settings["mask_rule"]["background"] == {"power": 1.0}
    assert run.settings["options"] == {"gain": 1.0}
    assert run.images == 12
    assert run.noted["threads"] == torch.get_num_threads()
    record = run.records()[data[0].id]
    assert record.status == "ok"
    assert set(record.seconds) == {"decode", "method", "masks", "write"}
    with Image.open(run.mask_path(data[0].id)) as image:
        assert image.getpalette()[:12] == [channel for color in CLASSES.palette for channel in color]


def test_masks_show_the_blocks(data, tmp_path):
    """Blocks are bright on dark, so the mask of a tag lies where its channel is high."""
    quiet(data, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    for sample in data:
        pixels = np.asarray(Image.open(sample.image)).astype(int)
        mask = read_mask(run.mask_path(sample.id))
        confidence = read_confidence(run.confidence_path(sample.id))
        assert confidence.min() >= 0.5 - 1 / 255  # Eq. 8 is never below a half
        for tag in sample.tags:
            inside = pixels[..., tag - 1][mask == tag]
            assert len(inside)
            assert inside.mean() > 150


def test_a_second_run_does_nothing_and_changes_nothing(data, tmp_path):
    quiet(data, tmp_path / "run")
    before = artefacts(tmp_path / "run")
    method = toy()
    method.scores = lambda items: pytest.fail("called again")
    summary = quiet(data, tmp_path / "run", method)
    assert (summary.done, summary.skipped) == (0, 12)
    assert artefacts(tmp_path / "run") == before


def test_a_missing_sibling_is_made_again(data, tmp_path):
    quiet(data, tmp_path / "run")
    before = artefacts(tmp_path / "run")
    Run.open(tmp_path / "run").confidence_path(data[3].id).unlink()
    assert quiet(data, tmp_path / "run").done == 1
    assert artefacts(tmp_path / "run") == before


def test_unknown_tags_are_skipped_and_no_tags_are_background(data, tmp_path):
    data.samples[1] = replace(data[1], tags=None)
    data.samples[2] = replace(data[2], tags=())
    seen = []
    method = toy()
    found = method.scores
    method.scores = lambda items: (seen.extend(item.id for item in items), found(items))[1]
    summary = quiet(data, tmp_path / "run", method, batch_size=4)
    assert (summary.done, summary.no_tags, summary.failed) == (11, 1, 0)
    run = Run.open(tmp_path / "run")
    assert data[1].id not in run.ids()
    assert (run.records()[data[1].id].status, run.records()[data[1].id].error) == ("skipped", "no tags")
    assert not read_mask(run.mask_path(data[2].id)).any()
    assert (read_confidence(run.confidence_path(data[2].id)) == 1).all()
    assert run.scores(data[2].id).tags.numel() == 0
    assert not {data[1].id, data[2].id} & set(seen)


def test_two_shards_are_one_run_whatever_the_batch_size(data, tmp_path):
    quiet(data, tmp_path / "one")
    shards = [quiet(data, tmp_path / "two", shard=(i, 2)) for i in (0, 1)]
    assert sum(shard.total for shard in shards) == 12
    assert all(0 < shard.done == shard.total for shard in shards)
    assert artefacts(tmp_path / "two") == artefacts(tmp_path / "one")
    assert len(Run.open(tmp_path / "two").records()) == 12
    for i in (0, 1):
        quiet(data, tmp_path / "batched", shard=(i, 2), batch_size=3)
    assert artefacts(tmp_path / "batched") == artefacts(tmp_path / "one")


def test_batches_hold_equal_grids_and_no_truth(data, tmp_path):
    method = toy()
    found, batches = method.scores, []

    def scores(items):
        batches.append(items)
        return found(items)

    method.scores = scores
    quiet(data, tmp_path / "run", method, batch_size=3)
    assert all(len({method.grid(tuple(item.image.shape[1:])) for item in items}) == 1 for items in batches)
    assert max(len(items) for items in batches) == 3
    for items in batches:
        for item in items:
            assert isinstance(item, Item)
            assert item.image.dtype == torch.uint8
            assert not any(callable(value) for value in vars(item).values())


def test_without_scores(data, tmp_path):
    quiet(data, tmp_path / "run", keep_scores=False)
    assert not (tmp_path / "run" / "scores").exists()
    assert quiet(data, tmp_path / "run", keep_scores=False).skipped == 12


def test_the_rule_decides_too(data, tmp_path):
    quiet(data, tmp_path / "run")
    with pytest.raises(UserError, match=r"mask_rule\.mu is None there and 0\.95 now"):
        quiet(data, tmp_path / "run", rule=MaskRule(mu=0.95))
    assert quiet(data, tmp_path / "run", rule=MaskRule(mu=0.95), overwrite=True).done == 12


def says(clip=None, **resolved):
    """A toy that has a CLIP, and options that took effect."""
    method = toy(
        type(
            "Says",
            (TrainingFree,),
            {"resolved": resolved, "__module__": TrainingFree.__module__, "__qualname__": "TrainingFree"},
        )
    )
    about = {"fingerprint": "f", **(clip or {})}
    method.towers = {"clip": SimpleNamespace(sha256="s", dtype=torch.float32, device="cpu", name="c", **about)}
    return method


def test_the_texts_decide_too(data, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "toy", f"{TrainingFree.__module__}:{TrainingFree.__qualname__}")
    texts = TextSet(("red", "green", "blue"), background=("sky",), per_class={"red": ("crimson",)})
    other = TextSet(("r", "g", "b"))

    def run(**sets):
        classes = replace(CLASSES, texts=sets)
        return quiet(replace(data, classes=classes), tmp_path / "run", says())

    run(toy=texts, another=other)
    kept = Run.open(tmp_path / "run").settings["classes"]["texts"]
    assert kept == {"toy": plain(texts)}
    assert run(toy=texts, another=texts).skipped == 12  # another method's
    for change, told in [
        ({"templates": ("a {}.",)}, "templates"),
        ({"background": ("sea",)}, "background"),
        ({"per_class": {"red": ("scarlet",)}}, r"per_class\.red"),
        ({"names": ("red", "green", "navy")}, "names"),
    ]:
        with pytest.raises(UserError, match=rf"classes\.texts\.toy\.{told} is"):
            run(toy=replace(texts, **change))
    with pytest.raises(UserError, match=r"classes\.texts\.toy-released\.names is absent"):
        run(**{"toy": texts, "toy-released": other})
    monkeypatch.delitem(METHODS, "toy")
    quiet(replace(data, classes=replace(CLASSES, texts={"another": other})), tmp_path / "unnamed", says())
    assert Run.open(tmp_path / "unnamed").settings["classes"]["texts"] == {"another": plain(other)}


def test_the_whole_clip_and_resolved_options_decide(data, tmp_path):
    quiet(data, tmp_path / "run", says(clip={"fingerprint": "f1"}, layers=2))
    assert Run.open(tmp_path / "run").settings["resolved"] == {"layers": 2}
    with pytest.raises(UserError, match=r"clip\.fingerprint is 'f1' there and 'f2' now"):
        quiet(data, tmp_path / "run", says(clip={"fingerprint": "f2"}, layers=2))
    with pytest.raises(UserError, match=r"resolved\.layers is 2 there and 3 now"):
        quiet(data, tmp_path / "run", says(clip={"fingerprint": "f1"}, layers=3))
    assert quiet(data, tmp_path / "run", says(clip={"fingerprint": "f1"}, layers=2)).skipped == 12


def test_what_is_only_noted_does_not_decide(data, tmp_path):
    quiet(data, tmp_path / "run", noted={"config": {"path": "/here"}})
    assert quiet(data, tmp_path / "run", noted={"config": {"path": "/there"}}).skipped == 12
    assert Run.open(tmp_path / "run").noted["config"] == {"path": "/there"}  # the data may have moved


def test_progress_goes_to_stderr(data, tmp_path, capsys):
    label(data, toy(), tmp_path / "run")
    out, err = capsys.readouterr()
    assert out == ""
    assert "label: 12/12" in err


# --- bad settings stop before any work ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"rule": MaskRule(refiner="clip-se")}, "clip-es"),
        ({"shard": (2, 2)}, "count from 0"),
        ({"method": "clip-se"}, "did you mean 'clip-es'"),
        ({"method": toy(Refiner)}, "give its folder as the prior"),
        ({"method": toy(Refiner), "prior": "nowhere"}, "no run of tag2mask"),
    ],
)
def test_bad_settings(data, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        quiet(data, tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"), [({"tags": (4,)}, "tags"), ({"tags": (0, 1)}, "tags"), ({"id": "../x"}, "image id")]
)
def test_bad_data(data, tmp_path, change, message):
    data.samples[5] = replace(data[5], **change)
    with pytest.raises(UserError, match=message):
        quiet(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_prior_must_fit(data, tmp_path):
    quiet(data, tmp_path / "first")
    with pytest.raises(UserError, match="cannot be both"):
        quiet(data, tmp_path / "first", toy(Refiner), prior=tmp_path / "first")
    other = TinyData(data.samples, data.root, replace(CLASSES, names=("background", "r", "g", "b")))
    with pytest.raises(UserError, match="other classes"):
        quiet(other, tmp_path / "second", toy(Refiner), prior=tmp_path / "first")
    Run.open(tmp_path / "first").mask_path(data[0].id).unlink()
    summary = quiet(data, tmp_path / "second", toy(Refiner), prior=tmp_path / "first")
    assert (summary.done, summary.failed) == (11, 1)
    assert "earlier run has no mask" in summary.errors[0][1]


def test_methods_by_name():
    assert known_methods()["clip-es"] == "tag2mask.methods.clip_es:ClipES"
    with pytest.raises(UserError, match=r"box_treshold\" is not known \(did you mean 'box_threshold'\?\)"):
        make_options("clip-es", {"box_treshold": 0.4})
    with pytest.raises(UserError, match="option steps = 0: input should be greater than or equal to 1"):
        make_options("clip-es", {"steps": 0})


def test_another_packages_method(monkeypatch, data, tmp_path):
    from importlib.metadata import EntryPoint

    points = [EntryPoint(name, value, "tag2mask.methods") for name, value in OTHERS.items()]
    monkeypatch.setattr("tag2mask.tables._points", lambda group: points if group == "tag2mask.methods" else [])
    assert known_methods()["clip-es"] == "tag2mask.methods.clip_es:ClipES"
    assert quiet(data, tmp_path / "run", make_method("toy", CLASSES, gain=0.5)).done == 12
    assert Run.open(tmp_path / "run").settings["method"] == "toy"
    assert Run.open(tmp_path / "run").settings["options"] == {"gain": 0.5}
    assert quiet(data, tmp_path / "run", toy(gain=0.5)).skipped == 12  # made by hand it is the same method
    with pytest.raises(UserError, match="does not import"):
        make_method("broken", CLASSES)


OTHERS = {
    "toy": "methods.toys:TrainingFree",
    "broken": "methods.toys:Missing",
    "clip-es": "methods.toys:TrainingFree",
}


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
        assert "RuntimeError: a strange image (test_label.py:" in reason
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
            self._file.write(b'{"id": "to')
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


# --- memory ------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    if resident_memory() is None:
        pytest.skip("this system does not tell")
    few = make_data(tmp_path / "images", count=3, sizes=((64, 64),))
    data = TinyData([replace(few[i % 3], id=f"{i:05}") for i in range(700)], few.root)
    method = toy()
    found, memory = method.scores, []

    def scores(items: Sequence[Item]) -> list[Scores]:
        memory.append(resident_memory())
        return found(items)

    method.scores = scores
    assert quiet(data, tmp_path / "run", method).done == 700
    assert max(memory[600:]) - max(memory[:200]) < 5 << 20
