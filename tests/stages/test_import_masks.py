"""Masks go out to every tool's format and come back, as they were and corrected."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image

from stages.import_cases import changed, corrected_folder, out, with_inputs, zipped
from stages.small_run import CLASSES, small_run
from tag2mask import formats
from tag2mask.data.png import encode_mask, read_mask
from tag2mask.run.corrected import Corrected, corrections_in, counting
from tag2mask.segment.targets import find_targets
from tag2mask.stages.compare import compare
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.export import export
from tag2mask.stages.import_masks import import_masks
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


def test_it_says_which_masks_it_took_and_where_they_are(run, data, tmp_path):
    first, second = run.ids()[:2]
    masks = {
        first.replace("/", "_"): changed(run, first, 2),
        second.replace("/", "_"): np.zeros_like(read_mask(run.mask_path(second))),
    }
    folder = corrected_folder(run, tmp_path / "masks", **masks)
    found = import_masks(run, folder, progress=False)
    held = [{int(value) for value in np.unique(mask)} - {0, IGNORE} for mask in masks.values()]
    expected = {name: sum(value in each for each in held) for value, name in enumerate(CLASSES.names) if value}
    expected["background"] = sum(not each for each in held)
    assert found.classes == {name: count for name, count in expected.items() if count}
    assert found.classes["background"] == 1
    said = found.text().splitlines()
    assert said[0] == "read as png, as its files show; --from names another format"
    assert said[1] == f"png: 2 masks corrected ({first}, {second}), {len(data) - 2} as they were"
    assert said[2] == "corrected masks by class: " + ", ".join(
        f"{name} {count}" for name, count in found.classes.items()
    )
    assert said[3] == f"stored in {run.path / 'corrected'}; the made masks stay where they are"
    assert all((run.path / "corrected" / f"{id}.png").is_file() for id in found.corrected)
    again = import_masks(run, folder, "png", progress=False)
    assert again.text() == f"png: 0 masks corrected, {len(data)} as they were"


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


def test_an_older_export_takes_no_correction_back(run, data, tmp_path):
    """Two people correct at once, each what the run made: neither's work is undone by what the other left."""
    before = corrected_folder(run, tmp_path / "before")
    coco = export(run, data, "coco", tmp_path / "before.json", progress=False)
    import_masks(run, corrected_folder(run, tmp_path / "a", toy_0=changed(run, "toy/0")), progress=False)
    kept = counting(run).mask_path("toy/0").read_bytes()
    for source, kind in ((before, "png"), (coco, "coco")):
        found = import_masks(run, source, kind, data=data, progress=False)
        assert (found.corrected, found.older, found.complete) == ((), ("toy/0",), True)
        assert "came back as made, though corrected since, as if from an older export (toy/0)" in found.text()
        assert counting(run).mask_path("toy/0").read_bytes() == kept
    other = corrected_folder(run, tmp_path / "b", toy_1=changed(run, "toy/1"))
    found = import_masks(run, other, progress=False)
    assert (found.corrected, found.older, found.equal) == (("toy/1",), ("toy/0",), len(run.ids()) - 2)


def test_a_correction_is_taken_back_by_its_lines(run, data, tmp_path):
    folder = corrected_folder(run, tmp_path / "a", toy_0=changed(run, "toy/0"), toy_1=changed(run, "toy/1"))
    import_masks(run, folder, progress=False)
    log = run.path / "corrected" / "corrected.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(row["id"], row["source"]) for row in rows] == [("toy/0", "png: a"), ("toy/1", "png: a")]
    assert all(set(row) == {"id", "picture", "mask", "classes", "source"} for row in rows)
    log.write_text(json.dumps(rows[1]) + "\n")
    assert counting(run).mask_path("toy/0") == run.mask_path("toy/0")
    assert list(Corrected(run).ids()) == ["toy/1"]
