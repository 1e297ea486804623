"""Prediction: right against the network called by hand, whatever the batch; resumable; never stopped by an image."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from typer.testing import CliRunner

from coco_files import content
from methods.toys import CLASSES, TinyData, make_data
from run_folders import artefacts, die_at_file
from stages import small_run
from stages.networks import photographs, tiny_network
from tag2mask.classes import load_classes
from tag2mask.cli import app
from tag2mask.data import read_dataset
from tag2mask.data.image import read_image
from tag2mask.data.png import read_confidence, read_mask
from tag2mask.ops.crf import dense_crf, preset, unary_from_probs
from tag2mask.run.folder import Run
from tag2mask.segment.network import load_network, save_network
from tag2mask.segment.test_time import TestTime
from tag2mask.segment.test_time import predict as view
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.predict import predict, read_images
from tag2mask.storybook import render
from tag2mask.types import UserError

STORYBOOK = load_classes("voc12")
SIZES = [(40, 56), (64, 33), (24, 24), (1, 1)]


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    return tiny_network(tmp_path_factory.mktemp("net"), CLASSES)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return photographs(tmp_path_factory.mktemp("photos"), SIZES)


def images(folder: Path):
    return read_dataset(folder, network=CLASSES)


def tensor(path: Path) -> torch.Tensor:
    return torch.from_numpy(read_image(path)).permute(2, 0, 1)


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_an_unfinished_network_is_told(network, photos, tmp_path):
    noted = {"step": 3, "recipe": {"steps": 10}}
    save_network(tmp_path / "net", load_network(network), supervision="tags", noted=noted)
    with pytest.warns(UserWarning, match="at step 3 of 10 of its training"):
        predict(tmp_path / "net", images(photos), tmp_path / "run", device="cpu", progress=False)


def test_masks_are_the_networks_argmax_at_the_images_size(network, photos, tmp_path):
    summary = predict(network, images(photos), tmp_path / "run", device="cpu", progress=False)
    assert (summary.done, summary.failed, summary.complete) == (4, 0, True)
    assert "4 of 4 images predicted" in summary.text()
    net, run = load_network(network, "cpu"), Run.open(tmp_path / "run")
    seen = set()
    for number, size in enumerate(SIZES):
        with torch.no_grad():
            logits = net(tensor(photos / f"{number}.png")[None])
        probs = F.interpolate(logits, size, mode="bilinear", align_corners=net.align_corners)[0].softmax(0)
        mask = read_mask(run.mask_path(str(number)))
        assert mask.shape == size
        assert (mask == probs.argmax(0).numpy()).mean() > 0.999
        sure = read_confidence(run.confidence_path(str(number)))
        assert np.abs(sure - probs.amax(0).numpy()).max() <= 0.5 / 255 + 1e-4
        seen |= set(mask.ravel().tolist())
    assert seen == {0, 1, 2, 3}  # or the test would show little
    assert Image.open(run.mask_path("0")).getpalette()[3:6] == [255, 0, 0]
    assert not (run.path / "scores").exists()
    settings = run.settings
    assert (settings["stage"], settings["supervision"], settings["keep_scores"]) == ("predict", "tags", False)
    assert re.fullmatch("[0-9a-f]{64}", settings["network"]["sha256"])
    assert run.noted["trained"] == {"step": 7}


def test_truth_is_never_read_and_tags_do_not_matter(network, tmp_path):
    tagged = make_data(tmp_path / "images", 4)  # its truth raises
    predict(network, tagged, tmp_path / "a", device="cpu", progress=False)
    bare = TinyData([type(s)(s.id, s.image, None) for s in tagged], tagged.root)
    again = predict(network, bare, tmp_path / "a", device="cpu", progress=False)
    assert (again.done, again.skipped) == (0, 4)


@pytest.mark.parametrize(
    "test", [TestTime((0.5, 1.0), flip=True), TestTime((1.0, 1.5), flip=True, window=24, stride=16, fuse="logits")]
)
def test_the_batch_changes_nothing(network, photos, tmp_path, test):
    for batch in (1, 5):
        predict(
            network,
            images(photos),
            tmp_path / str(batch),
            test=replace(test, batch=batch),
            device="cpu",
            progress=False,
        )
    one, five = (Run.open(tmp_path / name) for name in ("1", "5"))
    assert one.settings == five.settings
    for number in range(len(SIZES)):
        masks = [read_mask(run.mask_path(str(number))) for run in (one, five)]
        sure = [read_confidence(run.confidence_path(str(number))) for run in (one, five)]
        assert (masks[0] != masks[1]).mean() < 1e-3
        assert np.abs(sure[0] - sure[1]).max() <= 1.01 / 255


def test_the_crf_sees_the_networks_probabilities(network, photos, tmp_path):
    predict(network, images(photos), tmp_path / "run", refiner="deeplab", device="cpu", progress=False)
    predict(network, images(photos), tmp_path / "bare", device="cpu", progress=False)
    picture = tensor(photos / "0.png")
    probs = view(load_network(network, "cpu"), picture, TestTime())
    better = dense_crf(picture, unary_from_probs(probs), preset("deeplab"))
    mask = read_mask(tmp_path / "run" / "masks" / "0.png")
    assert (mask == better.argmax(0).numpy()).mean() > 0.999
    assert (mask != read_mask(tmp_path / "bare" / "masks" / "0.png")).mean() > 0.01


def test_use_tags_leaves_only_the_classes_of_the_tags(network, tmp_path):
    data = make_data(tmp_path / "images", 6)
    data.samples[0] = type(data.samples[0])(data.samples[0].id, data.samples[0].image, None)
    data.samples[1] = type(data.samples[1])(data.samples[1].id, data.samples[1].image, ())
    predict(network, data, tmp_path / "tags", use_tags=True, device="cpu", progress=False)
    predict(network, data, tmp_path / "bare", device="cpu", progress=False)
    masks = {sample.id: read_mask(tmp_path / "tags" / "masks" / f"{sample.id}.png") for sample in data}
    bare = {sample.id: read_mask(tmp_path / "bare" / "masks" / f"{sample.id}.png") for sample in data}
    assert (masks[data.samples[0].id] == bare[data.samples[0].id]).all()  # not known: nothing is left out
    assert not masks[data.samples[1].id].any()
    for sample in data.samples[2:]:
        assert set(masks[sample.id].ravel().tolist()) <= {0, *sample.tags}
    assert any((masks[sample.id] != bare[sample.id]).any() for sample in data.samples[2:])
    # its tags were taken away
    data.samples[2] = type(data.samples[2])(data.samples[2].id, data.samples[2].image, None)
    again = predict(network, data, tmp_path / "tags", use_tags=True, device="cpu", progress=False)
    assert (again.done, again.skipped, again.no_tags) == (1, 5, 0)
    assert (read_mask(tmp_path / "tags" / "masks" / f"{data.samples[2].id}.png") == bare[data.samples[2].id]).all()
    other = TinyData(data.samples, data.root, STORYBOOK)
    with pytest.raises(UserError, match=r"leave out --use-tags"):
        predict(network, other, tmp_path / "c", use_tags=True, device="cpu", progress=False)


def test_bad_images_are_on_record_and_the_others_are_done(network, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "cut.png").write_bytes((photos / "0.png").read_bytes()[:-400])
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("no picture")
    done = CliRunner().invoke(
        app, ["predict", str(network), str(folder), "-o", str(tmp_path / "run"), "--device", "cpu"]
    )
    assert done.exit_code == 3, done.output
    records = Run.open(tmp_path / "run").records()
    failed = {id: record.error for id, record in records.items() if record.status == "failed"}
    assert failed.keys() == {"cut", "empty", "text"}
    assert "truncated" in failed["cut"]
    assert set(Run.open(tmp_path / "run").ids()) == {"0", "1", "2", "3"}
    shutil.copy(photos / "0.png", folder / "cut.png")  # mended: the same command does the rest
    call("predict", network, folder, "-o", tmp_path / "run", "--device", "cpu")
    assert "cut" in Run.open(tmp_path / "run").ids()


def test_a_huge_image_goes_in_by_tiles(network, tmp_path, monkeypatch):
    folder = photographs(tmp_path / "photos", [(300, 420)])
    seen = []
    net = load_network(network, "cpu")
    torch.manual_seed(0)
    net.network = torch.nn.Conv2d(3, 4, 9, stride=4, padding=4)  # sees no further than a tile's margin
    net.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape[2:])))
    monkeypatch.setattr("tag2mask.stages.predict.load_network", lambda *_: net)
    data = images(folder)
    predict(network, data, tmp_path / "tiles", test=TestTime(tile=64, margin=32), device="cpu", progress=False)
    assert len(seen) == 5 * 7
    assert max(max(size) for size in seen) <= 64 + 2 * 32
    predict(network, data, tmp_path / "whole", device="cpu", progress=False)
    tiles, whole = (read_mask(tmp_path / name / "masks" / "0.png") for name in ("tiles", "whole"))
    assert tiles.shape == (300, 420)
    assert (tiles == whole).mean() > 0.999
    seen.clear()
    predict(network, data, tmp_path / "small", test=TestTime(longest=105), device="cpu", progress=False)
    assert seen == [(75, 105)]
    assert read_mask(tmp_path / "small" / "masks" / "0.png").shape == (300, 420)


def test_logits_that_are_not_finite_are_a_failure(network, photos, tmp_path, monkeypatch):
    net = load_network(network, "cpu")
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
    monkeypatch.setattr("tag2mask.stages.predict.load_network", lambda *_: net)
    summary = predict(network, images(photos), tmp_path / "run", device="cpu", progress=False)
    assert (summary.done, summary.failed) == (0, 4)
    assert "not finite" in summary.errors[0][1]


def test_networks_that_are_not_there_or_damaged(network, photos, tmp_path):
    with pytest.raises(UserError, match="holds no network"):
        predict(tmp_path, images(photos), tmp_path / "run")
    broken = tmp_path / "net"
    shutil.copytree(network, broken)
    weights = bytearray((broken / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (broken / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="is damaged"):
        predict(broken, images(photos), tmp_path / "run")
    (broken / "config.json").write_text("{")
    with pytest.raises(UserError, match="no network"):
        predict(broken, images(photos), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_network_or_another_test_is_another_run(network, photos, tmp_path):
    predict(network, images(photos), tmp_path / "run", device="cpu", progress=False)
    other = tiny_network(tmp_path / "net", CLASSES, seed=1)
    with pytest.raises(UserError, match=r"network\.sha256 is"):
        predict(other, images(photos), tmp_path / "run", device="cpu", progress=False)
    with pytest.raises(UserError, match=r"test\.flip is False there and True now"):
        predict(network, images(photos), tmp_path / "run", test=TestTime(flip=True), device="cpu", progress=False)
    with pytest.raises(UserError, match="no refiner of masks is called 'deeplap'"):
        predict(network, images(photos), tmp_path / "run", refiner="deeplap")


# --- killed and started again


def work(network: Path, photos: Path, out: Path, die_at: int | None = None, shard: tuple[int, int] = (0, 1)) -> None:
    torch.set_num_threads(1)
    die_at_file(die_at)
    test = TestTime((1.0, 0.5), flip=True, batch=2)
    predict(network, images(photos), out, test=test, refiner="deeplab", device="cpu", shard=shard, progress=False)


@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9")
def test_killed_and_started_again_gives_the_same_bytes(network, tmp_path):
    photos = photographs(tmp_path / "photos", [(20, 30), (30, 20), (24, 24)] * 2)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tag2mask.stages.predict", "stages.networks"])

    def run(*arguments, **more) -> int:
        process = context.Process(target=work, args=(network, photos, *arguments), kwargs=more)
        process.start()
        process.join(100)
        return process.exitcode

    assert run(tmp_path / "whole") == 0
    expected = artefacts(tmp_path / "whole")
    assert len(expected) == 12
    for die_at in (2, 6):
        assert run(tmp_path / "killed", die_at=die_at) == -signal.SIGKILL
    assert 0 < len(Run.open(tmp_path / "killed").ids()) < 6
    assert run(tmp_path / "killed") == 0
    assert artefacts(tmp_path / "killed") == expected
    for shard in ((0, 2), (1, 2)):
        assert run(tmp_path / "shards", shard=shard) == 0
    assert artefacts(tmp_path / "shards") == expected


# --- by the command line, and what later stages make of it


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return render(tmp_path_factory.mktemp("scenes"), 4, split="val", size=(48, 64), workers=1)


@pytest.fixture(scope="module")
def predicted(scenes, tmp_path_factory):
    net = tiny_network(tmp_path_factory.mktemp("net"), STORYBOOK)
    out = tmp_path_factory.mktemp("runs") / "val"
    done = call(
        "predict", net, scenes, "--split", "val", "-o", out, "--scales", "0.5,1", "--flip", "--crf", "deeplab"
    )
    assert done.exit_code == 0, done.output
    return out


def test_eval_finds_the_truth_by_itself(predicted):
    done = call("eval", predicted, "--confidence")
    assert done.exit_code == 0, done.output
    assert "mIoU" in done.output
    assert "pixels by confidence" in done.output
    found = json.loads((predicted / "metrics.json").read_text())
    assert found["images"] == 4
    assert found["thresholds"] == {}  # a network has no score maps
    assert sum(row["share"] for row in found["confidence"]["shares"]) == pytest.approx(1)


def test_the_table_says_what_people_gave(tmp_path):
    data = small_run.toys(tmp_path / "data")
    net = tiny_network(tmp_path / "net", data.classes, supervision="tags+pixels(3)")
    for use_tags, ending in ((False, "(3)\n"), (True, "(3); the network was given these images' tags")):
        predict(net, data, tmp_path / str(use_tags), use_tags=use_tags, device="cpu", progress=False)
        result = evaluate(tmp_path / str(use_tags), data, progress=False)
        assert f"supervision: tags+pixels{ending}" in result.text() + "\n"
        kept = json.loads((tmp_path / str(use_tags) / "metrics.json").read_text())
        assert (kept["supervision"], kept["use_tags"]) == ("tags+pixels(3)", use_tags)


def test_the_report_speaks_of_a_network(predicted):
    done = call("report", predicted)
    assert done.exit_code == 0, done.output
    page = (predicted / "report.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page))
    assert "A network, small, found pixel masks of 20 classes in 4 images" in text
    assert "It learned from tags alone" in text
    assert "images predicted" in text
    assert "How sure, and how right" in text
    for absent in ("initial CAM", "a map glows", "turned the tags", "Where background begins"):
        assert absent not in text
    assert page.count("<figcaption>photograph") == 4


def test_exports_take_a_predicted_run(predicted, network, photos, tmp_path):
    assert call("export", predicted, "--to", "coco", "-o", tmp_path / "masks.json").exit_code == 0
    assert len(json.loads((tmp_path / "masks.json").read_text())["images"]) == 4
    assert call("export", predicted, "--to", "png", "-o", tmp_path / "png").exit_code == 0
    done = call("export", predicted, "--to", "voc-test", "-o", tmp_path / "a.tgz")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "a.tgz").is_file()
    assert call("predict", network, photos, "-o", tmp_path / "few").exit_code == 0
    done = call("export", tmp_path / "few", "--to", "voc-test", "-o", tmp_path / "b.tgz")
    assert done.exit_code == 1
    assert "expected the 21 of voc12" in done.output
    assert not (tmp_path / "b.tgz").exists()


def test_images_of_other_classes_are_shown_but_not_measured(network, scenes, tmp_path):
    done = call("predict", network, scenes, "-o", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "are not the network's" in done.output
    done = call("eval", tmp_path / "run")
    assert done.exit_code == 1
    assert "Masks of other classes cannot be compared" in done.output
    assert call("report", tmp_path / "run").exit_code == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "mean confidence" in page
    assert page.count("<figcaption>photograph") == 4
    assert call("export", tmp_path / "run", "--to", "coco", "-o", tmp_path / "a.json").exit_code == 0


def test_a_folder_without_tags_is_measured_by_masks_beside_it(network, photos, tmp_path):
    truth = tmp_path / "truth"
    truth.mkdir()
    for number, (height, width) in enumerate(SIZES):
        Image.fromarray(np.full((height, width), number, np.uint8)).save(truth / f"{number}.png")
    assert call("predict", network, photos, "-o", tmp_path / "run").exit_code == 0
    done = call("eval", tmp_path / "run", "--data", photos, "--truth", truth)
    assert done.exit_code == 0, done.output
    done = call("eval", tmp_path / "run")
    assert done.exit_code == 1
    assert "no ground truth" in done.output


def test_what_the_command_refuses(network, photos, tmp_path):
    for flags, said in [
        (["--test", "deeplabv3"], "did you mean 'deeplabv2'"),
        (["--scales", "1;2"], "expected numbers with commas"),
        (["--scales", "0"], "one or more above 0"),
        (["--scales", "50,100"], "at most 8 times"),
        (["--stride", "4"], "stride <= window"),
        (["--crf", "clip"], "no refiner of masks"),
        (["--device", "toaster"], "expected auto"),
    ]:
        done = call("predict", network, photos, "-o", tmp_path / "run", *flags)
        assert done.exit_code == 1
        assert said in done.output, done.output
    assert not (tmp_path / "run").exists()
    done = call("label", photos, "-o", tmp_path / "run", "-m", "classifier-cam")
    assert "has no tags.csv and no class set is named" in done.output  # label still needs tags


def test_presets_take_their_crf_along(network, photos, tmp_path):
    assert call("predict", network, photos, "-o", tmp_path / "a", "--test", "mctformer").exit_code == 0
    settings = Run.open(tmp_path / "a").settings
    assert settings["refiner"] == "mctformer-retrain"
    assert settings["test"]["scales"] == [0.5, 0.75, 1.0, 1.25, 1.5]
    assert call("predict", network, photos, "-o", tmp_path / "b", "--test", "cct", "--no-flip").exit_code == 0
    settings = Run.open(tmp_path / "b").settings
    assert (settings["refiner"], settings["test"]["flip"], settings["test"]["multiple"]) == (None, False, 8)


def test_a_folder_whose_own_tags_number_its_truth_keeps_its_classes(network, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "tags.csv").write_text("image,labels\n0.png,green\n1.png,unicorn\n")
    found, _ = read_images(network, {"path": str(folder), "unknown": "skip"})
    assert found.classes.names == CLASSES.names
    assert [sample.tags for sample in found] == [(2,), None, None, None]
    truth = tmp_path / "truth"
    truth.mkdir()
    Image.new("L", (56, 40)).save(truth / "0.png")
    found, _ = read_images(network, {"path": str(folder), "truth": str(truth)})
    assert found.classes.names == ("background", "green", "unicorn")


def names_its_own(form: str, folder: Path) -> tuple[list[Path | str], Path]:
    """Two images of "red" and "blue", which number otherwise in the alphabet than in the network; and their truth."""
    photographs(folder / "images", [(20, 30), (20, 30)])
    truth = folder / "truth"
    truth.mkdir()
    for name, value in (("0", 1), ("1", 3)):  # as the network numbers them
        Image.new("L", (30, 20), value).save(truth / f"{name}.png")
    if form == "coco":
        (folder / "own.json").write_text(
            json.dumps(content(("0.png", "1.png"), ("red", "blue"))).replace(
                '"image_id": 2, "category_id": 1', '"image_id": 2, "category_id": 2'
            )
        )
        return [folder / "own.json"], truth
    if form == "voc":
        (folder / "images").rename(folder / "JPEGImages")
        truth.rename(folder / "SegmentationClass")
        (folder / "Annotations").mkdir()
        for image, name in (("0", "red"), ("1", "blue")):
            said = f"<annotation><object><name>{name}</name></object></annotation>"
            (folder / f"Annotations/{image}.xml").write_text(said)
        return [folder], folder / "SegmentationClass"
    (folder / "images/tags.csv").write_text("image,labels\n0.png,red\n1.png,blue\n")
    return [folder / "images", "--truth", truth], truth


@pytest.mark.parametrize("form", ["folder", "coco", "voc"])
def test_data_that_names_its_own_classes_is_measured_in_the_networks(network, tmp_path, form):
    data, truth = names_its_own(form, tmp_path)
    done = call("predict", network, *data, "-o", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "are not the network's" not in done.output
    done = call("eval", tmp_path / "run")
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "run/metrics.json").read_text())["per_class"]
    assert {row["name"]: row["images"] for row in rows if row["images"] and row["value"]} == {"red": 1, "blue": 1}
    if form == "coco":
        return  # drawn by names
    Image.new("L", (30, 20), 2).save(truth / "0.png")  # as the alphabet numbers them
    Image.new("L", (30, 20), 1).save(truth / "1.png")
    done = call("eval", tmp_path / "run")
    assert done.exit_code == 1
    assert "truth and tags differ (of 2 images" in " ".join(done.output.split())


def test_names_without_tags_do_not_number_truth(network, tmp_path):
    [folder, *_], truth = names_its_own("folder", tmp_path)
    (folder / "tags.csv").write_text("image,labels\n0.png,red\n1.png,blue\n")
    described = {"path": str(folder), "truth": str(truth)}
    assert read_images(network, described)[0].classes.names == CLASSES.names
    # a file that names classes and says nothing of the images that are there
    (folder / "tags.csv").write_text("image,labels\n0.png,\n1.png,\n9.png,red\n8.png,blue\n")
    assert read_images(network, described)[0].classes.names == ("background", "blue", "red")
    # and a class set that was asked for stays
    (folder / "tags.csv").write_text("image,labels\n0.png,red\n1.png,blue\n")
    (tmp_path / "mine.yaml").write_text("names: [blue, red]\n")
    found, _ = read_images(network, {**described, "classes": str(tmp_path / "mine.yaml")})
    assert found.classes.names == ("background", "blue", "red")
