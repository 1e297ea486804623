"""Label with a dense CRF: masks made side by side, and which engine made them."""

from __future__ import annotations

import threading
import time
import warnings

import pytest
import torch

from methods.toys import CLASSES, TrainingFree, make_data
from run_folders import artefacts
from tag2mask.methods.protocol import Machine
from tag2mask.ops.compiled import trouble
from tag2mask.run.folder import Run
from tag2mask.stages.label import label
from tag2mask.stages.machinery import labeller
from tag2mask.types import MaskRule

RULE = MaskRule(refiner="clip-es")
needs_numba = pytest.mark.skipif(trouble() is not None, reason=str(trouble()))


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "images")


@pytest.fixture
def threads():
    """Sets the number of threads, for the test only."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def run(data, out, **more):
    return label(data, TrainingFree(CLASSES), out, rule=RULE, progress=False, **more)


@needs_numba
def test_masks_made_side_by_side_are_those_made_one_by_one(data, tmp_path, threads, monkeypatch):
    monkeypatch.setenv("TAG2MASK_CRF", "loops")
    at_once, most, lock = [], [], threading.Lock()
    real = labeller.pseudo_mask

    def watched(*args, **more):
        with lock:
            at_once.append(1)
            most.append(len(at_once))
        time.sleep(0.05)  # so that another can begin
        try:
            return real(*args, **more)
        finally:
            with lock:
                at_once.pop()

    monkeypatch.setattr(labeller, "pseudo_mask", watched)
    found = {}
    for count in (1, 3):
        most.clear()
        threads(count)
        assert run(data, tmp_path / f"run{count}").done == 12
        found[count] = artefacts(tmp_path / f"run{count}")
        assert max(most) == count
    assert found[1] == found[3]
    order = [list(Run.open(tmp_path / f"run{count}").records()) for count in (1, 3)]
    assert order[0] == order[1]  # written in the order of the data


class Watched(TrainingFree):
    """Notes how many calls there are at once, and with how many of torch's threads.

    The first calls wait for each other until ``wanted`` are there, however busy the machine is.
    """

    def __init__(self, classes, wanted):
        super().__init__(classes)
        self.wanted, self.at_once, self.most, self.threads = wanted, 0, 0, set()
        self.changed = threading.Condition()

    def scores(self, items):
        with self.changed:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            self.threads.add(torch.get_num_threads())
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.most >= self.wanted, timeout=20)
        time.sleep(0.02)  # so that one too many can begin
        with self.changed:
            self.at_once -= 1
        return super().scores(items)


@needs_numba
@pytest.mark.parametrize(
    ("side_by_side", "machine", "most", "each"),
    [
        (False, Machine(), 1, 4),  # the masks alone are made side by side
        (True, Machine(), 4, 1),
        (True, Machine(workers=2), 2, 2),
        (True, Machine(workers=0), 1, 4),
        (True, Machine(workers=99), 12, 1),  # of 12 images
    ],
)
def test_a_method_sees_several_batches_at_once_only_if_it_says_so(
    side_by_side, machine, most, each, data, tmp_path, threads, monkeypatch
):
    monkeypatch.setenv("TAG2MASK_CRF", "loops")
    threads(4)
    method = Watched(CLASSES, most)
    monkeypatch.setattr(Watched, "side_by_side", side_by_side)
    assert label(data, method, tmp_path / "run", rule=RULE, machine=machine, progress=False).done == 12
    assert (method.most, method.threads) == (most, {each})
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [torch.get_num_threads()] == [4]  # nobody else is left with the share of one


@needs_numba
def test_large_pictures_are_labelled_one_at_a_time(data, tmp_path, threads, monkeypatch):
    """What is worked on at once has a bounded number of pixels; one picture may have more."""
    monkeypatch.setenv("TAG2MASK_CRF", "loops")
    monkeypatch.setattr(Watched, "side_by_side", True)
    threads(4)
    found = {}
    for pixels, most in ((24_000_000, 4), (1, 1)):
        monkeypatch.setattr("tag2mask.stages.machinery.work.MOST_PIXELS", pixels)
        method, out = Watched(CLASSES, most), tmp_path / str(pixels)
        assert label(data, method, out, rule=RULE, progress=False).done == 12
        assert (method.most, method.threads) == (most, {1})
        found[pixels] = (artefacts(out), list(Run.open(out).records()))
    assert found[1] == found[24_000_000]


@needs_numba
def test_one_bad_mask_among_many_stops_no_other(data, tmp_path, threads, monkeypatch):
    monkeypatch.setenv("TAG2MASK_CRF", "loops")
    threads(3)
    real = labeller.pseudo_mask

    def poor(scores, image, rule, **more):
        if image.shape == first.shape and torch.equal(image, first):
            raise RuntimeError("no mask of this one")
        return real(scores, image, rule, **more)

    from tag2mask.data.image import read_image

    first = torch.from_numpy(read_image(data[0].image)).permute(2, 0, 1)
    monkeypatch.setattr(labeller, "pseudo_mask", poor)
    summary = run(data, tmp_path / "run")
    assert summary.failed >= 1
    assert summary.done == 12 - summary.failed
    assert "no mask of this one" in summary.errors[0][1]


@needs_numba
def test_a_run_that_goes_on_with_another_engine_says_so(data, tmp_path, monkeypatch):
    monkeypatch.setenv("TAG2MASK_CRF", "torch")
    run(data, tmp_path / "run")
    assert Run.open(tmp_path / "run").noted["crf_engine"] == "torch"
    monkeypatch.setenv("TAG2MASK_CRF", "loops")
    with pytest.warns(UserWarning, match="crf_engine is 'torch' there and 'loops' now"):
        assert run(data, tmp_path / "run").skipped == 12


@needs_numba
def test_a_run_that_noted_no_engine_was_by_torch(data, tmp_path, monkeypatch):
    monkeypatch.setenv("TAG2MASK_CRF", "torch")
    run(data, tmp_path / "run")
    document = tmp_path / "run" / "run.yaml"
    lines = [line for line in document.read_text().splitlines(keepends=True) if "crf_engine" not in line]
    document.write_text("".join(lines))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(data, tmp_path / "run")  # nothing to say
    monkeypatch.setenv("TAG2MASK_CRF", "loops")
    with pytest.warns(UserWarning, match="crf_engine is 'torch' there and 'loops' now"):
        run(data, tmp_path / "run")


def test_a_run_without_a_crf_notes_no_engine(data, tmp_path):
    label(data, TrainingFree(CLASSES), tmp_path / "run", progress=False)
    assert "crf_engine" not in Run.open(tmp_path / "run").noted
