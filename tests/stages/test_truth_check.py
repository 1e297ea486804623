"""Truth that does not fit the tags stops ``eval``, ``report`` and ``train`` alike, before any figure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tag2mask.cli import app
from tag2mask.data import read_dataset
from tag2mask.data.png import encode_confidence, encode_mask
from tag2mask.run.folder import Run
from tag2mask.segment.targets import check_targets, find_targets
from tag2mask.stages.evaluate import evaluate
from tag2mask.stages.report import report
from tag2mask.types import MaskRule, UserError

TAGS = [(1,), (2,), (1, 2), (2,), (1, 2), ()]
NAMES = ("ant", "bee")
OFF = {0: 255, 1: 0, 2: 1}


def drawn(tags: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros((12, 20), np.uint8)
    for place, tag in enumerate(tags):
        mask[2:9, 1 + 9 * place : 7 + 9 * place] = tag
    return mask


class World:
    """Photographs with tags, a run whose masks are right, and truth beside them."""

    def __init__(self, root: Path, orientation: int = 1) -> None:
        self.root, self.photos, self.truth, self.path = root, root / "photos", root / "truth", root / "run"
        self.photos.mkdir()
        self.truth.mkdir()
        exif = Image.Exif()
        exif[0x0112] = orientation
        rows = ["image,labels"]
        for number, tags in enumerate(TAGS):
            Image.new("RGB", (20, 12)).save(self.photos / f"{number}.jpg", exif=exif)
            rows.append(f"{number}.jpg,{';'.join(NAMES[tag - 1] for tag in tags) or 'background'}")
        (self.root / "tags.csv").write_text("\n".join(rows[: len(TAGS)]) + "\n")
        settings = {
            "method": "toy",
            "classes": {"id": "tags", "names": ["background", *NAMES], "palette": [[0, 0, 0], [9, 9, 9], [8, 8, 8]]},
            "mask_rule": MaskRule(),
            "keep_scores": False,
        }
        noted = {"config": {"data": {"path": str(self.photos), "tags": str(self.root / "tags.csv")}}}
        with Run.create(self.path, settings, noted=noted) as run:
            for number, tags in enumerate(TAGS):
                confidence = encode_confidence(np.full((12, 20), 0.9))
                run.write(str(number), mask=encode_mask(drawn(tags), ()), confidence=confidence, scores=None)
                run.record(str(number), "ok", {})
        self.run = Run.open(self.path)

    def write_truth(self, table: dict[int, int] | None = None, where: str = "truth") -> None:
        for number, tags in enumerate(TAGS):
            lookup = np.arange(256, dtype=np.uint8)
            for value, other in (table or {}).items():
                lookup[value] = other
            folder = self.root / where
            folder.mkdir(exist_ok=True)
            Image.fromarray(lookup[drawn(tags)]).save(folder / f"{number}.png")

    def data(self, **how):
        return read_dataset(self.photos, tags=self.root / "tags.csv", truth=self.truth, **how)

    def command(self, *words: str):
        return CliRunner().invoke(app, [words[0], str(self.path), "--truth", str(self.truth), *words[1:]])


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_right_truth_has_nothing_to_say(world):
    world.write_truth()
    found = evaluate(world.run, world.data(), progress=False)
    assert (found.miou, found.truth_notes) == (1.0, ())
    assert "truth:" not in found.text()


@pytest.mark.parametrize("stage", ["eval", "report", "train", "upper bound"])
def test_every_stage_refuses_other_numbers(world, tmp_path, stage):
    world.write_truth(OFF)
    listed = tmp_path / "list.txt"
    listed.write_text("0\n1\n2\n3\n4\n")

    def go(**how):
        data = world.data(**how)
        if stage == "eval":
            return evaluate(world.run, data, progress=False).truth_notes
        if stage == "report":
            page = report(world.run, data, progress=False).read_text()
            return [line for line in page.splitlines() if "Truth:" in line]
        return check_targets(find_targets(data, world.run if stage == "train" else None, listed))

    with pytest.raises(
        UserError, match=r"nothing is (scored|trained): .* tags are in no truth .*--truth-values from-0"
    ):
        go()
    assert not (world.path / "metrics.json").exists()
    assert not (world.path / "report.html").exists()
    assert any("from-0" in note for note in go(truth_values="from-0"))
    noted = go(truth_values="as-is")
    assert any("tags are in no truth" in note for note in noted)


def test_the_commands_take_the_option_and_keep_it(world):
    world.write_truth(OFF)
    refused = world.command("eval")
    assert refused.exit_code == 1
    assert "mIoU" not in refused.output
    right = world.command("eval", "--truth-values", "from-0")
    assert "mIoU 100.0 %" in right.output
    assert "truth: 6 true masks were read by --truth-values from-0" in right.output
    assert json.loads((world.path / "metrics.json").read_text())["truth_notes"] == [
        "6 true masks were read by --truth-values from-0"
    ]
    assert world.command("report", "--truth-values", "from-0").exit_code == 0
    assert "form-0" in world.command("eval", "--truth-values", "form-0").output
    assert "truth_turn" in world.command("eval", "--truth-turn", "left").output


def test_a_check_can_be_switched_off_in_python(world):
    world.write_truth({2: 1, 1: 2})
    with pytest.raises(UserError, match="another order"):
        evaluate(world.run, world.data(), progress=False)
    found = evaluate(world.run, world.data(), check_truth=False, progress=False)
    assert "another order" in found.truth_notes[0]
    assert found.miou < 0.5


def test_values_outside_are_all_counted_and_never_scored(world):
    world.write_truth({2: 7})
    for how in ({}, {"truth_values": "as-is"}):
        with pytest.raises(UserError, match=r"the truth of 4 of 6 images holds values that are no class: 7"):
            evaluate(world.run, world.data(**how), check_truth=False, progress=False)
    assert evaluate(world.run, world.data(truth_values="7=bee"), progress=False).miou == 1.0
    assert evaluate(world.run, world.data(truth_values="7=ignore"), progress=False).images == 6


def test_odd_sizes_are_counted_and_named(world):
    world.write_truth()
    Image.new("L", (10, 6)).save(world.truth / "3.png")
    with pytest.raises(UserError, match=r"for 1 images.*3: mask 20x12, ground truth 10x6.*nearest neighbour"):
        evaluate(world.run, world.data(), progress=False)


@pytest.mark.parametrize("stored", [True, False])
def test_a_turned_photograph_never_scores_in_silence(tmp_path, stored):
    world = World(tmp_path, orientation=3)
    world.write_truth()
    if stored:  # the run's masks are upright, and these masks of the truth are not
        for path in world.truth.iterdir():
            Image.open(path).transpose(Image.Transpose.ROTATE_180).save(path)
        with pytest.raises(UserError, match="--truth-turn"):
            evaluate(world.run, world.data(), progress=False)
        with pytest.raises(UserError, match="--truth-turn"):
            report(world.run, world.data(), progress=False)
        found = evaluate(world.run, world.data(truth_turn="stored"), progress=False)
        assert "6 true masks were turned" in found.text()
    else:
        found = evaluate(world.run, world.data(), progress=False)
        assert "taken to be upright" in found.text()
    assert found.miou == 1.0
    assert found.images == 6


def test_a_choice_that_sizes_overrule_is_said_once_by_every_command(tmp_path):
    world = World(tmp_path, orientation=6)
    world.write_truth()  # as large as the stored pixels
    for number in range(len(TAGS)):
        upright = np.ascontiguousarray(np.rot90(drawn(TAGS[number]), -1))
        world.run.mask_path(str(number)).write_bytes(encode_mask(upright, ()))
        world.run.confidence_path(str(number)).write_bytes(encode_confidence(np.full(upright.shape, 0.9)))
    said = "--truth-turn upright does not fit the size of 6 of 6 true masks"
    found = world.command("eval", "--truth-turn", "upright")
    assert " ".join(found.output.split()).count(said) == 1
    page = report(world.run, world.data(truth_turn="upright"), progress=False)
    assert " ".join(page.read_text().split()).count(said) == 1
    listed = tmp_path / "list.txt"
    listed.write_text("0\n2\n")
    targets = find_targets(world.data(truth_turn="upright"), world.run, listed)
    assert "the size of 2 of 2 true masks" in check_targets(targets)[0]


def test_training_on_true_masks_of_turned_photographs_asks(tmp_path):
    world = World(tmp_path, orientation=2)
    world.write_truth()
    listed = tmp_path / "list.txt"
    listed.write_text("0\n2\n")
    with pytest.raises(UserError, match=r"2 photographs .*--truth-turn"):
        find_targets(world.data(), None, listed)
    targets = find_targets(world.data(truth_turn="stored"), None, listed)
    assert "2 true masks were turned" in check_targets(targets)[0]
    np.testing.assert_array_equal(targets.labels(0).numpy(), drawn(TAGS[0])[:, ::-1])
    confirmed = find_targets(world.data(), world.run, listed)
    assert "taken to be upright" in check_targets(confirmed)[0]
    np.testing.assert_array_equal(confirmed.labels(0).numpy(), drawn(TAGS[0]))
