"""OpenAI's .pt files: read whole where honest, never run where hostile."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tag2mask.models.containers import read_weights
from tag2mask.models.convert import from_openai_state
from tag2mask.models.openai import _Module
from tag2mask.models.unpickle import storage_from_bytes
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


def test_the_numbers_of_a_tensor_inside_a_plain_pickle(tmp_path, evil) -> None:
    """They are a pickle inside the pickle."""
    path, weights = tmp_path / "x.pt", {"w": torch.arange(6.0).half().reshape(2, 3).T}
    path.write_bytes(pickle.dumps(weights, protocol=2))
    assert b"_load_from_bytes" in path.read_bytes()
    assert torch.equal(read_openai_pt(path)["w"], weights["w"])
    with pytest.raises(pickle.UnpicklingError, match="not stored as torch stores them") as caught:
        storage_from_bytes(pickle.dumps(evil, protocol=2))
    assert "weights_only" not in str(caught.value)
    assert not evil.marker.exists()
