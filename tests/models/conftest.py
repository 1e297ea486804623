"""Checkpoints on disk, in the layouts that users have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny_clips import write_clip


@pytest.fixture
def hf_folder(tmp_path: Path) -> Callable[..., Path]:
    """``hf_folder(**oracle settings)`` writes a checkpoint as transformers does, with a tokenizer."""

    def write(**settings: Any) -> Path:
        folder = write_clip(tmp_path / "checkpoint", **settings)
        statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
        (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
        return folder

    return write


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees or fills the caches of whoever runs it."""
    monkeypatch.setenv("TAG2MASK_CACHE", str(tmp_path / "tag2mask-cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(autouse=True)
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub answers, whatever network there is: no test downloads anything."""
    monkeypatch.setattr("tag2mask.models.find_clip.why_unreachable", lambda: None)
