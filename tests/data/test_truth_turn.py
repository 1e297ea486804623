"""True masks of photographs that EXIF turns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from data.mask_files import save
from tag2mask.data import read_dataset
from tag2mask.data.image import read_image
from tag2mask.data.truth import read_truth
from tag2mask.data.truth_turn import settle_turn, upright
from tag2mask.types import UserError

# --- EXIF


def photographs(root: Path, orientations: list[int], stored: bool, size=(6, 9), coco: bool = False):
    """A data set whose photographs are turned by EXIF, with truth drawn on stored pixels or upright."""
    rows, images, annotations = ["image,labels"], [], []
    for number, orientation in enumerate(orientations):
        pixels = np.zeros((*size, 3), np.uint8)
        mask = np.zeros(size, np.uint8)
        mask[:2, :3] = 1
        exif = Image.Exif()
        exif[0x0112] = orientation
        (root / "photos").mkdir(parents=True, exist_ok=True)
        path = root / f"photos/{number}.jpg"
        Image.fromarray(pixels).save(path, exif=exif)
        save(root / f"truth/{number}.png", mask if stored else upright(mask, orientation))
        rows.append(f"{number}.jpg,cat")
        outline = rle.encode(np.asfortranarray(mask))
        images.append({"id": number, "file_name": path.name, "height": size[0], "width": size[1]})
        segmentation = {"size": list(size), "counts": outline["counts"].decode()}
        annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": segmentation})
    (root / "photos/tags.csv").write_text("\n".join(rows))
    if coco:
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
        (root / "x.json").write_text(json.dumps(content))
        return read_dataset(root / "x.json", images=root / "photos", classes="file")
    return read_dataset(root / "photos", truth=root / "truth")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_that_of_the_photographs(tmp_path, orientation):
    pixels = np.arange(6 * 9, dtype=np.uint8).reshape(6, 9) * 4
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.tif" if orientation == 0 else tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(upright(pixels, orientation), read_image(tmp_path / "a.png")[..., 0])


@pytest.mark.parametrize("coco", [False, True])
@pytest.mark.parametrize("orientation", range(5, 9))
def test_the_size_of_a_mask_tells_that_it_was_drawn_on_stored_pixels(tmp_path, orientation, coco):
    data = photographs(tmp_path, [orientation, 1], stored=True, coco=coco)
    for sample, turned in zip(data, (True, False), strict=True):
        found = read_truth(sample)
        assert found.mask.shape == read_image(sample.image).shape[:2]
        assert found.turned == turned
        np.testing.assert_array_equal(sample.truth(), found.mask)
    mask = np.zeros((6, 9), np.uint8)
    mask[:2, :3] = 1
    np.testing.assert_array_equal(data[0].truth(), upright(mask, orientation))
    assert settle_turn(data).turn is None
    if not coco:
        shown = photographs(tmp_path / "b", [orientation], stored=False)
        assert not read_truth(shown[0]).turned
        np.testing.assert_array_equal(shown[0].truth(), data[0].truth())


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_others_in_the_data_decide_where_size_does_not(tmp_path, orientation, stored):
    data = photographs(tmp_path, [orientation, 6, 1, 8], stored)
    settled = settle_turn(data)
    assert settled.turn == ("stored" if stored else "upright")
    assert f"1 of {orientation}" in settled.notes[0]
    assert "the 2 photographs of orientation 5 to 8" in settled.notes[0]


@pytest.mark.parametrize(("orientation", "size"), [(2, (6, 9)), (3, (6, 9)), (4, (6, 9)), (6, (9, 9)), (7, (9, 9))])
@pytest.mark.parametrize("coco", [False, True])
def test_without_others_the_user_is_asked(tmp_path, orientation, size, coco):
    data = photographs(tmp_path, [orientation, 1, orientation], True, size, coco)
    square = ", square" if orientation >= 5 else ""
    with pytest.raises(
        UserError, match=f"has 2 photographs .*2 of {orientation}{square}.*--truth-turn upright or"
    ) as e:
        settle_turn(data)
    assert "IoU" not in str(e.value)
    mask = np.zeros(size, np.uint8)
    mask[:2, :3] = 1
    where = {"images": tmp_path / "photos", "classes": "file"} if coco else {"truth": tmp_path / "truth"}
    path = tmp_path / ("x.json" if coco else "photos")
    for turn, wanted in (("stored", upright(mask, orientation)), ("upright", mask)):
        chosen = read_dataset(path, truth_turn=turn, **where)
        np.testing.assert_array_equal(chosen[0].truth(), wanted)
        np.testing.assert_array_equal(chosen[1].truth(), mask)
        assert settle_turn(chosen).notes == ()


def test_the_runs_masks_confirm_upright_truth_and_never_turn_it(tmp_path):
    true = {}
    for stored in (True, False):
        data = photographs(tmp_path / str(stored), [3, 3], stored)
        mask = np.zeros((6, 9), np.uint8)
        mask[:2, :3] = 1
        true = {"0": upright(mask, 3), "1": upright(mask, 3)}
        if stored:
            with pytest.raises(UserError, match=r"0\.0 % upright, 100\.0 % turned"):
                settle_turn(data, true.get)
        else:
            settled = settle_turn(data, true.get)
            forced = [settle_turn(replace(data, truth_turn=turn), true.get) for turn in ("upright", "stored")]
            assert [each.turn for each in forced] == ["upright", "stored"]
            assert forced[0].notes == ()
            assert "--truth-turn upright fits the run's masks far better" in " ".join(forced[1].notes)
            assert settled.turn == "upright"
            assert "100.0 % upright, 0.0 % turned" in settled.notes[0]
            with pytest.raises(UserError, match="--truth-turn"):
                settle_turn(data, lambda id: np.ones((6, 9), np.uint8))  # fits both alike


@pytest.mark.parametrize(("stored", "coco"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("orientations", [[6, 8, 5], [3, 6, 1, 8]])
def test_sizes_that_overrule_the_user_are_said_with_counts(tmp_path, orientations, stored, coco):
    photographs(tmp_path, orientations, stored, coco=coco)
    where = {"images": tmp_path / "photos", "classes": "file"} if coco else {"truth": tmp_path / "truth"}
    path = tmp_path / ("x.json" if coco else "photos")
    right, wrong = ("stored", "upright") if stored else ("upright", "stored")
    assert settle_turn(read_dataset(path, truth_turn=right, **where)) == (right, ())
    settled = settle_turn(read_dataset(path, truth_turn=wrong, **where))
    assert settled.turn == wrong
    count = sum(orientation >= 5 for orientation in orientations)
    (note,) = settled.notes
    assert f"--truth-turn {wrong} does not fit the size of {count} of {count} true masks" in note
    others = sum(orientation in (2, 3, 4) for orientation in orientations)
    assert (f"the option decides {others} others alone" if others else "it decides no other mask") in note


def test_masks_of_both_kinds_are_counted_apart(tmp_path):
    photographs(tmp_path, [6, 6, 8], stored=True)
    save(tmp_path / "truth/1.png", np.zeros((9, 6), np.uint8))  # upright
    for turn, count in (("upright", 2), ("stored", 1)):
        (note,) = settle_turn(read_dataset(tmp_path / "photos", truth=tmp_path / "truth", truth_turn=turn)).notes
        assert f"--truth-turn {turn} does not fit the size of {count} of 3" in note


def test_what_looks_the_same_turned_is_not_asked_about(tmp_path):
    data = photographs(tmp_path, [3], stored=True)
    save(tmp_path / "truth/0.png", np.ones((6, 9), np.uint8))
    assert settle_turn(data, lambda id: np.ones((6, 9), np.uint8)) == ("upright", ())


def test_masks_are_read_without_their_photographs(tmp_path):
    data = photographs(tmp_path, [6], stored=True)
    data[0].image.unlink()
    assert data[0].truth().shape == (6, 9)
    assert settle_turn(data).turn is None
