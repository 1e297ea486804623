from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import tag2mask
from methods.toys import CLASSES, TinyData, TrainingFree, make_data
from tag2mask.cli import app
from tag2mask.data import read_folder
from tag2mask.data.truth_doubt import doubt_of_truth
from tag2mask.stages.checked import Few, Twins
from tag2mask.stages.label import label
from tag2mask.stages.machinery.estimate import _at, estimate
from tag2mask.types import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def picture(path, seed=0, size=(20, 30), **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path, **how)
    return path


@pytest.fixture
def photos(tmp_path):
    """One of everything that is wrong with people's folders."""
    root = tmp_path / "photos"
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(root / "a.png", 1)
    picture(root / "b.jpg", 2, (40, 60), exif=turned)
    picture(root / "in/a again.bmp", 1)  # the pixels of a.png in another file
    picture(root / "c.jpg", 3, (10, 10))
    picture(root / "c.png", 4, (10, 10))
    (root / "empty.jpg").write_bytes(b"")
    (root / "text.jpg").write_text("no picture")
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8)).save(whole, "JPEG")
    (root / "half.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (root / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "raw.CR2").write_bytes(b"II*\0")
    rows = {"a.png": "cat", "b.jpg": "cat;dog", "in/a again.bmp": "dog", "c.png": "background", "half.jpg": "dog"}
    (root / "tags.csv").write_text(
        "image,labels\n" + "".join(f"{k},{v}\n" for k, v in rows.items()) + "lost.png,cat\n"
    )
    return root


def test_it_finds_what_is_wrong_and_goes_on(photos):
    before = {path: path.lstat().st_mtime_ns for path in photos.rglob("*")}
    data = read_folder(photos)
    found = tag2mask.check(data, measure=False, progress=False)
    assert {path: path.lstat().st_mtime_ns for path in photos.rglob("*")} == before
    assert (found.images, found.tagged, found.background) == (len(data), 4, 1)
    assert found.untagged.count == found.images - 5
    assert {(each.name, each.tagged) for each in found.classes} == {("cat", 2), ("dog", 3)}
    assert found.missing == Few(1, ("gone",))
    assert (found.unreadable, found.failed) == (3, True)
    why = {fault.id: fault.why for fault in found.faults}
    assert why.keys() == {"empty", "text", "half", "gone"}
    assert "empty" in why["empty"]
    assert "not an image" in why["text"]
    assert "truncated" in why["half"]
    assert found.turned == {6: 1}
    assert found.sizes.smallest[:2] == (10, 10)
    assert found.sizes.largest == (40, 60, "b")  # upright
    assert found.twins == Twins(1, 2, 1, (("a", "in/a again"),))
    assert found.same_name.first == ("c.jpg", "c.png")
    assert found.truth is None
    assert any("lost.png" in note for note in found.notes)
    assert any("raw.CR2" in note for note in found.notes)
    assert found.notes == data.notes  # what label says, too
    text = found.text()
    for word in ("raw.CR2", "half: ", "a = in/a again", "tag2mask label", "10 x 10"):
        assert word in text
    assert json.loads(found.as_json())["unreadable"] == 3


def test_a_tag_that_one_image_has_is_named_and_a_likely_slip_too(tmp_path):
    root = tmp_path / "photos"
    tags = {f"a{number}": "dog" for number in range(6)} | {"b": "dgo", "c": "zebra", "d": "owl", "e": "owl"}
    for seed, name in enumerate(tags):
        picture(root / f"{name}.png", seed)
    (root / "tags.csv").write_text("image,labels\n" + "".join(f"{name},{said}\n" for name, said in tags.items()))
    text = tag2mask.check(read_folder(root), measure=False, progress=False).text()
    assert "'dgo' (1) like 'dog' (6)" in text
    once = next(line for line in text.splitlines() if "with a single image" in line)
    assert once.endswith(": dgo, zebra")
    (root / "tags.csv").write_text("image,labels\na1,dog\nb,owl\n")  # nothing but single images: nothing is odd
    assert "with a single image" not in tag2mask.check(read_folder(root), measure=False, progress=False).text()


def test_what_it_calls_usable_is_what_label_does(photos, tmp_path):
    data = read_folder(photos)
    found = tag2mask.check(data, measure=False, progress=False)
    toy = TrainingFree(data.classes, TrainingFree.Options())
    summary = label(data, toy, tmp_path / "run", progress=False)
    tagged_faults = {fault.id: fault.why for fault in found.faults if fault.id in {s.id for s in data if s.tags}}
    assert tagged_faults.keys() == {id for id, _ in summary.errors} == {"half"}
    assert all(tagged_faults[id] in why for id, why in summary.errors)
    assert (found.tagged + found.background, found.untagged.count) == (summary.done + 1, summary.no_tags)


def test_truth_against_tags(tmp_path):
    root = tmp_path / "photos"
    names = ["a", "b", "c", "d"]
    for seed, name in enumerate(names):
        picture(root / f"{name}.png", seed)
        mask = np.zeros((20, 30), np.uint8)
        mask[:5], mask[5:8] = 1, (2 if name == "b" else 0)
        (tmp_path / "truth").mkdir(exist_ok=True)
        Image.fromarray(mask[:10] if name == "c" else mask).save(tmp_path / "truth" / f"{name}.png")
    (tmp_path / "truth" / "d.png").write_bytes(b"broken")
    (root / "tags.csv").write_text("image,labels\na,cat\nb,cat\nc,cat\nd,dog\n")
    truth = tag2mask.check(read_folder(root, truth=tmp_path / "truth"), measure=False, progress=False).truth
    assert (truth.images, truth.read, truth.checked) == (4, 3, 3)
    assert (truth.tags, truth.in_truth, truth.untagged) == (3, 3, 1)
    assert [fault.id for fault in truth.faults] == ["d"]
    assert truth.other_size.first == ("c: 30 x 10, the image 30 x 20",)
    assert "b holds dog" in truth.finding
    assert not truth.refused


def test_truth_that_eval_would_refuse(tmp_path):
    root = tmp_path / "photos"
    for seed, name in enumerate("abcd"):
        picture(root / f"{name}.png", seed)
        (tmp_path / "truth").mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 30), 2 if name in "ab" else 1, np.uint8)).save(tmp_path / f"truth/{name}.png")
    (root / "tags.csv").write_text("image,labels\na,cat\nb,cat\nc,dog\nd,dog\n")
    found = tag2mask.check(read_folder(root, truth=tmp_path / "truth"), measure=False, progress=False)
    assert found.truth.refused
    assert "eval would refuse this" in found.text()
    assert not any(line.startswith("tag2mask label") for line in found.next)  # it would make a run of other classes
    assert not found.failed  # the images are fine
    doubt = doubt_of_truth(read_folder(root, truth=tmp_path / "truth"))
    assert doubt is not None
    assert doubt in found.truth.finding  # as label says it before it begins
    chosen = read_folder(root, truth=tmp_path / "truth", truth_values="as-is")
    assert doubt_of_truth(chosen) is None
    assert not tag2mask.check(chosen, measure=False, progress=False).truth.refused


