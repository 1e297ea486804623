"""Fixed views: the towers run once a view, and a training ends in the bits that it would end in without the disk."""

from __future__ import annotations

import errno
import os
import random
import warnings
from dataclasses import replace
from types import SimpleNamespace
from zipfile import ZipFile

import numpy as np
import pytest
import torch

from methods.online_cases import PLUS, SMALL, WORLD, batch, cd_clip, training, weclip
from methods.toys import make_data
from tag2mask.methods import make_method
from tag2mask.methods.fitting.tagged import TaggedImages
from tag2mask.methods.online.lesson import FOLDER, Fixed, check_room, view_bytes
from tag2mask.methods.online.teacher import Teacher
from tag2mask.run.files import write_atomic
from tag2mask.run.sampling import Draw
from tag2mask.segment.augment import Augment, Uniform
from tag2mask.types import UserError


@pytest.fixture
def looks(monkeypatch):
    """How many pictures the tower has looked at."""
    counted = []
    look = Teacher.look
    monkeypatch.setattr(Teacher, "look", lambda self, pixels: counted.extend(pixels) or look(self, pixels))
    return counted


CASES = {
    "CDA with boundaries": ("cd-clip", {"structure": "clip"}),
    "CAA": ("cd-clip", {"setting": 1}),
    "CDA + RFM": ("cd-clip", {"setting": 5}),
    "feedback": ("cd-clip", {"setting": 3, "feedback": True}),
    "no affinity": ("cd-clip", {"setting": 0}),
    "WeCLIP over its switch": ("weclip", {}),
    "beside a DINO": ("cd-clip", PLUS),
}


def method_of(case, clip, dino, **options):
    name, own = CASES[case]
    towers = {"dino": dino} if "decoder" in own else {}
    return make_method(name, WORLD, clip=clip, **towers, **{**SMALL, **own, **options})


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_same_by_the_towers_and_from_the_disk(case, clip, dino, tmp_path, looks):
    """Of a batch of one, whose arithmetic is the towers' own."""
    pictures, tags = batch(((1, 2),))
    modules = []
    for views in (None, 1, 1):
        before = len(looks)
        module = training(method_of(case, clip, dino, views=views), at=3, folder=tmp_path)
        module.decoder.linear_pred.weight.data *= 100  # a decoder that is sure of something
        module.training_step((pictures, tags), 0).backward()
        modules.append((module.terms, [p.grad for p in module.parameters()], len(looks) - before))
    for terms, gradients, _ in modules[1:]:
        assert terms == modules[0][0]
        assert all(torch.equal(a, b) for a, b in zip(gradients, modules[0][1], strict=True))
    assert modules[1][2] > 0
    assert modules[2][2] == 0  # nothing was looked at again


@pytest.mark.parametrize("case", ["CDA with boundaries", "WeCLIP over its switch"])
def test_a_fit_ends_in_the_same_bits_where_nothing_is_kept(case, clip, dino, tmp_path, looks, monkeypatch):
    data = make_data(tmp_path / "images", count=3)
    states, counts = [], []
    for kept in (True, False):
        if not kept:
            monkeypatch.setattr("tag2mask.methods.online.lesson.np.load", missing)
        before = len(looks)
        folder = tmp_path / str(kept)
        method_of(case, clip, dino, views=1, steps=6).fit(data, folder)
        counts.append(len(looks) - before)
        states.append(torch.load(folder / "last.ckpt", weights_only=True)["state_dict"])
        assert not (folder / FOLDER).exists()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    kinds = 2 if case.startswith("WeCLIP") else 1  # before the switch and after it
    assert counts[0] == 3 * kinds
    assert counts[1] >= 12


def missing(*_, **__):
    raise FileNotFoundError


def test_a_damaged_view_is_made_again(clip, dino, tmp_path, looks):
    method = method_of("CAA", clip, dino, views=1)
    losses = []
    for _ in range(2):
        losses.append(float(training(method, folder=tmp_path).training_step(batch(), 0)))
        for path in (tmp_path / FOLDER).iterdir():
            path.write_bytes(path.read_bytes()[:100])
    assert losses[0] == losses[1]
    assert len(looks) == 4


def without(name):
    def write(path, good):
        path.write_bytes(good)
        with np.load(path) as arrays:
            np.savez(path, **{key: arrays[key] for key in arrays.files if key != name})

    return write


