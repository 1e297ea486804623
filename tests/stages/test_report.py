"""The report: self-contained, safe against hostile names, of bounded size, and with the right numbers in it."""

from __future__ import annotations

import base64
import io
import re
import shutil
from dataclasses import replace
from functools import partial
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from stages.small_run import CLASSES, SIZES, Toys, small_run, toys
from tag2mask.data.png import encode_confidence, encode_mask, read_confidence, read_mask
from tag2mask.ops.crf import PRESETS
from tag2mask.run.folder import Run
from tag2mask.stages import report as stage
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.report import report
from tag2mask.stages.report_cards import ROOM, room_for_each
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
        assert all(re.match("data:image/(jpeg|png);base64,", source) for source in sources if source)
        return [Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) for source in sources if source]

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
    assert page.text.count("initial CAM") == 4 + 1  # once in the legend
    for name in ("photograph", "initial CAM", "refined map", "mask", "confidence", "ground truth"):
        assert page.html.count(f"<figcaption>{name}</figcaption>") == 4, name


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
    assert all((value or "").startswith("data:image/") for name, value in page.attributes if name == "src")
    for text in (evil, "' onmouseover='x", "hat & co", '"><img src=x onerror=alert(1)>0', "<b>truncated</b>"):
        assert text in page.text, text


def least_sure(run: Run, data: Toys) -> list[str]:
    means = {sample.id: read_confidence(run.confidence_path(sample.id)).mean() for sample in data}
    return sorted(means, key=means.__getitem__)


def test_without_truth_the_least_sure_come_first(tmp_path: Path) -> None:
    data = toys(tmp_path / "data", truth=False)
    run = small_run(tmp_path / "run", data)
    page = Page(report(run, data, progress=False, worst=3))
    assert page.cards() == least_sure(run, data)[:3]
    assert "Least sure first" in page.text
    assert "mIoU" not in page.text
    assert "polyline" not in page.tags
    assert "ground truth" not in page.text.replace("no ground truth here", "")
    assert not (run.path / "metrics.json").exists()


def test_the_strip_shows_the_surest_that_hold_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "STRIP", 2)
    data = toys(tmp_path / "data", truth=False)
    run = small_run(tmp_path / "run", data)
    page = Page(report(run, data, progress=False))
    shown = re.findall(r'alt="mask of (.*?)"', page.html[: page.html.index("</section>")])
    held = [id for id in least_sure(run, data)[::-1] if read_mask(run.mask_path(id)).any()]
    assert shown == held[:2]
    assert shown[0] != least_sure(run, data)[-1], "the surest of all holds nothing"


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
    worst, doubtful = evaluate(run, data, progress=False).worst[:2], least_sure(run, data)[:2]
    assert page.cards() == [*dict.fromkeys([*(score.id for score in worst), *doubtful])]
    pictures = page.pictures()
    assert len(pictures) <= 4 * 6 + stage.STRIP
    assert max(max(picture.size) for picture in pictures) <= 960
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


def cells(page: Page) -> dict[str, list[str]]:
    """The rows of the table of classes: name -> figures."""
    table = page.html[page.html.index('<table id="classes">') :]
    rows = re.findall(r"<tr><th.*?</tr>", table[: table.index("</table>")], re.DOTALL)
    plain = [re.findall(r">([^<>]+)<", row.replace("\n", "")) for row in rows]
    return {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in plain}


def test_without_truth_classes_are_counted_over_all_pixels(tmp_path: Path) -> None:
    data = toys(tmp_path / "data", truth=False)
    run = small_run(tmp_path / "run", data, MaskRule(mu=0.7))
    page = Page(report(run, data, progress=False, worst=1))
    masks = [read_mask(run.mask_path(sample.id)) for sample in data]
    sure = np.concatenate([read_confidence(run.confidence_path(sample.id)).ravel() for sample in data])
    flat = np.concatenate([mask.ravel() for mask in masks])
    found = cells(page)
    assert [*found][-1] == "undecided"
    for value, name in [*enumerate(CLASSES.names), (IGNORE, "undecided")]:
        here = flat == value
        wanted = [f"{100 * sure[here].mean():.1f}", str(sum((mask == value).any() for mask in masks))]
        assert found[name] == [*wanted, f"{here.sum():,}", f"{100 * here.mean():.2f} %"], name
    small_run(tmp_path / "cats", Toys(data.root, data.samples[:1]))
    assert "In no mask: dog, hat." in Page(report(tmp_path / "cats", progress=False)).text


