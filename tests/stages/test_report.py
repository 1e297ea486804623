"""The report: self-contained, safe against hostile names, of bounded size, and with the right numbers in it."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.report_page import Page, least_sure
from stages.small_run import CLASSES, SIZES, Toys, small_run, toys
from tag2mask.data.png import encode_confidence, encode_mask, read_confidence, read_mask
from tag2mask.ops.crf import PRESETS
from tag2mask.run.folder import Run
from tag2mask.stages import report as stage
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.report import report
from tag2mask.stages.report_cards import ROOM, room_for_each
from tag2mask.types import IGNORE, MaskRule, UserError


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
