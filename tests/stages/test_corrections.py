"""Corrections that are corrected again, damaged, removed, or of pictures that were replaced; and their list."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from stages.import_cases import changed, corrected_folder, with_inputs
from stages.small_run import CLASSES, small_run, toys
from stages.small_training import HOW, RECIPE
from stages.test_train_cct import RECIPE as CCT_RECIPE
from tag2mask.data.png import encode_mask, read_mask
from tag2mask.run.corrected import Corrected, counting
from tag2mask.run.folder import Run
from tag2mask.run.inputs import Stamp
from tag2mask.segment.targets import find_targets
from tag2mask.stages.compare import compare
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.export import export
from tag2mask.stages.import_masks import import_masks
from tag2mask.stages.report import report
from tag2mask.stages.train import train
from tag2mask.types import UserError

ID = "toy/1"


@pytest.fixture
def data(tmp_path):
    return toys(tmp_path / "data")


@pytest.fixture
def run(tmp_path, data):
    return small_run(tmp_path / "run", data)


def correct(run, value, id=ID):
    mask = np.full_like(read_mask(run.mask_path(id)), value)
    Corrected(run).store(id, encode_mask(mask, CLASSES.palette), "by hand")


def log_of(run):
    return run.path / "corrected" / "corrected.jsonl"


# --- a training


@pytest.mark.parametrize("recipe", [RECIPE, CCT_RECIPE], ids=["supervised", "cct"])
def test_a_training_does_not_go_on_with_another_correction(tmp_path, data, run, recipe):
    correct(run, 1)
    how = {"data": data, "device": "cpu", "progress": False}
    train(run, tmp_path / "net", recipe, minutes=0, **how)
    correct(run, 3)
    with pytest.raises(UserError, match=r"these 5 images, but with other corrected masks \(1 then, 1 now\)"):
        train(run, tmp_path / "net", recipe, **how)
    correct(run, 1)  # the one of the beginning
    assert train(run, tmp_path / "net", recipe, **how).step == recipe.steps


def test_a_first_correction_and_one_taken_back_are_named_as_such(tmp_path, data, run):
    train(run, tmp_path / "net", RECIPE, data=data, minutes=0, **HOW)
    correct(run, 1)
    with pytest.raises(UserError, match=r"these 5 images, but .* \(0 then, 1 now\): some were corrected"):
        train(run, tmp_path / "net", RECIPE, data=data, **HOW)
    train(run, tmp_path / "other", RECIPE, data=data, minutes=0, **HOW)
    (run.path / "corrected" / f"{ID}.png").unlink()
    with pytest.raises(UserError, match=r"\(1 then, 0 now\).*taken back"):
        train(run, tmp_path / "other", RECIPE, data=data, **HOW)
    assert train(run, tmp_path / "net", RECIPE, data=data, **HOW).step == RECIPE.steps
    fewer = replace(data, samples=data.samples[:4])
    with pytest.raises(UserError, match="5 images, and now 4 have a mask: others were added, left out, corrected or"):
        train(run, tmp_path / "net", RECIPE, data=fewer, **HOW)


def test_the_fingerprint_is_of_what_is_in_the_file(data, run, tmp_path, monkeypatch):
    correct(run, 1)
    place = run.path / "corrected" / f"{ID}.png"
    first = find_targets(data, counting(run)).fingerprint
    log = log_of(run)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    stamp = Stamp.of(place)
    assert rows[0]["mask"] == [stamp.size, stamp.changed, stamp.digest]
    del rows[0]["mask"]  # as earlier versions wrote it
    log.write_text(json.dumps(rows[0]) + "\n")
    assert find_targets(data, counting(run)).fingerprint == first
    correct(run, 1)
    kept = counting(run)
    with monkeypatch.context() as patched:  # what did not change is not read again
        patched.setattr(Stamp, "of", None)
        assert kept.corrected.digest(ID) == stamp.digest
    place.write_bytes(encode_mask(np.full_like(read_mask(place), 2), CLASSES.palette))  # by hand, without an import
    assert find_targets(data, counting(run)).fingerprint != first


def test_cct_where_every_mask_is_corrected_speaks_of_no_list(tmp_path, data, run):
    for id in run.ids():
        correct(run, 1, id)
    with pytest.raises(UserError, match=r"no unlabelled images are left: train without --semi") as error:
        train(run, tmp_path / "net", CCT_RECIPE, data=data, device="cpu", progress=False)
    assert "--pixel-labels" not in str(error.value)


# --- a picture that was replaced


@pytest.mark.parametrize("size", [(50, 50), (33, 70)])
def test_a_correction_without_a_made_mask_is_replaced_with_its_picture(tmp_path, data, size):
    run = small_run(tmp_path / "run", data, leave_out=(4,))
    folder = tmp_path / "masks"
    (folder / "toy").mkdir(parents=True)

    def import_of(shape):
        (folder / "toy" / "4.png").write_bytes(encode_mask(np.full(shape, 2, np.uint8), CLASSES.palette))
        return import_masks(Run.open(run.path), folder, "png", data=data, progress=False)

    assert import_of((33, 70)).added == ("toy/4",)
    Image.fromarray(np.full((*size, 3), 9, np.uint8)).save(data[4].image)
    assert find_targets(data, counting(run)).left_out == {"whose picture was replaced": 1}
    with pytest.raises(UserError, match="the mask is 9 x 8"):
        import_of((8, 9))
    found = import_of(size)
    assert (found.corrected, found.replaced) == (("toy/4",), ("toy/4",) if size != (33, 70) else ())
    assert find_targets(data, counting(run)).supervision == "tags+pixels(1)"
    assert read_mask(counting(run).mask_path("toy/4")).shape == size
    assert import_of(size).corrected == ()


def test_a_correction_of_an_image_whose_made_mask_was_removed(tmp_path, data, run):
    """What the made mask was of says nothing of a correction that came after it."""
    run = with_inputs(run, data)
    run.mask_path(ID).unlink()
    Image.fromarray(np.full((30, 20, 3), 9, np.uint8)).save(data[1].image)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "1.png").write_bytes(encode_mask(np.full((30, 20), 2, np.uint8), CLASSES.palette))
    assert import_masks(run, tmp_path / "masks", data=data, progress=False).added == (ID,)
    assert find_targets(data, counting(run)).supervision == "tags+pixels(1)"


# --- damaged and removed


def test_a_removed_correction_is_taken_back(tmp_path, data, run):
    correct(run, 1)
    (run.path / "corrected" / f"{ID}.png").unlink()
    count = counting(Run.open(run.path))
    assert (list(count.corrected.ids()), len(count.corrected)) == ([], 0)
    assert count.mask_path(ID) == run.mask_path(ID)
    assert find_targets(data, count).supervision == "tags"
    assert evaluate(run, data, progress=False).supervision is None
    again = import_masks(run, corrected_folder(run, tmp_path / "a", toy_1=changed(run, ID)), progress=False)
    assert (again.corrected, again.replaced) == ((ID,), ())


@pytest.mark.parametrize("content", [b"", b"x"])
def test_a_damaged_correction_is_called_one(tmp_path, data, run, content):
    correct(run, 1)
    other = small_run(tmp_path / "other", data)
    place = run.path / "corrected" / f"{ID}.png"
    place.write_bytes(content)
    says = rf"{place}.*; this corrected mask is damaged: import it again, or remove the file, and the mask that was"
    for call in (
        lambda: evaluate(run, data, progress=False),
        lambda: export(run, data, "png", tmp_path / "out", progress=False),
        lambda: compare([run, other], [data, data], progress=False),
        lambda: report(run, data, progress=False),
    ):
        with pytest.raises(UserError, match=says):
            call()
    blind = replace(data, samples=[replace(sample, truth=None) for sample in data.samples])
    assert "this corrected mask is damaged: import it again" in report(run, blind, progress=False).read_text()
    with pytest.warns(UserWarning, match=r"corrected masks among them, which are damaged: 1 .*import it again"):
        result = train(run, tmp_path / "net", RECIPE, data=data, **HOW)
    assert all("import it again" in why for why in result.replaced.values())
    place.unlink()
    assert evaluate(run, data, progress=False).images == len(data)


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize("with_data", [True, False])
def test_a_damaged_correction_is_as_good_as_none_for_an_import(tmp_path, data, run, made, with_data):
    """Also where what comes back is the made mask: it counts then, and the damaged one no more."""
    right = read_mask(run.mask_path(ID))
    correct(run, 1)
    place = run.path / "corrected" / f"{ID}.png"
    place.write_bytes(b"x")
    if not made:
        run.mask_path(ID).unlink()
    folder = tmp_path / "masks"
    folder.mkdir()
    (folder / "1.png").write_bytes(encode_mask(right, CLASSES.palette))
    given = {"data": data if with_data else None, "progress": False}
    if not made and not with_data:
        with pytest.raises(UserError, match=r"nothing of .* can be read: 1.png: .*is not an image"):
            import_masks(run, folder, **given)
        return
    assert import_masks(run, folder, **given).corrected == (ID,)
    np.testing.assert_array_equal(read_mask(counting(run).mask_path(ID)), right)
    assert (run.path / "corrected-before" / f"{ID}.1.png").read_bytes() == b"x"
    place.write_bytes(b"x")
    (folder / "1.png").write_bytes(encode_mask(np.zeros((5, 7), np.uint8), CLASSES.palette))
    with pytest.raises(UserError, match=r"the mask is 7 x 5 .*the run's is 48 x 64"):
        import_masks(run, folder, **given)


# --- the list


@pytest.mark.parametrize("prefix", ["to\u2028y/", "a\x85b/", "a\udcff/", "n\x0cl\x1e/"])
def test_names_of_any_characters(tmp_path, prefix):
    data = toys(tmp_path / "data", prefix=prefix)
    run = small_run(tmp_path / "run", data)
    for number in range(2):
        correct(run, number, f"{prefix}0")
    log = log_of(run)
    assert log.read_bytes().isascii()
    assert log.read_bytes().count(b"\n") == 2
    found = counting(Run.open(run.path))
    assert list(found.corrected.ids()) == [f"{prefix}0"]
    assert find_targets(data, found).supervision == "tags+pixels(1)"
    assert len(find_targets(data, found).fingerprint) == 16


def test_a_torn_line_is_passed_over_and_not_continued(run):
    correct(run, 1, "toy/0")
    correct(run, 1, "toy/2")
    log = log_of(run)
    log.write_bytes(log.read_bytes()[:-30])
    with pytest.warns(UserWarning, match=r"passed over 1 line written by half \(2\).*import again"):
        assert list(Corrected(run).ids()) == ["toy/0"]
    with pytest.warns(UserWarning, match="written by half"):
        correct(run, 1, "toy/3")
    with pytest.warns(UserWarning, match="written by half"):
        assert list(Corrected(run).ids()) == ["toy/0", "toy/3"]


@pytest.mark.parametrize(
    "wrong",
    ["5", "[]", '{"id": "a"}']
    + [json.dumps({"id": "a", "picture": None, "classes": [], **more}) for more in ({"id": 5}, {"picture": 5})]
    + [json.dumps({"id": "a", "picture": None, "classes": [], **more}) for more in ({"classes": 5}, {"mask": 5})],
)
def test_a_line_that_is_no_correction_is_refused(run, wrong):
    correct(run, 1)
    with log_of(run).open("a") as log:
        log.write(wrong + "\n")
    with pytest.raises(UserError, match=r"line 2 is damaged .*remove that line"):
        Corrected(run)
