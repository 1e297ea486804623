"""Exported masks, read back by other libraries."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from stages.small_run import CLASSES, Toys, small_run, toys
from tag2mask.data.png import read_mask
from tag2mask.stages.export import export
from tag2mask.types import IGNORE, MaskRule, UserError


@pytest.fixture
def data(tmp_path: Path) -> Toys:
    return toys(tmp_path / "data")


def test_png_keeps_every_pixel_and_the_palette(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data, MaskRule(mu=0.7), leave_out=(1,))
    with pytest.warns(UserWarning, match=r"1 of 5 images have no mask in .*run and are left out"):
        out = export(run, data, "png", tmp_path / "out", progress=False)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names - {".tag2mask-export", "classes.json"} == {f"toy/{index}.png" for index in (0, 2, 3, 4)}
    seen = set()
    for name in names - {".tag2mask-export", "classes.json"}:
        image = Image.open(out / name)
        assert image.mode == "P"
        assert image.getpalette()[: 3 * len(CLASSES)] == [c for colour in CLASSES.palette for c in colour]
        assert np.array_equal(np.array(image), read_mask(run.path / "masks" / name))
        seen |= set(np.unique(np.array(image)).tolist())
    assert IGNORE in seen


def test_coco_round_trip_through_pycocotools(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data, MaskRule(mu=0.7))
    path = export(run, data, "coco", tmp_path / "out" / "masks.json", progress=False)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == list(CLASSES.foreground)
    images = coco.loadImgs(coco.getImgIds())
    assert "tag2mask" in coco.dataset["info"]["description"]
    assert [image["file_name"] for image in images] == [f"{index}.png" for index in range(5)]
    for image, sample in zip(images, data, strict=True):
        rebuilt = np.zeros((image["height"], image["width"]), np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            rebuilt[coco.annToMask(annotation) == 1] = annotation["category_id"]
        mask = read_mask(run.mask_path(sample.id))
        assert np.array_equal(rebuilt, np.where(mask == IGNORE, 0, mask))


def test_an_interrupted_export_leaves_the_old_file(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    path = export(run, data, "coco", tmp_path / "masks.json", progress=False)
    before = path.read_bytes()
    run.mask_path("toy/4").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"4\.png.*run label again"):
        export(run, data, "coco", path, progress=False)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir() if each.suffix == ".tmp"] == []
    json.loads(before)


def test_what_cannot_be_exported_is_refused(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    with pytest.raises(UserError, match=r'exporter "pascal" is not known.*known: png, coco, voc,'):
        export(run, data, "pascal", tmp_path / "out")
    with pytest.raises(UserError, match="is a folder; the COCO export of tag2mask is one file"):
        export(run, data, "coco", tmp_path)
    with pytest.raises(UserError, match="no mask for any of the 5 images"):
        export(run, toys(tmp_path / "data", prefix="other/"), "png", tmp_path / "out")


@pytest.mark.parametrize("where", ["data", "data/new", ".", "run", "run/masks", "run/masks/toy", "elsewhere", "file"])
def test_png_never_lands_on_other_files(tmp_path: Path, where: str) -> None:
    data = toys(tmp_path / "data", prefix="")  # ids 0..4, as the photographs 0.png..4.png are called
    run = small_run(tmp_path / "run", data)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "0.png").write_bytes(b"mine")
    (tmp_path / "file").write_bytes(b"mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for given in (data, None) if where != "file" else (data,):
        run.noted["data_root"] = str(data.root)
        with pytest.raises(UserError, match="choose a"):
            export(run, given, "png", tmp_path / where, progress=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_png_replaces_an_earlier_export(data: Toys, tmp_path: Path) -> None:
    out = export(small_run(tmp_path / "run", data), data, "png", tmp_path / "out", progress=False)
    other = small_run(tmp_path / "other", data, MaskRule(mu=0.7))
    export(other, data, "png", out, progress=False)
    assert np.array_equal(read_mask(out / "toy/0.png"), read_mask(other.mask_path("toy/0")))


def test_an_export_that_somebody_has_changed_is_not_written_over(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    out = export(run, data, "png", tmp_path / "out", progress=False)
    export(run, data, "png", out, progress=False)  # nothing has changed
    marker = out / ".tag2mask-export"
    later = marker.stat().st_mtime_ns + 10**9
    (out / ".DS_Store").write_bytes(b"of a file manager")
    (out / "Thumbs.db").write_bytes(b"of another")
    for name in (".DS_Store", "Thumbs.db"):
        os.utime(out / name, ns=(later, later))
    export(run, data, "png", out, progress=False)
    drawn = (out / "toy/0.png").read_bytes() + b"corrected"
    (out / "toy/0.png").write_bytes(drawn)
    later = marker.stat().st_mtime_ns + 10**9
    os.utime(out / "toy/0.png", ns=(later, later))
    with pytest.raises(UserError, match=r"1 file that changed since the export \(toy/0.png\).*tag2mask import"):
        export(run, data, "png", out, progress=False)
    assert (out / "toy/0.png").read_bytes() == drawn
    marker.write_bytes(b"")  # an export that was stopped goes on
    export(run, data, "png", out, progress=False)
    assert (out / "toy/0.png").read_bytes() != drawn


@pytest.mark.parametrize(("to", "suffix"), [("coco", ".json"), ("cvat", ".xml")])
def test_a_file_without_a_suffix_is_refused(data: Toys, tmp_path: Path, to: str, suffix: str) -> None:
    run = small_run(tmp_path / "run", data)
    with pytest.raises(UserError, match=rf"has no suffix.*name it .*masks{suffix}$"):
        export(run, data, to, tmp_path / "masks", progress=False)
    assert not (tmp_path / "masks").exists()


def test_a_foreign_coco_file_is_left_as_it_is(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    path = tmp_path / "instances.json"
    path.write_text('{"annotations": [], "images": []}')
    with pytest.raises(UserError, match="exists and is no COCO export"):
        export(run, data, "coco", path, progress=False)
    assert path.read_text() == '{"annotations": [], "images": []}'
    with pytest.raises(UserError, match="exists and is no COCO export"):
        export(run, data, "coco", data.root / "0.png", progress=False)


def test_png_needs_the_masks_alone(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data, leave_out=(1,))
    shutil.rmtree(data.root)
    out = export(run.path, None, "png", tmp_path / "out", progress=False)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.png")} == {f"toy/{i}.png" for i in (0, 2, 3, 4)}
    image = Image.open(out / "toy/2.png")
    assert image.getpalette()[: 3 * len(CLASSES)] == [c for colour in CLASSES.palette for c in colour]
    assert np.array_equal(np.array(image), read_mask(run.mask_path("toy/2")))
    with pytest.raises(UserError, match="coco needs the images' file names; give the data set, or export to png"):
        export(run, None, "coco", tmp_path / "masks.json")