def test_twins_of_many(tmp_path):
    data = make_data(tmp_path, 9)
    for place in (3, 7):
        data.samples[place].image.write_bytes(data.samples[1].image.read_bytes())
    data.samples[8].image.write_bytes(data.samples[0].image.read_bytes())
    twins = tag2mask.check(quiet(data), measure=False, progress=False).twins
    ids = [sample.id for sample in data]
    assert (twins.pictures, twins.images) == (2, 5)
    assert twins.first == ((ids[0], ids[8]), (ids[1], ids[3], ids[7]))


def quiet(data):
    """The same without its truth, which toys forbid to read."""
    samples = [type(sample)(sample.id, sample.image, sample.tags) for sample in data]
    return TinyData(samples, data.root)


def test_a_jpeg_that_lacks_its_end_is_named_by_check_and_by_label(tmp_path):
    data = quiet(make_data(tmp_path / "images", 3))
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(whole, "JPEG")
    data.samples[1].image.write_bytes(whole.getvalue()[:-2])
    found = tag2mask.check(data, measure=False, progress=False)
    assert (found.lacks_end.count, found.lacks_end.first, found.failed) == (1, (data[1].id,), False)
    note = f"JPEGs whose last bytes are missing, read all the same: 1 ({data[1].id})"
    assert note in found.text()
    for noted in (True, False):  # what was done before is not read again
        summary = label(data, TrainingFree(CLASSES, TrainingFree.Options()), tmp_path / "run", progress=False)
        assert summary.failed == 0
        assert (note in summary.notes) is noted


# --- the estimate ------------------------------------------------------------------------------------------------


def test_the_estimate_takes_the_median_and_the_largest_and_counts_all(tmp_path):
    data = make_data(tmp_path / "images", 7, sizes=((8, 8), (16, 16), (8, 8), (40, 50), (16, 16), (16, 16), (24, 24)))
    made = []

    def make(part, out):
        made.append([sample.id for sample in part])
        return label(part, TrainingFree(CLASSES, TrainingFree.Options()), out, progress=False)

    found = estimate(data, np.arange(7), make, torch.device("cpu"))
    ids = [sample.id for sample in data]
    assert made[1:] == [[made[0][0]], [ids[3]]]
    assert made[0][0] in (ids[1], ids[4], ids[5])
    assert found.images == 7
    assert found.seconds == pytest.approx(7 * found.per_image)
    data.samples[3].image.write_bytes(b"")
    assert estimate(data, np.arange(7), make, torch.device("cpu")).measured_on[1] == ids[6]


@pytest.mark.parametrize(
    ("pixels", "seconds", "expected"),
    [
        (50, [(10, 1.0), (100, 10.0)], 5.0),  # on the line between the two
        (5, [(10, 1.0), (100, 10.0)], 0.5),  # most images are smaller than the median one
        (50, [(10, 3.0), (100, 2.0)], 3.0),  # a larger one is never taken to be quicker
        (10, [(10, 1.0), (10, 3.0)], 2.0),
        (10, [(10, 1.5)], 1.5),
    ],
)
def test_seconds_of_an_image_by_its_pixels(pixels, seconds, expected):
    assert _at(pixels, seconds) == pytest.approx(expected)


