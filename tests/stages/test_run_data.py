"""The data of a run found again: classes in the run's order, places that moved, runs that are not finished."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from methods.toys import TrainingFree
from tag2mask.classes import load_classes
from tag2mask.cli import app
from tag2mask.data.png import read_mask
from tag2mask.methods import METHODS
from tag2mask.run.folder import Run
from tag2mask.run.settings import added_classes, plain
from tag2mask.run.shard import in_shard
from tag2mask.stages.run_data import data_for


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(METHODS, "toy", f"{TrainingFree.__module__}:TrainingFree")


@pytest.fixture
def photos(tmp_path):
    """Three pictures, each bright in one channel inside a square, whose truth lies beside."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(3):
        pixels = np.full((24, 32, 3), 20, np.uint8)
        pixels[6:18, 8:24, n] = 240
        Image.fromarray(pixels).save(folder / f"{n}.png")
    return folder


def tag(folder, **labels):
    rows = [f"{name.removeprefix('n')}.png,{said}" for name, said in labels.items()]
    (folder / "tags.csv").write_text("\n".join(["image,labels", *rows]) + "\n")


def draw(folder, values):
    folder.mkdir(exist_ok=True)
    for n, value in enumerate(values):
        mask = np.zeros((24, 32), np.uint8)
        mask[6:18, 8:24] = value
        Image.fromarray(mask).save(folder / f"{n}.png")


