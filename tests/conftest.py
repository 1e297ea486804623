"""What every test may use: the golden data where it is at hand, and a pinned number of threads."""

from __future__ import annotations

from pathlib import Path

from tag2mask.process import tune_process

tune_process()  # before torch is loaded

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def golden():
    """``golden("crf/01_c2_clipes")`` loads arrays recorded from the released code, or skips where they are absent."""

    def load(name: str) -> dict[str, np.ndarray]:
        path = SHARED / "golden" / f"{name}.npz"
        if not path.exists():
            pytest.skip(f"golden data {name} is not at hand (looked beside the project for shared/golden)")
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}

    return load


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of real photographs beside the project, or a skip."""
    path = SHARED / "data"
    if not path.exists():
        pytest.skip("real photographs are not at hand (looked beside the project for shared/data)")
    return path
