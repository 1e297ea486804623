from __future__ import annotations

import io
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as rle

from tag2mask.classes import load_classes, plain_classes
from tag2mask.data import read_coco, read_dataset, read_folder
from tag2mask.data.png import encode_mask
from tag2mask.data.tools.coco import write_coco
from tag2mask.types import UserError

H, W = 10, 12
OFFICIAL = {1: "person", 5: "airplane", 18: "dog", 67: "dining table", 90: "toothbrush"}


def box(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def runs(mask, compressed):
    shape = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        return {"size": shape["size"], "counts": shape["counts"].decode()}
    flat = mask.flatten(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *lengths] if flat[0] else lengths}


@pytest.fixture
def coco(tmp_path):
    """Four images: a small dog in front of a large person with a crowd behind; a table; nothing; a missing file."""
    stripe = np.zeros((H, W), bool)
    stripe[:, 2:4] = True
    annotations = [
        {"image_id": 9, "category_id": 18, "segmentation": box(2, 2, 3, 3), "area": 9, "iscrowd": 0},
        {"image_id": 9, "category_id": 1, "segmentation": box(1, 1, 6, 6), "area": 36, "iscrowd": 0},
        {"image_id": 9, "category_id": 5, "segmentation": runs(np.ones((H, W), bool), False), "iscrowd": 1},
        {"image_id": 25, "category_id": 67, "segmentation": runs(stripe, True), "iscrowd": 0},
        {"image_id": 25, "category_id": 67, "segmentation": [[0, 0, 1, 1], *box(8, 0, 2, 2)], "iscrowd": 0},
    ]
    content = {
        "images": [
            {"id": key, "file_name": f"COCO_train2014_{key:012d}.jpg", "height": H, "width": W}
            for key in (9, 25, 30, 31)
        ],
        "annotations": annotations,
        "categories": [{"id": key, "name": name} for key, name in OFFICIAL.items()],
    }
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations/instances_train2014.json"
    path.write_text(json.dumps(content))
    (tmp_path / "train2014").mkdir()
    for row in content["images"][:3]:
        Image.new("RGB", (W, H)).save(tmp_path / "train2014" / row["file_name"])
    return path


def test_tags_are_the_annotated_classes_crowds_included(coco):
    dataset = read_coco(coco, classes="coco14")
    names = load_classes("coco14").names
    assert [tuple(names[t] for t in s.tags) for s in dataset] == [
        ("person", "aeroplane", "dog"),
        ("diningtable",),
        (),
    ]
    assert dataset[0].tags == (1, 5, 17)
    assert dataset[1].tags == (61,)
    assert dataset[0].id == "COCO_train2014_000000000009"
    assert all(s.image.is_file() for s in dataset)
    assert any("that are not in" in note and "1 (COCO_train2014_000000000031.jpg)" in note for note in dataset.notes)
    assert any("without annotations, taken as background only: 1 (" in note for note in dataset.notes)


def test_truth_is_drawn_small_on_large_on_crowd(coco):
    expected = np.full((H, W), 255, np.uint8)
    expected[1:7, 1:7] = 1
    expected[2:5, 2:5] = 17
    dataset = pickle.loads(pickle.dumps(read_coco(coco, classes="coco14")))
    np.testing.assert_array_equal(dataset[0].truth(), expected)
    table = np.zeros((H, W), np.uint8)
    table[:, 2:4] = 61
    table[0:2, 8:10] = 61  # and two points are no box
    np.testing.assert_array_equal(dataset[1].truth(), table)
    assert not dataset[2].truth().any()


def test_truth_is_read_lazily(coco):
    dataset = read_coco(coco)
    coco.unlink()
    assert dataset[0].tags == (1, 2, 3)
    with pytest.raises(UserError, match="no annotations at"):
        dataset[0].truth()


def test_outlines_do_not_travel_to_other_processes(coco):
    dataset = read_coco(coco)
    before = len(pickle.dumps(dataset))
    dataset[0].truth()
    assert len(pickle.dumps(dataset)) == before


def test_masks_instead_of_drawing(coco, tmp_path):
    (tmp_path / "masks").mkdir()
    mask = np.full((H, W), 3, np.uint8)
    (tmp_path / "masks/COCO_train2014_000000000009.png").write_bytes(encode_mask(mask, ((0, 0, 0),)))
    dataset = read_coco(coco, truth=tmp_path / "masks")
    assert dataset[0].truth()[0, 0] == 3
    assert dataset[1].truth is None


