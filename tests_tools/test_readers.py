"""What is exported for other tools, read by these tools' own packages: ``make test-tools`` installs them apart.

Every test is skipped where its package is not there. The ordinary suite tests what the formats' documents define.
"""

from __future__ import annotations

import json
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest

from stages.small_run import CLASSES, small_run, toys
from tag2mask.data.png import read_mask
from tag2mask.data.tools.shapes import fill_in
from tag2mask.stages.export import export
from tag2mask.types import IGNORE, MaskRule

NAMES = {**dict(enumerate(CLASSES.names)), IGNORE: "ignore"}


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Ultralytics neither asks its server anything nor writes into the home folder."""
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "settings"))


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


def test_cvats_own_masks(run, data, tmp_path):
    """CVAT's SDK reads tasks from a server alone; how it encodes pixels is in the package."""
    masks = pytest.importorskip("cvat_sdk.masks")
    read = 0
    for image in ElementTree.parse(out(run, data, "cvat", tmp_path / "annotations.xml")).iter("image"):
        expected = masks_of(run)[image.get("name").rpartition(".")[0]]
        mask = np.zeros_like(expected)
        for shape in image.iter("mask"):
            left, top, width, height = (int(shape.get(key)) for key in ("left", "top", "width", "height"))
            points = [*map(int, shape.get("rle").split(",")), left, top, left + width - 1, top + height - 1]
            drawn = masks.decode_mask(points, image_width=mask.shape[1], image_height=mask.shape[0])
            assert masks.encode_mask(drawn) == points
            mask[drawn] = next(number for number, name in NAMES.items() if name == shape.get("label"))
        np.testing.assert_array_equal(mask, expected)
        read += 1
    assert read == len(data)


def ultralytics_data(place):
    """What Ultralytics takes from data.yaml, and the arguments of its data sets."""
    utils = pytest.importorskip("ultralytics.data.utils")
    described = utils.check_det_dataset(str(place / "data.yaml"), autodownload=False)
    how = {"img_path": described["train"], "data": described, "augment": False, "imgsz": 64, "cache": False}
    return described, how


def test_ultralytics_reads_masks(run, data, tmp_path):
    described, how = ultralytics_data(out(run, data, "ultralytics", tmp_path / "semantic"))
    from ultralytics.data.dataset import SemanticDataset

    assert described["names"] == dict(enumerate(CLASSES.names))
    found = SemanticDataset(**how, task="semantic")
    assert len(found) == len(data)
    for index, label in enumerate(found.labels):
        id = label["im_file"].rpartition("/")[2].rpartition(".")[0]
        np.testing.assert_array_equal(found.load_mask(index), masks_of(run)[id])


def test_ultralytics_reads_outlines(run, data, tmp_path):
    described, how = ultralytics_data(out(run, data, "yolo-seg", tmp_path / "yolo"))
    from ultralytics.data.dataset import YOLODataset

    assert described["names"] == dict(enumerate(CLASSES.foreground))
    found = YOLODataset(**how, task="segment")
    assert len(found) == len(data)
    for label in found.labels:
        expected = masks_of(run)[label["im_file"].rpartition("/")[2].rpartition(".")[0]]
        mask = np.zeros_like(expected)
        for number, points in zip(label["cls"].ravel(), label["segments"], strict=True):
            corners = np.asarray(points, np.float64) * mask.shape[::-1]
            fill_in(mask, [[(x, y) for x, y in corners.tolist()]], int(number) + 1)
        np.testing.assert_array_equal(mask, no_ignored(expected))


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
