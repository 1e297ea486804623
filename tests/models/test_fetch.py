"""Weights from the hub: what is downloaded, and what is said where it cannot be."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path

import pytest
import torch

from tag2mask.models import hub, weights
from tag2mask.models.weights import fetch, load_clip
from tag2mask.types import UserError
from tiny_clips import openai_state, write_tokenizer


def into_hub_cache(folder: Path, repository: str, hub: Path) -> None:
    """Lay a folder where the hub's client keeps its downloads."""
    at = hub / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, at / "snapshots" / "0123456789abcdef")
    (at / "refs").mkdir()
    (at / "refs" / "main").write_text("0123456789abcdef")


def test_hub_repositories_come_from_the_cache_alone(hf_folder, tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: asked.append(a) or [][0])
    with pytest.raises(UserError, match=r"about 600 MB.*`tag2mask fetch openai/clip-vit-base-patch16`"):
        load_clip()
    with pytest.raises(UserError, match=r"`tag2mask fetch some/clip`"):
        load_clip("some/clip")
    with pytest.raises(UserError, match=r"no folder, \.pt file or hub repository") as caught:
        load_clip("./nowhere/clip.pt")
    assert "fetch" not in str(caught.value)
    folder = hf_folder()
    into_hub_cache(folder, "some/clip", tmp_path / "hub")
    into_hub_cache(folder, weights.DEFAULT_CLIP, tmp_path / "hub")
    assert load_clip("some/clip").name == "some/clip"
    assert load_clip().name == weights.DEFAULT_CLIP
    with pytest.raises(UserError, match="fetch"):
        load_clip("some/clip", revision="other")
    (folder / "model.safetensors").unlink()  # a repository of which only the tokenizer was ever asked for
    into_hub_cache(folder, "half/clip", tmp_path / "hub")
    with pytest.raises(UserError, match=r"`tag2mask fetch half/clip`"):
        load_clip("half/clip")
    assert asked == []


@pytest.mark.parametrize(
    ("listing", "expected"),
    [
        (["model.safetensors", "pytorch_model.bin", "tf_model.h5"], {"model.safetensors"}),
        (["pytorch_model.bin", "flax_model.msgpack"], {"pytorch_model.bin"}),
        (
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"],
            {"model.safetensors.index.json", "model-*.safetensors"},
        ),
    ],
)
def test_fetch_takes_settings_tokenizer_and_weights_only(monkeypatch, tmp_path, listing, expected) -> None:
    asked = {}

    def download(repository, *, revision, allow_patterns):
        asked.update(repository=repository, revision=revision, patterns=set(allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(
        "huggingface_hub.HfApi.list_repo_files", lambda self, repository, revision: ["config.json", *listing]
    )
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert fetch("some/clip", revision="v1") == tmp_path
    assert (asked["repository"], asked["revision"]) == ("some/clip", "v1")
    small = {"config.json", "preprocessor_config.json", "tokenizer.json", "vocab.json", "merges.txt"}
    assert asked["patterns"] == small | expected


def test_fetch_says_what_went_wrong(monkeypatch) -> None:
    def fail(self, repository, revision):
        raise OSError("no route to host\nlong trace")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repository, revision: ["README.md"])
    with pytest.raises(UserError, match=r"holds no config\.json"):
        fetch("some/clip")
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", fail)
    with pytest.raises(UserError, match=r"could not be fetched: no route to host; check") as caught:
        fetch("some/clip")
    assert "\n" not in str(caught.value)


OFFLINE = (
    r"^some/clip could not be fetched: .*HF_ENDPOINT.*config\.json.*model\.safetensors.*"
    r"--clip FOLDER; of a DINO --dino FOLDER\)$"
)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda: "[Errno -3] Temporary failure in name resolution", "name resolution"),
        (lambda: time.sleep(3), "no answer within 0.05 s"),
    ],
)
def test_fetch_without_a_network_says_what_to_do_and_does_not_wait(monkeypatch, answer, reason) -> None:
    """Also where the network neither answers nor refuses; the hub's own client is not asked."""
    monkeypatch.undo()
    monkeypatch.setattr("tag2mask.models.hub._ask", lambda address: answer())
    monkeypatch.setattr("tag2mask.models.hub.SECONDS", 0.05 if "answer within" in reason else 20)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(UserError, match=OFFLINE) as caught:
        fetch("some/clip")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fetch_asks_the_mirror_and_any_answer_will_do(monkeypatch) -> None:
    asked = []

    class Session:
        def head(self, address, timeout):
            asked.append((address, timeout))
            if address.endswith("gone"):
                raise OSError("no route to host\nlong trace")
            return "503"

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://mirror.example")
    assert hub.why_unreachable() is None
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://mirror.example/gone")
    assert hub.why_unreachable() == "https://mirror.example/gone cannot be reached (no route to host)"
    assert asked == [("https://mirror.example", hub.SECONDS), ("https://mirror.example/gone", hub.SECONDS)]
    assert hub.SECONDS < 5
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    assert "HF_HUB_OFFLINE" in hub.why_unreachable()


def test_a_tokenizer_from_the_hub_cache_serves_openai_s_pt(tmp_path) -> None:
    torch.save(openai_state(), tmp_path / "ViT.pt")
    (tmp_path / "tok").mkdir()
    write_tokenizer(tmp_path / "tok")
    into_hub_cache(tmp_path / "tok", "openai/clip-vit-base-patch32", tmp_path / "hub")
    clip = load_clip(tmp_path / "ViT.pt", activation="quick_gelu")
    assert clip.tokenizer.encode("a cat").ids == (1, 2, 5, 9)


def test_fetch_of_an_open_clip_repository(monkeypatch, tmp_path) -> None:
    asked = []
    listing = [
        "open_clip_config.json",
        "open_clip_pytorch_model.bin",
        "open_clip_model.safetensors",
        "tokenizer.json",
    ]
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repository, revision: listing)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda *_, allow_patterns, **__: asked.extend(allow_patterns) or str(tmp_path),
    )
    fetch("some/clip")
    assert {"open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json"} <= set(asked)
    assert "open_clip_pytorch_model.bin" not in asked
