"""OpenAI's .pt files and the field's .npy dicts: read whole where honest, never run where hostile."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tag2mask.models.containers import read_weights
from tag2mask.models.convert import from_openai_state
from tag2mask.models.openai import _Module
from tag2mask.models.unpickle import read_npy_dict
from tag2mask.types import UserError
from tiny_clips import Evil, openai_state, script


def read_openai_pt(path: Path) -> dict[str, Tensor]:
    return read_weights(path).state


@pytest.fixture(params=["system", "eval", "open"])
def evil(request, tmp_path) -> Evil:
    return Evil(tmp_path / "it-ran", request.param)


def test_the_attack_is_real(evil) -> None:
    pickle.loads(pickle.dumps(evil))
    assert evil.marker.exists()


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("layout", ["script", "plain", "legacy"])
def test_all_layouts_give_the_same_tensors(tmp_path, kind, layout) -> None:
    state, path = openai_state(kind), tmp_path / "ViT.pt"
    if layout == "script":
        script(state, path)
    else:
        torch.save(state | {"input_resolution": 224}, path, _use_new_zipfile_serialization=layout == "plain")
    got = read_openai_pt(path)
    assert got.keys() == state.keys()
    for name, value in state.items():
        assert got[name].dtype == value.dtype
        assert torch.equal(got[name], value), name
    assert from_openai_state(got).text.context == 8


def test_views_and_shared_storages_of_a_script(tmp_path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {"a": base, "b.c": base[1:3, ::2], "b.d": base.T, "empty": torch.zeros(0, 3)}
    got = read_openai_pt(script(state, tmp_path / "x.pt"))
    assert all(torch.equal(got[name], value) for name, value in state.items())


def repack(path: Path, changes: dict[str, bytes], *, compress: tuple[str, ...] = ()) -> Path:
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    records |= {f"{path.stem}/{name}": data for name, data in changes.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            kind = zipfile.ZIP_DEFLATED if name.split("/", 1)[1] in compress else zipfile.ZIP_STORED
            archive.writestr(name, data, kind)
    return path


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def integer(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def module(**attributes: bytes) -> bytes:
    """data.pkl of a module, as TorchScript writes it: attributes are opcodes."""
    body = b"".join(text(name) + code for name, code in attributes.items())
    return b"\x80\x02c__torch__\nM\n)\x81}(" + body + b"ub."


def tensor(*, key: str = "0", count: int = 4, offset: int = 0, size: int = 4, stride: int = 1) -> bytes:
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + integer(count) + b"tQ"
    view = integer(offset) + integer(size) + b"\x85" + integer(stride) + b"\x85"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"\x89ccollections\nOrderedDict\n)RtR"


@pytest.fixture
def archive(tmp_path) -> Path:
    return script({"w": torch.arange(4.0)}, tmp_path / "ViT.pt")


def test_a_written_pickle_is_read(archive) -> None:
    repack(archive, {"data.pkl": module(w=tensor(), half=tensor(offset=1, size=2, stride=2), n=integer(3))})
    state = read_openai_pt(archive)
    assert state["w"].tolist() == [0, 1, 2, 3]
    assert state["half"].tolist() == [1, 3]
    assert state.keys() == {"w", "half"}


SELF = b"\x80\x02c__torch__\nM\n)\x81q\x00}(" + text("m") + b"h\x00ub."
STATE_ON = (
    b"\x80\x02c%s\nN}" + text("x") + integer(1) + b"s\x86b."
)  # BUILD with a slot state: setattr on what was found
FAULTS = {
    "foreign name": (module(w=b"cnumpy\nload\n"), "numpy.load"),
    "hub": (module(w=b"ctorch.hub\nload\n(" + text("x/y") + text("z") + b"tR"), "torch.hub.load"),
    "repeated elements": (module(w=tensor(size=1 << 40, stride=0)), "in a storage of 4"),
    "beyond the storage": (module(w=tensor(offset=2)), "in a storage of 4"),
    "negative offset": (module(w=tensor(offset=-1)), "of size"),
    "record of another size": (module(w=tensor(count=1 << 40)), "16 bytes for"),
    "no such record": (module(w=tensor(key="77")), "data/77"),
    "record outside": (module(w=tensor(key="../version")), "reference of kind"),
    "module in itself": (SELF, "nested in themselves"),
    "no module": (b"\x80\x02}.", "no module"),
    "no tensors": (module(n=integer(3)), "without tensors"),
    "cut short": (module(w=tensor())[:-40], "not read"),
    "function changed": (STATE_ON % b"torch._utils\n_rebuild_tensor_v2", "on a function"),
    "class changed": (STATE_ON % b"collections\nOrderedDict", "not read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_hostile_or_damaged_scripts_are_refused(archive, fault) -> None:
    data, message = FAULTS[fault]
    repack(archive, {"data.pkl": data})
    with pytest.raises(UserError, match=message) as caught:
        read_openai_pt(archive)
    assert "\n" not in str(caught.value)
    assert "Nothing in it was run" in str(caught.value)


def test_bombs_are_refused(archive, monkeypatch) -> None:
    repack(archive, {"data.pkl": module(w=tensor(count=1 << 20)), "data/0": bytes(4 << 20)}, compress=("data/0",))
    with pytest.raises(UserError, match="larger than the file"):
        read_openai_pt(archive)
    monkeypatch.setattr("tag2mask.models.openai.LARGEST_PICKLE", 10)
    with pytest.raises(UserError, match=r"data\.pkl of"):
        read_openai_pt(archive)


def test_a_class_changed_by_one_file_is_not_changed_for_the_next(archive) -> None:
    changed = STATE_ON % b"__torch__\nM"
    repack(archive, {"data.pkl": changed})
    with pytest.raises(UserError):
        read_openai_pt(archive)
    assert not hasattr(_Module, "x")
    repack(archive, {"data.pkl": module(w=tensor())})
    assert read_openai_pt(archive).keys() == {"w"}


def test_big_endian_is_refused(archive) -> None:
    with pytest.raises(UserError, match="big-endian"):
        read_openai_pt(repack(archive, {"byteorder": b"big"}))


def test_malicious_files_are_never_run(archive, tmp_path, evil) -> None:
    plain, legacy, bare = (tmp_path / f"{name}.pt" for name in ("plain", "legacy", "bare"))
    torch.save({"w": evil}, plain)
    torch.save({"w": evil}, legacy, _use_new_zipfile_serialization=False)
    bare.write_bytes(pickle.dumps({"w": evil}, protocol=2))
    repack(archive, {"data.pkl": pickle.dumps(evil, protocol=2)})
    for path in (plain, legacy, bare, archive):
        with pytest.raises(UserError, match=r"was not read.*Nothing in it was run"):
            read_openai_pt(path)
    assert not evil.marker.exists()


def test_files_that_are_no_weights(tmp_path) -> None:
    for data in (b"", b"hello", b"PK\x03\x04"):
        (tmp_path / "x.pt").write_bytes(data)
        with pytest.raises(UserError, match=r"x\.pt: was not read"):
            read_openai_pt(tmp_path / "x.pt")
    torch.save([torch.zeros(2)], tmp_path / "x.pt")
    with pytest.raises(UserError, match="it is a list without named tensors; expected a state dict"):
        read_openai_pt(tmp_path / "x.pt")
    with pytest.raises(UserError, match="cannot be read"):
        read_openai_pt(tmp_path / "absent.pt")


CAMS: dict[object, object] = {
    "keys": np.array([3, 14]),
    "attn_highres": np.random.default_rng(0).random((2, 5, 7)).astype(np.float16),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "big-endian": np.arange(3).astype(">i4"),
    "names": np.array(["cat", "horse"]),
    "tensor": torch.arange(6.0).reshape(2, 3).T,
    "half": torch.arange(3).half(),
    "scalar": np.float32(0.5),
    "empty": np.zeros((0, 3), np.uint8),
    7: np.array([True, False]),
    np.int64(8): [1, 2.5, None, (True, "x", b"\xff")],
}


def test_cam_dicts_are_read(tmp_path) -> None:
    np.save(tmp_path / "x.npy", CAMS)
    got = read_npy_dict(tmp_path / "x.npy")
    assert got.keys() == CAMS.keys()
    for key, value in CAMS.items():
        if isinstance(value, np.ndarray | Tensor):
            assert got[key].dtype == np.asarray(value).dtype, key
            assert np.array_equal(got[key], np.asarray(value)), key
            assert got[key].flags.writeable, key
        else:
            assert got[key] == value
    assert type(got["scalar"]) is np.float32


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_cam_dicts_of_every_age(tmp_path, protocol) -> None:
    arrays = {key: value for key, value in CAMS.items() if not isinstance(value, Tensor)}
    holder = np.array(arrays, dtype=object)
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        data = pickle.dumps(holder, protocol=protocol)
        file.write(data.replace(b"numpy._core", b"numpy.core") if protocol == 2 else data)
    got = read_npy_dict(path)
    assert np.array_equal(got["attn_highres"], arrays["attn_highres"])
    assert np.array_equal(got["fortran"], arrays["fortran"])


def test_malicious_cam_dicts_are_never_run(tmp_path, evil) -> None:
    path = tmp_path / "x.npy"
    for value in ({"keys": evil}, evil, {"keys": np.array([evil], dtype=object)}):
        np.save(path, np.array(value, dtype=object))
        with pytest.raises(UserError, match=r"x\.npy: was not read"):
            read_npy_dict(path)
    # a tensor's numbers are a pickle inside the pickle
    inner = pickle.dumps(evil, protocol=2)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        load = b"ctorch.storage\n_load_from_bytes\nB" + len(inner).to_bytes(4, "little") + inner + b"\x85R."
        file.write(b"\x80\x03" + load)
    with pytest.raises(UserError, match="not stored as torch stores them") as caught:
        read_npy_dict(path)
    assert "weights_only" not in str(caught.value)
    assert not evil.marker.exists()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: np.save(path, np.zeros((2, 3))), "not a dict"),
        (lambda path: np.save(path, np.array([{1: 2}, {}], dtype=object)), "not a dict"),
        (lambda path: np.save(path, np.array([1, 2], dtype=object).sum()), "not a dict"),
        (lambda path: np.save(path, {"a": np.array("2020-01-01", "M8[D]")}), "type 'M8'"),
        (lambda path: np.save(path, {"a": {1, 2}}), "a set"),
        (lambda path: path.write_bytes(b"nothing"), "was not read"),
        (lambda path: None, "cannot be read"),
    ],
)
def test_other_npy_files_are_refused(tmp_path, write: Callable[[Path], None], message) -> None:
    write(tmp_path / "x.npy")
    with pytest.raises(UserError, match=message):
        read_npy_dict(tmp_path / "x.npy")