@pytest.mark.parametrize("folder", ["images/train2014", "train2014", "images", "."])
def test_usual_places_of_images(coco, tmp_path, folder):
    target = tmp_path / folder
    target.mkdir(parents=True, exist_ok=True)
    for path in list((tmp_path / "train2014").iterdir()):
        path.rename(target / path.name)
    assert len(read_coco(coco)) == 3
    assert len(read_coco(coco, images=target)) == 3


def test_missing_images(coco, tmp_path):
    with pytest.raises(UserError, match="no folder of images"):
        read_coco(coco, images=tmp_path / "x")
    with pytest.raises(UserError, match="no image of"):
        read_coco(coco, images=tmp_path / "annotations")
    (tmp_path / "train2014").rename(tmp_path / "hidden")
    with pytest.raises(UserError, match=r"name the folder that holds 'COCO_train2014_000000000009.jpg'"):
        read_coco(coco)


def test_other_categories(coco):
    with pytest.raises(UserError, match="""not in the class list 'p' \\('person'\\)""") as caught:
        read_coco(coco, classes=plain_classes(["person"], "p"))
    assert all(f"'{name}' (1x" in str(caught.value) for name in ("airplane", "dining table", "dog"))
    assert [s.tags for s in read_coco(coco, classes=plain_classes(["person"], "p"), unknown="skip")] == [
        (1,),
        None,
        (),
    ]
    own = read_coco(coco, classes="file")
    assert own.classes.foreground == tuple(OFFICIAL.values())
    assert own[0].tags == (1, 2, 3)
    assert own[0].truth()[3, 3] == 3


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"images": [], "annotations": [{}], "categories": []}', "3"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"not JSON|instances file"):
        read_coco(path)


def test_files_outside_the_folder_are_refused(coco, tmp_path):
    content = json.loads(coco.read_text())
    content["images"][0]["file_name"] = "../secret.jpg"
    coco.write_text(json.dumps(content))
    Image.new("RGB", (W, H)).save(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match="does not stay inside"):
        read_coco(coco)


def test_boxes_only(coco):
    content = json.loads(coco.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    coco.write_text(json.dumps(content))
    dataset = read_coco(coco)
    assert dataset[0].tags == (1, 2, 3)
    assert dataset[0].truth is None
    assert any("boxes only" in note for note in dataset.notes)


THREE = plain_classes(["a", "b", "c"], "three")


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        hnp.arrays(
            np.uint8,
            hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
            elements=st.sampled_from([0, 1, 2, 3, 255]),
        ),
        max_size=4,
    )
)
def test_written_masks_decode_to_themselves(masks):
    handle = io.StringIO()
    count = write_coco(((f"s{n}", f"s{n}.jpg", mask) for n, mask in enumerate(masks)), THREE, handle)
    content = json.loads(handle.getvalue())
    assert count == len(masks) == len(content["images"])
    assert [c["name"] for c in content["categories"]] == ["a", "b", "c"]
    drawn = [np.zeros_like(mask) for mask in masks]
    for annotation in content["annotations"]:
        layer = rle.decode(annotation["segmentation"])
        target = drawn[annotation["image_id"] - 1]
        assert not target[layer > 0].any()
        target[layer > 0] = annotation["category_id"]
        assert annotation["area"] == layer.sum()
        ys, xs = np.nonzero(layer)
        assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert annotation["iscrowd"] == 0
    for mask, got, image in zip(masks, drawn, content["images"], strict=True):
        np.testing.assert_array_equal(got, np.where(mask == 255, 0, mask))
        assert (image["height"], image["width"]) == mask.shape
    assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    assert [(i["file_name"], i["sample"]) for i in content["images"]] == [
        (f"s{n}.jpg", f"s{n}") for n in range(count)
    ]


def test_a_written_file_can_be_read_again(tmp_path):
    mask = np.zeros((H, W), np.uint8)
    mask[2:5, 3:7] = 2
    Image.new("RGB", (W, H)).save(tmp_path / "ü 1.jpg")
    with (tmp_path / "out.json").open("w", encoding="utf-8") as handle:
        write_coco([("ü 1", "ü 1.jpg", mask)], THREE, handle)
    dataset = read_coco(tmp_path / "out.json", classes="file")
    assert dataset[0].tags == (2,)
    np.testing.assert_array_equal(dataset[0].truth(), mask)