def test_what_was_left_out_is_named_with_its_reason(tmp_path: Path) -> None:
    data = toys(tmp_path / "data", truth=False)
    run = small_run(tmp_path / "run", data, leave_out=(1,))
    with Run.create(run.path, run.settings, images=9) as writing:
        writing.record("toy/2", "skipped", {}, error="no <b>tags</b>")
        writing.record("toy/x", "skipped", {}, error="no <b>tags</b>")
    run.confidence_path("toy/4").write_bytes(b"cut")
    page = Page(report(Run.open(run.path), progress=False))
    assert "1 failed, 2 skipped" in page.text
    assert "skipped: no <b>tags</b> 2 toy/2, toy/x" in page.text
    assert re.search(r"cannot be read: .*4\.png: cannot be decoded.*? 1 toy/4", page.text) or "toy/4" in page.text
    assert "toy/4" not in page.cards()
    assert "It has not come to 3 more images" in page.text.replace("it has", "It has")


@pytest.mark.parametrize("truth", [True, False])
@pytest.mark.parametrize("refiner", [None, "par", "clip-es"])
def test_a_crf_is_spoken_of_only_where_one_made_the_masks(tmp_path: Path, truth: bool, refiner: str | None) -> None:
    data = toys(tmp_path / "data", truth=truth)
    run = small_run(tmp_path / "run", data)
    run.settings["mask_rule"] = {**run.settings["mask_rule"], "refiner": refiner}
    run.noted["crf_engine"] = "torch"
    page = Page(report(run, data, progress=False))
    assert ("crf" in re.sub("crf, all images|crf 100 ms", "", page.text.lower())) == (refiner in PRESETS)
    assert ("refiner is" in page.text or "before the refiner" in page.text) == (refiner == "par")


def test_no_column_is_empty(data: Toys, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", data)
    found = evaluate(run, data, boundary=False, progress=False)
    page = Page(report(run, data, evaluation=found, progress=False))
    assert "Boundary IoU" not in re.findall(r'<button type="button">([\w ]+)</button>', page.html)
    assert "Recall" in page.text
    for row in re.findall(r"<tr.*?</tr>", page.html, re.DOTALL):
        assert row.count("<t") - 1 != 6, "head, class, IoU, precision, recall, images: five cells"


def test_noisy_pictures_leave_the_file_below_three_megabytes(tmp_path: Path) -> None:
    """The worst case for every encoder: noise in photographs and masks."""
    rng, root = np.random.default_rng(0), tmp_path / "data"
    data = toys(root)
    sizes = [(330, 500)] * 26
    sample = data.samples[1]
    data.samples = []
    Image.fromarray(rng.integers(0, 255, (*sizes[0], 3), np.uint8)).save(root / "noise.png")
    noise = rng.integers(0, 4, sizes[0]).astype(np.uint8)
    run = small_run(tmp_path / "run", Toys(root, []))
    with Run.create(run.path, run.settings) as writing:
        for index in range(len(sizes)):
            mask = encode_mask(noise, CLASSES.palette)
            confidence = encode_confidence(np.full(sizes[0], index / 100, np.float32))
            id = f"noise/{index}"
            data.samples.append(replace(sample, id=id, image=root / "noise.png", truth=None))
            writing.write(id, mask=mask, confidence=confidence, scores=None)
    page = report(Run.open(run.path), data, gallery=False, progress=False)
    assert len(Page(page).cards()) == 24
    assert 1_000_000 < page.stat().st_size < 3_000_000
    few, many = (room_for_each(cards, asked) * cards for cards, asked in ((48, 24), (200, 100)))
    assert few <= ROOM, "twice as many cards share the room"
    assert many > 4 * ROOM, "who asks for more gets more"


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
