"""The report's pictures: pages of small ones, thumbnails, overlays, curves; and the weights that it names."""

from __future__ import annotations

import io
import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from stages.report_page import Page, least_sure
from stages.small_run import CLASSES, Toys, small_run, toys
from tag2mask.data.png import encode_mask, read_mask
from tag2mask.run.folder import Run
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.report import report
from tag2mask.stages.report_parts import (
    confidence_thumbnail,
    jpeg_within,
    label_thumbnail,
    layer_within,
    map_overlay,
    mask_overlay,
    panels,
    thumbnail_size,
)
from tag2mask.storybook.embedded import CLIP_SHA256
from tag2mask.types import IGNORE, UserError


@pytest.fixture
def data(tmp_path: Path) -> Toys:
    return toys(tmp_path / "data")


# --- pages of small pictures


def gallery_pages(run: Run) -> dict[str, Page]:
    return {path.name: Page(path) for path in sorted((run.path / "report-images").glob("*.html"))}


def test_every_image_is_on_a_page_the_least_sure_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tag2mask.stages.report_gallery.PAGE", 2)
    data = toys(tmp_path / "data", truth=False, prefix='t"<b>/')
    run = small_run(tmp_path / "run", data)
    main = Page(report(run, data, progress=False))
    assert ("href", "report-images/all-1.html") in main.attributes
    pages = gallery_pages(run)
    order = least_sure(run, data)
    for name, value in (("all", None), ("class1", 1), ("class2", 2), ("class3", 3)):
        wanted = [id for id in order if value is None or (read_mask(run.mask_path(id)) == value).any()]
        mine = [pages[f"{name}-{page}.html"] for page in range(1, -(-len(wanted) // 2) + 1)]
        shown = [re.findall(r"<h3>(.*?)</h3>", page.html.split("<dialog")[0]) for page in mine]
        assert [unescape(id) for ids in shown for id in ids] == wanted
        assert all(len(ids) <= 2 for ids in shown)
    assert len(pages) == 3 + sum(
        -(-sum((read_mask(run.mask_path(i)) == v).any() for i in order) // 2) for v in (1, 2, 3)
    )
    for page in pages.values():
        for name, value in page.attributes:
            assert name != "src" or not value or (run.path / "report-images" / value).is_file()
            assert name not in ("data-photo", "data-mask") or (run.path / "report-images" / unquote(value)).is_file()
            assert name != "href" or (run.path / "report-images" / value).resolve().is_file()
            assert name != "rel" or value in ("next", "prev")
        assert not {name for name, _ in page.attributes if name.startswith("on")}


def test_old_pages_go_and_what_others_put_there_stays(tmp_path: Path) -> None:
    data = toys(tmp_path / "data", truth=False)
    run = small_run(tmp_path / "run", data)
    report(run, data, progress=False)
    folder = run.path / "report-images"
    assert len([*folder.rglob("*.jpg")]) == 5
    report(run, Toys(data.root, data.samples[:2]), progress=False)
    assert len([*folder.rglob("*.jpg")]) == 2
    assert not (folder / "class3-1.html").exists()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt.*--no-gallery"):
        report(run, data, progress=False)
    assert "report-images" not in Page(report(run, data, gallery=False, progress=False)).html
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    report(run, data, progress=False)
    with Run.create(run.path, run.settings) as writing:
        writing.write("toy/0", mask=b"x", confidence=b"x", scores=None)
    assert not folder.exists(), "small pictures of masks that are others now"


# --- pictures


def test_thumbnails_keep_labels_and_never_vanish() -> None:
    assert thumbnail_size(20000, 30) == (256, 1)
    assert thumbnail_size(100, 200) == (100, 200)
    mask = np.random.default_rng(0).choice([0, 3, IGNORE], (700, 500)).astype(np.uint8)
    small = label_thumbnail(mask)
    assert small.shape == (256, 183)
    assert set(np.unique(small)) == {0, 3, IGNORE}


def test_overlays_show_class_colours_where_the_class_is() -> None:
    photo = np.full((20, 30, 3), 90, np.uint8)
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 5:15] = 3
    shown = mask_overlay(photo, mask, CLASSES).astype(int)
    assert shown[10, 10].argmax() == 2  # blue, the colour of 3
    assert np.ptp(shown[10, 25]) == 0  # the photograph's own grey
    maps = torch.zeros(2, 4, 6)
    maps[1, :, :3] = 1
    glow = map_overlay(photo, maps, torch.tensor([1, 2]), CLASSES).astype(int)
    assert glow[10, 3].argmax() == 1  # green, the colour of 2, on the left
    assert np.ptp(glow[10, 27]) == 0


def test_a_layer_shows_the_mask_and_lets_the_photograph_through() -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 10:30] = 2
    mask[:, 50:] = IGNORE
    layer = np.asarray(Image.open(io.BytesIO(layer_within(mask, CLASSES, 10_000))).convert("RGBA"))
    assert tuple(layer[20, 20, :3]) == CLASSES.palette[2]
    assert 0 < layer[5, 5, 3] < layer[20, 20, 3] < 255
    assert (layer[10, 15, :3] == 255).all(), "an outline"
    assert len(np.unique(layer[20, 52:, 3])) == 2, "hatched"
    noise = np.random.default_rng(0).integers(0, 4, (300, 400)).astype(np.uint8)
    for most in (20_000, 2_000):
        assert len(layer_within(noise, CLASSES, most)) <= most
        photo = np.stack([noise * 80] * 3, axis=-1)
        assert len(jpeg_within(photo, most)) <= most
    assert Image.open(io.BytesIO(jpeg_within(photo, 1_000_000))).size == (400, 300)


def test_confidence_runs_from_dark_to_light() -> None:
    ramp = np.tile(np.linspace(0, 1, 50, dtype=np.float32), (8, 1))
    light = confidence_thumbnail(ramp).astype(int).sum(-1)[4]
    assert (np.diff(light) >= 0).all()
    assert light[-1] - light[0] > 200


def test_curve_points_lie_where_their_values_are(data: Toys, tmp_path: Path) -> None:
    found = evaluate(small_run(tmp_path / "run", data), data, progress=False)
    power, constant = panels(found.curves)
    assert power.lines[0].used is not None
    assert constant.lines[0].used is None
    for panel in (power, constant):
        for line in panel.lines:
            points = [tuple(map(float, pair.split(","))) for pair in line.points.split()]
            assert (line.best.x, line.best.y) in points
            assert line.best.y == min(y for _, y in points)  # up is less in SVG
            assert all(panel.left <= x <= panel.right and panel.top <= y <= panel.bottom for x, y in points)
    used_x = {text: x for x, text in power.x_ticks}["1"]
    assert power.lines[0].used.x == used_x


def test_it_names_the_weights_and_says_what_they_do_not_know(tmp_path):
    data = toys(tmp_path / "data")

    def text(name: str, settings: dict, noted: dict | None = None) -> str:
        run = small_run(tmp_path / name, data)
        run.settings.update(settings)
        run.noted.update(noted or {})
        return Page(report(run, None, tmp_path / f"{name}.html", progress=False)).text

    unknown = "was trained on drawn Storybook scenes alone and knows no photographs"
    openai = {"clip": {"sha256": "a" * 64, "precision": "float32"}}
    found = text("photos", {**openai, "options": {}}, {"clip": "openai/clip-vit-base-patch16"})
    assert "CLIP: openai/clip-vit-base-patch16 (sha256 aaaaaaaaaaaa…)." in found
    assert unknown not in found
    for name in ("storybook-clip", "a/copy"):
        found = text(name.replace("/", "-"), {"clip": {"sha256": CLIP_SHA256}}, {"clip": name})
        assert f"CLIP: {name}" in found
        assert f"storybook-clip {unknown}." in found
    found = text("cam", {"method": "classifier-cam", "options": {"weights": "storybook-resnet"}})
    assert f"Classifier: storybook-resnet. storybook-resnet {unknown}." in found
    seeds = small_run(tmp_path / "seeds", data)
    kept = yaml.safe_load((seeds.path / "run.yaml").read_text())
    kept["settings"] |= {"method": "clip-es", **openai}
    kept["noted"] |= {"clip": "openai/clip-vit-base-patch16"}
    (seeds.path / "run.yaml").write_text(yaml.safe_dump(kept))
    irn = {"method": "irn", "options": {"weights": "resnet50.pth"}, "resolved": {"weights_sha256": "b" * 64}}
    found = text("irn", irn, {"prior_path": str(seeds.path)})
    assert "Backbone: resnet50.pth (sha256 bbbbbbbbbbbb…). It refined maps of clip-es. CLIP: openai/clip-vit" in found
    assert unknown not in found
    assert "which is no longer there" in text("lost", irn, {"prior_path": str(tmp_path / "gone")})
    trained = {"trained": {"recipe": {"architecture": "small", "init": None}}}
    found = text("net", {"stage": "predict", "supervision": "tags", "method": "small"}, trained)
    assert f"Network: small, trained from storybook-resnet. storybook-resnet {unknown}." in found


@pytest.mark.parametrize("gallery", [True, False])
def test_a_mask_with_a_value_of_no_class_is_listed_as_unreadable(tmp_path: Path, gallery: bool) -> None:
    data = toys(tmp_path / "data", truth=False)
    run = small_run(tmp_path / "run", data)
    mask = read_mask(run.mask_path("toy/1")).copy()
    mask[:2] = 9
    run.mask_path("toy/1").write_bytes(encode_mask(mask, CLASSES.palette))
    page = Page(report(run, data, gallery=gallery, progress=False))
    assert "the mask holds 9, expected 0 to 3 (toys), or 255" in page.text
    assert "toy/1" not in page.cards()
    assert len(page.cards()) == len(data) - 1
