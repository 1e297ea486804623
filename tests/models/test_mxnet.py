"""MXNet's files, written here byte by byte from the format, in its three versions."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tag2mask.models.mxnet import read_params, wideresnet_state
from tag2mask.models.wideresnet import WideResNet, load_wideresnet
from tag2mask.types import UserError

CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.uint8: 3, torch.int32: 4, torch.int64: 6}


def packed(x: Tensor, version: int) -> bytes:
    shape = x.shape
    if version == 0:
        head = struct.pack(f"<I{len(shape)}I", len(shape), *shape)
    elif version == 1:
        head = struct.pack(f"<II{len(shape)}q", 0xF993FAC8, len(shape), *shape)
    else:
        head = struct.pack(f"<IiI{len(shape)}q", 0xF993FAC9, 0, len(shape), *shape)
    return head + struct.pack("<iii", 1, 0, CODES[x.dtype]) + x.contiguous().numpy().tobytes()


def archive(arrays: dict[str, Tensor], version: int = 0) -> bytes:
    out = struct.pack("<QQQ", 0x112, 0, len(arrays)) + b"".join(packed(x, version) for x in arrays.values())
    out += struct.pack("<Q", len(arrays))
    for name in arrays:
        out += struct.pack("<Q", len(name)) + name.encode()
    return out


@pytest.mark.parametrize("version", [0, 1, 2])
def test_arrays_of_all_types_and_versions(tmp_path: Path, version: int) -> None:
    arrays = {f"arg:{i}{'x' * i}": torch.randint(0, 100, (2, i + 1, 3)).to(dtype) for i, dtype in enumerate(CODES)}
    (tmp_path / "a.params").write_bytes(archive(arrays, version))
    found = read_params(tmp_path / "a.params")
    assert list(found) == list(arrays)
    for name, value in arrays.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def original_names(net: WideResNet) -> dict[str, Tensor]:
    """The names of the ImageNet file, built from the modules."""
    norm = {"weight": ("arg", "gamma"), "bias": ("arg", "beta")}
    norm |= {"running_mean": ("aux", "moving_mean"), "running_var": ("aux", "moving_var")}
    found = {"arg:conv1a_weight": net.conv1a.weight.detach()}
    for block, module in net.named_children():
        if block == "bn7":
            found |= {f"{norm[k][0]}:bn7_{norm[k][1]}": v for k, v in module.state_dict().items() if k in norm}
        elif block.startswith("b"):
            stage, _, unit = block.partition("_")
            place = stage[1] + (f"b{unit}" if unit else "a")
            for key, value in module.state_dict().items():
                layer, kind = key.split(".")
                what, branch = layer.split("_")
                if what == "conv":
                    found[f"arg:res{place}_{branch}_weight"] = value
                elif kind in norm:
                    found[f"{norm[kind][0]}:bn{place}_{branch}_{norm[kind][1]}"] = value
    return found | {"arg:linear1000_weight": torch.zeros(10, 4), "arg:linear1000_bias": torch.zeros(10)}


def test_imagenet_weights_of_resnet38(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = WideResNet(2).eval(), WideResNet(2).eval()
    for name, value in source.state_dict().items():
        if value.is_floating_point() and "conv" not in name:
            value.uniform_(0.5, 1.5)
    names = original_names(source)
    assert {"arg:res2a_branch1_weight", "aux:bn4b5_branch2b1_moving_var", "arg:res7a_branch2b2_weight"} <= set(names)
    path = tmp_path / "ilsvrc.params"
    path.write_bytes(archive(names))
    assert len(wideresnet_state(read_params(path))) == len(names) - 2
    load_wideresnet(target, path)
    x = torch.randn(1, 3, 24, 24)
    assert torch.equal(source(x), target(x))


def test_damaged_and_hostile_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.params"
    good = archive({"arg:a": torch.zeros(2, 3), "aux:b": torch.ones(4)})
    for cut in range(0, len(good), 3):
        path.write_bytes(good[:cut])
        with pytest.raises(UserError, match=r"a\.params: was not read"):
            read_params(path)
    huge = struct.pack("<QQQ", 0x112, 0, 1) + struct.pack("<IiI2q", 0xF993FAC9, 0, 2, 2**40, 2**40)
    for data, message in (
        (b"PK" + good, "does not begin as"),
        (struct.pack("<QQQ", 0x112, 0, 2**60), "says that it holds"),
        (huge + struct.pack("<iii", 1, 0, 0), "ends too early"),
        (struct.pack("<QQQIi", 0x112, 0, 1, 0xF993FAC9, 1), "sparse array"),
        (struct.pack("<QQQI", 0x112, 0, 1, 0), "array of 0 dimensions"),
        (struct.pack("<QQQI4I", 0x112, 0, 1, 1, 3, 1, 0, 9), "array of type 9"),
        (good.replace(b"aux:b", b"arg:a"), "does not name each"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            read_params(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_params(tmp_path / "none.params")
