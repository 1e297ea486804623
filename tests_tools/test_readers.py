"""What is exported for other tools, read by these tools' own packages: ``make test-tools`` installs them apart.

Every test is skipped where its package is not there. The ordinary suite tests what the formats' documents define.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from stages.small_run import CLASSES, small_run, toys
from tag2mask.data.png import read_mask
from tag2mask.stages.export import export
from tag2mask.types import IGNORE, MaskRule

NAMES = {**dict(enumerate(CLASSES.names)), IGNORE: "ignore"}


@pytest.fixture
def data(tmp_path):
    return toys(tmp_path / "data", prefix="")


@pytest.fixture
def run(tmp_path, data):
    return small_run(tmp_path / "run", data, MaskRule(mu=0.7))


def out(run, data, to, folder, **options):
    return export(run, data, to, folder, options, progress=False)


def masks_of(run):
    """The run's masks by id."""
    return {id: read_mask(run.mask_path(id)) for id in run.ids()}


def no_ignored(mask):
    return np.where(mask == IGNORE, 0, mask)


@pytest.mark.parametrize("shapes", ["classes", "objects", "polygons"])
def test_supervision_reads_coco(run, data, tmp_path, shapes):
    supervision = pytest.importorskip("supervision")
    path = out(run, data, "coco", tmp_path / "masks.json", shapes=shapes)
    found = supervision.DetectionDataset.from_coco(str(data.root), str(path), force_masks=True)
    compare_detections(found, run, 0.5 if shapes == "polygons" else 1)  # of polygons it draws the edge, too


def test_supervision_reads_yolo(run, data, tmp_path):
    supervision = pytest.importorskip("supervision")
    place = out(run, data, "yolo-seg", tmp_path / "yolo")
    found = supervision.DetectionDataset.from_yolo(
        str(place / "images" / "train"), str(place / "labels" / "train"), str(place / "data.yaml"), force_masks=True
    )
    compare_detections(found, run, 0.5)  # drawn with their edge


def compare_detections(found, run, least):
    """IoU of each class in each image."""
    expected, seen = masks_of(run), 0
    assert list(found.classes) == list(CLASSES.foreground)
    for path, _, detections in found:
        mask = expected[path.rsplit("/", 1)[-1].rsplit(".", 1)[0]]
        for number, _ in enumerate(CLASSES.foreground):
            right = mask == number + 1
            drawn = [] if detections.mask is None else list(detections.mask[detections.class_id == number])
            got = np.any(drawn, axis=0) if drawn else np.zeros_like(right)
            seen += right.sum()
            assert (got & right).sum() >= least * (got | right).sum()
    assert seen


def test_datasets_reads_the_imagefolder(run, data, tmp_path):
    datasets = pytest.importorskip("datasets")
    place = out(run, data, "hf", tmp_path / "hf")
    rows = datasets.load_dataset("imagefolder", data_dir=str(place), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(rows) == len(data)
    names = [json.loads(line) for line in (place / "train" / "metadata.jsonl").read_text().splitlines()]
    for row, name in zip(rows, names, strict=True):
        expected = masks_of(run)[name["mask_file_name"].removeprefix("masks/").removesuffix(".png")]
        np.testing.assert_array_equal(np.array(row["mask"]), expected)
        assert row["tags"] == [CLASSES.names[value] for value in np.unique(expected) if 0 < value < IGNORE]
        assert row["image"].size == expected.shape[::-1]


def test_labelmes_own_drawing(run, data, tmp_path):
    labelme = pytest.importorskip("labelme")
    from labelme import utils

    for shapes, least in (("masks", 1), ("polygons", 0.5)):  # polygons are drawn with their edge, a pixel wider
        place = out(run, data, "labelme", tmp_path / shapes, shapes=shapes)
        for id, mask in masks_of(run).items():
            found = labelme.LabelFile(str(place / f"{id}.json"))
            value_of = {"_background_": 0, **{name: value for value, name in NAMES.items() if value}}
            drawn, _ = utils.shapes_to_label(mask.shape, found.shapes, value_of)
            for value in np.unique(mask):
                both, either = (drawn == value) & (mask == value), (drawn == value) | (mask == value)
                assert both.sum() >= least * either.sum(), (shapes, id, value)


@pytest.mark.parametrize(("to", "kind"), [("datumaro", "datumaro"), ("voc", "voc_segmentation"), ("cvat", "cvat")])
def test_datumaro_reads(run, data, tmp_path, to, kind):
    datumaro = pytest.importorskip("datumaro")
    place = tmp_path / to
    if to == "cvat":  # which lies beside a folder of images
        shutil.copytree(data.root, place / "images")
    out(run, data, to, place / "annotations.xml" if to == "cvat" else place)
    found = datumaro.Dataset.import_from(str(place), kind)
    labels = [each.name for each in found.categories()[datumaro.AnnotationType.label]]
    expected, read = masks_of(run), 0
    for item in found:
        mask = np.zeros_like(expected[item.id])
        for annotation in item.annotations:
            name = labels[annotation.label]
            value = next(number for number, known in NAMES.items() if known == name)
            mask[np.asarray(annotation.image, bool)] = value
        np.testing.assert_array_equal(mask, expected[item.id])
        read += 1
    assert read == len(data)


def test_label_studios_decoder(run, data, tmp_path):
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    place = out(run, data, "label-studio", tmp_path / "ls")
    for task in json.loads((place / "tasks.json").read_text()):
        expected = masks_of(run)[task["data"]["sample"]]
        mask = np.zeros_like(expected)
        for result in task["predictions"][0]["result"]:
            value = result["value"]
            flat = brush.decode_rle(value["rle"])
            alpha = np.reshape(flat, [*expected.shape, 4])[..., 3]
            mask[alpha > 0] = next(n for n, known in NAMES.items() if known == value["brushlabels"][0])
        np.testing.assert_array_equal(mask, expected)
