"""What every test may use: recorded data, whole or the part kept here, and a pinned number of threads."""

from __future__ import annotations

import os
from pathlib import Path

from tag2mask.process import tune_process

tune_process()  # before torch is loaded

import numpy as np
import pytest
import torch

from frozen_cases import FROZEN, GOLDEN, read

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # several processes share the cores


@pytest.fixture(scope="module")
def one_thread():
    """For tests whose images are so small that they are not worth a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def golden():
    """``golden("crf/01_c2_clipes")`` loads arrays recorded from the released code.

    Where the golden data are absent it is the case kept in ``regression``, if all ``needed`` arrays are in it, or a
    skip.
    """

    def load(name: str, *needed: str) -> dict[str, np.ndarray]:
        for folder in (GOLDEN, FROZEN):
            path = folder / f"{name}.npz"
            if path.exists() and set(needed) <= (arrays := read(path)).keys():
                return arrays
        pytest.skip(f"golden data {name} is not at hand (looked beside the project for shared/golden)")

    return load


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of real photographs beside the project, or a skip."""
    path = SHARED / "data"
    if not path.exists():
        pytest.skip("real photographs are not at hand (looked beside the project for shared/data)")
    return path