def call(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def label(folder, out, *more, code=0):
    return call("label", folder, "-m", "toy", "--crf", "none", "-o", out, *more, code=code)


def names(out):
    return Run.open(out).settings["classes"]["names"][1:]


# --- the order of classes ----------------------------------------------------------------------------------------


def test_a_name_that_comes_first_in_the_alphabet_comes_last_in_the_run(photos, tmp_path):
    tag(photos, n0="cat", n1="dog")
    label(photos, tmp_path / "run")
    first = read_mask(tmp_path / "run/masks/0.png")
    tag(photos, n0="cat", n1="dog", n2="ape")
    said = label(photos, tmp_path / "run")
    assert names(tmp_path / "run") == ["cat", "dog", "ape"]
    assert "come after the others: 'ape'" in said
    np.testing.assert_array_equal(read_mask(tmp_path / "run/masks/0.png"), first)
    assert set(np.unique(read_mask(tmp_path / "run/masks/2.png"))) <= {0, 3, 255}
    # whoever looks at the run later reads the data in the same order
    draw(tmp_path / "truth", [1, 2, 3])
    assert "ape" in call("eval", tmp_path / "run", "--truth", tmp_path / "truth")
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["miou"] > 0.8
    call("report", tmp_path / "run")
    assert label(photos, tmp_path / "run").count("3 were finished before") == 1


def test_a_name_that_is_gone_keeps_its_number(photos, tmp_path):
    tag(photos, n0="ape", n1="cat", n2="dog")
    label(photos, tmp_path / "run")
    tag(photos, n0="cat", n1="cat", n2="dog")
    said = label(photos, tmp_path / "run")
    assert "made again: 1 image whose tags changed (0)" in said
    assert names(tmp_path / "run") == ["ape", "cat", "dog"]


def test_a_run_that_is_begun_afresh_has_the_alphabet_again(photos, tmp_path):
    tag(photos, n0="cat", n1="dog")
    label(photos, tmp_path / "run")
    tag(photos, n0="cat", n1="dog", n2="ape")
    label(photos, tmp_path / "run", "--overwrite")
    assert names(tmp_path / "run") == ["ape", "cat", "dog"]


def test_classes_of_a_file_stay_as_the_file_has_them(photos, tmp_path):
    tag(photos, n0="cat", n1="dog")
    (photos / "classes.yaml").write_text("names: [dog, cat]\n")
    label(photos, tmp_path / "run")
    assert names(tmp_path / "run") == ["dog", "cat"]
    (photos / "classes.yaml").write_text("names: [ape, dog, cat]\n")
    assert "classes.names" in label(photos, tmp_path / "run", code=1)
    (photos / "classes.yaml").write_text("names: [dog, cat, ape]\n")
    label(photos, tmp_path / "run")
    assert names(tmp_path / "run") == ["dog", "cat", "ape"]


def instances(tmp_path, categories):
    rows = [{"id": n, "file_name": f"{n}.png", "width": 32, "height": 24} for n in range(3)]
    box = [[8, 6, 24, 6, 24, 18, 8, 18]]
    objects = [
        {"id": n + 1, "image_id": n, "category_id": categories.index(name) + 1, "segmentation": box}
        for n, name in enumerate(("person", "bicycle", "car"))  # the toy sees three classes
    ]
    names_ = [{"id": n, "name": name} for n, name in enumerate(categories, 1)]
    (tmp_path / "own.json").write_text(json.dumps({"images": rows, "annotations": objects, "categories": names_}))
    return tmp_path / "own.json"


@pytest.mark.parametrize("where", ["first", "last", "gone"])
def test_a_published_class_set_grows_at_its_end(photos, tmp_path, where):
    coco14 = load_classes("coco14")
    path = instances(tmp_path, coco14.foreground)
    label(path, tmp_path / "run", "--images", photos)
    changed = {
        "first": ["quokka", *coco14.foreground],
        "last": [*coco14.foreground, "quokka"],
        "gone": list(coco14.foreground[:-1]),
    }[where]
    instances(tmp_path, changed)
    said = label(path, tmp_path / "run", "--images", photos)
    new = [] if where == "gone" else ["quokka"]
    assert names(tmp_path / "run") == [*coco14.foreground, *new]
    assert ("come after the others: 'quokka'" in said) == bool(new)
    assert "mIoU" in call("eval", tmp_path / "run")
    # what is said to CLIP of the old ones stays, so a run with texts goes on too
    grown = data_for(Run.open(tmp_path / "run")).classes

    def kept(classes):
        return plain({key: getattr(classes, key) for key in ("id", "names", "palette", "texts")})

    assert added_classes(kept(coco14), kept(grown)) == tuple(new)
    assert bool(new) or kept(coco14) == kept(grown)
    assert label(path, tmp_path / "run", "--images", photos).count("3 were finished before") == 1


def test_voc_that_gains_a_class_goes_on_as_it_is_told(tmp_path, photos):
    folder = tmp_path / "voc"
    (folder / "Annotations").mkdir(parents=True)
    photos.rename(folder / "JPEGImages")

    def annotate(*words):
        for n, word in enumerate(words):
            text = f"<annotation><object><name>{word}</name></object></annotation>"
            (folder / f"Annotations/{n}.xml").write_text(text)

    annotate("aeroplane", "bicycle", "bird")
    label(folder, tmp_path / "run")
    annotate("aeroplane", "bicycle", "aardvark")
    assert "--classes file" in label(folder, tmp_path / "run", code=1)
    assert "come after the others: 'aardvark'" in label(
        folder, tmp_path / "run", "--classes", "file", code=3
    )  # the toy fails at a class that it does not see
    assert names(tmp_path / "run") == [*load_classes("voc12").foreground, "aardvark"]


# --- data that moved ---------------------------------------------------------------------------------------------


def test_the_truth_is_kept_where_label_goes_on_without_it(photos, tmp_path):
    tag(photos, n0="cat", n1="dog", n2="ape")
    draw(tmp_path / "truth", [2, 3, 1])
    label(photos, tmp_path / "run", "--truth", tmp_path / "truth", "--limit", "2")
    label(photos, tmp_path / "run")
    assert Run.open(tmp_path / "run").noted["config"]["data"]["truth"] == str(tmp_path / "truth")
    assert "ape" in call("eval", tmp_path / "run")


def test_moved_photographs_are_asked_for_and_found(photos, tmp_path):
    tag(photos, n0="cat", n1="dog", n2="ape")
    draw(photos / "masks", [2, 3, 1])
    label(photos, tmp_path / "run", "--truth", photos / "masks")
    moved = tmp_path / "elsewhere"
    shutil.move(photos, moved)
    assert "--data PATH" in call("train", tmp_path / "run", "-o", tmp_path / "net", code=1)
    assert "--data PATH" in call("eval", tmp_path / "run", code=1)
    assert "continuing without the images" in call("report", tmp_path / "run")
    # the truth lay below the old place, so it is looked for below the new one
    assert "mIoU" in call("eval", tmp_path / "run", "--data", moved)
    call("report", tmp_path / "run", "--data", moved)
    assert "worst" in (tmp_path / "run/report.html").read_text().lower()
    assert "does not exist" in call("report", tmp_path / "run", "--data", tmp_path / "nowhere", code=1)
    # labelled again from there it is the same data, and the run knows the place
    assert "3 were finished before" in label(moved, tmp_path / "run", "--truth", moved / "masks")
    assert "mIoU" in call("eval", tmp_path / "run")


def coco(folder, images):
    rows = [{"id": n, "file_name": f"{n}.png", "width": 32, "height": 24} for n in range(3)]
    drawn = [[8, 6, 24, 6, 24, 18, 8, 18]]
    annotations = [
        {"id": n, "image_id": n, "category_id": n + 1, "segmentation": drawn, "iscrowd": 0, "bbox": [8, 6, 16, 12]}
        for n in range(3)
    ]
    categories = [{"id": n + 1, "name": name} for n, name in enumerate(("ape", "cat", "dog"))]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": rows, "annotations": annotations, "categories": categories}))
    return path


def test_moved_images_of_a_coco_file(photos, tmp_path):
    path = coco(tmp_path, photos)
    call("label", path, "--images", photos, "-m", "toy", "--crf", "none", "-o", tmp_path / "run")
    moved = tmp_path / "far" / "away"
    moved.parent.mkdir()
    shutil.move(photos, moved)
    assert "--images FOLDER" in call("eval", tmp_path / "run", code=1)
    assert "mIoU" in call("eval", tmp_path / "run", "--images", moved)
    for command in (("report",), ("export", "--to", "coco", "-o", tmp_path / "out.json")):
        call(command[0], tmp_path / "run", *command[1:], "--images", moved)


# --- runs that are not finished ------------------------------------------------------------------------------------


def test_a_report_says_what_is_not_done_yet(photos, tmp_path):
    tag(photos, n0="cat", n1="dog", n2="ape")
    part = next(n for n in range(3) if 0 < sum(in_shard(str(image), (n, 3)) for image in range(3)) < 3)
    label(photos, tmp_path / "run", "--shard", f"{part}/3")
    done = len(Run.open(tmp_path / "run").ids())
    assert 0 < done < 3
    call("report", tmp_path / "run")
    assert f"not come to {3 - done} more image" in (tmp_path / "run/report.html").read_text()
    shutil.move(photos, tmp_path / "gone")
    call("report", tmp_path / "run")
    assert f"not come to {3 - done} more image" in (tmp_path / "run/report.html").read_text()
    shutil.move(tmp_path / "gone", photos)
    label(photos, tmp_path / "run")
    call("report", tmp_path / "run")
    assert "not come to" not in (tmp_path / "run/report.html").read_text()


def test_no_mask_is_no_success(photos, tmp_path):
    tag(photos, n0="", n1="", n2="")
    (photos / "classes.yaml").write_text("names: [cat]\n")
    assert "no image has a mask: none has tags" in label(photos, tmp_path / "run", code=3)
    tag(photos, n0="cat", n1="", n2="")
    label(photos, tmp_path / "run")
