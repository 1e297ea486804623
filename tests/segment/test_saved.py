"""Networks on disk: saved, killed while saved, read back, damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from segment.tiny_networks import TINY, TOYS, tiny
from tag2mask.run import files
from tag2mask.segment import saved as module
from tag2mask.segment.network import build_network, check_network_classes, load_network, save_network
from tag2mask.segment.saved import NetworkConfig, read_saved
from tag2mask.types import ClassSet, UserError


@pytest.mark.parametrize("name", list(TINY))
def test_saved_and_read_back_bit_by_bit(name: str, tmp_path: Path) -> None:
    net = tiny(name)
    net(torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8))  # moves the norms' statistics and counters
    save_network(tmp_path / "t" / "network", net, supervision="tags+pixels(3)", noted={"step": 7})
    again = load_network(tmp_path / "t", "cpu")  # a training folder holds it inside
    assert not again.training
    assert again.config == net.config
    state = net.state_dict()
    assert list(state) == list(again.state_dict())
    assert any(name.endswith("num_batches_tracked") and int(v) > 0 for name, v in state.items())
    assert all(torch.equal(v, state[n]) and v.dtype == state[n].dtype for n, v in again.state_dict().items())
    saved = read_saved(tmp_path / "t")
    assert (saved.supervision, saved.noted, saved.config) == ("tags+pixels(3)", {"step": 7}, net.config)
    goes_on = build_network(net.config, init=str(tmp_path / "t"), seed=5)
    assert all(torch.equal(v, state[n]) for n, v in goes_on.state_dict().items())


def test_killed_while_saving_again(tmp_path: Path, monkeypatch) -> None:
    """Whichever write is the last one, the folder holds the old network or the new one, and says which."""
    old, new = tiny(seed=1), tiny(seed=2)
    write = module.write_atomic
    seen = set()
    for last in range(4):
        folder = tmp_path / str(last)
        save_network(folder, old, supervision="tags", noted={"step": 1})
        writes = iter(range(last))

        def until(path: Path, data: bytes, writes: Any = writes, **how: Any) -> None:
            if next(writes, None) is None:
                raise KeyboardInterrupt
            write(path, data, **how)

        monkeypatch.setattr(module, "write_atomic", until)
        try:
            save_network(folder, new, supervision="tags", noted={"step": 2})
        except KeyboardInterrupt:
            assert last < 3
        monkeypatch.setattr(module, "write_atomic", write)
        step = read_saved(folder).noted["step"]
        expected = {1: old, 2: new}[step].state_dict()
        assert all(torch.equal(v, expected[n]) for n, v in load_network(folder, "cpu").state_dict().items())
        seen.add(step)
        save_network(folder, new, supervision="tags", noted={"step": 3})
        assert read_saved(folder).noted == {"step": 3}
        assert len(json.loads((folder / "config.json").read_text())["weights"]) == 1
    assert seen == {1, 2}


def test_what_killed_writers_left_does_not_pile_up(tmp_path: Path, monkeypatch) -> None:
    names = set()
    monkeypatch.setattr(files.os, "replace", lambda temporary, path: names.add(temporary.name))
    for step in range(2):
        save_network(tmp_path, tiny(), supervision="tags", noted={"step": step})
    assert len([name for name in names if (tmp_path / name).stat().st_size > 10_000]) == 1


def test_weights_replaced_meanwhile_are_not_taken_for_those_read_of(tmp_path: Path) -> None:
    save_network(tmp_path, tiny(seed=1), supervision="tags", noted={"step": 1})
    saved = read_saved(tmp_path)
    assert torch.equal(next(load_network(saved, "cpu").parameters()), next(tiny(seed=1).parameters()))
    save_network(tmp_path, tiny(seed=2), supervision="tags", noted={"step": 2})
    with pytest.raises(UserError, match="replaced while it was read"):
        load_network(saved, "cpu")


def test_damaged_and_foreign_folders(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    save_network(folder, tiny(), supervision="tags", noted={})

    def refused() -> str:
        with pytest.raises(UserError) as error:
            load_network(folder, "cpu")
        return str(error.value)

    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "is damaged" in refused()
    (folder / "model.safetensors").unlink()
    assert "cannot be read" in refused()
    (folder / "model.safetensors").write_bytes(whole)
    text = (folder / "config.json").read_text()
    about = json.loads(text)
    (folder / "config.json").write_text(json.dumps({**about, "names": ["background", "cat"]}))
    assert "are weights of another network" in refused()
    (folder / "config.json").write_text(json.dumps({n: v for n, v in about.items() if n != "palette"}))
    assert "is damaged (KeyError: 'palette')" in refused()
    (folder / "config.json").write_text(text[:50])
    assert "holds no network of tag2mask" in refused()


def test_networks_of_other_classes(tmp_path: Path) -> None:
    save_network(tmp_path, tiny(), supervision="tags", noted={})
    others = ClassSet("others", ("background", "cat", "cow"), TOYS.palette)
    config = read_saved(tmp_path).config
    check_network_classes(config, TOYS.names, tmp_path)
    with pytest.raises(UserError, match="class 2 is 'dog' there, 'cow' here"):
        check_network_classes(config, others.names, tmp_path)
    with pytest.raises(UserError, match="3 classes of toys, expected 2"):
        check_network_classes(config, TOYS.names[:2], tmp_path)
    with pytest.raises(UserError, match="class 2 is 'dog' there"):
        build_network(NetworkConfig.of("small", others, **TINY["small"]), init=str(tmp_path))
    with pytest.raises(UserError, match="is a small, expected a deeplabv1-resnet38"):
        build_network(NetworkConfig.of("deeplabv1-resnet38", TOYS, **TINY["deeplabv1-resnet38"]), init=str(tmp_path))