def test_writing_holds_one_mask_at_a_time():
    alive = []

    class Spy(io.StringIO):
        def write(self, text):
            alive.append(text)
            return len(text)

    taken = []

    def masks():
        for n in range(3):
            taken.append(len(alive))
            yield f"s{n}", f"s{n}.jpg", np.full((2, 2), 1, np.uint8)

    write_coco(masks(), THREE, Spy())
    assert taken == [1, 2, 3]  # each annotation was written before the next mask was asked for


@pytest.mark.parametrize("mask", [np.full((2, 2), 4, np.uint8), np.zeros((2, 2), int), np.zeros((1, 2, 2), np.uint8)])
def test_only_masks_of_the_class_set_are_written(mask):
    with pytest.raises(ValueError, match="mask of s"):
        write_coco([("s", "s.jpg", mask)], THREE, io.StringIO())


def test_guessing(coco, tmp_path):
    assert read_dataset(coco).notes[0] == "read as coco (a JSON file)"
    assert read_dataset(tmp_path).notes[0].startswith("read as coco (it has annotations/")
    with pytest.raises(UserError, match="these splits: train2014"):
        read_dataset(tmp_path, split="val2014")
    folder = read_dataset(tmp_path / "train2014", classes="voc12")
    assert folder.notes[0] == "read as folder (it is a folder)"
    assert [s.id for s in folder] == [s.id for s in read_folder(tmp_path / "train2014", classes="voc12")]
    with pytest.raises(UserError, match="no use for split"):
        read_dataset(tmp_path / "train2014", classes="voc12", split="train")
    with pytest.raises(UserError, match="does not exist"):
        read_dataset(tmp_path / "nowhere")
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match="is a file"):
        read_dataset(tmp_path / "a.txt")
    (tmp_path / "VOC/JPEGImages").mkdir(parents=True)
    (tmp_path / "VOC/tags.csv").write_text("image,labels\na,cat\n")
    Image.new("RGB", (2, 2)).save(tmp_path / "VOC/JPEGImages/a.jpg")
    assert read_dataset(tmp_path / "VOC").notes[0] == "read as voc (it has JPEGImages)"
    assert len(read_dataset(tmp_path / "VOC", kind="folder")) == 1


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("annotations", "image_id", [1]),
        ("annotations", "category_id", {}),
        ("images", "id", [9]),
        ("categories", "id", None),
        ("images", "width", "x"),
        ("images", "height", None),
        ("images", "width", -3),
        ("annotations", "segmentation", 5),
        ("annotations", "segmentation", [["x"] * 6]),
        ("annotations", "segmentation", {"size": [H, W]}),
        ("annotations", "segmentation", {"size": [H, W], "counts": [3, "x"]}),
        ("annotations", "segmentation", {"size": [H + 1, W], "counts": [0, (H + 1) * W]}),
    ],
)
def test_values_of_the_wrong_kind_name_the_file(coco, part, key, value):
    content = json.loads(coco.read_text())
    content[part][0][key] = value
    coco.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"instances_train2014\.json: ") as caught:
        read_coco(coco)[0].truth()
    assert "\n" not in str(caught.value)


def test_ids_may_be_numbers_and_texts(coco):
    content = json.loads(coco.read_text())
    content["categories"].append({"id": "x", "name": "cat"})
    content["annotations"].append({"image_id": 9, "category_id": "x"})
    coco.write_text(json.dumps(content))
    assert read_coco(coco, classes="file")[0].tags == (1, 2, 3, 6)


def test_a_file_without_annotations_is_enough_for_a_network(coco):
    """COCO's own test sets come so; to label them is another matter."""
    content = json.loads(coco.read_text())
    del content["annotations"]
    coco.write_text(json.dumps(content))
    with pytest.raises(UserError, match="has no 'annotations'"):
        read_dataset(coco)
    found = read_dataset(coco, network=load_classes("voc12"))
    assert found.classes.foreground == tuple(OFFICIAL.values())
    assert len(found) == 3
    assert all(sample.tags is None and sample.truth is None for sample in found)
    assert not any("background only" in note for note in found.notes)


def test_images_only_are_the_same_images(coco):
    whole = read_coco(coco)
    assert any(sample.tags for sample in whole)
    bare = whole.images_only(load_classes("voc12"))
    assert [(sample.id, sample.image) for sample in bare] == [(sample.id, sample.image) for sample in whole]
    assert all(sample.tags is None and sample.truth is None for sample in bare)
    assert len(bare.subset([2, 0])) == 2
    assert bare.classes.id == "voc12"
