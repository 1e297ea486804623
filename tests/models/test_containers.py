"""Weights as people find them: wrappings, prefixes, pickled extras, old formats, and files that are none."""

from __future__ import annotations

import argparse
import collections
import io
import pathlib
import pickle
import random
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tag2mask.models.containers import prefix_of, read_weights
from tag2mask.models.torch_files import Inert
from tag2mask.types import UserError
from tiny_clips import Evil


def state(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(2, 3, generator=g),
        "norm.running_mean": torch.randn(2, generator=g).half(),
        "norm.num_batches_tracked": torch.tensor(7),
    }


def same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return got.keys() == expected.keys() and all(torch.equal(got[n], v) for n, v in expected.items())


class Colour:
    """Of a project that is not here: its state holds an array of objects and itself."""

    def __init__(self) -> None:
        self.me, self.many = self, np.array([1, "x", None], dtype=object)


EXTRAS: dict[str, Any] = {
    "none": None,
    "namespace": argparse.Namespace(lr=0.1, net=argparse.Namespace(width=3)),
    "numpy scalar": np.float64(0.7),
    "numpy integers": {np.int64(3): np.float32(1)},
    "arrays": [np.zeros(3), np.array(["cat"]), np.array("2020-01-01", "M8[D]"), np.zeros(2, [("a", "i4")])],
    "defaultdict": collections.defaultdict(list, {"loss": [1.0]}),
    "counter, deque, set": [collections.Counter("ab"), collections.deque([1], 3), {1, 2}, frozenset([3])],
    "paths": {pathlib.PurePosixPath("/x"): pathlib.PurePosixPath("/y")},
    "bound method": [].append,
    "of a project": Colour(),
    "torch's": [torch.device("cpu"), torch.float16, torch.Size([1, 2]), torch.zeros(2).to_sparse()],
    "numpy's dice": np.random.default_rng(0).bit_generator.state,
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("extra", EXTRAS)
def test_what_lies_beside_weights_does_not_matter(tmp_path: Path, extra: str, legacy: bool) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    whole = {"epoch": 3, "first": EXTRAS[extra], "state_dict": state(), "last": EXTRAS[extra]}
    torch.save(whole, path, _use_new_zipfile_serialization=not legacy)
    assert same(read_weights(path).state, state())


WRAPPED: dict[str, Any] = {
    "bare": state(),
    "ordered": collections.OrderedDict(state()),
    **{
        key: {key: state(), "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}, "best": torch.tensor(1.0)}
        for key in ("state_dict", "model", "net", "model_state_dict", "module", "weights", "anything")
    },
    "twice": {"checkpoint": {"model": state()}},
    "list": [state()],
    "tuple": (state(), {"lr": 1}),
    "the same twice": {"state_dict": state(), "model": state()},
    "named optimiser": {"model": state(), "optim": {"a.b": torch.zeros(1)}},
    "numpy": {name: value.numpy() for name, value in state().items()},
    "big-endian": {
        name: np.asarray(value.numpy(), value.numpy().dtype.newbyteorder(">")) for name, value in state().items()
    },
    "parameters": {n: nn.Parameter(v) if v.is_floating_point() else v for n, v in state().items()},
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_wrappings_are_looked_through(tmp_path: Path, wrapped: str) -> None:
    for name, how in (("zip.pt", {}), ("legacy.ckpt", {"_use_new_zipfile_serialization": False})):
        torch.save(WRAPPED[wrapped], tmp_path / name, **how)
        assert same(read_weights(tmp_path / name).state, state())
    if wrapped in ("numpy", "big-endian"):  # what other programs pickle by themselves
        (tmp_path / "bare.pkl").write_bytes(pickle.dumps({"model": WRAPPED[wrapped]}))
        assert same(read_weights(tmp_path / "bare.pkl").state, state())


def test_views_of_one_storage(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    views = {
        "a.a": base[1:3, ::2],
        "a.b": base.T,
        "a.c": base[3],
        "a.empty": torch.zeros(0, 3),
        "a.half": torch.ones(1).bfloat16(),
    }
    for legacy in (False, True):
        torch.save(views, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
        assert same(read_weights(tmp_path / "x.pth").state, views)


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    safetensors.torch.save_file(state(), tmp_path / "x.pth", metadata={"who": "me"})
    got = read_weights(tmp_path / "x.pth")
    assert same(got.state, state())
    assert got.about == {"who": "me"}
    torch.save(state(), tmp_path / "y.safetensors")
    assert same(read_weights(tmp_path / "y.safetensors").state, state())


@pytest.mark.parametrize("ema", ["model_ema", "ema", "state_dict_ema", "ema_state_dict", "averaged_model"])
def test_of_last_and_averaged_weights_the_last_are_taken_and_it_is_said(tmp_path: Path, ema: str) -> None:
    torch.save({ema: state(1), "model": state(0)}, tmp_path / "x.pth")
    with pytest.warns(
        UserWarning, match=rf"under model are taken, not the averaged ones under {ema}.*\['{ema}'\], FILE"
    ):
        assert same(read_weights(tmp_path / "x.pth").state, state(0))


def test_several_networks_are_asked_for(tmp_path: Path) -> None:
    for pair in (("student", "teacher"), ("state_dict", "model"), ("generator", "schema")):
        torch.save({pair[0]: state(0), pair[1]: state(1)}, tmp_path / "x.pth")
        with pytest.raises(UserError) as caught:
            read_weights(tmp_path / "x.pth")
        text = str(caught.value)
        assert f"2 networks: {pair[0]} (3 tensors), {pair[1]} (3 tensors)" in text
        assert f"torch.save(checkpoint['{pair[0]}'], FILE)" in text


def test_what_stands_before_names() -> None:
    path = Path("x.pth")
    assert prefix_of(["a.b", "module.model.a.b"][1:], "a.b", path) == "module.model."
    assert prefix_of(["a.b", "c"], "a.b", path) == ""
    assert prefix_of(["xa.b"], "a.b", path) is None
    with pytest.warns(UserWarning, match="under 'net\\.' are taken, not the averaged"):
        assert prefix_of(["net.a.b", "ema.a.b"], "a.b", path) == "net."
    with pytest.raises(UserError, match=r"2 networks of one kind, under 'encoder_k\.', 'encoder_q\.'"):
        prefix_of(["encoder_q.a.b", "encoder_k.a.b"], "a.b", path)


def _tar(path: Path, names: tuple[str, ...]) -> None:
    with tarfile.open(path, "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))


def _zip(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


def _cut(path: Path, how: dict[str, bool], kept: float) -> None:
    file = io.BytesIO()
    torch.save({"a.b": torch.zeros(4000)}, file, **how)
    path.write_bytes(file.getvalue()[: int(len(file.getvalue()) * kept)])


OLD = {"_use_new_zipfile_serialization": False}
NONE: dict[str, tuple[Any, str]] = {
    "page": (
        lambda p: p.write_text("\n <!DOCTYPE html><html><title>Drive -\n Quota</title>"),
        "a web page ('Drive - Quota')",
    ),
    "page without title": (lambda p: p.write_bytes(b"<html><body>no</body>"), "a web page, not weights"),
    "xml": (lambda p: p.write_text('<?xml version="1.0"?><Error>AccessDenied</Error>'), "a web page"),
    "lfs": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1234567\n"),
        "a git-lfs pointer to a file of 1,234,567 bytes, not the weights; run `git lfs pull`",
    ),
    "empty": (lambda p: p.write_bytes(b""), "empty (0 bytes); download it again"),
    "text": (lambda p: p.write_text('{"error": "Not authorised"}'), "a text file of 27 bytes that begins"),
    "cut zip": (lambda p: _cut(p, {}, 0.5), "cut short or damaged, a zip archive without its end"),
    "cut legacy": (lambda p: _cut(p, OLD, 0.9), "larger than the file, cut short"),
    "cut legacy early": (lambda p: _cut(p, OLD, 0.01), "cut short"),
    "cut safetensors": (lambda p: p.write_bytes(safetensors.torch.save(state())[:-2]), "cut short or damaged"),
    "whole": (
        lambda p: torch.save(nn.Sequential(nn.Linear(1, 1)), p),
        "a whole pickled network (the class torch.nn.modules.container.Sequential)",
    ),
    "whole inside": (
        lambda p: torch.save({"model": nn.Linear(1, 1), "epoch": 3}, p),
        "(under 'model' the class torch.nn.modules.linear.Linear)",
    ),
    "whole legacy": (lambda p: torch.save(nn.Linear(1, 1), p, **OLD), "a whole pickled network"),
    "numbers": (lambda p: torch.save({"epoch": 3}, p), "a dict without named tensors"),
    "object": (lambda p: torch.save(argparse.Namespace(a=1), p), "an object without named tensors"),
    "one tensor": (lambda p: torch.save(torch.zeros(3), p), "a Tensor without named tensors"),
    "npz": (lambda p: np.savez(p.open("wb"), a=np.zeros(1)), "NumPy's .npz with 1 arrays"),
    "npy": (lambda p: np.save(p.open("wb"), np.zeros(1)), "one NumPy array"),
    "onnx": (lambda p: p.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x03"), "an ONNX file; give PyTorch's"),
    "keras": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"), "an HDF5 file"),
    "mxnet": (lambda p: p.write_bytes(b"\x12\x01" + bytes(30)), "an MXNet .params file"),
    "gzip": (lambda p: p.write_bytes(b"\x1f\x8b\x08"), "compressed with gzip; unpack it"),
    "zip": (lambda p: _zip(p, "a/net.pth", "b.txt"), "a zip archive (a/net.pth, b.txt); unpack it"),
    "tar": (lambda p: _tar(p, ("a/net.pth",)), "a tar archive (a/net.pth); unpack it"),
    "oldest torch": (
        lambda p: _tar(p, ("sys_info", "pickle", "tensors", "storages")),
        "the tar archive of torch before 0.2",
    ),
    "noise": (lambda p: p.write_bytes(bytes(range(1, 9))), "in no known form (8 bytes"),
    "folder": (lambda p: p.mkdir(), "a folder; give the file"),
}


@pytest.mark.parametrize("kind", NONE)
def test_files_that_hold_no_weights_are_named_in_one_line(tmp_path: Path, kind: str) -> None:
    write, said = NONE[kind]
    path = tmp_path / "net.pth"
    write(path)
    with pytest.raises(UserError) as caught:
        read_weights(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: was not read: ")
    assert said in text
    assert "\n" not in text
    assert "weights_only" not in text


def test_tensorflow_is_known_by_its_names(tmp_path: Path) -> None:
    for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001", "saved_model.pb"):
        (tmp_path / name).write_bytes(b"\x00\x01\x02\x03")
        with pytest.raises(UserError, match="it is a TensorFlow file"):
            read_weights(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(tmp_path / "absent.pth")


# --- hostile files


class Call:
    """Pickled as the call of a function, wherever it stands."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def _global(name: bytes) -> bytes:
    return b"c" + name + b"\n"


TRICKS = {
    "getattr of a module": Call(getattr, Call(__import__, "os"), "system"),
    "eval": Call(eval, "1"),
    "in a list of a key": {("x", (Call(exec, "1"),)): 1},
    "as state": argparse.Namespace(a=argparse.Namespace(b=Call(eval, "1"))),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("trick", TRICKS)
def test_calls_of_programs_end_the_reading_wherever_they_are(tmp_path: Path, trick: str, legacy: bool) -> None:
    torch.save(
        {"state_dict": state(), "args": TRICKS[trick]}, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(
        UserError, match=r"was not read: asks for __builtin__\.(eval|exec|__import__).*Nothing in it was run"
    ):
        read_weights(tmp_path / "x.pth")


@pytest.mark.parametrize("how", ["system", "eval", "open"])
def test_nothing_is_run(tmp_path: Path, how: str) -> None:
    evil = Evil(tmp_path / "it-ran", how)
    for value in (evil, {"a.b": evil}, {"model": state(), "x": [evil]}, {"model": argparse.Namespace(a=evil)}):
        for legacy in (False, True):
            torch.save(value, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
            with pytest.raises(UserError, match="Nothing in it was run"):
                read_weights(tmp_path / "x.pth")
    assert not evil.marker.exists()


def test_nothing_is_imported_for_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap_of_mine.py").write_text(
        f"open({str(tmp_path / 'it-ran')!r}, 'w')\ndef go(*_): raise SystemExit\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    # a call, a nested call, an object by __new__, its state, and attributes of what came out
    call = b"ctrap_of_mine\ngo\n(K\x01tR"
    nested = b"ctrap_of_mine\ngo\n(ctrap_of_mine\nother\n)RtR}X\x01\x00\x00\x00akub".replace(b"ku", b"K\x01s")
    new = b"ctrap_of_mine\nGo.deep\n)\x81}X\x01\x00\x00\x00aK\x01sb"
    got = b"cbuiltins\ngetattr\n(ctrap_of_mine\ngo\nX\x04\x00\x00\x00codetR)R"
    for inside in (call, nested, new, got):
        whole = b"\x80\x02}(X\x01\x00\x00\x00x" + inside + b"X\x05\x00\x00\x00state}u."
        (tmp_path / "x.pkl").write_bytes(whole)
        with pytest.raises(UserError, match="without named tensors"):
            read_weights(tmp_path / "x.pkl")
    assert not (tmp_path / "it-ran").exists()


CHANGES = {
    "a class of ours": _global(b"some\nThing"),
    "a function of ours": _global(b"torch._utils\n_rebuild_tensor_v2"),
    "a dict of Python's": _global(b"collections\nOrderedDict"),
    "a type of torch's": _global(b"torch\nfloat32"),
    "an array": _global(b"numpy\nndarray"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_pickle_changes_nothing_outside_of_itself(tmp_path: Path, what: str) -> None:
    before = dict(vars(Inert)), dict(vars(collections.OrderedDict))
    slots = b"\x80\x02" + CHANGES[what] + b"N}X\x01\x00\x00\x00xK\x01s\x86b."  # BUILD: setattr on what was found
    plain = b"\x80\x02" + CHANGES[what] + b"}X\x01\x00\x00\x00xK\x01sb."
    for data in (slots, plain):
        (tmp_path / "x.pkl").write_bytes(data)
        with pytest.raises(UserError):
            read_weights(tmp_path / "x.pkl")
    assert (dict(vars(Inert)), dict(vars(collections.OrderedDict))) == before
    torch.save({"state_dict": state(), "args": argparse.Namespace()}, tmp_path / "x.pth")
    assert same(read_weights(tmp_path / "x.pth").state, state())


def test_bombs_are_refused(tmp_path: Path) -> None:
    many = (1 << 40).to_bytes(8, "little")
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu\x8a\x08"
        + many
        + b"tQ"
    )
    magic = io.BytesIO()
    torch.save({}, magic, **OLD)
    head = magic.getvalue()[: magic.getvalue().rindex(b"\x80\x02", 0, magic.getvalue().rindex(b"\x80\x02"))]
    (tmp_path / "x.pth").write_bytes(head + b"\x80\x02" + storage + b".")
    with pytest.raises(UserError, match="larger than the file"):
        read_weights(tmp_path / "x.pth")
    (tmp_path / "x.pth").write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")  # a place in a list of two thousand million
    with pytest.raises(UserError, match="that no pickle of this length needs"):
        read_weights(tmp_path / "x.pth")


def test_damaged_bytes_end_in_a_message_or_in_tensors(tmp_path: Path) -> None:
    """A thousand files with bytes changed, left out or doubled: never another exception, nothing run."""
    dice, path = random.Random(0), tmp_path / "x.pth"
    whole = {"model": {"a.b": torch.arange(6.0)}, "args": argparse.Namespace(a=np.float32(1)), "n": np.arange(3)}
    files = []
    for how in ({}, OLD):
        file = io.BytesIO()
        torch.save(whole, file, **how)
        files.append(file.getvalue())
    files.append(pickle.dumps({"a.b": np.arange(6.0), "x": collections.deque([1])}))
    refused = lines = 0
    for turn in range(1000):
        data = bytearray(files[turn % len(files)])
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(min(len(data), 900))
            match dice.randrange(3):
                case 0:
                    data[at] = dice.randrange(256)
                case 1:
                    del data[at : at + dice.randint(1, 9)]
                case 2:
                    data[at:at] = data[at : at + dice.randint(1, 9)]
        path.write_bytes(data)
        try:
            read_weights(path)
        except UserError as error:
            refused += 1
            lines += str(error).count("\n")
    assert (300 < refused < 1000, lines) == (True, 0)
