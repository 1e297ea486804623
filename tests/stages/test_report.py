"""The report: self-contained, safe against hostile names, of bounded size, and with the right numbers in it."""

from __future__ import annotations

import base64
import io
import re
import shutil
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from stages.small_run import CLASSES, SIZES, Toys, small_run, toys
from tag2mask.stages import report as stage
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.report import report
from tag2mask.stages.report_parts import (
    confidence_thumbnail,
    label_thumbnail,
    map_overlay,
    mask_overlay,
    panels,
    thumbnail_size,
)
from tag2mask.storybook.embedded import CLIP_SHA256
from tag2mask.types import IGNORE, MaskRule, UserError

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would see: elements, attributes and text, and whether every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text("utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(self.html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def pictures(self) -> list[Image.Image]:
        sources = [value or "" for name, value in self.attributes if name == "src"]
        assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
        return [Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) for source in sources]

    def cards(self) -> list[str]:
        return re.findall(r"<header><h3>(.*?)</h3>", self.html)


@pytest.fixture
def data(tmp_path: Path) -> Toys:
    return toys(tmp_path / "data")


def test_with_truth_it_shows_the_figures_worst_first(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data, leave_out=(3,))
    page = Page(report(run, data, floors={"nothing known": 0.1234}, title="Toys", progress=False))
    found = evaluate(run, data, progress=False)
    for text in ("Toys", "nothing known 12.3", f"{100 * found.miou:.1f}", "4 images labelled", "1 failed"):
        assert text in page.text, text
    assert page.cards() == [score.id for score in found.worst]
    for row in found.per_class:
        assert f"{row.name} {100 * row.iou:.1f} {100 * row.precision:.1f}" in page.text
    assert "chosen with the ground truth" in page.text
    assert page.tags.count("polyline") == 4  # maps and initial, powers and constants
    assert page.text.count("photograph") == page.text.count("initial CAM") - 1 == 4  # once in the legend
    assert page.html.count("<figcaption>ground truth") == 4


def test_it_loads_nothing(data: Toys, tmp_path: Path) -> None:
    page = Page(report(small_run(tmp_path / "run", data), data, progress=False))
    assert "http://" not in page.html
    assert "https://" not in page.html
    assert not {"link", "iframe", "object", "embed", "video", "form", "base"} & set(page.tags)
    assert page.tags.count("script") == 1
    assert "@import" not in page.html
    assert "url(" not in page.html
    policy = dict(page.attributes)["content"], [v for _, v in page.attributes if v and "default-src" in v]
    assert policy[1][0].startswith("default-src 'none'")


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    data = toys(tmp_path / "data", prefix='"><img src=x onerror=alert(1)>')
    data.classes = replace(CLASSES, names=("background", evil, "' onmouseover='x", "hat & co"))
    run = small_run(tmp_path / "run", data, leave_out=(1,))
    page = Page(report(run, data, title=evil, floors={evil: 0.1}, progress=False))
    assert page.tags.count("script") == 1
    assert not {name for name, _ in page.attributes if name.startswith("on")}
    assert all((value or "").startswith("data:image/jpeg") for name, value in page.attributes if name == "src")
    for text in (evil, "' onmouseover='x", "hat & co", '"><img src=x onerror=alert(1)>0', "<b>truncated</b>"):
        assert text in page.text, text


def test_without_truth_the_least_sure_come_first(tmp_path: Path) -> None:
    data = toys(tmp_path / "data", truth=False)
    run = small_run(tmp_path / "run", data)
    page = Page(report(run, data, progress=False, worst=3))
    from tag2mask.data.png import read_confidence

    means = {sample.id: read_confidence(run.confidence_path(sample.id)).mean() for sample in data}
    assert page.cards() == sorted(means, key=means.__getitem__)[:3]
    assert "Least sure first" in page.text
    assert "mIoU" not in page.text
    assert "polyline" not in page.tags
    assert "ground truth" not in page.text.replace("no ground truth here", "")
    assert not (run.path / "metrics.json").exists()


def test_without_data_it_shows_what_the_run_holds(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    page = Page(report(run.path, out=tmp_path / "else" / "page.html", progress=False))
    assert "photograph" not in page.text
    assert len(page.cards()) == 5
    assert not (run.path / "report.html").exists()


def test_the_number_of_pictures_and_their_size_are_bounded(data: Toys, tmp_path: Path) -> None:
    big = data.root / "0.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48 * 40, 64 * 40, 3), np.uint8)).save(big)
    run = small_run(tmp_path / "run", data)
    page = Page(report(run, data, worst=2, progress=False))
    assert len(page.cards()) == 2
    pictures = page.pictures()
    assert len(pictures) <= 2 * 6 + stage.STRIP
    assert max(max(picture.size) for picture in pictures) <= 256
    assert Page(report(run, data, worst=0, progress=False)).cards() == []


def test_a_photograph_that_is_gone_leaves_the_rest(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    (data.root / "0.png").unlink()
    (data.root / "1.png").write_bytes(b"no image")
    page = Page(report(run, data, progress=False))
    assert len(page.cards()) == 5
    assert page.html.count("<figcaption>photograph") == 3


def test_a_run_without_scores_or_with_unreadable_summary(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data, MaskRule(mu=0.7), keep_scores=False)
    (run.path / "summary.0-of-2.json").write_text(
        '{"done": 3, "images_per_second": 12.34, "peak_memory": 1500000000}'
    )
    (run.path / "summary.1-of-2.json").write_text('{"images_per')
    (run.path / "summary.0-of-3.json").write_text('{"done": 0, "images_per_second": 0.0, "peak_memory": 9000000000}')
    page = Page(report(run, data, progress=False))
    assert "12.3 images per second" in page.text
    assert "1.50 GB" in page.text
    assert "left undecided" in page.text
    assert "initial CAM" not in page.text


def test_time_by_stage_comes_from_the_manifest(data: Toys, tmp_path: Path) -> None:
    page = Page(report(small_run(tmp_path / "run", data), data, progress=False))
    assert "scores 200 ms" in page.text
    assert "crf, all images 0.5 s" in page.text


def test_a_run_without_masks_is_refused(data: Toys, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no mask yet"):
        report(small_run(tmp_path / "run", data, leave_out=(0, 1, 2, 3, 4)), data)


def test_only_a_report_of_ours_is_replaced(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    out = report(run, out=tmp_path / "page.html", progress=False)
    first = out.read_bytes()
    report(run, out=out, title="again", progress=False)
    assert out.read_bytes() != first
    assert ("content", "tag2mask") in Page(out).attributes
    tags = tmp_path / "tags.csv"
    tags.write_text("image,tags")
    for foreign in (tags, data.root / "0.png", run.path / "run.yaml"):
        before = foreign.read_bytes()
        with pytest.raises(UserError, match="exists and is no report"):
            report(run, data, out=foreign, progress=False)
        assert foreign.read_bytes() == before
    with pytest.raises(UserError, match="is a folder"):
        report(run, data, out=tmp_path, progress=False)


def test_masks_are_enough_where_the_images_are_gone(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    shutil.rmtree(data.root)
    page = Page(report(run.path, progress=False))
    assert len(page.cards()) == 5
    assert page.html.count("<figcaption>mask") >= 5


def test_truth_without_a_scored_pixel_is_refused(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    for index, (sample, size) in enumerate(zip(data.samples, SIZES, strict=True)):
        data.samples[index] = replace(sample, truth=partial(np.full, size, IGNORE, np.uint8))
    with pytest.raises(UserError, match="no pixel of the ground truth is scored"):
        report(run, data, progress=False)


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
