"""Suggested tags: what is written, that a stopped call goes on, and that nobody takes them for confirmed ones."""

from __future__ import annotations

import csv
import shutil
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tag2mask.classes import plain_classes
from tag2mask.cli import app
from tag2mask.data import read_folder
from tag2mask.data.tag_columns import DRAFT
from tag2mask.methods.zero_shot import ZeroShot
from tag2mask.models.embedded import STORYBOOK_CLIP
from tag2mask.models.weights import load_clip
from tag2mask.ops.metrics import average_precision
from tag2mask.stages.suggest import suggest
from tag2mask.storybook import render
from tag2mask.types import UserError

CLASSES = plain_classes(["cat", "dog", "bus"], "toys")
QUIET = {"progress": False}


class Colours:
    """A scorer of 2 classes and a third by the mean of red, green and blue."""

    names, background, templates = ("cat", "dog", "bus"), (), ("{}",)

    def __init__(self, kill_at=None):
        self.seen, self.kill_at = [], kill_at
        self.clip = type("Clip", (), {"sha256": "0", "dtype": torch.float32})

    def scores(self, images):
        self.seen += [tuple(image.shape) for image in images]
        if self.kill_at is not None and len(self.seen) >= self.kill_at:
            raise KeyboardInterrupt
        return torch.stack([image.float().mean((1, 2)) / 255 for image in images])


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "a, b").mkdir(parents=True)
    for number, colour in enumerate([(250, 10, 60), (0, 200, 255), (0, 0, 0)]):
        Image.new("RGB", (8 + number, 6), colour).save(folder / "a, b" / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_says_which_classes_and_how_sure(photos):
    out = photos / DRAFT
    done = suggest(read_folder(photos, classes=CLASSES), Colours(), out, top=2, **QUIET)
    rows = table(out)
    assert [row["image"] for row in rows] == ["a, b/0.png", "a, b/1.png", "a, b/2.png"]
    assert [row["suggested"] for row in rows] == ["cat;bus", "bus;dog", ""]  # red is 0.98, green 0.04, blue 0.24
    assert rows[0]["scores"] == "cat 0.98; bus 0.24"
    assert done.images == 3
    assert list(done.failed) == ["broken"]
    assert "not an image" in done.failed["broken"]
    assert done.quality is None


def test_a_class_at_the_least_score_is_suggested_and_one_below_is_not(photos):
    out = photos / DRAFT
    data = read_folder(photos, classes=CLASSES)
    suggest(data, Colours(), out, least=round(60 / 255, 5), **QUIET)
    assert table(out)[0]["suggested"] == "cat;bus"
    suggest(data, Colours(), out, least=round(60 / 255, 5) + 1e-5, **QUIET)
    assert table(out)[0]["suggested"] == "cat"


def test_a_stopped_call_goes_on_and_ends_the_same(photos, tmp_path):
    data = read_folder(photos, classes=CLASSES)
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    suggest(data, Colours(), whole, **QUIET)
    with pytest.raises(KeyboardInterrupt):
        suggest(data, Colours(kill_at=2), out, **QUIET)
    with (tmp_path / ".out.jsonl").open("ab") as file:
        file.write(b'{"id": "a, b/1", "stamp": [1')  # a kill in the middle of a line
    again = Colours()
    suggest(data, again, out, **QUIET)
    assert [shape[2] for shape in again.seen] == [9, 10]  # the first one is done
    assert out.read_bytes() == whole.read_bytes()
    third = Colours()
    suggest(data, third, out, **QUIET)
    assert third.seen == []
    Image.new("RGB", (40, 6), (0, 255, 0)).save(photos / "a, b" / "1.png")
    suggest(data, third, out, **QUIET)
    assert [shape[2] for shape in third.seen] == [40]
    assert table(out)[1]["suggested"] == "dog"


def test_few_images_are_in_memory_at_a_time(tmp_path):
    class Counts(Colours):
        alive, most = weakref.WeakSet(), 0

        def scores(self, images):
            self.alive.update(images)
            self.most = max(self.most, len(self.alive))
            return super().scores(images)

    for number in range(12):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{number}.png")
    scorer = Counts()
    suggest(read_folder(tmp_path, classes=CLASSES), scorer, tmp_path / "s.csv", batch_size=2, **QUIET)
    assert len(scorer.seen) == 12
    assert scorer.most <= 6


def test_what_a_person_edited_is_not_overwritten(photos):
    data, out = read_folder(photos, classes=CLASSES), photos / DRAFT
    suggest(data, Colours(), out, **QUIET)
    edited = out.read_text().replace("cat;bus", "cat")
    out.write_text(edited)
    with pytest.raises(UserError, match="edited"):
        suggest(data, Colours(), out, **QUIET)
    assert out.read_text() == edited
    suggest(data, Colours(), out, overwrite=True, **QUIET)
    assert table(out)[0]["suggested"] == "cat;bus"


def test_scores_made_otherwise_are_not_mixed_in(photos):
    data, out = read_folder(photos, classes=CLASSES), photos / DRAFT
    suggest(data, Colours(), out, **QUIET)
    other = Colours()
    other.templates = ("a {}",)
    with pytest.raises(UserError, match=r"templates is \['\{\}'\] there"):
        suggest(data, other, out, **QUIET)
    suggest(data, other, out, overwrite=True, **QUIET)
    assert len(other.seen) == 3


def test_nobody_takes_suggestions_for_tags_until_they_are_confirmed(photos):
    data, out = read_folder(photos, classes=CLASSES), photos / DRAFT
    suggest(data, Colours(), out, **QUIET)
    for tags in (out, shutil.copy(out, photos / "tags.csv")):
        with pytest.raises(UserError, match="nobody has confirmed"):
            read_folder(photos, tags, CLASSES)
    text = out.read_text()
    (photos / "tags.csv").write_text(text.replace("suggested", "labels", 1))
    tags = {sample.id: sample.tags for sample in read_folder(photos, classes=CLASSES)}
    assert tags == {"a, b/0": (1, 3), "a, b/1": (2, 3), "a, b/2": None, "broken": None}


def test_how_good_it_is_by_masks_before_tags(photos, tmp_path):
    (photos / "tags.csv").write_text('image,labels\n"a, b/0.png",dog\n"a, b/1.png",cat\n')  # a dog, by its mask
    truth = tmp_path / "truth" / "a, b"
    truth.mkdir(parents=True)
    for number, value in ((1, 2), (2, 3)):
        mask = np.full((6, 8 + number), value, np.uint8)
        mask[0] = 255
        Image.fromarray(mask).save(truth / f"{number}.png")
    data = read_folder(photos, classes=CLASSES, truth=tmp_path / "truth")
    quality = suggest(data, Colours(), tmp_path / "s.csv", **QUIET).quality
    assert quality.known_by == {"tags": 1, "true masks": 2}
    scores = torch.tensor([[250, 10, 60], [0, 200, 255], [0, 0, 0]]) / 255
    present = torch.tensor([[0, 1, 0], [0, 1, 0], [0, 0, 1]]).bool()
    wanted = average_precision(scores, present)
    assert list(quality.ap.values())[1:] == wanted.tolist()[1:]
    assert quality.mean == pytest.approx(float(wanted.nanmean()))
    assert (quality.precision, quality.recall) == (1 / 4, 1 / 3)
    assert any("dog" in line for line in quality.lines())
    assert not any("cat " in line for line in quality.lines())


def test_the_command_on_scenes(tmp_path):
    """Drawn scenes in the words of the CLIP that knows them: right classes come first, and tags are not needed."""
    scenes = render(tmp_path / "scenes", 3, split="val", size=(96, 128))
    shutil.copytree(scenes / "JPEGImages", tmp_path / "photos")
    words = ["suggest", str(tmp_path / "photos"), "--classes", "voc12", "--clip", STORYBOOK_CLIP, "--truth"]
    words += [str(scenes / "SegmentationClass"), "--template", "a photo of a {}."]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "mAP" in done.output
    assert "call that column 'labels'" in done.output
    assert len(table(tmp_path / "photos" / DRAFT)) == 3


def test_a_batch_gives_what_each_image_gives_alone(tmp_path):
    clip = load_clip(STORYBOOK_CLIP, cache=None)
    scorer = ZeroShot(CLASSES, clip, ["a photo of a {}."], allow_unknown=True)
    images = [torch.randint(0, 256, size, dtype=torch.uint8) for size in ((3, 40, 60), (3, 60, 40), (3, 20, 30))]
    together = scorer.scores(images)
    assert together.shape == (3, 3)
    assert torch.allclose(together, torch.cat([scorer.scores([image]) for image in images]), atol=1e-5)
