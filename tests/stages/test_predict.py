"""Prediction: right against the network called by hand, whatever the batch; resumable; never stopped by an image."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from typer.testing import CliRunner

from calls import call
from methods.toys import CLASSES, TinyData, make_data
from run_folders import artefacts, die_at_file
from stages.networks import SIZES, photographs, tiny_network
from tag2mask.classes import load_classes
from tag2mask.cli import app
from tag2mask.data import read_dataset
from tag2mask.data.image import read_image
from tag2mask.data.png import read_confidence, read_mask
from tag2mask.ops.crf import dense_crf, preset, unary_from_probs
from tag2mask.run.folder import Run
from tag2mask.segment.network import SegmentationNet, load_network, save_network
from tag2mask.segment.test_time import TestTime
from tag2mask.segment.test_time import predict as view
from tag2mask.stages.machinery.asked import MOST_BESIDE, beside_by
from tag2mask.stages.machinery.predictor import Predictor
from tag2mask.stages.predict import predict
from tag2mask.types import UserError

STORYBOOK = load_classes("voc12")


def images(folder: Path):
    return read_dataset(folder, network=CLASSES)


def tensor(path: Path) -> torch.Tensor:
    return torch.from_numpy(read_image(path)).permute(2, 0, 1)


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


def test_pictures_side_by_side_give_the_same_bytes_and_the_network_sees_one_at_a_time(
    network, photos, tmp_path, monkeypatch
):
    inside, together = [], Barrier(3)
    forward = SegmentationNet.forward

    def alone(self, pictures):
        inside.append(1)
        assert len(inside) == 1
        logits = forward(self, pictures)
        inside.pop()
        return logits

    def refined(self, picture, probs, tags):  # not before three are refined at once
        with suppress(BrokenBarrierError):
            together.wait(timeout=60)
        return whole(self, picture, probs, tags)

    whole = Predictor._refined
    predict(network, images(photos), tmp_path / "one", device="cpu", refiner="clip-es", progress=False)
    monkeypatch.setattr("tag2mask.stages.predict.beside_by", lambda engine: 3)
    monkeypatch.setattr(SegmentationNet, "forward", alone)
    monkeypatch.setattr(Predictor, "_refined", refined)
    three = [photos / f"{number}.png" for number in range(3)]
    (tmp_path / "some").mkdir()
    for path in three:
        shutil.copy(path, tmp_path / "some")
    predict(network, images(tmp_path / "some"), tmp_path / "many", device="cpu", refiner="clip-es", progress=False)
    assert not together.broken
    for path in three:
        for kind in ("mask_path", "confidence_path"):
            one, many = (getattr(Run.open(tmp_path / run), kind)(path.stem) for run in ("one", "many"))
            assert one.read_bytes() == many.read_bytes()


def test_so_many_pictures_are_worked_on_at_once(monkeypatch):
    for threads, at_once in ((3, 3), (64, MOST_BESIDE)):
        monkeypatch.setattr("torch.get_num_threads", lambda threads=threads: threads)
        assert beside_by("loops") == at_once
        assert beside_by("torch") == beside_by(None) == 1


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
