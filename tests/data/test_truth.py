"""Which file is an image's true mask, what its pixels stand for, and whether it was drawn on stored pixels."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from tag2mask.classes import color_map, load_classes, plain_classes
from tag2mask.data import read_dataset
from tag2mask.data.image import BadImage, read_image
from tag2mask.data.truth import MaskFolders, read_truth
from tag2mask.data.truth_turn import settle_turn, upright
from tag2mask.types import IGNORE, ClassSet, UserError

PETS = plain_classes(["cat", "dog", "hen"], "pets")
MASK = np.array([[0, 1, 2, 3], [0, 1, 2, 255], [0, 0, 0, 0]], np.uint8)


def save(path: Path, pixels: np.ndarray = MASK, palette: list | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".npy":
        np.save(path, pixels)
        return path
    image = Image.fromarray(pixels)
    if palette is not None:
        image = Image.fromarray(pixels).convert("P")
        image.putpalette([channel for colour in palette for channel in colour])
    image.save(path, format="PNG" if path.suffix.lower() == ".png" else None)
    return path


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


def test_255_is_255_everywhere(tmp_path):
    save(tmp_path / "a.png", np.full((2, 2), IGNORE, np.uint8))
    assert masks(tmp_path)("a").mask.tolist() == [[255, 255], [255, 255]]
