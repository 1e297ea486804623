"""Arrays on disk that have their room before they are filled."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest

from tag2mask.run import files
from tag2mask.run.files import make_array
from tag2mask.types import UserError


def test_an_array_is_zeros_and_has_its_room(tmp_path):
    path = tmp_path / "new" / "a.npy"
    make_array(path, (300, 40, 50), token="a")
    array = np.load(path, mmap_mode="r")
    assert (array.shape, array.dtype) == ((300, 40, 50), np.uint8)
    assert not array.any()
    assert path.stat().st_blocks * 512 >= array.nbytes  # no hole, whose filling may find no room
    assert [each.name for each in path.parent.iterdir()] == ["a.npy"]


def test_too_little_room_is_named_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))
    with pytest.raises(UserError, match=r"a.npy: 300 of 2,000 bytes take 0.00 GB, and 0.00 GB are free there"):
        make_array(tmp_path / "a.npy", (300, 40, 50), token="a")
    assert list(tmp_path.iterdir()) == []
