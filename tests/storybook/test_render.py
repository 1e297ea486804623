from __future__ import annotations

import errno
import hashlib
import itertools
import json
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tag2mask.classes import load_classes
from tag2mask.data.voc import read_voc
from tag2mask.storybook import CLASSES, SPLITS, TRAPS, draw_scene, kind_of, render, scene_seed
from tag2mask.types import UserError

SIZE = (48, 64)
scenes_of = sys.modules["tag2mask.storybook.render"]  # the package has the function under this name


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return render(tmp_path_factory.mktemp("world") / "a b", 20, seed=3, size=SIZE, workers=1)


def test_folder_is_a_voc_devkit(folder):
    ids = (folder / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    assert len(ids) == len(set(ids)) == 20
    rows = (folder / "tags.csv").read_text().splitlines()
    assert rows[0] == "image,labels"
    said = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert len(rows) == 21
    assert len(said) == 20
    palette = load_classes("voc12").palette
    for index, name in enumerate(ids):
        scene = draw_scene(scene_seed("val", 3, index), SIZE)
        with Image.open(folder / "JPEGImages" / f"{name}.jpg") as image:
            difference = np.asarray(image).astype(int) - scene.image
        assert np.abs(difference).mean() < 4
        with Image.open(folder / "SegmentationClass" / f"{name}.png") as image:
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), scene.mask)
            flat = image.getpalette()
            assert [tuple(flat[3 * v : 3 * v + 3]) for v in range(21)] == list(palette)
        with Image.open(folder / "SegmentationDetail" / f"{name}.png") as image:
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), scene.detail)
        assert rows[index + 1] == f"JPEGImages/{name}.jpg,{';'.join(scene.names)}"
        assert said[index]["image"] == f"JPEGImages/{name}.jpg"
        annotation = ElementTree.parse(folder / "Annotations" / f"{name}.xml").getroot()
        assert [int(annotation.findtext(f"size/{s}")) for s in ("height", "width", "depth")] == [*SIZE, 3]
        assert [thing.findtext("name") for thing in annotation.iter("object")] == list(scene.names)
        for tag, box in zip(scene.tags, annotation.iter("bndbox"), strict=True):
            left, top, right, bottom = (int(box.findtext(s)) for s in ("xmin", "ymin", "xmax", "ymax"))
            there = scene.mask == tag
            assert there[top - 1 : bottom, left - 1 : right].sum() == there.sum()
            assert there[top - 1].any()
            assert there[:, right - 1].any()


def test_the_voc_reader_takes_the_folder(folder):
    data = read_voc(folder, "val")
    assert data.classes == load_classes("voc12")
    assert len(data) == 20
    for index, sample in enumerate(sorted(data, key=lambda sample: sample.id)):
        scene = draw_scene(scene_seed("val", 3, index), SIZE)
        assert sample.tags == scene.tags
        assert np.array_equal(sample.truth(), scene.mask)


def test_folder_brings_its_classes(folder, tmp_path):
    assert (folder / "classes.txt").read_text().split() == list(CLASSES)
    assert load_classes(folder / "classes.yaml") == load_classes("voc12")
    render(tmp_path, 1, size=SIZE, classes=("sofa", "cat"))
    own, voc = load_classes(tmp_path / "classes.yaml"), load_classes("voc12")
    assert own.foreground == ("sofa", "cat")
    assert own.palette == tuple(voc.palette[voc.names.index(name)] for name in ("background", "sofa", "cat"))


def test_again_and_by_two_processes_gives_the_same_bytes(folder, tmp_path):
    before = digest(folder)
    (folder / "JPEGImages" / "val_003_000002.jpg").write_bytes(b"torn")
    render(folder, 20, seed=3, size=SIZE, workers=1)
    assert digest(folder) == before
    done = []
    render(tmp_path, 20, seed=3, size=SIZE, workers=2, progress=lambda count=1, *, worked=True: done.append(count))
    assert digest(tmp_path) == before
    assert sum(done) == 20
    assert not list(tmp_path.rglob("*.tmp"))


def test_splits_never_share_a_seed_and_share_a_folder(tmp_path):
    for a, b in itertools.combinations(SPLITS.values(), 2):
        assert not set(range(a.start, a.stop, 10**8)) & set(range(b.start, b.stop, 10**8))
        assert a.stop <= b.start or b.stop <= a.start
    for split, seeds in SPLITS.items():
        assert scene_seed(split, 0, 0) == seeds[0]
        assert scene_seed(split, 999, 10**6 - 1) == seeds[-1]
    assert scene_seed("val", 0, 10**6 - 1) + 1 == scene_seed("val", 1, 0)

    render(tmp_path, 2, split="train", size=SIZE)
    render(tmp_path, 3, split="val", size=SIZE)
    render(tmp_path, 3, split="val", size=SIZE)
    rows = (tmp_path / "tags.csv").read_text().splitlines()
    assert [row[:16] for row in rows] == ["image,labels"] + ["JPEGImages/train"] * 2 + ["JPEGImages/val_0"] * 3
    assert len((tmp_path / "captions.jsonl").read_text().splitlines()) == 5
    pictures = [path.read_bytes() for path in (tmp_path / "JPEGImages").iterdir()]
    assert len(set(pictures)) == 5


def test_what_cannot_be_drawn_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match="no contact scene can be drawn of cat, bus"):
        render(tmp_path / "new", 1, size=SIZE, split="contact", classes=("cat", "bus"))
    assert not (tmp_path / "new").exists()


