"""The predict command, and what later stages make of its run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calls import call
from coco_files import content
from methods.toys import CLASSES
from stages import small_run
from stages.networks import SIZES, photographs, tiny_network
from tag2mask.classes import load_classes
from tag2mask.data import read_dataset
from tag2mask.run.folder import Run
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.predict import predict, read_images
from tag2mask.storybook import render

STORYBOOK = load_classes("voc12")


def images(folder: Path):
    return read_dataset(folder, network=CLASSES)


# --- by the command line, and what later stages make of it


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return render(tmp_path_factory.mktemp("scenes"), 4, split="val", size=(48, 64), workers=1)


@pytest.fixture(scope="module")
def predicted(scenes, tmp_path_factory):
    net = tiny_network(tmp_path_factory.mktemp("net"), STORYBOOK)
    out = tmp_path_factory.mktemp("runs") / "val"
    done = call(
        "predict", net, scenes, "--split", "val", "-o", out, "--scales", "0.5,1", "--flip", "--crf", "deeplab"
    )
    assert done.exit_code == 0, done.output
    return out


def test_eval_finds_the_truth_by_itself(predicted):
    done = call("eval", predicted, "--confidence")
    assert done.exit_code == 0, done.output
    assert "mIoU" in done.output
    assert "pixels by confidence" in done.output
    found = json.loads((predicted / "metrics.json").read_text())
    assert found["images"] == 4
    assert found["thresholds"] == {}  # a network has no score maps
    assert sum(row["share"] for row in found["confidence"]["shares"]) == pytest.approx(1)


def test_the_table_says_what_people_gave(tmp_path):
    data = small_run.toys(tmp_path / "data")
    net = tiny_network(tmp_path / "net", data.classes, supervision="tags+pixels(3)")
    for use_tags, ending in ((False, "(3)\n"), (True, "(3); the network was given these images' tags")):
        predict(net, data, tmp_path / str(use_tags), use_tags=use_tags, device="cpu", progress=False)
        result = evaluate(tmp_path / str(use_tags), data, progress=False)
        assert f"supervision: tags+pixels{ending}" in result.text() + "\n"
        kept = json.loads((tmp_path / str(use_tags) / "metrics.json").read_text())
        assert (kept["supervision"], kept["use_tags"]) == ("tags+pixels(3)", use_tags)


def test_the_report_speaks_of_a_network(predicted):
    done = call("report", predicted)
    assert done.exit_code == 0, done.output
    page = (predicted / "report.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page))
    assert "A network, small, found pixel masks of 20 classes in 4 images" in text
    assert "It learned from tags alone" in text
    assert "images predicted" in text
    assert "How sure, and how right" in text
    for absent in ("initial CAM", "a map glows", "turned the tags", "Where background begins"):
        assert absent not in text
    assert page.count("<figcaption>photograph") == 4


def test_exports_take_a_predicted_run(predicted, network, photos, tmp_path):
    assert call("export", predicted, "--to", "coco", "-o", tmp_path / "masks.json").exit_code == 0
    assert len(json.loads((tmp_path / "masks.json").read_text())["images"]) == 4
    assert call("export", predicted, "--to", "png", "-o", tmp_path / "png").exit_code == 0
    done = call("export", predicted, "--to", "voc-test", "-o", tmp_path / "a.tgz")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "a.tgz").is_file()
    assert call("predict", network, photos, "-o", tmp_path / "few").exit_code == 0
    done = call("export", tmp_path / "few", "--to", "voc-test", "-o", tmp_path / "b.tgz")
    assert done.exit_code == 1
    assert "expected the 21 of voc12" in done.output
    assert not (tmp_path / "b.tgz").exists()


def test_images_of_other_classes_are_shown_but_not_measured(network, scenes, tmp_path):
    done = call("predict", network, scenes, "-o", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "are not the network's" in done.output
    done = call("eval", tmp_path / "run")
    assert done.exit_code == 1
    assert "Masks of other classes cannot be compared" in done.output
    assert re.search(r"; (new|gone): \w+", done.output)
    assert call("report", tmp_path / "run").exit_code == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "mean confidence" in page
    assert page.count("<figcaption>photograph") == 4
    assert call("export", tmp_path / "run", "--to", "coco", "-o", tmp_path / "a.json").exit_code == 0


def test_a_folder_without_tags_is_measured_by_masks_beside_it(network, photos, tmp_path):
    truth = tmp_path / "truth"
    truth.mkdir()
    for number, (height, width) in enumerate(SIZES):
        Image.fromarray(np.full((height, width), number, np.uint8)).save(truth / f"{number}.png")
    assert call("predict", network, photos, "-o", tmp_path / "run").exit_code == 0
    done = call("eval", tmp_path / "run", "--data", photos, "--truth", truth)
    assert done.exit_code == 0, done.output
    done = call("eval", tmp_path / "run")
    assert done.exit_code == 1
    assert "no ground truth" in done.output


def test_what_the_command_refuses(network, photos, tmp_path):
    for flags, said in [
        (["--test", "deeplabv3"], "did you mean 'deeplabv2'"),
        (["--scales", "1;2"], "expected numbers with commas"),
        (["--scales", "0"], "one or more above 0"),
        (["--scales", "50,100"], "at most 8 times"),
        (["--stride", "4"], "stride <= window"),
        (["--crf", "clip"], "no refiner of masks"),
        (["--device", "toaster"], "expected auto"),
    ]:
        done = call("predict", network, photos, "-o", tmp_path / "run", *flags)
        assert done.exit_code == 1
        assert said in done.output, done.output
    assert not (tmp_path / "run").exists()
    done = call("label", photos, "-o", tmp_path / "run", "-m", "classifier-cam")
    assert "has no tags.csv and no class set is named" in done.output  # label still needs tags


def test_presets_take_their_crf_along(network, photos, tmp_path):
    assert call("predict", network, photos, "-o", tmp_path / "a", "--test", "mctformer").exit_code == 0
    settings = Run.open(tmp_path / "a").settings
    assert settings["refiner"] == "mctformer-retrain"
    assert settings["test"]["scales"] == [0.5, 0.75, 1.0, 1.25, 1.5]
    assert call("predict", network, photos, "-o", tmp_path / "b", "--test", "cct", "--no-flip").exit_code == 0
    settings = Run.open(tmp_path / "b").settings
    assert (settings["refiner"], settings["test"]["flip"], settings["test"]["multiple"]) == (None, False, 8)


def test_a_folder_whose_own_tags_number_its_truth_keeps_its_classes(network, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "tags.csv").write_text("image,labels\n0.png,green\n1.png,unicorn\n")
    found, _ = read_images(network, {"path": str(folder), "unknown": "skip"})
    assert found.classes.names == CLASSES.names
    assert [sample.tags for sample in found] == [(2,), None, None, None]
    truth = tmp_path / "truth"
    truth.mkdir()
    Image.new("L", (56, 40)).save(truth / "0.png")
    found, _ = read_images(network, {"path": str(folder), "truth": str(truth)})
    assert found.classes.names == ("background", "green", "unicorn")


def names_its_own(form: str, folder: Path) -> tuple[list[Path | str], Path]:
    """Two images of "red" and "blue", which number otherwise in the alphabet than in the network; and their truth."""
    photographs(folder / "images", [(20, 30), (20, 30)])
    truth = folder / "truth"
    truth.mkdir()
    for name, value in (("0", 1), ("1", 3)):  # as the network numbers them
        Image.new("L", (30, 20), value).save(truth / f"{name}.png")
    if form == "coco":
        (folder / "own.json").write_text(
            json.dumps(content(("0.png", "1.png"), ("red", "blue"))).replace(
                '"image_id": 2, "category_id": 1', '"image_id": 2, "category_id": 2'
            )
        )
        return [folder / "own.json"], truth
    if form == "voc":
        (folder / "images").rename(folder / "JPEGImages")
        truth.rename(folder / "SegmentationClass")
        (folder / "Annotations").mkdir()
        for image, name in (("0", "red"), ("1", "blue")):
            said = f"<annotation><object><name>{name}</name></object></annotation>"
            (folder / f"Annotations/{image}.xml").write_text(said)
        return [folder], folder / "SegmentationClass"
    (folder / "images/tags.csv").write_text("image,labels\n0.png,red\n1.png,blue\n")
    return [folder / "images", "--truth", truth], truth


@pytest.mark.parametrize("form", ["folder", "coco", "voc"])
def test_data_that_names_its_own_classes_is_measured_in_the_networks(network, tmp_path, form):
    data, truth = names_its_own(form, tmp_path)
    done = call("predict", network, *data, "-o", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "are not the network's" not in done.output
    done = call("eval", tmp_path / "run")
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "run/metrics.json").read_text())["per_class"]
    assert {row["name"]: row["images"] for row in rows if row["images"] and row["value"]} == {"red": 1, "blue": 1}
    if form == "coco":
        return  # drawn by names
    Image.new("L", (30, 20), 2).save(truth / "0.png")  # as the alphabet numbers them
    Image.new("L", (30, 20), 1).save(truth / "1.png")
    done = call("eval", tmp_path / "run")
    assert done.exit_code == 1
    assert "truth and tags differ (of 2 images" in " ".join(done.output.split())


def test_names_without_tags_do_not_number_truth(network, tmp_path):
    [folder, *_], truth = names_its_own("folder", tmp_path)
    (folder / "tags.csv").write_text("image,labels\n0.png,red\n1.png,blue\n")
    described = {"path": str(folder), "truth": str(truth)}
    assert read_images(network, described)[0].classes.names == CLASSES.names
    # a file that names classes and says nothing of the images that are there
    (folder / "tags.csv").write_text("image,labels\n0.png,\n1.png,\n9.png,red\n8.png,blue\n")
    assert read_images(network, described)[0].classes.names == ("background", "blue", "red")
    # and a class set that was asked for stays
    (folder / "tags.csv").write_text("image,labels\n0.png,red\n1.png,blue\n")
    (tmp_path / "mine.yaml").write_text("names: [blue, red]\n")
    found, _ = read_images(network, {**described, "classes": str(tmp_path / "mine.yaml")})
    assert found.classes.names == ("background", "blue", "red")