def test_no_estimate_where_nothing_can_be_read_or_the_stage_refuses(tmp_path):
    data = make_data(tmp_path / "images", 3)

    def refuse(part, out):
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        estimate(data, np.arange(3), refuse, torch.device("cpu"))
    for sample in data:
        sample.image.write_bytes(b"")
    assert estimate(data, np.arange(3), refuse, torch.device("cpu")) is None


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command_says_what_to_do_and_how_long_it_takes(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    options = ["--clip", "storybook-clip", "--separator", "none"]
    done = CliRunner().invoke(app, ["check", "photos", *options])
    assert done.exit_code == 3, done.output
    assert "label on this machine: about" in done.output
    assert "for 4 images" in done.output
    assert done.stdout.splitlines()[-1].split("next: ")[1] == (
        "tag2mask label photos --separator none --clip storybook-clip -o runs/photos"
    )


def test_json_alone_on_stdout_and_no_clip_at_hand(photos, monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "nothing"))
    done = CliRunner().invoke(app, ["check", str(photos), "--json"])
    found = json.loads(done.stdout)
    assert found["estimate"] is None
    assert "openai/clip-vit-base-patch16 is not at hand" in found["no_estimate"]
    assert "tag2mask fetch openai/clip-vit-base-patch16" in found["next"]


def say(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_what_stops_label_is_said_in_its_words_after_all_the_rest(photos):
    (photos / "tags.csv").write_text("image,labels\na.png,cat\nb.jpg,none\n")
    done, refused = say("check", photos, "--no-measure"), say("label", photos)
    assert (done.exit_code, refused.exit_code) == (1, 1)
    word = refused.stderr.strip().splitlines()[-1].removeprefix("error: ")
    lines = done.stdout.splitlines()
    assert f"label would stop: {word}" in lines
    assert any(line.startswith("  half: ") for line in lines)  # broken files are named all the same
    assert "counted as with --unknown skip" in done.stdout
    assert "tags: 1 image with a class" in done.stdout
    assert [line for line in lines if line.startswith("next: ") and "fetch" not in line] == [
        "next: settle what stops label, as above, and check again",
        f"next: replace or remove the {1 + 3} files that cannot be used; label leaves them out, and says so",
    ]


def test_several_questions_come_in_one_go(photos):
    rows = "a.png,tree\nb.jpg,trees\nc.png,cat/dog\nc.jpg,cat\nhalf.jpg,n/a\n"
    (photos / "tags.csv").write_text("image,labels\n" + rows)
    done = say("check", photos, "--no-measure", "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert len(found["stops"]) == 3
    for stop, words in zip(found["stops"], (("cat/dog", "--separator"), ("n/a",), ("trees", "--twins")), strict=True):
        assert all(word in stop for word in words)
    assert found["unreadable"] == 3
    assert any("--separator none" in note and "--twins keep" in note for note in found["notes"])
    settled = ["--separator", "/", "--twins", "merge", "--unknown", "skip"]
    assert json.loads(say("check", photos, "--no-measure", "--json", *settled).stdout)["stops"] == []


def test_what_stops_label_when_its_clip_is_there_stops_check(photos):
    """A word that the tokenizer of Storybook does not know."""
    (photos / "tags.csv").write_text("image,labels\n" + "".join(f"{p.name},qqxz\n" for p in photos.glob("*.png")))
    done = say("check", photos, "--clip", "storybook-clip")
    assert done.exit_code == 1, done.output
    lines = done.stdout.splitlines()
    assert "label on this machine: not measured, since label would stop" in lines
    (stop,) = [line for line in lines if line.startswith("label would stop: ")]
    assert "qqxz" in stop
    assert "next: settle what stops label, as above, and check again" in lines
    assert not any(line.startswith("next: tag2mask label") for line in lines)


def test_what_cannot_be_read_at_all_leaves_the_pictures(photos, tmp_path):
    (photos / "tags.csv").write_text("image,labels\nnowhere.png,cat\n")
    done = say("check", photos, "--no-measure")
    assert done.exit_code == 1
    assert "label would stop: the only row" in done.stdout
    assert "these are all pictures" in done.stdout
    assert "images that cannot be used: 4 (1 missing, 3 that cannot be read)" in done.stdout
    assert "tags: " not in done.stdout  # nothing is known of them
    for nothing in (tmp_path / "nowhere", tmp_path):
        (photos / "tags.csv").unlink(missing_ok=True)
        for path in [] if nothing.name == "nowhere" else list(photos.rglob("*.*")):
            path.unlink()
        done = say("check", nothing, "--no-measure", "--classes", "voc12")
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ")


def test_truth_that_cannot_be_read_does_not_hide_the_rest(photos, tmp_path):
    (tmp_path / "truth").mkdir()
    Image.new("L", (3, 3)).save(tmp_path / "truth" / "other.png")
    done = say("check", photos, "--no-measure", "--truth", tmp_path / "truth", "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert [("has no mask of any image" in stop) for stop in found["stops"]] == [True]
    assert (found["tagged"], found["truth"]) == (4, None)
