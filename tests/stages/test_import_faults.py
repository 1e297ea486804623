"""Corrected masks that are damaged, of no class, or of no image: named, all at once, and nothing good is lost."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from stages.import_cases import changed, corrected_folder, out, zipped
from stages.small_run import CLASSES
from tag2mask import formats
from tag2mask.cli import app
from tag2mask.data.png import encode_mask, read_mask
from tag2mask.run.corrected import counting
from tag2mask.stages.import_masks import import_masks
from tag2mask.types import UserError


def broken(kind, folder, text):
    for path in folder.rglob("*") if folder.is_dir() else [folder]:
        if path.suffix in (".json", ".xml", ".txt", ".yaml") and path.is_file():
            path.write_text(text(path.read_text()))


@pytest.mark.parametrize(
    "kind", ["coco", "cvat", "label-studio", "labelme", "datumaro", "fiftyone", "yolo-seg", "voc"]
)
def test_all_unknown_classes_are_named_at_once(run, data, tmp_path, kind):
    place = out(run, data, kind, tmp_path / "out")
    for name, wrong in (("dog", "dgo"), ("cat", "tree")):
        broken(
            kind,
            place,
            lambda text, name=name, wrong=wrong: (
                text.replace(f'"{name}"', f'"{wrong}"')
                .replace(f": {name}", f": {wrong}")
                .replace(f"{name}:", f"{wrong}:")
            ),
        )
    with pytest.raises(UserError, match=r"(?s)(dgo.*tree|tree.*dgo).*Nothing is stored") as error:
        import_masks(run, place, kind, data=data, progress=False)
    if kind != "fiftyone":
        assert "\"dgo\" (did you mean 'dog'?)" in str(error.value)
        assert "The run's are cat, dog, hat" in str(error.value)
    assert not (run.path / "corrected").exists()  # nothing is stored before all is read
    if kind == "fiftyone":
        return
    known = replace(data, classes=replace(CLASSES, aliases={"dgo": "dog", "Tree": "cat"}))
    assert import_masks(run, place, kind, data=known, progress=False).corrected == ()


def test_all_values_and_colours_that_are_no_class_are_named(run, data, tmp_path):
    masks = {id.replace("/", "_"): changed(run, id, 9 + at) for at, id in enumerate(run.ids()[:2])}
    folder = corrected_folder(run, tmp_path / "value", **masks)
    with pytest.raises(UserError, match=r"the value 9 \(they are 0 to 3, and 255\) \(1 time, .*the value 10"):
        import_masks(run, folder, progress=False)
    folder = out(run, data, "voc", tmp_path / "voc", images="none")
    lines = (folder / "labelmap.txt").read_text().splitlines(keepends=True)
    (folder / "labelmap.txt").write_text("".join(line for line in lines if not line.startswith(("cat", "dog"))))
    with pytest.raises(
        UserError, match=r"the colour \(200, 30, 30\).*the colour \(30, 160, 30\), not in labelmap.txt"
    ):
        import_masks(run, folder, progress=False)
    assert not (run.path / "corrected").exists()


@pytest.mark.parametrize("kind", ["coco", "cvat", "label-studio", "labelme", "datumaro", "fiftyone"])
def test_where_nothing_can_be_read(run, data, tmp_path, kind):
    place = out(run, data, kind, tmp_path / "out")
    broken(kind, place, lambda text: text[: len(text) // 2])
    with pytest.raises(UserError, match=r"damaged|no file of LabelMe"):
        import_masks(run, place, kind, progress=False)


def one_damaged(kind, place, id):
    """Damage what an export says of one image."""
    if kind in ("png", "voc", "fiftyone", "hf", "ultralytics"):
        files = (
            path for path in place.rglob(f"{id}.png") if not {"data", "images", "JPEGImages"} & set(path.parts[-4:])
        )
        (path,) = files
        path.write_bytes(path.read_bytes()[:70])
    elif kind == "labelme":
        (place / f"{id}.json").write_text("{")
    elif kind == "yolo-seg":
        next(place.rglob(f"{id}.txt")).write_text("0 0.1 0.1 0.2\n")
    elif kind == "cvat":
        text = place.read_text()
        start = text.index(f'name="{id.rpartition("/")[2]}')
        place.write_text(text[:start] + text[start:].replace('rle="', 'rle="?', 1))
    else:
        path = {"coco": place, "datumaro": place / "annotations" / "default.json"}.get(kind, place / "tasks.json")
        document = json.loads(path.read_text())
        if kind == "coco":
            number = next(image["id"] for image in document["images"] if image["sample"] == id)
            shape = next(each for each in document["annotations"] if each["image_id"] == number)
            shape["segmentation"]["counts"] = "???"
        elif kind == "datumaro":
            item = next(item for item in document["items"] if item["id"] == id)
            item["annotations"][0] = 7
        else:
            task = next(task for task in document if task["data"]["sample"] == id)
            task["predictions"][0]["result"][0]["value"]["rle"] = [1, 2, 3]
        path.write_text(json.dumps(document))


@pytest.mark.parametrize("kind", sorted(formats.IMPORTERS))
def test_one_damaged_file_stops_no_import(run, data, tmp_path, kind):
    """The others are stored; it is named with the reason, and the exit code says so."""
    damaged, other = "toy/0", "toy/1"
    blank = tmp_path / "blank"
    shutil.copytree(run.path, blank)
    for id in (damaged, other):
        path = blank / "masks" / f"{id}.png"
        path.write_bytes(encode_mask(np.zeros_like(read_mask(path)), CLASSES.palette))
    place = out(run, data, kind, tmp_path / "out")
    one_damaged(kind, place, damaged)
    found = import_masks(blank, place, kind, progress=False)
    assert (found.corrected, found.equal, found.complete) == ((other,), len(data) - 2, False)
    ((name, why),) = found.unread
    assert "0" in name
    assert why
    assert f"LEFT OUT: 1 that cannot be read:\n  {name}: {why}" in found.text()
    assert counting(run.open(blank)).corrected.path(damaged) is None
    done = CliRunner().invoke(app, ["import", str(blank), str(place), "--from", kind])
    assert (done.exit_code, "0 masks corrected, 4 as they were" in done.output) == (3, True), done.output


def test_damaged_files_among_several_documents(run, data, tmp_path):
    folder = tmp_path / "tasks"
    out(run, data, "cvat", folder)
    (folder / "second.xml").write_text("<annotations><image")
    found = import_masks(run, folder, progress=False)
    assert (found.equal, [name for name, _ in found.unread]) == (len(data), ["second.xml"])
    archive = zipped(corrected_folder(run, tmp_path / "png"), tmp_path / "png.zip")
    with zipfile.ZipFile(archive) as opened:
        info = opened.getinfo("toy/0.png")
    content = bytearray(archive.read_bytes())
    start = info.header_offset + 30 + len("toy/0.png")
    content[start + 20 : start + 30] = bytes(10)
    archive.write_bytes(content)
    found = import_masks(run, archive, progress=False)
    assert (found.equal, [name for name, _ in found.unread]) == (len(data) - 1, ["toy/0.png"])


def test_other_sizes_and_names(run, data, tmp_path):
    id = run.ids()[0]
    folder = corrected_folder(run, tmp_path / "size", **{id.replace("/", "_"): np.zeros((5, 7), np.uint8)})
    found = import_masks(run, folder, progress=False)
    assert found.equal == len(data) - 1
    assert "the mask is 7 x 5 (width x height), the run's is 64 x 48" in found.unread[0][1]
    (folder / f"{id}.png").write_bytes((run.path / "masks" / f"{id}.png").read_bytes())
    (folder / "stranger.png").write_bytes(encode_mask(np.zeros((5, 7), np.uint8), CLASSES.palette))
    done = CliRunner().invoke(app, ["import", str(run.path), str(folder)])
    assert done.exit_code == 3
    assert "LEFT OUT: 1 name that the run does not have: stranger.png" in done.output
    (folder / "stranger.png").unlink()
    assert CliRunner().invoke(app, ["import", str(run.path), str(folder)]).exit_code == 0
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "else.png").write_bytes(encode_mask(np.zeros((5, 7), np.uint8), CLASSES.palette))
    with pytest.raises(UserError, match=r"no mask of an image of .*; its names are else.png"):
        import_masks(run, tmp_path / "none", progress=False)
