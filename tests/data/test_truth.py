"""Which file is an image's true mask, and what its pixels stand for."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest

from data.mask_files import MASK, save
from tag2mask.classes import color_map, load_classes, plain_classes
from tag2mask.data import read_dataset
from tag2mask.data.image import BadImage
from tag2mask.data.truth import MaskFolders
from tag2mask.types import IGNORE, ClassSet, UserError

PETS = plain_classes(["cat", "dog", "hen"], "pets")


def masks(folder: Path, ids=("a",), values: str | None = None, classes: ClassSet = PETS) -> MaskFolders:
    return MaskFolders((folder,)).read_as(ids, classes, values)[0]


# --- names of files


@pytest.mark.parametrize(
    "form",
    [
        *("{}.png", "{}.jpg.png", "{}_mask.png", "{}.PNG", "{}.tif", "{}.bmp", "{}.TIFF", "{}.npy"),
        *("{}_gtFine_labelIds.png", "{}-seg.png", "{} copy.png", "{}_L.tif", "{}.mask.npy"),
    ],
)
def test_masks_are_found_by_their_usual_names(tmp_path, form):
    ids = ["a", "b", "sub/a", "a_1", "a_2"]
    for number, name in enumerate(ids):
        save(tmp_path / form.format(name), np.full((2, 3), number % 4, np.uint8))
    reader, notes = MaskFolders((tmp_path,)).read_as([*ids, "a_3", "c"], PETS)
    assert [reader(name).mask[0, 0] for name in ids] == [0, 1, 2, 3, 0]
    assert not reader.has("a_3")
    assert not reader.has("c")
    assert bool(notes) == (form.partition(".")[0] != "{}" or form.count(".") == 2)
    again = pickle.loads(pickle.dumps(reader))
    assert again("b").mask[0, 0] == 1


def test_a_mask_of_another_image_is_not_taken(tmp_path):
    save(tmp_path / "dog_left.png")
    save(tmp_path / "cow_left.png")
    assert not masks(tmp_path, ["dog", "hen", "elk", "dog_left"]).has("dog")
    reader = masks(tmp_path, ["dog", "dog_left", "cow", "cow_left"])
    assert [reader.has(name) for name in ("dog", "dog_left", "cow", "cow_left")] == [False, True, False, True]


def test_one_odd_name_among_many_is_no_rule(tmp_path):
    for name in ("a", "b", "c_old"):
        save(tmp_path / f"{name}.png")
    assert not masks(tmp_path, ["a", "b", "c"]).has("c")


@pytest.mark.parametrize(
    ("ids", "files"),
    [
        (["a", "b", "c"], "mask_a mask_b mask_c"),
        (["a", "b", "c"], "GT-a GT-b GT-c"),
        (["1", "10", "11"], "seg_1 seg_10 seg_11"),
        (["img_01", "img_02"], "mask_01 mask_02"),
        (["01_image", "02_image"], "01_label 02_label"),
        (["x_0_leftImg8bit", "x_1_leftImg8bit"], "x_0_gtFine_labelIds x_1_gtFine_labelIds"),
        (["s/a", "t/b"], "a b"),
        (["s/a", "t/b"], "a_mask b_mask"),
        (["s/img_a", "s/img_b"], "s/mask_a s/mask_b"),
    ],
)
def test_one_rule_for_all_masks_is_read_and_said(tmp_path, ids, files):
    for number, name in enumerate(files.split()):
        save(tmp_path / f"{name}.png", np.full((2, 3), number, np.uint8))
    reader, notes = MaskFolders((tmp_path,)).read_as(ids, PETS)
    assert [reader(name).mask[0, 0] for name in ids] == list(range(len(ids)))
    assert any("true masks are called" in note for note in notes)
    assert pickle.loads(pickle.dumps(reader)).has(ids[0])


@pytest.mark.parametrize(
    ("ids", "files"),
    [
        (["img_1", "img_2"], "mask_1 mask_3"),  # one image without
        (["s/a", "t/a"], "a b"),  # one file for two images
        (["a", "b"], "mask_a mask_b label_a label_b"),  # two rules
        (["part1_a", "part1_b"], "part2_a part2_b"),  # masks of other images
        (["img_010", "img_011"], "mask_10 mask_11"),
        (["cat_1", "cat_2"], "cow_1 cow_2"),
        (["a", "b"], "v2_a v2_b"),
        (["train_a", "train_b"], "val_mask_a val_mask_b"),
    ],
)
def test_masks_that_may_be_of_other_images_are_not_read_but_named(tmp_path, ids, files):
    names = files.split()
    for name in names:
        save(tmp_path / f"{name}.png")
    reader, _ = MaskFolders((tmp_path,)).read_as(ids, PETS)
    assert not any(reader.has(name) for name in ids)
    with pytest.raises(UserError) as error:
        reader.check_any(ids)
    assert f"the {len(names)} files there that could be masks are called" in str(error.value)
    assert all(f"'{name}.png'" in str(error.value) for name in (sorted(names)[0], *ids))
    assert f"expected for the {len(ids)} images" in str(error.value)


@pytest.mark.parametrize("form", ["folder", "coco"])
def test_a_folder_of_other_masks_is_refused_by_every_reader(tmp_path, form):
    for name in ("a", "b"):
        save(tmp_path / f"images/{name}.png")
    save(tmp_path / "truth/other.png")
    (tmp_path / "images/tags.csv").write_text("image,labels\na.png,cat\n")
    rows = [{"id": n, "file_name": f"{name}.png", "width": 4, "height": 3} for n, name in enumerate("ab", 1)]
    what = {"images": rows, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "own.json").write_text(json.dumps(what))
    data = tmp_path / ("images" if form == "folder" else "own.json")
    with pytest.raises(UserError, match=r"has no mask of any image: .*'other\.png'.*'a\.png', 'b\.png'"):
        read_dataset(data, truth=tmp_path / "truth")


@pytest.mark.parametrize("pair", [("a.png", "a.tif"), ("a.png", "a.npy"), ("a_mask.png", "a_edge.png")])
def test_two_files_for_one_image_are_named(tmp_path, pair):
    for name in pair:
        save(tmp_path / name)
    with pytest.raises(UserError, match="2 files could be the true mask of a") as error:
        masks(tmp_path).find("a")
    assert all(name in str(error.value) for name in pair)


def test_accents_in_either_form(tmp_path):
    save(tmp_path / f"{normalize('NFC', 'vélo')}.png")
    assert masks(tmp_path, [normalize("NFD", "vélo")]).has(normalize("NFD", "vélo"))


def test_jpegs_are_refused_and_photographs_beside_masks_are_not(tmp_path):
    save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="JPEG, which changes the class numbers"):
        masks(tmp_path)
    save(tmp_path / "a.png")
    np.testing.assert_array_equal(masks(tmp_path)("a").mask, MASK)


def test_arrays_are_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{}]], object), allow_pickle=True)
    with pytest.raises(BadImage, match="no array of NumPy"):
        masks(tmp_path)("a")
    for odd, said in (
        (MASK.astype(float), "whole numbers"),
        (MASK[None], "whole"),
        (MASK.astype(int) - 1, "-1 to 254"),
    ):
        save(tmp_path / "a.npy", odd)
        with pytest.raises(BadImage, match=said):
            masks(tmp_path)("a")


# --- numbers and colours


def shuffled(order: list[int]) -> tuple[np.ndarray, list]:
    """The same picture with its indices renumbered: place in ``order`` is the new index."""
    out = np.zeros_like(MASK)
    for index, value in enumerate(order):
        out[value == MASK] = index
    return out, [color_map(256)[value] for value in order]


@pytest.mark.parametrize("order", [[3, 2, 1, 0, 255], [0, 1, 2, 3, 255], [255, 0, 3, 1, 2], [0, 2, 1, 3, 255]])
def test_renumbered_palettes_are_read_by_their_colours(tmp_path, order):
    save(tmp_path / "a.png", *shuffled(order))
    found = masks(tmp_path)("a")
    np.testing.assert_array_equal(found.mask, MASK)
    assert "colours of their own palettes" in found.by
    plain = masks(tmp_path, values="as-is")("a")
    np.testing.assert_array_equal(plain.mask, shuffled(order)[0])


@pytest.mark.parametrize(
    "palette",
    [
        list(color_map(256)),
        [(n, n, n) for n in range(256)],
        [(9, 8, 7), (255, 0, 0), (0, 255, 0), (0, 0, 255)] + [(0, 0, 0)] * 252,  # decoration
        [*color_map(4), *[(0, 0, 0)] * 252],  # 255 is black as the background is
    ],
)
def test_other_palettes_are_decoration(tmp_path, palette):
    save(tmp_path / "a.png", MASK, palette)
    found = masks(tmp_path)("a")
    np.testing.assert_array_equal(found.mask, MASK)
    assert found.by == ""


def test_a_colour_twice_is_asked_about(tmp_path):
    red, green = color_map(3)[1:]
    save(tmp_path / "a.png", np.array([[0, 1, 2]], np.uint8), [green, red, red])
    with pytest.raises(UserError, match="one colour twice"):
        masks(tmp_path)("a")
    assert masks(tmp_path, values="as-is")("a").mask.tolist() == [[0, 1, 2]]


def test_colours_of_a_class_set_of_ones_own(tmp_path):
    own = ClassSet("own", PETS.names, ((0, 0, 0), (9, 1, 1), (1, 9, 1), (1, 1, 9)))
    colours = np.array([*own.palette, color_map(256)[255]], np.uint8)
    picture = colours[np.minimum(MASK, 4)]
    save(tmp_path / "a.png", picture)
    np.testing.assert_array_equal(masks(tmp_path, classes=own)("a").mask, MASK)
    picture[0, 1] = (7, 7, 8)
    save(tmp_path / "a.png", picture)
    with pytest.raises(UserError, match=r"\(7, 7, 8\) at 1 pixels.*--truth-values FILE"):
        masks(tmp_path, classes=own)("a")


def test_pictures_in_vocs_colours(tmp_path):
    save(tmp_path / "a.png", np.array(color_map(256), np.uint8)[MASK])
    found = masks(tmp_path)("a")
    np.testing.assert_array_equal(found.mask, MASK)
    assert found.by == "their colours"
    clear = np.dstack([np.array(color_map(256), np.uint8)[MASK], np.zeros_like(MASK)])
    save(tmp_path / "a.png", clear)
    with pytest.raises(BadImage, match="transparent"):
        masks(tmp_path)("a")


def test_grey_pictures_are_their_numbers(tmp_path):
    save(tmp_path / "a.png", np.repeat(MASK[..., None], 3, -1))
    np.testing.assert_array_equal(masks(tmp_path)("a").mask, MASK)
    save(tmp_path / "a.png", np.repeat((MASK == 1)[..., None] * np.uint8(255), 3, -1))
    assert set(masks(tmp_path)("a").mask.ravel().tolist()) == {0, 255}
    assert set(masks(tmp_path, values="255=dog")("a").mask.ravel().tolist()) == {0, 2}


@pytest.mark.parametrize(
    ("choice", "table"),
    [
        ("from-0", {0: 1, 1: 2, 2: 3, 255: 0}),
        ("from-2", {0: 255, 1: 0, 2: 1, 3: 2, 4: 3, 255: 255}),
        ("255=dog", {0: 0, 255: 2, 1: 1}),
        ("7=hen,8=background,9=ignore", {0: 0, 7: 3, 8: 0, 9: 255, 2: 2, 255: 255}),
    ],
)
def test_truth_values_on_the_command_line(tmp_path, choice, table):
    save(tmp_path / "a.png", np.array([list(table)], np.uint8))
    assert masks(tmp_path, values=choice)("a").mask.tolist() == [list(table.values())]


def test_coco_ids(tmp_path):
    save(tmp_path / "a.png", np.array([[0, 1, 13, 90, 255]], np.uint8))
    found = masks(tmp_path, values="coco-ids", classes=load_classes("coco14"))("a")
    assert found.mask.tolist() == [[0, 1, 12, 80, 255]]
    with pytest.raises(UserError, match="COCO's 80 classes"):
        masks(tmp_path, values="coco-ids")
    save(tmp_path / "a.png", np.array([[12]], np.uint8))
    with pytest.raises(UserError, match=r"12 .1 pixels., which --truth-values coco-ids does not name"):
        masks(tmp_path, values="coco-ids", classes=load_classes("coco14"))("a")


@pytest.mark.parametrize("choice", ["form-0", "255=cow", "x=dog", "300=dog", "1=dog,1=cat", "nofile.txt"])
def test_wrong_truth_values_are_refused_at_once(tmp_path, choice):
    with pytest.raises(UserError, match="--truth-values"):
        masks(tmp_path, values=choice)


LISTS = {
    "labelmap.txt": "# label:color_rgb:parts:actions\n"
    "background:0,0,0::\nHen:250,0,0::\ncat:0,250,0::\ndog:0,0,250::\n",
    "class_names.txt": "__ignore__\n_background_\nhen\ncat\ndog\n",
    "classes.txt": "hen\ncat\ndog\n",
    "labels.txt": "0: background\n1: hen\n2: cat\n3: dog\n",
    "class_dict.csv": "name,r,g,b\nbackground,0,0,0\nhen,250,0,0\ncat,0,250,0\ndog,0,0,250\n",
    "codes.txt": "0 background\n1 hen\n2 cat\n3 dog\n",
}


@pytest.mark.parametrize("place", ["truth", "."])
@pytest.mark.parametrize("name", list(LISTS))
def test_lists_of_names_beside_the_masks(tmp_path, name, place):
    save(tmp_path / "truth/a.png")
    (tmp_path / place / name).write_text(LISTS[name])
    reader, notes = MaskFolders((tmp_path / "truth",)).read_as(["a"], PETS)
    found = reader("a")
    assert found.mask.tolist() == [[0, 3, 1, 2], [0, 3, 1, 255], [0, 0, 0, 0]]
    assert found.by == name
    assert name in notes[0]
    np.testing.assert_array_equal(masks(tmp_path / "truth", values="as-is")("a").mask, MASK)
    moved = tmp_path / "elsewhere.txt"
    (tmp_path / place / name).rename(moved)
    np.testing.assert_array_equal(masks(tmp_path / "truth")("a").mask, MASK)
    np.testing.assert_array_equal(masks(tmp_path / "truth", values=str(moved))("a").mask, found.mask)


def test_colours_of_a_list(tmp_path):
    (tmp_path / "labelmap.txt").write_text(LISTS["labelmap.txt"])
    colours = np.array([(0, 0, 0), (250, 0, 0), (0, 250, 0), (0, 0, 250)], np.uint8)
    save(tmp_path / "a.png", colours[[[0, 1], [2, 3]]])
    assert masks(tmp_path)("a").mask.tolist() == [[0, 3], [1, 2]]
    save(tmp_path / "a.png", np.array([[3, 2], [1, 0]], np.uint8), colours[::-1].tolist())
    assert masks(tmp_path)("a").mask.tolist() == [[0, 3], [1, 2]]


def test_lists_that_say_nothing_or_too_much(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\nhen\n")  # the numbers as they are
    assert masks(tmp_path)("a").by == ""
    (tmp_path / "labels.txt").write_text("a.jpg,3 cats\n")  # no list
    (tmp_path / "names.txt").write_text("ann\nbob\n")  # of something else
    assert masks(tmp_path)("a").by == ""
    (tmp_path / "codes.txt").write_text("dog\ncat\nhen\n")
    with pytest.raises(UserError, match=r"two lists .* classes\.txt and codes\.txt"):
        masks(tmp_path)
    (tmp_path / "codes.txt").unlink()
    (tmp_path / "classes.txt").write_text("cat\nroof\nhen\n")
    with pytest.raises(UserError, match="2 is 'roof', which is no class"):
        masks(tmp_path)("a")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(UserError, match=r"3 \(1 pixels\), which classes.txt does not name.*as-is"):
        masks(tmp_path)("a")
    (tmp_path / "list.txt").write_text("dog\n2 cat\n")
    with pytest.raises(UserError, match="all lines alike"):
        masks(tmp_path, values=str(tmp_path / "list.txt"))


def test_255_is_255_everywhere(tmp_path):
    save(tmp_path / "a.png", np.full((2, 2), IGNORE, np.uint8))
    assert masks(tmp_path)("a").mask.tolist() == [[255, 255], [255, 255]]