def test_a_stopped_render_goes_on(tmp_path, monkeypatch):
    """What is drawn is not drawn again; the list is of finished scenes, and the old one stays until there is more."""
    listed = tmp_path / "ImageSets" / "Segmentation" / "val.txt"

    def stop_at_work(count=1, *, worked=True):
        if worked:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt, match="give the same command again to resume"):
            render(tmp_path, 40, size=SIZE, workers=1, progress=stop_at_work)
        assert not listed.exists()
    seen, drawn, draw = [], [], scenes_of.draw_scene
    monkeypatch.setattr(scenes_of, "draw_scene", lambda seed, *how: drawn.append(seed) or draw(seed, *how))
    render(tmp_path, 40, size=SIZE, workers=1, progress=lambda count=1, *, worked=True: seen.append((count, worked)))
    assert seen == [(32, False), (8, True)]
    assert len(drawn) == 8 + 1  # one to see that the trap can be shown
    before = listed.read_text()
    with pytest.raises(KeyboardInterrupt):
        render(tmp_path, 60, size=SIZE, workers=1, progress=stop_at_work)
    assert listed.read_text() == before
    render(tmp_path, 60, size=SIZE, workers=1)
    render(tmp_path / "whole", 60, size=SIZE, workers=1)
    assert {name: value for name, value in digest(tmp_path).items() if "whole" not in name} == digest(
        tmp_path / "whole"
    )


def test_a_split_does_not_forget_another(tmp_path):
    render(tmp_path, 3, size=SIZE)
    render(tmp_path, 1, split="train", size=SIZE)
    with pytest.raises(UserError, match="3 scenes of val"):
        render(tmp_path, 2, size=SIZE)


def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path, monkeypatch):
    def full(path, data, **how):
        if "000001" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, data, **how)

    write = scenes_of.write_atomic
    monkeypatch.setattr(scenes_of, "write_atomic", full)
    with pytest.raises(UserError, match=r"no room is left \(No space left on device\); make some, and give the same"):
        render(tmp_path, 2, size=SIZE, workers=1)
    monkeypatch.setattr(scenes_of, "write_atomic", write)
    render(tmp_path, 2, size=SIZE, workers=1)


def test_a_trap_is_a_split(tmp_path):
    render(tmp_path, 3, split="small", size=SIZE)
    for index in range(3):
        scene = draw_scene(scene_seed("small", 0, index), SIZE, kind="small")
        with Image.open(tmp_path / "SegmentationClass" / f"small_000_{index:06d}.png") as image:
            assert np.array_equal(np.asarray(image), scene.mask)
    assert [kind_of(split) for split in ("train", "val", "test", *TRAPS)] == ["mixed"] * 3 + list(TRAPS)
    assert tuple(SPLITS) == ("train", "val", "test", *TRAPS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "cannot render 0 scenes"),
        (
            {"n": 1, "split": "dev"},
            "no split 'dev'; take one of train, val, test, cooccurrence",
        ),
        ({"n": 1, "seed": 1000}, "no seed 1000; take 0 to 999"),
        ({"n": 1, "workers": 0}, "at least 1"),
        ({"n": 1, "classes": ("dragon",)}, "no figure for class 'dragon'"),
    ],
)
def test_impossible_renders_are_refused(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        render(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_what_others_keep_in_a_folder_is_left_alone(tmp_path):
    (tmp_path / "tags.csv").write_text("mine")
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds other things \(photo.jpg, tags.csv\)"):
        render(tmp_path, 1, size=SIZE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.jpg", "tags.csv"]
    with pytest.raises(UserError, match=r"photo\.jpg: cannot be written \(there is a file in its place\)"):
        render(tmp_path / "photo.jpg", 1, size=SIZE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 2}, "3 scenes of val were drawn or begun there, and 2 are asked for; give 3 or more"),
        ({"n": 3, "seed": 1}, "seed is 0 there and 1 now"),
        ({"n": 3, "size": (SIZE[0], SIZE[1] + 2)}, "size is .* there and .* now"),
        ({"n": 3, "split": "train", "classes": ("cat",)}, "classes is .* there and .* now"),
    ],
)
def test_scenes_that_contradict_a_folder_are_refused(tmp_path, arguments, message):
    render(tmp_path, 3, size=SIZE)
    before = digest(tmp_path)
    with pytest.raises(UserError, match=message):
        render(tmp_path, **{"size": SIZE, **arguments})
    assert digest(tmp_path) == before
    render(tmp_path, 4, size=SIZE)  # more of the same are welcome
    assert len((tmp_path / "tags.csv").read_text().splitlines()) == 5
    (tmp_path / "storybook.json").write_text("{")
    with pytest.raises(UserError, match=r"storybook\.json is damaged"):
        render(tmp_path, 4, size=SIZE)


def test_a_scene_without_objects_is_tagged_as_background(tmp_path, monkeypatch):
    module = sys.modules[render.__module__]
    rows = [module._Row("val_000_000000", (), "an empty field"), module._Row("val_000_000001", ("cow",), "a cow")]
    monkeypatch.setattr(module, "_draw_missing", lambda *_: rows)
    render(tmp_path / "w", 2, size=SIZE, workers=1)
    assert (tmp_path / "w/tags.csv").read_text().splitlines()[1:] == [
        "JPEGImages/val_000_000000.jpg,background",
        "JPEGImages/val_000_000001.jpg,cow",
    ]
