"""Masks that go out, are changed, and come back."""

from __future__ import annotations

import zipfile

from stages.small_run import CLASSES
from tag2mask.data.png import encode_mask, read_mask
from tag2mask.run.inputs import Inputs, Stamp
from tag2mask.stages.export import export

FILES = {"coco": "masks.json", "cvat": "annotations.xml"}


def out(run, data, kind, folder, **options):
    return export(run, data, kind, folder / FILES.get(kind, ""), options, progress=False)


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


def with_inputs(run, data):
    """The run with notes on what its masks were made of, as label makes them."""
    with run.create(run.path, run.settings) as noted:
        for sample in data:
            noted.record(sample.id, "ok", inputs=Inputs(Stamp.of(sample.image), sample.tags))
    return run.open(run.path)


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for each in folder.rglob("*"):
            archive.write(each, each.relative_to(folder).as_posix())
    return path
