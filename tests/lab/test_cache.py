"""Rendered scenes on disk: killed, shared, lost, and too large."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tag2mask.lab import cache
from tag2mask.lab.cache import Rendered, open_cache, render_cache
from tag2mask.storybook import draw_scene, kind_of, scene_seed
from tag2mask.types import UserError


class Killed(BaseException):
    """As good as kill -9."""


def kill_at(patch, number):
    """Kills the drawing at so many scenes."""
    draw, count = cache.draw_scene, 0

    def dies(*args):
        nonlocal count
        count += 1
        if count == number:
            raise Killed
        return draw(*args)

    patch.setattr(cache, "draw_scene", dies)


def test_cache_goes_on_after_a_kill_and_is_the_same(tmp_path, monkeypatch):
    wanted = Rendered(150, (16, 16))
    whole = render_cache(tmp_path / "whole", wanted, workers=1)
    with monkeypatch.context() as patch:
        kill_at(patch, 100)
        with pytest.raises(Killed):
            render_cache(tmp_path / "broken", wanted, workers=1)
    with pytest.raises(UserError, match="no cache of scenes"):
        open_cache(tmp_path / "broken" / f"scenes-{wanted.key}")
    advanced = []
    mended = render_cache(
        tmp_path / "broken", wanted, workers=2, progress=lambda n=1, *, worked=True: advanced.append((n, worked))
    )
    assert sorted(advanced) == [(22, True), (64, False), (64, True)]
    assert np.array_equal(whole.images, mended.images)
    assert whole.facts == mended.facts
    assert len({each.tobytes() for each in whole.images}) == 150


def test_other_settings_and_other_drawings_are_another_cache(monkeypatch):
    wanted = Rendered(4, (16, 16))
    keys = {
        replace(wanted, **other).key for other in ({}, {"n": 5}, {"size": (16, 24)}, {"seed": 1}, {"split": "val"})
    }
    monkeypatch.setattr(cache, "EDITION", cache.EDITION + 1)
    assert len(keys | {wanted.key}) == 6


def test_lost_pictures_are_drawn_again(tmp_path, monkeypatch):
    wanted = Rendered(70, (16, 16))
    with monkeypatch.context() as patch:
        kill_at(patch, 66)
        with pytest.raises(Killed):
            render_cache(tmp_path, wanted, workers=1)
    folder = tmp_path / f"scenes-{wanted.key}"
    assert [path.name for path in folder.glob("part-*")] == ["part-00000000.jsonl"]
    (folder / "images.npy").unlink()
    assert render_cache(tmp_path, wanted, workers=1).images.any((1, 2, 3)).all()


def test_two_that_start_together_do_not_break_each_other(tmp_path, monkeypatch):
    """The second is told so while the first draws; had the first just ended, the second finds what it drew."""
    wanted = Rendered(4, (16, 16))
    draw, refused = cache.draw_scene, []

    def meanwhile(*args):
        if not refused:
            with pytest.raises(UserError, match=r"cache of scenes .* is being written by process") as error:
                render_cache(tmp_path, wanted, workers=1)
            refused.append(error)
        return draw(*args)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "draw_scene", meanwhile)
        render_cache(tmp_path, wanted, workers=1)
    assert refused
    lock, told = cache.locked, []

    def late(*args):  # cache.json appears between the look and the lock
        (tmp_path / f"scenes-{wanted.key}" / "away.json").rename(tmp_path / f"scenes-{wanted.key}" / "cache.json")
        return lock(*args)

    (tmp_path / f"scenes-{wanted.key}" / "cache.json").rename(tmp_path / f"scenes-{wanted.key}" / "away.json")
    monkeypatch.setattr(cache, "locked", late)
    monkeypatch.setattr(cache, "draw_scene", None)
    progress = lambda n=1, *, worked=True: told.append((n, worked))  # noqa: E731
    assert len(render_cache(tmp_path, wanted, workers=1, progress=progress)) == 4
    assert told == [(4, False)]


def test_a_cache_is_pickled_as_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = render_cache(Path("here"), Rendered(4, (32, 32)), workers=1)
    sent = pickle.dumps(found)
    assert len(sent) < 1000
    monkeypatch.chdir("/")
    there = pickle.loads(sent)
    assert isinstance(there.images, np.memmap)
    assert np.array_equal(there.images, found.images)
    assert there.facts == found.facts


def test_too_small_a_disk_is_named_before_drawing(tmp_path, monkeypatch):
    usage = type(shutil.disk_usage(tmp_path))(10**10, 9 * 10**9, 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"take 1\.20 GB, and 1\.00 GB are free"):
        render_cache(tmp_path, Rendered(4000, (200, 500)), workers=1)
    assert not list(tmp_path.rglob("*images*"))


def test_pictures_that_were_cut_short_are_drawn_again(tmp_path, monkeypatch):
    """Opened for writing they would be made longer, by black."""
    wanted = Rendered(130, (16, 16))
    with monkeypatch.context() as patch:
        kill_at(patch, 129)
        with pytest.raises(Killed):
            render_cache(tmp_path, wanted, workers=1)
    file = tmp_path / f"scenes-{wanted.key}" / "images.npy"
    file.write_bytes(file.read_bytes()[:5000])
    assert render_cache(tmp_path, wanted, workers=1).images.any((1, 2, 3)).all()


@pytest.mark.parametrize(("split", "seed"), [("small", 0), ("train", 3)])
def test_a_cache_holds_the_scenes_of_its_split_and_seed(tmp_path, split, seed):
    found = render_cache(tmp_path, Rendered(2, (32, 48), split=split, seed=seed), workers=1)
    for index in range(2):
        scene = draw_scene(scene_seed(split, seed, index), (32, 48), kind=kind_of(split))
        assert np.array_equal(found.images[index], scene.image)
        assert found.facts[index].names == scene.names


@pytest.mark.parametrize("damage", ["count", "dtype", "size", "class", "line", "settings", "gone"])
def test_a_damaged_cache_is_named(tmp_path, damage):
    """Never trained on: pictures and what is said of them have to agree."""
    folder = render_cache(tmp_path, Rendered(3, (32, 48)), workers=1).folder
    lines = (folder / "scenes.jsonl").read_text().splitlines(keepends=True)
    images = np.load(folder / "images.npy")
    if damage == "count":
        (folder / "scenes.jsonl").write_text("".join(lines[:2]))
    elif damage == "dtype":
        np.save(folder / "images.npy", images.astype(np.int16))
    elif damage == "size":
        np.save(folder / "images.npy", images[:, :16])
    elif damage == "class":
        (folder / "scenes.jsonl").write_text("".join(['[["dragon"], [], [1]]\n', *lines[1:]]))
    elif damage == "line":
        (folder / "scenes.jsonl").write_text("".join([lines[0][:5], "\n", *lines[1:]]))
    elif damage == "settings":
        (folder / "cache.json").write_text('{"n": 3}')
    else:
        (folder / "images.npy").unlink()
    with pytest.raises(UserError, match=r"is no cache of scenes .*remove it, and it is drawn again"):
        render_cache(tmp_path, Rendered(3, (32, 48)), workers=1)


def test_a_file_in_the_place_of_the_cache_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--cache .*file.*cannot be written"):
        render_cache(tmp_path / "file", Rendered(4, (16, 16)))
