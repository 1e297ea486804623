"""The field's .npy dicts: read whole where honest, never run where hostile."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tag2mask.safe_pickle import read_npy_dict
from tag2mask.types import UserError
from tiny_clips import Evil


@pytest.fixture(params=["system", "eval", "open"])
def evil(request, tmp_path) -> Evil:
    return Evil(tmp_path / "it-ran", request.param)


HELD: dict[object, object] = {
    "keys": np.array([3, 14]),
    "attn_highres": np.random.default_rng(0).random((2, 5, 7)).astype(np.float16),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "big-endian": np.arange(3).astype(">i4"),
    "names": np.array(["cat", "horse"]),
    "half": np.arange(3).astype(np.float16),
    "scalar": np.float32(0.5),
    "empty": np.zeros((0, 3), np.uint8),
    7: np.array([True, False]),
    np.int64(8): [1, 2.5, None, (True, "x", b"\xff")],
}


def test_dicts_are_read(tmp_path) -> None:
    np.save(tmp_path / "x.npy", HELD)
    got = read_npy_dict(tmp_path / "x.npy")
    assert got.keys() == HELD.keys()
    for key, value in HELD.items():
        if isinstance(value, np.ndarray):
            assert got[key].dtype == np.asarray(value).dtype, key
            assert np.array_equal(got[key], np.asarray(value)), key
            assert got[key].flags.writeable, key
        else:
            assert got[key] == value
    assert type(got["scalar"]) is np.float32


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_dicts_of_every_age(tmp_path, protocol) -> None:
    holder = np.array(HELD, dtype=object)
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        data = pickle.dumps(holder, protocol=protocol)
        file.write(data.replace(b"numpy._core", b"numpy.core") if protocol == 2 else data)
    got = read_npy_dict(path)
    assert np.array_equal(got["attn_highres"], HELD["attn_highres"])
    assert np.array_equal(got["fortran"], HELD["fortran"])


def test_malicious_dicts_are_never_run(tmp_path, evil) -> None:
    path = tmp_path / "x.npy"
    for value in ({"keys": evil}, evil, {"keys": np.array([evil], dtype=object)}):
        np.save(path, np.array(value, dtype=object))
        with pytest.raises(UserError, match=r"x\.npy: was not read"):
            read_npy_dict(path)
    assert not evil.marker.exists()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: np.save(path, np.zeros((2, 3))), "not a dict"),
        (lambda path: np.save(path, np.array([{1: 2}, {}], dtype=object)), "not a dict"),
        (lambda path: np.save(path, np.array([1, 2], dtype=object).sum()), "not a dict"),
        (lambda path: np.save(path, {"a": np.array("2020-01-01", "M8[D]")}), "type 'M8'"),
        (lambda path: np.save(path, {"a": {1, 2}}), "a set"),
        (lambda path: np.save(path, {"a": torch.zeros(2)}), "torch"),
        (lambda path: path.write_bytes(b"nothing"), "was not read"),
        (lambda path: None, "cannot be read"),
    ],
)
def test_other_npy_files_are_refused(tmp_path, write: Callable[[Path], None], message) -> None:
    write(tmp_path / "x.npy")
    with pytest.raises(UserError, match=message):
        read_npy_dict(tmp_path / "x.npy")
