"""Masks go out to every tool's format and come back, as they were and corrected."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from stages.small_run import CLASSES, small_run, toys
from tag2mask import formats
from tag2mask.cli import app
from tag2mask.data.png import encode_mask, read_mask
from tag2mask.run.corrected import Corrected, corrections_in, counting
from tag2mask.run.inputs import Inputs, Stamp
from tag2mask.segment.augment import Augment
from tag2mask.segment.examples import Examples
from tag2mask.segment.targets import find_targets
from tag2mask.stages.compare import compare
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.export import export
from tag2mask.stages.import_masks import import_masks
from tag2mask.stages.report import report
from tag2mask.types import IGNORE, MaskRule, UserError

WAYS = [
    ("png", {}),
    ("coco", {}),
    ("coco", {"shapes": "objects"}),
    ("coco", {"shapes": "polygons"}),
    ("voc", {}),
    ("cvat", {}),
    ("label-studio", {}),
    ("labelme", {}),
    ("labelme", {"shapes": "masks"}),
    ("datumaro", {}),
    ("fiftyone", {"images": "link"}),
    ("hf", {"images": "none"}),
    ("ultralytics", {}),
    ("yolo-seg", {"images": "link"}),
]
FILES = {"coco": "masks.json", "cvat": "annotations.xml"}


@pytest.fixture
def data(tmp_path):
    return toys(tmp_path / "data")


@pytest.fixture
def run(tmp_path, data):
    return small_run(tmp_path / "run", data, MaskRule(mu=0.7))


def out(run, data, kind, folder, **options):
    return export(run, data, kind, folder / FILES.get(kind, ""), options, progress=False)


@pytest.mark.parametrize(("kind", "options"), WAYS)
def test_every_pixel_comes_back(run, data, tmp_path, kind, options):
    assert kind in formats.IMPORTERS
    place = out(run, data, kind, tmp_path / "out", **options)
    found = import_masks(run, place, progress=False)  # it sees by itself what it is
    assert (found.kind, found.corrected, found.equal, found.unknown) == (kind, (), len(data), ())
    # A run whose masks are all blank gets them from the export: nothing is equal by being left alone.
    blank = tmp_path / "blank"
    shutil.copytree(run.path, blank)
    for path in (blank / "masks").rglob("*.png"):
        path.write_bytes(encode_mask(np.zeros_like(read_mask(path)), CLASSES.palette))
    again = import_masks(blank, place, kind, progress=False)
    assert len(again.corrected) + again.equal == len(data)
    assert len(again.corrected) >= len(data) - 1
    for id in run.ids():
        mask, made = read_mask(counting(run.open(blank)).mask_path(id)), read_mask(run.mask_path(id))
        whole = made if kind not in ("coco", "yolo-seg") else np.where(made == IGNORE, 0, made)
        np.testing.assert_array_equal(mask, whole, err_msg=id)


@pytest.mark.parametrize("kind", sorted(set(formats.IMPORTERS) - {"png"}))
def test_pictures_and_the_same_bytes(run, data, tmp_path, kind):
    first, second = (out(run, data, kind, tmp_path / name) for name in "ab")
    files = [first] if first.is_file() else sorted(path for path in first.rglob("*") if path.is_file())
    for path in files:
        other = second if first.is_file() else second / path.relative_to(first)
        assert path.read_bytes() == other.read_bytes()
    if first.is_dir():
        pictures = {path.read_bytes() for path in files}
        assert {sample.image.read_bytes() for sample in data} <= pictures


def changed(run, id, value=2):
    """The made mask with a square of another class."""
    mask = read_mask(run.mask_path(id)).copy()
    mask[2:6, 3:9] = value
    return mask


def corrected_folder(run, folder, **masks):
    folder.mkdir()
    for id in run.ids():
        mask = masks.get(id.replace("/", "_"), read_mask(run.mask_path(id)))
        path = folder / f"{id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_mask(mask, CLASSES.palette))
    return folder


def test_corrections_count_and_nothing_is_lost(run, data, tmp_path):
    id = run.ids()[0]
    key, made = id.replace("/", "_"), read_mask(run.mask_path(id))
    before = evaluate(run, data, progress=False)
    targets = find_targets(data, run)
    for number, value in enumerate((2, 3, 3)):
        mask = changed(run, id, value)
        found = import_masks(run, corrected_folder(run, tmp_path / f"{number}", **{key: mask}), progress=False)
        assert found.corrected == ((id,) if number < 2 else ())
        assert found.replaced == ((id,) if number == 1 else ())
        np.testing.assert_array_equal(read_mask(counting(run).mask_path(id)), mask)
    np.testing.assert_array_equal(read_mask(run.mask_path(id)), made)
    np.testing.assert_array_equal(read_mask(run.path / "corrected-before" / f"{id}.1.png"), changed(run, id, 2))

    exported = export(run, data, "png", tmp_path / "out", progress=False)
    np.testing.assert_array_equal(read_mask(exported / f"{id}.png"), changed(run, id, 3))
    after = evaluate(run, data, progress=False)
    assert after.supervision == f"{before.supervision or 'tags'}+pixels(1)"
    assert after.miou != before.miou
    other = small_run(tmp_path / "other", data, MaskRule(mu=0.7))
    assert [each.supervision for each in compare([run, other], [data, data]).runs] == [after.supervision, None]
    assert "1 mask of" in str(corrections_in(run))
    assert corrections_in(other) is None
    assert find_targets(data, run).fingerprint == targets.fingerprint  # methods start from made masks
    corrected = find_targets(data, counting(run))
    assert corrected.supervision == f"{targets.supervision}+pixels(1)"
    assert corrected.fingerprint != targets.fingerprint
    place = [corrected.sample(i).id for i in range(len(corrected))].index(id)
    np.testing.assert_array_equal(corrected.labels(place).numpy(), changed(run, id, 3))
    assert corrected.confidence(place, corrected.labels(place)).min() == 1


def with_inputs(run, data):
    """The run with notes on what its masks were made of, as label makes them."""
    with run.create(run.path, run.settings) as noted:
        for sample in data:
            noted.record(sample.id, "ok", inputs=Inputs(Stamp.of(sample.image), sample.tags))
    return run.open(run.path)


def test_a_correction_of_a_picture_that_was_replaced_counts_no_more(run, data, tmp_path):
    run, sample = with_inputs(run, data), data[0]
    id = sample.id
    import_masks(
        run, corrected_folder(run, tmp_path / "a", **{id.replace("/", "_"): changed(run, id)}), progress=False
    )
    assert len(Corrected(run)) == 1
    assert evaluate(run, data, progress=False).images == len(data)
    sample.image.write_bytes(data[1].image.read_bytes())
    found = evaluate(run, data, progress=False)
    assert (found.images, len(found.stale)) == (len(data) - 1, 1)
    assert find_targets(data, counting(run)).left_out == {"whose picture was replaced": 1}
    with_inputs(run, data)  # the made mask is of the new picture
    assert counting(run).mask_path(id) == run.mask_path(id)
    assert len(Corrected(run)) == 0
    assert evaluate(run, data, progress=False).images == len(data)


def test_what_a_person_drew_holds_whatever_the_tags(run, data, tmp_path):
    run, sample = with_inputs(run, data), data[0]
    folder = corrected_folder(run, tmp_path / "a", **{sample.id.replace("/", "_"): changed(run, sample.id)})
    import_masks(run, folder, progress=False)
    for tags in ((3,), None):
        others = [replace(each, tags=tags) for each in data.samples[:2]]
        targets = find_targets(replace(data, samples=others), counting(run))
        assert [targets.sample(at).id for at in range(len(targets))] == [sample.id]


def test_a_correction_of_other_classes_counts_no_more(run, data, tmp_path):
    id = run.ids()[0]
    import_masks(
        run, corrected_folder(run, tmp_path / "a", **{id.replace("/", "_"): changed(run, id)}), progress=False
    )
    path = run.path / "run.yaml"
    document = yaml.safe_load(path.read_text())
    document["settings"]["classes"]["names"][2] = "puppy"
    path.write_text(yaml.safe_dump(document))
    with pytest.warns(UserWarning, match="1 corrected mask of other classes than the run's, not used"):
        assert counting(run.open(run.path)).mask_path(id) == run.mask_path(id)


@pytest.mark.parametrize("corner", ["nan", "inf", "1e12"])
def test_corners_far_away_are_refused(run, data, tmp_path, corner):
    place = out(run, data, "yolo-seg", tmp_path / "out")
    path = next(path for path in sorted(place.rglob("*.txt")) if path.read_text())
    path.write_text(f"0 0.1 0.1 0.5 {corner} 0.5 0.5\n")
    ((name, why),) = import_masks(run, place, progress=False).unread
    assert name == f"toy/{path.stem}"
    assert "far outside of the image" in why


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for each in folder.rglob("*"):
            archive.write(each, each.relative_to(folder).as_posix())
    return path


def test_cvats_archive_of_colours(run, data, tmp_path):
    """CVAT gives masks as colours by the label map, in whatever order."""
    folder = out(run, data, "voc", tmp_path / "out", images="none")
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            colours = image.convert("RGB")
        colours.save(path)
    found = import_masks(run, zipped(folder, tmp_path / "task.zip"), progress=False)
    assert (found.kind, found.corrected, found.equal) == ("voc", (), len(data))


def label_studio(run, id, tmp_path, **task):
    mask = read_mask(run.mask_path(id))
    common = {"original_width": mask.shape[1], "original_height": mask.shape[0]}
    square = {"points": [[0, 0], [50, 0], [50, 50], [0, 50]], "polygonlabels": ["dog"]}
    result = [{"type": "polygonlabels", **common, "value": square}]
    path = tmp_path / "tasks.json"
    base = {"data": {"image": f"/data/local-files/?d=set/images/{id}.png"}}
    path.write_text(json.dumps([base | {"annotations": [{"result": result}]} | task]))
    return path


def test_a_polygon_of_label_studio_is_in_per_cent(run, tmp_path):
    id = run.ids()[0]
    assert import_masks(run, label_studio(run, id, tmp_path), progress=False).corrected == (id,)
    mask = read_mask(counting(run).mask_path(id))
    height, width = mask.shape
    expected = np.zeros_like(mask)
    expected[: height // 2, : width // 2] = 2
    np.testing.assert_array_equal(mask, expected)


def test_all_labels_removed_is_background(run, tmp_path):
    id = run.ids()[0]
    import_masks(run, label_studio(run, id, tmp_path, annotations=[{"result": []}]), progress=False)
    assert not read_mask(counting(run).mask_path(id)).any()


def test_what_has_two_meanings_is_asked(run, data, tmp_path):
    two = label_studio(run, run.ids()[0], tmp_path, annotations=[{"result": []}, {"result": []}])
    with pytest.raises(UserError, match="2 annotations: keep the one that holds"):
        import_masks(run, two, progress=False)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "notes.md").write_text("nothing")
    with pytest.raises(UserError, match=r"is none of png, coco.*--from png"):
        import_masks(run, tmp_path / "odd", progress=False)


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


def test_pieces_that_are_left_out_are_said(run, data, tmp_path):
    for number, id in enumerate(run.ids()[:2]):  # a piece of three pixels in each
        mask = np.zeros_like(read_mask(run.mask_path(id)))
        mask[10:30, 10:30] = 1
        mask[2, 2 : 5 + number] = 2
        run.mask_path(id).write_bytes(encode_mask(mask, CLASSES.palette))
    for to in ("coco", "labelme", "yolo-seg", "cvat"):
        with pytest.warns(UserWarning, match=r"left out: .* of fewer than 4 pixels.*do not come back equal"):
            place = out(run, data, to, tmp_path / to, min_pixels=4)
        found = import_masks(run, place, to, data=data, progress=False)
        mask = read_mask(counting(run).mask_path("toy/0"))
        assert ("toy/0" in found.corrected, "toy/1" in found.corrected) == (True, False)
        assert ((mask == 1).sum(), (mask == 2).any()) == (400, False)
        shutil.rmtree(run.path / "corrected")
        shutil.rmtree(run.path / "corrected-before", ignore_errors=True)


def test_xml_with_entities_is_not_read(run, tmp_path):
    path = tmp_path / "annotations.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotations><image name="&b;"/></annotations>')
    with pytest.raises(UserError, match=r"nothing of .* can be read: annotations.xml: .*declares a document type"):
        import_masks(run, path, "cvat", progress=False)


def test_links_out_of_the_folder_are_not_followed(run, data, tmp_path):
    folder = corrected_folder(run, tmp_path / "a")
    secret = tmp_path / "secret.png"
    secret.write_bytes(encode_mask(np.zeros((48, 64), np.uint8), CLASSES.palette))
    id = run.ids()[0]
    (folder / f"{id}.png").unlink()
    (folder / f"{id}.png").symlink_to(secret)
    assert import_masks(run, folder, progress=False).equal == len(data) - 1


@pytest.mark.parametrize("kind", ["ultralytics", "yolo-seg"])
def test_ultralytics_finds_the_folders_beside_its_yaml(run, data, tmp_path, kind):
    """Its "path" is taken from the working folder; without it, from the folder of the file."""
    place = out(run, data, kind, tmp_path / "out")
    described = yaml.safe_load((place / "data.yaml").read_text())
    assert "path" not in described
    assert all((place / described[split]).is_dir() for split in ("train", "val"))


def test_a_correction_is_taken_back_by_its_lines(run, data, tmp_path):
    folder = corrected_folder(run, tmp_path / "a", toy_0=changed(run, "toy/0"), toy_1=changed(run, "toy/1"))
    import_masks(run, folder, progress=False)
    log = run.path / "corrected" / "corrected.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(row["id"], row["source"]) for row in rows] == [("toy/0", "png: a"), ("toy/1", "png: a")]
    assert all(set(row) == {"id", "picture", "classes", "source"} for row in rows)
    log.write_text(json.dumps(rows[1]) + "\n")
    assert counting(run).mask_path("toy/0") == run.mask_path("toy/0")
    assert list(Corrected(run).ids()) == ["toy/1"]


# --- images without a made mask


@pytest.fixture
def gappy(tmp_path, data):
    """A run whose labelling failed on one image, and left out another for want of tags."""
    data.samples[3] = replace(data.samples[3], tags=None)
    return small_run(tmp_path / "gappy", data, MaskRule(mu=0.7), leave_out=(0, 3))


def drawn_by_hand(folder, **masks):
    folder.mkdir()
    for name, mask in masks.items():
        (folder / f"{name}.png").write_bytes(encode_mask(mask, CLASSES.palette))
    return folder


def hand_masks(data):
    """Masks for the two images without one, 0 and 3, by the ends of their ids."""
    found = {}
    for at in (0, 3):
        mask = np.zeros_like(data[at].truth())
        mask[5:20, 5:25], mask[30, 30] = 2, IGNORE
        found[str(at)] = mask
    return found


def test_an_image_without_a_made_mask_gets_one(gappy, data, tmp_path):
    masks = hand_masks(data)
    folder = drawn_by_hand(tmp_path / "in", **masks)
    with pytest.raises(UserError, match=r"no mask of an image of .*; its names are 0.png, 3.png"):
        import_masks(gappy, folder, progress=False)  # without the data nothing is known of these images
    before = evaluate(gappy, data, progress=False)
    found = import_masks(gappy, folder, data=data, progress=False)
    assert found.corrected == found.added == ("toy/0", "toy/3")
    assert "2 of them are of images without a made mask" in found.text()
    assert import_masks(gappy, folder, data=data, progress=False).equal == 2
    run = counting(gappy)
    assert run.ids() == [sample.id for sample in data]
    assert gappy.ids() == ["toy/1", "toy/2", "toy/4"]

    found = evaluate(gappy, data, progress=False)
    assert (before.images, before.missing, found.images, found.missing) == (3, 2, 5, 0)
    assert found.supervision == "tags+pixels(2)"
    assert found.stale == ("2 corrected masks without score maps: not in the figures of the maps",)
    assert [curve.images for curve in found.curves] == [curve.images for curve in before.curves]

    for given in (data, None):  # with the images and without
        place = export(gappy, given, "png", tmp_path / f"out{given is None}", progress=False)
        for at, mask in masks.items():
            np.testing.assert_array_equal(read_mask(place / "toy" / f"{at}.png"), mask)

    targets = find_targets(data, run)
    assert (len(targets), targets.supervision, targets.left_out) == (5, "tags+pixels(2)", {})
    np.testing.assert_array_equal(targets.labels(3).numpy(), masks["3"])
    assert find_targets(data, gappy).left_out == {"failed": 2}

    other = small_run(tmp_path / "other", data, MaskRule(mu=0.7))
    assert compare([gappy, other], [data, data]).images == 5


def test_the_report_shows_a_corrected_mask_without_confidence(gappy, data, tmp_path):
    import_masks(gappy, drawn_by_hand(tmp_path / "in", **hand_masks(data)), data=data, progress=False)
    for given in (data, replace(data, samples=[replace(each, truth=None) for each in data.samples]), None):
        page = report(gappy, given, tmp_path / "page.html", progress=False).read_text()
        assert "5</b><span>images labelled" in page
        assert "2 corrected by a person" in page
        assert "cannot be read" not in page
        small = (tmp_path / "page-images" / "all-1.html").read_text()
        assert small.count("corrected by a person") == 2
        assert small.count('data-confidence=""') == 2


def test_a_drawing_of_a_picture_that_was_replaced_counts_no_more(gappy, data, tmp_path):
    import_masks(gappy, drawn_by_hand(tmp_path / "in", **hand_masks(data)), data=data, progress=False)
    data[3].image.write_bytes(data[0].image.read_bytes())
    targets = find_targets(data, counting(gappy))
    assert targets.left_out == {"whose picture was replaced": 1}
    assert targets.supervision == "tags+pixels(1)"
    assert evaluate(gappy, data, progress=False).images == 4


def test_where_nothing_was_drawn_an_image_stays_without_a_mask(gappy, data, tmp_path):
    """A tool lists every image of a task; an image nobody looked at is not one without any object."""
    blank = {at: np.zeros_like(mask) for at, mask in hand_masks(data).items()}
    found = import_masks(gappy, drawn_by_hand(tmp_path / "in", **blank), data=data, progress=False)
    assert (found.corrected, found.blank) == ((), ("toy/0", "toy/3"))
    assert "nothing is drawn on 2 images without a made mask" in found.text()
    assert counting(gappy).ids() == gappy.ids()


def test_an_outline_on_an_image_without_a_made_mask(gappy, data, tmp_path):
    """A format that says no size takes the picture's; ignored pixels are of masks that were made."""
    folder = out(gappy, data, "yolo-seg", tmp_path / "out", images="none")
    (folder / "labels" / "train" / "toy" / "3.txt").write_text("1 0 0 0.5 0 0.5 0.5 0 0.5\n")
    assert import_masks(gappy, folder, data=data, progress=False).added == ("toy/3",)
    mask = read_mask(counting(gappy).mask_path("toy/3"))
    expected = np.zeros((48, 64), np.uint8)
    expected[:24, :32] = 2
    np.testing.assert_array_equal(mask, expected)


def test_a_later_label_keeps_what_was_drawn(gappy, data, tmp_path):
    masks = hand_masks(data)
    import_masks(gappy, drawn_by_hand(tmp_path / "in", **masks), data=data, progress=False)
    again = small_run(gappy.path, data, MaskRule(mu=0.7))
    again = with_inputs(again, data)
    np.testing.assert_array_equal(read_mask(counting(again).mask_path("toy/0")), masks["0"])
    examples = Examples(find_targets(data, counting(again)), Augment(crop=None, flip=0), seed=0, confidence=True)
    example = examples.read(0)
    assert torch.equal(example.labels, torch.from_numpy(masks["0"]))
    assert example.confidence.min() == 1
