"""Exported masks, read back by other libraries."""

from __future__ import annotations

import contextlib
import io
import json
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
    out = export(run, data, "png", tmp_path / "out", progress=False)
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names == {f"toy/{index}.png" for index in (0, 2, 3, 4)}
    seen = set()
    for name in names:
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
    with pytest.raises(UserError, match="cannot export to 'cvat'; choose one of png, coco"):
        export(run, data, "cvat", tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is a folder; COCO is one file"):
        export(run, data, "coco", tmp_path)
    with pytest.raises(UserError, match="no mask for any of the 5 images"):
        export(run, toys(tmp_path / "data", prefix="other/"), "png", tmp_path / "out")