def shorter(path, good):
    """A header that says less than there is, at which np.load alone takes no offence."""
    assert good.count(b"(16, 48)") % 2 == 1
    path.write_bytes(good.replace(b"(16, 48)", b"(16, 40)"))


def packed(path, good):
    """By a method that Python does not know."""
    parts = good.split(b"PK\1\2")
    path.write_bytes(b"PK\1\2".join([parts[0], *(part[:6] + b"\x63\0" + part[8:] for part in parts[1:])]))


DAMAGE = {
    "empty": lambda path, good: path.write_bytes(b""),
    "zeros": lambda path, good: path.write_bytes(bytes(len(good))),
    "half": lambda path, good: path.write_bytes(good[: len(good) // 2]),
    "another method of packing": packed,
    "a shorter array": shorter,
    "without tap1": without("tap1"),
    "without its structure's grid": without("structure_grid"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_view_damaged_in_any_way_is_made_again(kind, clip, dino, tmp_path):
    case = "beside a DINO" if "structure" in kind else "CAA"
    method = method_of(case, clip, dino, views=1)
    want = float(training(method, folder=tmp_path).training_step(batch(), 0))
    good = {path: path.read_bytes() for path in (tmp_path / FOLDER).glob("*.towers.npz")}
    for path, content in good.items():
        DAMAGE[kind](path, content)
        assert path.read_bytes() != content
    assert float(training(method, folder=tmp_path).training_step(batch(), 0)) == want
    for path, content in good.items():
        with ZipFile(path) as kept, np.load(path) as arrays:
            assert kept.testzip() is None
            assert len(arrays.files) == content.count(b"PK\1\2")


def test_flipped_bits_never_change_a_step(clip, dino, tmp_path):
    method = method_of("CDA with boundaries", clip, dino, views=1)
    want = float(training(method, folder=tmp_path).training_step(batch(), 0))
    good = {path: path.read_bytes() for path in (tmp_path / FOLDER).iterdir()}
    drawn = random.Random(0)
    for _ in range(12):
        for path, content in good.items():
            flipped = bytearray(content)
            for place in (drawn.randrange(200), -1 - drawn.randrange(400), drawn.randrange(len(content))):
                flipped[place] ^= 1 << drawn.randrange(8)
            path.write_bytes(flipped)
        assert float(training(method, folder=tmp_path).training_step(batch(), 0)) == want


def test_a_full_disk_stops_the_keeping_and_not_the_fit(clip, dino, tmp_path, monkeypatch):
    data = make_data(tmp_path / "images", count=3)
    states, written = [], []

    def full(path, content):
        written.append(path)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_atomic(path, content)

    for kind in ("roomy", "full"):
        folder = tmp_path / kind
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            method_of("CAA", clip, dino, views=1, steps=6).fit(data, folder)
        states.append(torch.load(folder / "last.ckpt", weights_only=True)["state_dict"])
        found = [str(each.message) for each in said if "a view cannot be kept" in str(each.message)]
        assert len(found) == (kind == "full")
        monkeypatch.setattr("tag2mask.methods.online.lesson.write_atomic", full)
    assert len(written) == 3
    assert "No space left on device" in found[0]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


OTHERS = {
    "statistics": (weclip, {"statistics": "clip"}),
    "variant": (weclip, {"variant": "released"}),
    "layers": (weclip, {"layers": 1}),
    "super-classes": (cd_clip, {"compared": "classes+super"}),
}


@pytest.mark.parametrize("changed", OTHERS)
def test_views_under_other_options_are_others(changed, clip, tmp_path):
    make, own = OTHERS[changed]
    start = {"compared": "classes"} if make is cd_clip else {}
    first, second = make(clip, views=1, **start), make(clip, views=1, **own)
    steps = [training(each, folder=tmp_path / "one").training_step(batch(), 0) for each in (first, second)]
    assert torch.equal(steps[1], training(second, folder=tmp_path / "two").training_step(batch(), 0))
    names = [{path.name for path in (tmp_path / folder / FOLDER).iterdir()} for folder in ("one", "two")]
    assert names[0] == names[1]  # the others are gone


def test_views_by_other_towers_are_others_and_those_for_labelling_are_not(clip, dino, tmp_path):
    def step(case, folder, tower=clip, **options):
        method = method_of(case, tower, dino, views=1, **options)
        training(method, folder=tmp_path / folder).training_step(batch(), 0)
        return {path.name for path in (tmp_path / folder / FOLDER).iterdir()}

    first = step("CAA", "a")
    assert step("CAA", "b", max_tokens=64) == first
    assert not step("CAA", "c", replace(clip, sha256="0" * 64)) & first
    beside = step("beside a DINO", "d")
    dino = replace(dino, sha256="0" * 64)
    assert not step("beside a DINO", "e") & beside


def test_views_of_other_tags_or_padding_are_others(clip, dino, tmp_path):
    method = method_of("CAA", clip, dino, views=1)
    module = training(method, folder=tmp_path)
    pictures, tags = batch()
    module.training_step((pictures, tags), 0)
    assert len(list((tmp_path / FOLDER).glob("*.towers.npz"))) == 2
    module.training_step((pictures, [tags[0], tags[1][:1]]), 0)
    assert len(list((tmp_path / FOLDER).glob("*.towers.npz"))) == 3
    pictures[1, :, :4] = float("nan")
    module.training_step((pictures, tags), 0)
    assert len(list((tmp_path / FOLDER).glob("*.towers.npz"))) == 4


def test_pictures_come_in_so_many_ways(tmp_path):
    data = make_data(tmp_path, count=2)
    shapes = Augment(16, scale=Uniform(0.5, 2.0), place="anywhere")
    images = TaggedImages(data, shapes, 0, views=3)
    seen = {step: images[Draw(step, 0)][0] for step in range(6)}
    for step in range(3):
        assert torch.equal(seen[step], seen[step + 3])
        assert not torch.equal(seen[step], seen[(step + 1) % 3])
    free = TaggedImages(data, shapes, 0)
    assert not torch.equal(free[Draw(0, 0)][0], free[Draw(3, 0)][0])


def test_views_that_do_not_fit_on_the_disk(clip, dino, tmp_path, monkeypatch):
    method = method_of("CAA", clip, dino, views=2)
    need = view_bytes(method.recipe, 3, method.view_sizes)
    assert need == 4 * 3 * 16 * 48 + 2 * 32**2  # three taps of 16 cells, and labels
    training(method, folder=tmp_path).training_step(batch(((1,), (2,))), 0)
    kept = sum(path.stat().st_size for path in (tmp_path / FOLDER).iterdir())
    assert need < kept / 2 < need + 4000  # what files say of themselves
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=5_000_000 - kept))
    check_room(tmp_path, 4, 1_200_000, "weclip")
    with pytest.raises(UserError, match=r"weclip: 5 views of 1.2 MB each need 0.006 GB in .*; take fewer"):
        check_room(tmp_path, 5, 1_200_000, "weclip")
    data = make_data(tmp_path / "images", count=3)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=6 * need - 1 - kept))
    with pytest.raises(UserError, match="6 views of"):
        weclip(clip, affinity="caa", views=2).fit(data, tmp_path)
    with pytest.raises(UserError, match="8 views of"):  # of 300 that there could be, in 2 steps of 2 times 2 pictures
        weclip(clip, affinity="caa", views=100, steps=2, accumulate=2).fit(data, tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4 * need - kept))
    weclip(clip, affinity="caa", views=100, steps=2).fit(data, tmp_path)


def test_boundary_labels_that_change_are_not_kept(clip):
    with pytest.raises(UserError, match="feedback changes them at every step; leave one of them out"):
        cd_clip(clip, views=2, feedback=True)
    cd_clip(clip, views=2, feedback=True, boundary_gate="never")


def test_the_decoder_is_shown_what_it_works_on_alone(clip, dino, tmp_path):
    """Beside a DINO that is CLIP's last tap."""
    module = training(method_of("beside a DINO", clip, dino, views=1), folder=tmp_path)
    assert isinstance(module.lessons, Fixed)
    pictures, tags = batch()
    lesson = module.lessons(pictures.nan_to_num(0), tags, ~pictures.isnan().any(1))
    assert [tuple(tap.shape) for tap in lesson.taps] == [(2, 16, 48)]
    assert lesson.structure.tokens.shape == (2, 16, 64)
    live = training(method_of("beside a DINO", clip, dino)).lessons(pictures.nan_to_num(0), tags, pictures[:, 0] > 0)
    torch.testing.assert_close(lesson.taps[0], live.taps[-1])
    torch.testing.assert_close(lesson.structure.tokens, live.structure.tokens)
    assert replace(lesson.structure, tokens=0).grid == (4, 4)
