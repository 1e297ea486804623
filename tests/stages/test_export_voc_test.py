"""The archive for VOC's server: its names, palette and bytes, and everything the server would refuse."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from methods.toys import TinyData
from tag2mask.classes import load_classes
from tag2mask.cli import app
from tag2mask.data.png import encode_confidence, encode_mask
from tag2mask.run.folder import Run
from tag2mask.stages.export import export
from tag2mask.types import Sample, UserError

VOC = load_classes("voc12")
IDS = ["2008_000009", "2008_000006", "2010_000001"]
SIZES = [(30, 40), (25, 20), (8, 8)]
FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"


def mask_of(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 21, SIZES[index], dtype=np.uint8)


@pytest.fixture
def data(tmp_path) -> TinyData:
    """A devkit whose test split has neither masks nor annotations, as VOC's own."""
    top = tmp_path / "VOC2012"
    (top / "JPEGImages").mkdir(parents=True)
    (top / "ImageSets" / "Segmentation").mkdir(parents=True)
    (top / "ImageSets" / "Segmentation" / "test.txt").write_text("\n".join(IDS))
    samples = []
    for name, (height, width) in zip(IDS, SIZES, strict=True):
        Image.new("RGB", (width, height)).save(top / "JPEGImages" / f"{name}.jpg")
        samples.append(Sample(name, top / "JPEGImages" / f"{name}.jpg", None))
    return TinyData(samples, top, VOC)


def predicted(path: Path, masks: dict[str, np.ndarray], names=VOC.names, noted=None) -> Run:
    settings = {"stage": "predict", "keep_scores": False, "classes": {"id": "voc12", "names": names}}
    with Run.create(path, settings, noted=noted) as run:
        for id, mask in masks.items():
            confidence = encode_confidence(np.ones(mask.shape))
            run.write(id, mask=encode_mask(mask, VOC.palette), confidence=confidence, scores=None)
    return Run.open(path)


@pytest.fixture
def run(tmp_path) -> Run:
    noted = {"config": {"data": {"path": str(tmp_path / "VOC2012"), "split": "test"}}}
    return predicted(tmp_path / "run", {name: mask_of(i) for i, name in enumerate(IDS)}, noted=noted)


def test_names_values_and_palette(run, data, tmp_path):
    out = export(run, data, "voc-test", tmp_path / "results.tgz", progress=False)
    with tarfile.open(out, "r:gz") as archive:
        assert archive.getnames() == [f"{FOLDER}/{name}.png" for name in sorted(IDS)]
        for index, name in enumerate(IDS):
            member = archive.extractfile(f"{FOLDER}/{name}.png")
            assert member is not None
            image = Image.open(io.BytesIO(member.read()))
            assert image.mode == "P"
            assert (np.array(image) == mask_of(index)).all()
            assert image.getpalette()[3 : 3 * 3] == [128, 0, 0, 0, 128, 0]  # aeroplane, bicycle
            assert image.getpalette()[3 * 20 : 3 * 21] == [0, 64, 128]  # tv/monitor


def test_equal_masks_are_equal_bytes_wherever_they_lie(run, data, tmp_path):
    first = export(run, data, "voc-test", tmp_path / "a.tgz", progress=False).read_bytes()
    assert first[4:8] == bytes(4)  # gzip's time stamp
    data.samples.reverse()
    assert export(run, data, "voc-test", tmp_path / "other" / "b.tgz", progress=False).read_bytes() == first
    assert (
        export(run, data, "voc-test", tmp_path / "a.tgz", progress=False).read_bytes() == first
    )  # may replace its own
    comp5 = export(run, data, "voc-test", tmp_path / "a.tgz", options={"competition": "comp5"}, progress=False)
    with tarfile.open(comp5) as archive:
        assert "comp5_test_cls" in archive.getnames()[0]


def test_the_command_reads_a_split_that_has_no_annotations(run, data, tmp_path):
    done = CliRunner().invoke(app, ["export", str(run.path), "--to", "voc-test", "-o", str(tmp_path / "r.tgz")])
    assert done.exit_code == 0, done.output
    with tarfile.open(tmp_path / "r.tgz") as archive:
        assert len(archive.getnames()) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda masks: masks.pop(IDS[1]), f"no mask of 1 of the 3 images .*{IDS[1]}"),
        (lambda masks: masks.update({IDS[0]: masks[IDS[0]].T.copy()}), f"{IDS[0]} is 30x40, its image 40x30"),
        (lambda masks: masks[IDS[2]].__setitem__((0, 0), 255), r"undecided pixels \(255\).*--mu 0"),
        (lambda masks: masks[IDS[2]].__setitem__((0, 0), 21), "holds the value 21; 0 to 20"),
    ],
)
def test_what_the_server_would_refuse(data, tmp_path, change, said):
    masks = {name: mask_of(i) for i, name in enumerate(IDS)}
    change(masks)
    with pytest.raises(UserError, match=said):
        export(predicted(tmp_path / "bad", masks), data, "voc-test", tmp_path / "r.tgz", progress=False)
    assert not (tmp_path / "r.tgz").exists()


def test_other_classes_and_foreign_files_are_left_alone(run, data, tmp_path):
    other = predicted(tmp_path / "other", {}, names=("background", "cat"))
    with pytest.raises(UserError, match="expected the 21 of voc12"):
        export(other, data, "voc-test", tmp_path / "r.tgz")
    (tmp_path / "r.tgz").write_bytes(b"my thesis")
    with pytest.raises(UserError, match="is not replaced"):
        export(run, data, "voc-test", tmp_path / "r.tgz")
    assert (tmp_path / "r.tgz").read_bytes() == b"my thesis"
    with pytest.raises(UserError, match="should be 'comp5' or 'comp6'"):
        export(run, data, "voc-test", tmp_path / "s.tgz", {"competition": "comp7"})
    damaged = run.mask_path(IDS[0])
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(UserError, match="predict again"):
        export(run, data, "voc-test", tmp_path / "s.tgz", progress=False)
